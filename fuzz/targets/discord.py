"""Payloads of Discord's gateway, and what a broker sends back. What discord.py takes, the bot takes: no event of it
raises in our hands. Of any message the text becomes a SUBMIT that a broker understands, and any ``reply_to`` a place.

The first byte says which payload of ``_payloads``; each line of the rest changes it: ``author.bot=true`` sets a field
to JSON, or to a text where it is none, ``-author`` takes it out. 255: the rest is a ``reply_to``.
"""

from __future__ import annotations

import contextlib
import functools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import discord

from dolmetsch import flags as flags_room
from dolmetsch import replies
from dolmetsch.bot import Bot
from dolmetsch.config import DiscordConfig
from dolmetsch.correspondence import _place, job_id
from dolmetsch.flags import Flag, Flags
from dolmetsch.messages import INTERACTIVE, MAX_TEXT_CHARS, Answer, JobSpec, Submit
from dolmetsch.postbox import source
from dolmetsch.replybook import Key, ReplyBook
from dolmetsch.wire import decode, encode
from fuzz.target import scratch

MOST_BYTES: Final = 8192
REPLY_TO: Final = 255
MOST_ID: Final = 2**63 - 1  # a snowflake has a sign until the year 2084
CHANNEL: Final = 1_000_000_000_000_000_001
GUILD: Final = 1_000_000_000_000_000_002
MESSAGE: Final = 1_000_000_000_000_000_003
USER: Final = 1_000_000_000_000_000_004
TOKENS: Final = tuple(
    part.encode()
    for part in (
        "🇩🇪", "🇬🇧\ufe0f", '"\\ud83c"', "null", "{}", "[]", "true", "-1", str(2**64), "1e999", "\n", "\n-", "=", ".",
        "emoji.name", "emoji.id", "emoji", "content", "embeds", "embeds.0.title", "embeds.0.description", "author.bot",
        "edited_timestamp", "message_snapshots.0.message.content", "message_snapshots", "reactions.0.emoji",
        "webhook_id", "guild_id", "channel_id", "message_id", "user_id", "member.user.bot", "ids.0",
        "message_author_id", "type",
        str(MESSAGE), str(USER), "2024-01-01T00:00:00+00:00", "\\u0000", '"\\n"', "```", "A" * 500, "||", "\u00a0",
    )
)  # fmt: skip


class _Noted:
    """In the correspondence's place: notes what it is told. Its own tests have it with a whole Discord."""

    full = False
    open = answered = failed = 0

    def __init__(self) -> None:
        self.asked: list[tuple[Key, int, int | None, Flag]] = []

    def again(self, key: Key) -> bool:
        return False

    def ask(self, key: Key, channel: int, guild: int | None, flag: Flag) -> None:
        self.asked.append((key, channel, guild, flag))

    def edited(self, message: int) -> None:
        assert type(message) is int

    deleted = edited

    def reactions_gone(self, message: int, routes: set[str] | None = None) -> None:
        assert type(message) is int


@functools.cache
def _stage() -> tuple[Bot, _Noted, ReplyBook]:
    table = Flags.parse(Path(flags_room.__file__).with_name("flags.toml").read_text("utf-8"), "flags.toml")
    config = DiscordConfig(user_limit=10**9, channel_limit=10**9, guild_limit=10**9, total_limit=10**9)
    book = ReplyBook(scratch() / "replies.sqlite3", config.window_s)
    bot, noted = Bot(config, "tcp://127.0.0.1:9", None, table, book), _Noted()
    bot._correspondence = noted  # type: ignore[assignment]
    return bot, noted, book


@functools.cache
def _payloads() -> tuple[tuple[str, str], ...]:
    """Each event and its payload as Discord sends it."""
    place = {"channel_id": str(CHANNEL), "guild_id": str(GUILD), "message_id": str(MESSAGE)}
    emoji = {"id": None, "name": "🇩🇪"}
    author = {"id": str(USER), "username": "tom", "discriminator": "0", "global_name": "Tom", "avatar": None}
    embed = {"type": "rich", "title": "Ein Titel", "description": "Guten Tag", "fields": []}
    message: dict[str, Any] = {
        "id": str(MESSAGE), "channel_id": str(CHANNEL), "guild_id": str(GUILD), "author": author,
        "content": "Guten Morgen", "timestamp": "2024-01-01T00:00:00+00:00", "edited_timestamp": None,
        "tts": False, "mention_everyone": False,
        "mentions": [], "mention_roles": [], "attachments": [], "embeds": [embed], "pinned": False, "type": 0,
        "flags": 0,
        "reactions": [{"emoji": emoji, "count": 1, "me": False, "count_details": {"burst": 0, "normal": 1}}],
    }  # fmt: skip
    forwarded = message | {"content": "", "flags": 1 << 14, "message_snapshots": [{"message": message}]}
    edited = message | {"content": "Gute Nacht", "edited_timestamp": "2024-01-01T00:00:01+00:00"}
    reaction = place | {"user_id": str(USER), "emoji": emoji, "type": 0, "burst": False}
    joined = "2024-01-01T00:00:00+00:00"
    member = {"user": author, "roles": [], "joined_at": joined, "deaf": False, "mute": False, "flags": 0}
    payloads = (
        ("message_reaction_add", reaction | {"member": member}),
        ("message_reaction_remove", reaction),
        ("message_reaction_remove_all", place),
        ("message_reaction_remove_emoji", place | {"emoji": emoji}),
        ("message_update", edited),
        ("message_delete", place | {"id": str(MESSAGE)}),
        ("message_delete_bulk", place | {"ids": [str(MESSAGE), "7"]}),
        ("message_create", message),
        ("message_create", forwarded),
    )
    return tuple((name, json.dumps(payload)) for name, payload in payloads)


def seeds() -> list[bytes]:
    """Each payload with a small change, and a ``reply_to`` of ours."""
    changes = (
        "emoji.name=🇬🇧", "user_id=7", "-guild_id", "emoji.name=🇩🇪\ufe0f", "content=Guten Tag", "id=7", "ids.1=9",
        "content=Ja\nembeds.0.title=null", "message_snapshots.0.message.content=Nein",
    )  # fmt: skip
    found = [bytes((number,)) + change.encode() for number, change in enumerate(changes)]
    return [*found, bytes((REPLY_TO,)) + b"\x93\x01\x02\xa7de\xe2\x86\x92en"]


def check(data: bytes) -> None:
    if data[:1] == bytes((REPLY_TO,)):
        place = _place(Answer(bytes(16), None, "", "", "", 0, False, 0, data[1:]))
        assert type(place.message) is int and type(place.route) is str
        return
    name, whole = _payloads()[(data[0] if data else 0) % len(_payloads())]
    payload = json.loads(whole)
    for line in data[1:].decode("utf-8", "replace").split("\n"):
        _change(payload, line)
    (_message if name == "message_create" else functools.partial(_event, name))(payload)


def _change(payload: Any, line: str) -> None:
    """Carry out one line, as far as there is such a field."""
    path, _, value = line.removeprefix("-").partition("=")
    *way, last = path.split(".")
    with contextlib.suppress(KeyError, IndexError, ValueError, TypeError, RecursionError):
        for step in way:
            payload = payload[int(step) if isinstance(payload, list) else step]
        key = int(last) if isinstance(payload, list) else last
        if line.startswith("-"):
            del payload[key]
            return
        payload[key] = value
        payload[key] = json.loads(value)


def _event(name: str, payload: dict[str, Any]) -> None:
    bot, noted, book = _stage()
    told: list[tuple[str, Any]] = []
    bot._connection.dispatch = lambda event, *arguments: told.append((event, arguments))
    try:
        bot._connection.parsers[name.upper()](payload)
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError):  # discord.py's own: the connection ends
        return
    for event, arguments in told:
        if not isinstance(getattr(getattr(arguments[0], "emoji", None), "name", ""), str):
            continue  # discord.py looks at no types
        handler: Callable[..., Any] | None = getattr(bot, f"on_{event}", None)
        if handler is None:
            continue
        steps = handler(*arguments)
        try:
            steps.send(None)
        except StopIteration:
            continue
        raise AssertionError(f"on_{event} waits for something")
    for key, channel, guild, flag in noted.asked:
        assert flag is bot._flags.get(flag.emoji) and key.route == flag.route
        if all(number is None or 0 <= number <= MOST_ID for number in (key.message, channel, guild)):
            assert book.get(key) is None
    noted.asked.clear()


def _message(payload: dict[str, Any]) -> None:
    bot, _, _ = _stage()
    state = bot._connection
    try:
        channel = state._get_guild_channel(payload)[0]  # type: ignore[arg-type]
        message = discord.Message(state=state, channel=channel, data=payload)  # type: ignore[arg-type]
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError):
        return
    parts = [part for one in message.embeds for part in (one.title, one.description)]
    parts += [snapshot.content for snapshot in message.message_snapshots]
    parts += [
        part for shot in message.message_snapshots for one in shot.embeds for part in (one.title, one.description)
    ]
    if not isinstance(message.content, str) or any(not isinstance(part, str | None) for part in parts):
        return  # discord.py looks at no types
    found = source(message)
    assert len(found.stamp) == 24
    spec = JobSpec(
        job_id(Key(message.id, "de→en"), found.stamp, 0), "de→en", (found.text,), INTERACTIVE, "1", 60.0, b"",
    )  # fmt: skip
    if len(found.text) <= MAX_TEXT_CHARS:
        assert decode(encode(Submit(jobs=(spec,)))) is not None
    for part in replies.reply("🇩🇪➡️🇺🇸", found.text).messages:
        assert 0 < replies.units(part) <= replies.LIMIT
