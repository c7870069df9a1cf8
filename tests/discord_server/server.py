"""The server: REST and Gateway on one port of loopback, and what a test can do in its world.

A test plays everybody but the bot: it makes channels and users, lets them write and react, breaks connections and
answers, and looks at what the bot did. It all happens in the test's own event loop, so what a test reads between two
``await``s stands still.
"""

from __future__ import annotations

import asyncio
import base64
import copy
import re
import time
from collections import deque
from collections.abc import Callable, Iterable
from types import TracebackType
from typing import Final, Self

from tests.discord_server import gateway as gw
from tests.discord_server import permissions
from tests.discord_server.actions import Actions
from tests.discord_server.commands import Commands
from tests.discord_server.faults import Fault
from tests.discord_server.gateway import Gateway
from tests.discord_server.http import API, Http, Request
from tests.discord_server.interactions import Interaction, Interactions
from tests.discord_server.render import emoji_key
from tests.discord_server.rest import Rest
from tests.discord_server.world import FORUM, HAS_SNAPSHOT, REPLY, Channel, Guild, Json, Message, User, World

POLL_S: Final = 0.004


class DiscordServer:
    """Discord, small. ``async with`` opens its port and closes all that is open in the end."""

    def __init__(
        self,
        token: str,
        application_id: int,
        latency_s: float = 0.0,
        heartbeat_interval_ms: int = 41_250,
        rate_limit: tuple[int, float] | None = None,
        interaction_deadline_s: float = 3.0,
        bot_name: str = "dolmetsch",
    ) -> None:
        self.token = token.removeprefix("Bot ")
        self.world = World(application_id, bot_name)
        self._gateway = Gateway(self.token, heartbeat_interval_ms, latency_s)
        self._actions = Actions(self.world, self._gateway)
        self._commands = Commands(application_id, self.world.snowflake)
        self._interactions = Interactions(self._actions, self._commands, interaction_deadline_s)
        rest = Rest(self._actions, self._commands, self._interactions)
        self._http = Http(self.world, self._gateway, rest, self.token, latency_s)
        self.guild = self.world.add_guild("guild")
        if rate_limit is not None:
            self.limit("POST", "/channels/{channel}/messages", *rate_limit)

    @staticmethod
    def make_token(application_id: int) -> str:
        """A token of the form real ones have: the id, a time and a signature, in base64 each."""
        number = base64.urlsafe_b64encode(str(application_id).encode()).decode().rstrip("=")
        return f"{number}.GtEsTs.{'tOkEn' * 7}_-x"

    # Opening and closing.

    async def __aenter__(self) -> Self:
        await self._http.open()
        self._actions.site = self.site
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close everything. If the server itself failed at something, the test fails too."""
        await self._http.close()
        if error is None and self.errors:
            raise AssertionError("the server failed:\n" + "\n".join(self.errors))

    @property
    def port(self) -> int:
        return self._http.port

    @property
    def site(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def api(self) -> str:
        return self.site + API

    @property
    def gateway(self) -> str:
        return f"ws://127.0.0.1:{self.port}/"

    # What there is, and what the bot did.

    @property
    def bot(self) -> User:
        return self.world.bot

    @property
    def requests(self) -> deque[Request]:
        """The last requests of the bot, oldest first."""
        return self._http.requests

    @property
    def unknown(self) -> deque[tuple[str, str]]:
        """Requests (method, path) that nothing here answers: a test that wants to be sure asserts there are none."""
        return self._http.unknown

    @property
    def errors(self) -> deque[str]:
        """Tracebacks of what the server could not do; with any, leaving it raises."""
        return self._http.errors

    @property
    def commands(self) -> list[Json]:
        return self._commands.all()

    @property
    def ready_count(self) -> int:
        return self._gateway.ready_count

    @property
    def resume_count(self) -> int:
        return self._gateway.resume_count

    @property
    def connected(self) -> bool:
        return self._gateway.connected

    @property
    def presence(self) -> Json | None:
        return self._gateway.presence

    @property
    def identified(self) -> Json | None:
        """What the last accepted IDENTIFY said."""
        return self._gateway.identified

    def messages(self, channel: Channel) -> list[Message]:
        """What everybody sees in a channel, oldest first. An answer that is still awaited is not there yet."""
        return [one for one in channel.messages.values() if not (one.deleted or one.ephemeral or one.loading)]

    def by_bot(self, channel: Channel) -> list[Message]:
        return [one for one in self.messages(channel) if one.author is self.bot]

    async def until(self, condition: Callable[[], object], within_s: float = 10.0) -> None:
        """Wait for something to be so. When time is over, the error tells of the last requests."""
        deadline = time.monotonic() + within_s
        while not condition():
            if time.monotonic() > deadline:
                last = [
                    f"  {one.status} {one.method} {one.path} {one.json}"[:300] for one in tuple(self.requests)[-12:]
                ]
                text = "\n".join([*last, *self.errors]) or "  none"
                raise AssertionError(f"not so within {within_s:g} s; the last requests were:\n{text}")
            await asyncio.sleep(POLL_S)

    # Making things.

    def add_guild(self, name: str) -> Guild:
        guild = self.world.add_guild(name)
        self._actions.guild_appears(guild)
        return guild

    def add_channel(self, name: str, guild: Guild | None = None) -> Channel:
        channel = self.world.add_channel(name, guild or self.guild)
        self._actions.channel_appears(channel)
        return channel

    def add_forum(self, name: str, guild: Guild | None = None) -> Channel:
        channel = self.world.add_channel(name, guild or self.guild, FORUM)
        self._actions.channel_appears(channel)
        return channel

    def add_thread(
        self, name: str, parent: Channel, owner: User | None = None, message: Message | None = None, content: str = ""
    ) -> Channel:
        """A thread, from a message or from nothing; in a forum a post, with ``content`` its first message."""
        thread = self.world.add_thread(name, parent, owner or self.world.owner, message)
        self._actions.channel_appears(thread)
        if content and parent.kind == FORUM:
            # A post's first message has the post's own id.
            self._say(Message(thread.id, thread, owner or self.world.owner, content))
        return thread

    def add_user(self, name: str, bot: bool = False, permissions: Iterable[str] = ()) -> User:
        """A member of all guilds. ``permissions`` are what it may do beyond what everybody may."""
        user = self.world.add_user(name, bot, permissions)
        for guild in self.world.guilds.values():
            self._actions.member_joins(guild, guild.members[user.id])
        return user

    def add_dm(self, user: User) -> Channel:
        return self.world.direct(user)

    # What people do.

    def say(
        self,
        channel: Channel,
        user: User,
        content: str = "",
        *,
        embeds: Iterable[Json] = (),
        attachments: Iterable[tuple[str, bytes]] = (),
        webhook: bool = False,
        forwarded: Message | None = None,
        reply_to: Message | None = None,
        kind: int = 0,
        flags: int = 0,
    ) -> Message:
        """Somebody writes something. ``kind`` is for messages that Discord itself writes, as that somebody joined."""
        author = self.world.webhook(channel, user.name) if webhook else user
        message = Message(self.world.snowflake(), channel, author, content, kind, list(embeds), flags=flags)
        message.attachments = list(attachments)
        message.attachment_ids = [self.world.snowflake() for _ in message.attachments]
        message.webhook_id = author.id if webhook else None
        if forwarded is not None:
            message.forwarded = copy.copy(forwarded)
            message.flags |= HAS_SNAPSHOT
        elif reply_to is not None:
            message.kind, message.replied, message.reply_to = REPLY, reply_to, reply_to.id
        return self._say(message)

    def _say(self, message: Message) -> Message:
        self._actions.address(message, None)
        self._actions.create(message)
        return message

    def edit(self, message: Message, content: str) -> None:
        message.content = content
        self._actions.address(message, message.allowed_mentions)
        self._actions.update(message, edited=True)

    def embed(self, message: Message, embeds: Iterable[Json]) -> None:
        """Discord puts previews of a message's links under it; that is no edit."""
        message.embeds = list(embeds)
        self._actions.update(message, edited=False)

    def delete(self, message: Message) -> None:
        self._actions.delete(message)

    def delete_many(self, messages: Iterable[Message]) -> None:
        """Delete messages of one channel at once."""
        self._actions.delete_many(list(messages))

    def react(self, message: Message, user: User, emoji: str) -> None:
        self._actions.react(message, user, emoji_key(emoji))

    def unreact(self, message: Message, user: User, emoji: str) -> None:
        self._actions.unreact(message, user.id, emoji_key(emoji))

    def clear_reactions(self, message: Message) -> None:
        self._actions.clear_reactions(message)

    def clear_emoji(self, message: Message, emoji: str) -> None:
        self._actions.clear_emoji(message, emoji_key(emoji))

    # Commands and components.

    def command(
        self, channel: Channel, user: User, name: str, options: Json | None = None, locale: str = "en-US"
    ) -> Interaction:
        """A slash command; a subcommand's name comes after a blank."""
        return self._interactions.command(channel, user, name, options or {}, locale)

    def context_menu(
        self, channel: Channel, user: User, name: str, message: Message, locale: str = "en-US"
    ) -> Interaction:
        return self._interactions.context_menu(channel, user, name, message, locale)

    def choose(
        self,
        source: Interaction | Message,
        custom_id: str,
        values: Iterable[str] = (),
        user: User | None = None,
        locale: str | None = None,
    ) -> Interaction:
        """Use a select or a button of an answer (or of a message); the same user as before, unless another is named."""
        if isinstance(source, Message):
            assert user is not None, "who chooses?"
            return self._interactions.choose(source, user, custom_id, list(values), locale or "en-US")
        assert source.message is not None, "there is no answer yet to choose in"
        who, language = user or source.user, locale or source.locale
        return self._interactions.choose(source.message, who, custom_id, list(values), language)

    def autocomplete(
        self, channel: Channel, user: User, name: str, options: Json, focused: str, locale: str = "en-US"
    ) -> Interaction:
        return self._interactions.autocomplete(channel, user, name, options, focused, locale)

    # What the bot may do.

    def forbid(self, channel: Channel, *names: str) -> None:
        """Take permissions from the bot in a channel. A thread has its parent's, for all the parent's threads."""
        self._overwrite(channel, permissions.bits(_in_place(channel, names)), deny=True)

    def permit(self, channel: Channel, *names: str) -> None:
        self._overwrite(channel, permissions.bits(_in_place(channel, names)), deny=False)

    def _overwrite(self, channel: Channel, bits: int, deny: bool) -> None:
        place = channel.parent or channel
        place.denied = place.denied | bits if deny else place.denied & ~bits
        place.allowed = place.allowed & ~bits if deny else place.allowed | bits
        self._actions.channel_changes(place)

    @property
    def message_content_allowed(self) -> bool:
        """Whether the application may have the message content intent; the two below are the other privileged ones."""
        return bool(self._gateway.privileged_allowed & gw.MESSAGE_CONTENT)

    @message_content_allowed.setter
    def message_content_allowed(self, allowed: bool) -> None:
        self._allow(gw.MESSAGE_CONTENT, allowed)

    @property
    def members_allowed(self) -> bool:
        return bool(self._gateway.privileged_allowed & gw.GUILD_MEMBERS)

    @members_allowed.setter
    def members_allowed(self, allowed: bool) -> None:
        self._allow(gw.GUILD_MEMBERS, allowed)

    @property
    def presences_allowed(self) -> bool:
        return bool(self._gateway.privileged_allowed & gw.GUILD_PRESENCES)

    @presences_allowed.setter
    def presences_allowed(self, allowed: bool) -> None:
        self._allow(gw.GUILD_PRESENCES, allowed)

    def _allow(self, intent: int, allowed: bool) -> None:
        before = self._gateway.privileged_allowed
        self._gateway.privileged_allowed = before | intent if allowed else before & ~intent

    # What goes wrong.

    def drop(self, resumable: bool = True) -> None:
        """Break the WebSocket. If the session is not resumable, the next RESUME gets INVALID_SESSION(false)."""
        self._gateway.drop(resumable)

    def reconnect(self) -> None:
        """RECONNECT: the client is asked to connect again and RESUME."""
        self._gateway.reconnect()

    def invalidate(self, resumable: bool = False) -> None:
        """INVALID_SESSION, out of the blue, on the open connection."""
        self._gateway.invalidate(resumable)

    def fail(
        self,
        method: str,
        path: str,
        status: int = 503,
        times: int = 1,
        *,
        retry_after: float = 0.3,
        is_global: bool = False,
        carried_out: bool = False,
        code: int | None = None,
        message: str = "",
    ) -> Fault:
        """The next matching requests fail. ``path`` is a pattern for the whole path after ``/api/v10``.

        Status 0 breaks the connection instead of answering; ``carried_out`` loses only the answer, not the effect.
        ``code`` and ``message`` make it one of Discord's own errors. The path of the Gateway itself is ``/``.
        """
        body = None if code is None else {"message": message, "code": code}
        fault = Fault(method, re.compile(path), status, times, retry_after, is_global, carried_out, body)
        return self._http.faults.add(fault)

    def delay(self, method: str, path: str, seconds: float, *, late: bool = False) -> None:
        """Such requests take so long from now on; 0 ends it. ``late``: they are carried out at once, answered later."""
        self._http.faults.delay(method, path, seconds, late)

    def forget_nonces(self) -> None:
        """As if some minutes had passed."""
        self._http.forget_nonces()

    def limit(self, method: str, template: str, limit: int, per_s: float) -> None:
        """A real limit on a route, such as ``/channels/{channel}/messages``: so many in a window, for each channel."""
        self._http.limits.set(method, template, limit, per_s)


def _in_place(channel: Channel, names: Iterable[str]) -> list[str]:
    """In threads one sends by a permission of its own."""
    return ["send_messages_in_threads" if channel.is_thread and one == "send_messages" else one for one in names]
