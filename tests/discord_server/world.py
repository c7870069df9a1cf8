"""The world the server serves: guilds, channels, users and messages. Pure state; nothing is sent from here.

Ids are snowflakes: they grow with time, and the time of a thing can be read from its id.
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Final

from tests.discord_server import permissions

Json = dict[str, Any]

DISCORD_EPOCH_MS: Final = 1_420_070_400_000
MAX_MESSAGES: Final = 20_000  # a channel keeps so many, the newest

TEXT, DM, PUBLIC_THREAD, FORUM = 0, 1, 11, 15

REPLY, SLASH_REPLY, CONTEXT_MENU_REPLY = 19, 20, 23  # types of messages; 0 is an ordinary one
HAS_THREAD, EPHEMERAL, LOADING, HAS_SNAPSHOT = 1 << 5, 1 << 6, 1 << 7, 1 << 14  # flags of messages


class Snowflakes:
    """Ids that grow: the millisecond above, a count within it below."""

    def __init__(self) -> None:
        self._last = 0

    def __call__(self) -> int:
        now = (int(time.time() * 1000) - DISCORD_EPOCH_MS) << 22
        self._last = max(self._last + 1, now)
        return self._last


def time_of(snowflake: int) -> datetime:
    return datetime.fromtimestamp(((snowflake >> 22) + DISCORD_EPOCH_MS) / 1000, UTC)


@dataclass(slots=True, eq=False)
class User:
    id: int
    name: str
    bot: bool = False
    webhook: bool = False
    global_name: str | None = None
    permissions: tuple[str, ...] = ()

    @property
    def mention(self) -> str:
        return f"<@{self.id}>"


@dataclass(slots=True, eq=False)
class Role:
    id: int
    name: str
    permissions: int
    position: int
    bot_id: int | None = None


@dataclass(slots=True, eq=False)
class Member:
    user: User
    joined_at: datetime
    roles: list[int] = field(default_factory=list)
    nick: str | None = None


@dataclass(slots=True, eq=False, repr=False)
class Guild:
    id: int
    name: str
    owner_id: int
    roles: dict[int, Role] = field(default_factory=dict)
    members: dict[int, Member] = field(default_factory=dict)
    channels: dict[int, Channel] = field(default_factory=dict)
    locale: str = "en-US"

    def __repr__(self) -> str:
        return f"<Guild {self.name}>"

    def permissions_of(self, user_id: int) -> int:
        """What a member may do where no channel says otherwise."""
        value = self.roles[self.id].permissions
        member = self.members.get(user_id)
        for role in member.roles if member else ():
            value |= self.roles[role].permissions
        return value


@dataclass(slots=True, eq=False, repr=False)
class Message:
    id: int
    channel: Channel
    author: User
    content: str
    kind: int = 0
    embeds: list[Json] = field(default_factory=list)
    attachments: list[tuple[str, bytes]] = field(default_factory=list)
    attachment_ids: list[int] = field(default_factory=list)
    components: list[Json] = field(default_factory=list)
    reactions: dict[str, list[int]] = field(default_factory=dict)
    flags: int = 0
    edited_at: datetime | None = None
    deleted: bool = False
    reply_to: int | None = None
    replied: Message | None = None
    forwarded: Message | None = None
    webhook_id: int | None = None
    allowed_mentions: Json | None = None
    mentions: list[int] = field(default_factory=list)
    mention_everyone: bool = False
    nonce: str | None = None
    interaction: Json | None = None
    payload: Json | None = None
    created_at_monotonic: float = field(default_factory=time.monotonic)

    def __repr__(self) -> str:
        return f"<Message {self.author.name} in {self.channel.name}: {self.content!r}>"

    @property
    def created_at(self) -> datetime:
        return time_of(self.id)

    @property
    def ephemeral(self) -> bool:
        return bool(self.flags & EPHEMERAL)

    @property
    def loading(self) -> bool:
        """A bot "is thinking…": the place of an answer that is still to come."""
        return bool(self.flags & LOADING)

    @property
    def jump_url(self) -> str:
        place = self.channel.guild.id if self.channel.guild else "@me"
        return f"https://discord.com/channels/{place}/{self.channel.id}/{self.id}"


@dataclass(slots=True, eq=False, repr=False)
class Channel:
    id: int
    kind: int
    name: str
    guild: Guild | None = None
    parent: Channel | None = None
    recipient: User | None = None
    owner_id: int | None = None
    denied: int = 0
    allowed: int = 0
    archived: bool = False
    last_message_id: int | None = None
    webhook: User | None = None
    messages: dict[int, Message] = field(default_factory=dict)

    def __repr__(self) -> str:
        return f"<Channel {self.name}>"

    @property
    def is_thread(self) -> bool:
        return self.kind == PUBLIC_THREAD

    @property
    def mention(self) -> str:
        return f"<#{self.id}>"

    def store(self, message: Message) -> None:
        self.messages[message.id] = message
        if len(self.messages) > MAX_MESSAGES:
            del self.messages[next(iter(self.messages))]
        if not message.ephemeral:
            self.last_message_id = message.id

    def find(self, message_id: int | None) -> Message | None:
        """A message that is there: not deleted, and of this channel."""
        message = self.messages.get(message_id) if message_id is not None else None
        return message if message is not None and not message.deleted else None


class World:
    """Everything that exists, and how more comes to be."""

    def __init__(self, application_id: int, bot_name: str) -> None:
        self.snowflake = Snowflakes()
        self.bot = User(application_id, bot_name, bot=True)
        self.owner = User(self.snowflake(), "owner")
        self.users: dict[int, User] = {self.bot.id: self.bot, self.owner.id: self.owner}
        self.guilds: dict[int, Guild] = {}
        self.channels: dict[int, Channel] = {}
        self._everybody: list[User] = [self.owner, self.bot]
        self._direct: dict[int, Channel] = {}

    def add_guild(self, name: str) -> Guild:
        guild = Guild(self.snowflake(), name, self.owner.id)
        guild.roles[guild.id] = Role(guild.id, "@everyone", permissions.bits(permissions.EVERYONE), 0)
        self.guilds[guild.id] = guild
        for user in self._everybody:
            self.join(guild, user)
        return guild

    def add_user(self, name: str, bot: bool, granted: Iterable[str]) -> User:
        user = User(self.snowflake(), name, bot=bot, permissions=tuple(granted))
        self.users[user.id] = user
        self._everybody.append(user)
        for guild in self.guilds.values():
            self.join(guild, user)
        return user

    def join(self, guild: Guild, user: User) -> None:
        member = guild.members[user.id] = Member(user, datetime.now(UTC))
        if user is self.bot:
            role = Role(self.snowflake(), user.name, permissions.bits(permissions.BOT), 1, bot_id=user.id)
        elif user.permissions:
            role = Role(self.snowflake(), f"as {user.name}", permissions.bits(user.permissions), len(guild.roles))
        else:
            return
        guild.roles[role.id] = role
        member.roles.append(role.id)

    def add_channel(self, name: str, guild: Guild, kind: int = TEXT) -> Channel:
        channel = Channel(self.snowflake(), kind, name, guild)
        guild.channels[channel.id] = self.channels[channel.id] = channel
        return channel

    def add_thread(self, name: str, parent: Channel, owner: User, message: Message | None) -> Channel:
        """A thread; one that starts from a message has the message's id."""
        if parent.guild is None or parent.is_thread:
            raise ValueError("a thread is in a text channel or in a forum")
        thread = self.add_channel(name, parent.guild, PUBLIC_THREAD)
        if message is not None:
            self._forget(thread)
            thread.id = message.id
            parent.guild.channels[thread.id] = self.channels[thread.id] = thread
            message.flags |= HAS_THREAD
        thread.parent, thread.owner_id = parent, owner.id
        return thread

    def _forget(self, channel: Channel) -> None:
        del self.channels[channel.id]
        if channel.guild is not None:
            del channel.guild.channels[channel.id]

    def direct(self, user: User) -> Channel:
        """The channel between the bot and a user; there is one."""
        if user.id not in self._direct:
            channel = Channel(self.snowflake(), DM, user.name, recipient=user)
            self._direct[user.id] = self.channels[channel.id] = channel
        return self._direct[user.id]

    def webhook(self, channel: Channel, name: str) -> User:
        """Who a webhook's message is from: one webhook in a channel, a name for each message."""
        if channel.webhook is None:
            channel.webhook = User(self.snowflake(), name, bot=True, webhook=True)
        return User(channel.webhook.id, name, bot=True, webhook=True)

    def bot_may(self, channel: Channel, name: str) -> bool:
        return bool(self.bot_permissions(channel) & permissions.BITS[name])

    def bot_permissions(self, channel: Channel) -> int:
        """What the bot may do in a channel: its roles, then the overwrite for it. A thread has its parent's."""
        if channel.guild is None:
            return permissions.bits(permissions.DIRECT) & ~channel.denied
        place = channel.parent or channel
        value = channel.guild.permissions_of(self.bot.id) & ~place.denied | place.allowed
        return value if value & permissions.BITS["view_channel"] else 0
