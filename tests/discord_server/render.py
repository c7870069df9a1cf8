"""The JSON that Discord sends of each thing. Ids are strings, times ISO 8601 in UTC."""

from __future__ import annotations

import re
from datetime import UTC, datetime
from typing import Final

from tests.discord_server.world import FORUM, Channel, Guild, Json, Member, Message, Role, User, World

# An application that may read messages says so in its flags, in the form for those in few guilds.
GATEWAY_MESSAGE_CONTENT_LIMITED: Final = 1 << 19
_CUSTOM_EMOJI: Final = re.compile(r"<?(a?):?([A-Za-z0-9_~]{2,32}):(\d+)>?")


def iso(moment: datetime) -> str:
    return moment.astimezone(UTC).isoformat(timespec="microseconds")


def user_json(user: User) -> Json:
    return {
        "id": str(user.id),
        "username": user.name,
        "discriminator": "0000" if user.webhook else "0",
        "global_name": user.global_name,
        "avatar": None,
        "avatar_decoration_data": None,
        "bot": user.bot,
        "public_flags": 0,
    }


def own_json(world: World) -> Json:
    """The bot as it sees itself."""
    return user_json(world.bot) | {
        "verified": True,
        "mfa_enabled": True,
        "email": None,
        "flags": 0,
        "locale": "en-US",
        "banner": None,
        "accent_color": None,
    }


def member_json(member: Member, with_user: bool = True) -> Json:
    data: Json = {
        "roles": [str(role) for role in member.roles],
        "joined_at": iso(member.joined_at),
        "nick": member.nick,
        "avatar": None,
        "banner": None,
        "premium_since": None,
        "communication_disabled_until": None,
        "pending": False,
        "deaf": False,
        "mute": False,
        "flags": 0,
    }
    return data | {"user": user_json(member.user)} if with_user else data


def role_json(role: Role) -> Json:
    data: Json = {
        "id": str(role.id),
        "name": role.name,
        "permissions": str(role.permissions),
        "position": role.position,
        "color": 0,
        "colors": {"primary_color": 0, "secondary_color": None, "tertiary_color": None},
        "hoist": False,
        "managed": role.bot_id is not None,
        "mentionable": False,
        "icon": None,
        "unicode_emoji": None,
        "flags": 0,
    }
    return data | {"tags": {"bot_id": str(role.bot_id)}} if role.bot_id else data


def channel_json(world: World, channel: Channel) -> Json:
    if channel.recipient is not None:
        return {
            "id": str(channel.id),
            "type": channel.kind,
            "flags": 0,
            "last_message_id": _text(channel.last_message_id),
            "recipients": [user_json(channel.recipient)],
        }
    if channel.is_thread:
        return _thread_json(channel)
    return {
        "id": str(channel.id),
        "type": channel.kind,
        "guild_id": _text(channel.guild.id if channel.guild else None),
        "name": channel.name,
        "position": 0,
        "parent_id": None,
        "topic": None,
        "nsfw": False,
        "rate_limit_per_user": 0,
        "last_message_id": _text(channel.last_message_id),
        "flags": 0,
        "permission_overwrites": _overwrites(world, channel),
        **({"available_tags": [], "default_reaction_emoji": None} if channel.kind == FORUM else {}),
    }


def _overwrites(world: World, channel: Channel) -> list[Json]:
    if not channel.denied and not channel.allowed:
        return []
    return [{"id": str(world.bot.id), "type": 1, "allow": str(channel.allowed), "deny": str(channel.denied)}]


def _thread_json(thread: Channel) -> Json:
    assert thread.parent is not None and thread.guild is not None
    count = len(thread.messages)
    return {
        "id": str(thread.id),
        "type": thread.kind,
        "guild_id": str(thread.guild.id),
        "parent_id": str(thread.parent.id),
        "owner_id": _text(thread.owner_id),
        "name": thread.name,
        "rate_limit_per_user": 0,
        "last_message_id": _text(thread.last_message_id),
        "message_count": count,
        "total_message_sent": count,
        "member_count": 1,
        "flags": 0,
        "applied_tags": [],
        "thread_metadata": {
            "archived": thread.archived,
            "auto_archive_duration": 4320,
            "archive_timestamp": iso(datetime.now(UTC)),
            "locked": False,
            "create_timestamp": iso(datetime.now(UTC)),
        },
    }


def guild_json(world: World, guild: Guild) -> Json:
    """A guild as REST gives it."""
    return {
        "id": str(guild.id),
        "name": guild.name,
        "owner_id": str(guild.owner_id),
        "roles": [role_json(role) for role in guild.roles.values()],
        "preferred_locale": guild.locale,
        "icon": None,
        "splash": None,
        "discovery_splash": None,
        "banner": None,
        "description": None,
        "emojis": [],
        "stickers": [],
        "features": [],
        "afk_channel_id": None,
        "afk_timeout": 300,
        "system_channel_id": None,
        "system_channel_flags": 0,
        "rules_channel_id": None,
        "public_updates_channel_id": None,
        "vanity_url_code": None,
        "verification_level": 0,
        "default_message_notifications": 0,
        "explicit_content_filter": 0,
        "mfa_level": 0,
        "nsfw_level": 0,
        "premium_tier": 0,
        "premium_subscription_count": 0,
        "premium_progress_bar_enabled": False,
        "max_members": 500_000,
        "approximate_member_count": len(guild.members),
    }


def guild_create_json(world: World, guild: Guild) -> Json:
    """A guild as GUILD_CREATE gives it. Without the members intent it brings only the bot's own membership."""
    channels = [one for one in guild.channels.values() if not one.is_thread]
    threads = [one for one in guild.channels.values() if one.is_thread and not one.archived]
    return guild_json(world, guild) | {
        "joined_at": iso(guild.members[world.bot.id].joined_at),
        "large": False,
        "unavailable": False,
        "member_count": len(guild.members),
        "members": [member_json(guild.members[world.bot.id])],
        "channels": [channel_json(world, one) for one in channels],
        "threads": [_thread_json(one) for one in threads if world.bot_may(one, "view_channel")],
        "voice_states": [],
        "presences": [],
        "stage_instances": [],
        "guild_scheduled_events": [],
        "soundboard_sounds": [],
    }


def emoji_key(emoji: str) -> str:
    """An emoji as messages keep it: the character itself, or ``name:id`` of one of a guild's own."""
    custom = _CUSTOM_EMOJI.fullmatch(emoji)
    return f"{custom[2]}:{custom[3]}" if custom else emoji


def emoji_json(key: str) -> Json:
    name, colon, number = key.partition(":")
    return {"id": number, "name": name, "animated": False} if colon else {"id": None, "name": key}


def message_json(world: World, message: Message, hide: bool = False, site: str = "", nested: bool = False) -> Json:
    """A message as REST gives it. ``hide``: the reader may not read what other people wrote in guilds."""
    shown = not hide or can_always_read(world, message)
    data: Json = {
        "id": str(message.id),
        "type": message.kind,
        "channel_id": str(message.channel.id),
        "author": user_json(message.author),
        "content": message.content if shown else "",
        "embeds": message.embeds if shown else [],
        "attachments": attachments_json(message, site) if shown else [],
        "components": message.components if shown else [],
        "timestamp": iso(message.created_at),
        "edited_timestamp": iso(message.edited_at) if message.edited_at else None,
        "tts": False,
        "mention_everyone": message.mention_everyone,
        "mentions": mentions_json(world, message),
        "mention_roles": [],
        "pinned": False,
        "flags": message.flags,
    }
    if message.reactions:
        data["reactions"] = [_reaction_json(world, key, ids) for key, ids in message.reactions.items()]
    if message.webhook_id is not None:
        data["webhook_id"] = str(message.webhook_id)
    if message.interaction is not None:
        data |= message.interaction
    if message.forwarded is not None:
        data["message_reference"] = _reference(message.forwarded, kind=1)
        data["message_snapshots"] = [{"message": _snapshot(world, message.forwarded, shown, site)}]
    elif message.replied is not None:
        data["message_reference"] = _reference(message.replied, kind=0)
        if not nested:
            gone = message.replied.deleted
            data["referenced_message"] = None if gone else message_json(world, message.replied, hide, site, True)
    return data


def can_always_read(world: World, message: Message) -> bool:
    """What an application reads without the message content intent: its own, direct, and what mentions it."""
    own = message.author is world.bot or message.webhook_id == world.bot.id
    return own or message.channel.guild is None or world.bot.id in message.mentions


def mentions_json(world: World, message: Message) -> list[Json]:
    found = [world.users[one] for one in message.mentions if one in world.users]
    guild = message.channel.guild
    if guild is None:
        return [user_json(user) for user in found]
    members = ((user, guild.members.get(user.id)) for user in found)
    return [
        user_json(user) | ({"member": member_json(member, with_user=False)} if member else {})
        for user, member in members
    ]


def attachments_json(message: Message, site: str) -> list[Json]:
    found = []
    for number, (name, data) in zip(message.attachment_ids, message.attachments, strict=True):
        url = f"{site}/attachments/{message.channel.id}/{number}/{name}"
        found.append({"id": str(number), "filename": name, "size": len(data), "url": url, "proxy_url": url})
    return found


def _reaction_json(world: World, key: str, ids: list[int]) -> Json:
    return {
        "emoji": emoji_json(key),
        "count": len(ids),
        "count_details": {"burst": 0, "normal": len(ids)},
        "me": world.bot.id in ids,
        "me_burst": False,
        "burst_colors": [],
    }


def _reference(message: Message, kind: int) -> Json:
    data: Json = {"type": kind, "message_id": str(message.id), "channel_id": str(message.channel.id)}
    if message.channel.guild is not None:
        data["guild_id"] = str(message.channel.guild.id)
    return data


def _snapshot(world: World, message: Message, shown: bool, site: str) -> Json:
    return {
        "type": message.kind,
        "content": message.content if shown else "",
        "embeds": message.embeds if shown else [],
        "attachments": attachments_json(message, site) if shown else [],
        "components": [],
        "timestamp": iso(message.created_at),
        "edited_timestamp": iso(message.edited_at) if message.edited_at else None,
        "flags": message.flags,
        "mentions": mentions_json(world, message),
        "mention_roles": [],
    }


def application_json(world: World, flags: int) -> Json:
    return {
        "id": str(world.bot.id),
        "name": world.bot.name,
        "description": "",
        "icon": None,
        "bot_public": True,
        "bot_require_code_grant": False,
        "verify_key": "0" * 64,
        "owner": user_json(world.owner),
        "team": None,
        "flags": flags,
        "bot": user_json(world.bot),
        "summary": "",
        "tags": [],
        "redirect_uris": [],
        "interactions_endpoint_url": None,
        "approximate_guild_count": len(world.guilds),
        "integration_types_config": {"0": {}},
    }


def _text(number: int | None) -> str | None:
    return None if number is None else str(number)
