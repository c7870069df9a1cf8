"""What happens in the world: each action changes it and tells the sessions, whoever acted."""

from __future__ import annotations

import json
import re
from datetime import UTC, datetime
from typing import Any, Final

from tests.discord_server import gateway as gw
from tests.discord_server.gateway import Gateway, Session
from tests.discord_server.render import (
    GATEWAY_MESSAGE_CONTENT_LIMITED,
    channel_json,
    emoji_json,
    guild_create_json,
    member_json,
    message_json,
    own_json,
)
from tests.discord_server.world import Channel, Guild, Json, Member, Message, User, World

_USER_MENTION: Final = re.compile(r"<@!?(\d+)>")
_EVERYONE: Final = re.compile(r"@(everyone|here)\b")


class Actions:
    def __init__(self, world: World, gateway: Gateway) -> None:
        self.world = world
        self.gateway = gateway
        self.site = ""  # where attachments can be fetched; known once the server listens
        gateway.on_ready = self._welcome
        gateway.on_members_wanted = self._members

    @property
    def application_flags(self) -> int:
        allowed = self.gateway.privileged_allowed & gw.MESSAGE_CONTENT
        return GATEWAY_MESSAGE_CONTENT_LIMITED if allowed else 0

    def rest_json(self, message: Message) -> Json:
        """A message as REST shows it to the bot."""
        return message_json(self.world, message, hide=not self.application_flags, site=self.site)

    # Sessions.

    def _welcome(self, session: Session, identify: Json) -> None:
        self._to(session, "READY", self._ready(session, identify))
        if session.intents & gw.GUILDS:
            for guild in self.world.guilds.values():
                self._to(session, "GUILD_CREATE", guild_create_json(self.world, guild))

    def _to(self, session: Session, name: str, data: Json) -> None:
        session.dispatch(name, json.dumps(data, ensure_ascii=False))

    def _ready(self, session: Session, identify: Json) -> Json:
        return {
            "v": 10,
            "user": own_json(self.world),
            "user_settings": {},
            "session_type": "normal",
            "session_id": session.id,
            "resume_gateway_url": self.site.replace("http", "ws", 1),
            "relationships": [],
            "private_channels": [],
            "presences": [],
            "guilds": [{"id": str(guild), "unavailable": True} for guild in self.world.guilds],
            "application": {"id": str(self.world.bot.id), "flags": self.application_flags},
            **({"shard": identify["shard"]} if "shard" in identify else {}),
        }

    def _members(self, session: Session, wanted: Json) -> None:
        """GUILD_MEMBERS_CHUNK: the answer to a request for members, by ids or by the beginning of a name."""
        guild = self.world.guilds.get(int(wanted.get("guild_id", 0)))
        if guild is None:
            return
        ids, query = wanted.get("user_ids"), str(wanted.get("query", "")).lower()
        if ids is not None:
            wanted_ids = {int(one) for one in (ids if isinstance(ids, list) else [ids])}
            found = [one for one in guild.members.values() if one.user.id in wanted_ids]
        else:
            found = [one for one in guild.members.values() if one.user.name.lower().startswith(query)]
        data: Json = {
            "guild_id": str(guild.id),
            "members": [member_json(one) for one in found[: wanted.get("limit") or None]],
            "chunk_index": 0,
            "chunk_count": 1,
            "not_found": [],
        }
        self._to(session, "GUILD_MEMBERS_CHUNK", data | ({"nonce": wanted["nonce"]} if "nonce" in wanted else {}))

    # Guilds and channels.

    def guild_appears(self, guild: Guild) -> None:
        self.gateway.publish("GUILD_CREATE", gw.GUILDS, lambda reads: guild_create_json(self.world, guild))

    def member_joins(self, guild: Guild, member: Member) -> None:
        data = member_json(member) | {"guild_id": str(guild.id)}
        self.gateway.publish("GUILD_MEMBER_ADD", gw.GUILD_MEMBERS, lambda reads: data)

    def channel_appears(self, channel: Channel) -> None:
        name, more = ("THREAD_CREATE", {"newly_created": True}) if channel.is_thread else ("CHANNEL_CREATE", {})
        if not channel.is_thread or self.world.bot_may(channel, "view_channel"):
            self.gateway.publish(name, gw.GUILDS, lambda reads: channel_json(self.world, channel) | more)

    def channel_changes(self, channel: Channel) -> None:
        if channel.guild is not None:
            name = "THREAD_UPDATE" if channel.is_thread else "CHANNEL_UPDATE"
            self.gateway.publish(name, gw.GUILDS, lambda reads: channel_json(self.world, channel))

    # Messages.

    def address(self, message: Message, allowed: Json | None) -> None:
        """Find whom a message mentions. The sender may say which kinds of mention count; without a word all do."""
        message.allowed_mentions = allowed
        parse = ("users", "roles", "everyone") if allowed is None else allowed.get("parse") or ()
        named = {int(one) for one in (allowed or {}).get("users") or ()}
        written = dict.fromkeys(int(one) for one in _USER_MENTION.findall(message.content))
        message.mentions = [one for one in written if one in self.world.users and ("users" in parse or one in named)]
        replied = message.replied
        pings = allowed is None or bool(allowed.get("replied_user"))
        if replied is not None and pings and replied.author.id not in message.mentions and not replied.webhook_id:
            message.mentions.append(replied.author.id)
        everyone = "everyone" in parse and bool(_EVERYONE.search(message.content))
        message.mention_everyone = everyone and self._may_mention_everyone(message)

    def _may_mention_everyone(self, message: Message) -> bool:
        if message.channel.guild is None:
            return False
        return message.author is not self.world.bot or self.world.bot_may(message.channel, "mention_everyone")

    def create(self, message: Message) -> None:
        message.channel.store(message)
        nonce = {"nonce": message.nonce} if message.nonce is not None else {}
        self._publish(message, "MESSAGE_CREATE", lambda reads: self._event_json(message, reads) | nonce)

    def update(self, message: Message, edited: bool) -> None:
        """A message changed: somebody edited it, or Discord put a link's preview under it."""
        if edited:
            message.edited_at = datetime.now(UTC)
        self._publish(message, "MESSAGE_UPDATE", lambda reads: self._event_json(message, reads))

    def delete(self, message: Message) -> None:
        if not message.deleted:
            message.deleted = True
            data = {"id": str(message.id), "channel_id": str(message.channel.id)} | _guild(message)
            self._publish(message, "MESSAGE_DELETE", lambda reads: data)

    def delete_many(self, messages: list[Message]) -> None:
        present = [one for one in messages if not one.deleted]
        for one in present:
            one.deleted = True
        if present:
            first = present[0]
            ids = [str(one.id) for one in present]
            data = {"ids": ids, "channel_id": str(first.channel.id)} | _guild(first)
            self._publish(first, "MESSAGE_DELETE_BULK", lambda reads: data)

    def _event_json(self, message: Message, reads: bool) -> Json:
        """A message as an event gives it: with its guild, and with its author's membership there."""
        data = message_json(self.world, message, hide=not reads, site=self.site) | _guild(message)
        guild = message.channel.guild
        if guild is not None and not message.ephemeral and message.webhook_id is None:
            member = guild.members.get(message.author.id)
            data |= {"member": member_json(member, with_user=False)} if member else {}
        return data

    def _publish(self, message: Message, name: str, render: gw.Render, reaction: bool = False) -> None:
        """An event about a message goes to those who may see its channel.

        What only one user sees is sent as if it were in a direct message, as Discord does.
        """
        channel = message.channel
        if channel.guild is not None and not message.ephemeral:
            if not self.world.bot_may(channel, "view_channel"):
                return
            intent = gw.GUILD_MESSAGE_REACTIONS if reaction else gw.GUILD_MESSAGES
        else:
            intent = gw.DIRECT_MESSAGE_REACTIONS if reaction else gw.DIRECT_MESSAGES
        self.gateway.publish(name, intent, render)

    # Reactions.

    def react(self, message: Message, user: User, key: str) -> None:
        users = message.reactions.setdefault(key, [])
        if user.id in users:
            return
        users.append(user.id)
        data = self._reaction(message, key) | {"user_id": str(user.id), "burst": False, "type": 0}
        if message.webhook_id is None:
            data["message_author_id"] = str(message.author.id)
        guild = message.channel.guild
        if guild is not None and user.id in guild.members:
            data["member"] = member_json(guild.members[user.id])
        self._publish(message, "MESSAGE_REACTION_ADD", lambda reads: data, reaction=True)

    def unreact(self, message: Message, user_id: int, key: str) -> bool:
        """Take one reaction away; whether it was there."""
        users = message.reactions.get(key, [])
        if user_id not in users:
            return False
        users.remove(user_id)
        if not users:
            del message.reactions[key]
        data = self._reaction(message, key) | {"user_id": str(user_id), "burst": False, "type": 0}
        self._publish(message, "MESSAGE_REACTION_REMOVE", lambda reads: data, reaction=True)
        return True

    def clear_reactions(self, message: Message) -> None:
        message.reactions.clear()
        data = {"message_id": str(message.id), "channel_id": str(message.channel.id)} | _guild(message)
        self._publish(message, "MESSAGE_REACTION_REMOVE_ALL", lambda reads: data, reaction=True)

    def clear_emoji(self, message: Message, key: str) -> None:
        if message.reactions.pop(key, None) is not None:
            data = self._reaction(message, key)
            self._publish(message, "MESSAGE_REACTION_REMOVE_EMOJI", lambda reads: data, reaction=True)

    def _reaction(self, message: Message, key: str) -> Json:
        place: Json = {"message_id": str(message.id), "channel_id": str(message.channel.id)}
        return place | {"emoji": emoji_json(key)} | _guild(message)


def _guild(message: Message) -> dict[str, Any]:
    guild = message.channel.guild
    return {"guild_id": str(guild.id)} if guild is not None and not message.ephemeral else {}
