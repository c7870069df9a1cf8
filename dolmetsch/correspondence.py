"""Correspondence: brings each reply in Discord to where the reply book says it should be.

An event only changes an entry of the book (``ask``, ``edited``, ``deleted``, ...) and calls for its worker; the worker
looks at the message and at what the reply shows, and does what is missing: translate, post, edit, delete. So a crash, a
missed event or two at once need no care of their own: after a restart the workers look again. One worker an entry.

Exactly once: the job's id is a digest of message, route, text and turn, so a second submission is the same job; and a
reply is posted with a nonce made of it, so that Discord gives back the first one if we were killed before noting it.
The result is acked when the book has the reply.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import hashlib
import io
import logging
import random
import time
from collections import OrderedDict
from collections.abc import Coroutine
from typing import Any, Final, NamedTuple

import aiohttp
import discord
import msgpack

from dolmetsch import replies
from dolmetsch.backoff import Backoff
from dolmetsch.client import Client
from dolmetsch.config import DiscordConfig
from dolmetsch.errors import DolmetschError, JobFailed, JobRejected, JobSettled, NoBroker
from dolmetsch.flags import Flag, Flags
from dolmetsch.logs import trace
from dolmetsch.messages import INTERACTIVE, Answer, JobSpec
from dolmetsch.replybook import GONE, TOLD, WANTED, Entry, Key, ReplyBook

MAX_WORKERS: Final = 5_000  # replies in the making; beyond that people are asked to wait
MAX_STRAYS: Final = 5_000  # results of an earlier process that wait for their worker
LATE_S: Final = 900.0  # a request older than this is not taken up again after a restart, unless its result is there
LOOK_BACK_S: Final = 86_400.0  # after a restart, replies younger than this are compared with their messages
LOOK_BACK: Final = 100  # ... and at most so many
TRIES: Final = 60  # when Discord itself fails, with growing pauses: about an hour
RETRY_MAX_S: Final = 60.0
HOURGLASS: Final = "⏳"
UNKNOWN_MESSAGE: Final = 10008
SILENT: Final = discord.AllowedMentions.none()

log = logging.getLogger("gateway")  # "discord" is the library's
End = Answer | DolmetschError


class Source(NamedTuple):
    """What is to be translated; ``stamp`` is another one whenever the text or its edit is."""

    text: str
    stamp: str


def source(message: discord.Message) -> Source:
    """The text of ``message``: what was written or forwarded, and its first embed."""
    content, embeds = message.content, message.embeds
    if message.message_snapshots and not content:
        content, embeds = message.message_snapshots[0].content, message.message_snapshots[0].embeds
    embed = embeds[0] if embeds else None
    text = replies.source_text(content, embed.title if embed else None, embed.description if embed else None)
    edited = message.edited_at.isoformat() if message.edited_at else ""
    return Source(text, hashlib.blake2b(f"{edited}\n{text}".encode(), digest_size=12).hexdigest())


def job_id(key: Key, stamp: str, turn: int) -> bytes:
    """The job's identity: the same text asked for twice is one job, asked for anew it is another."""
    return hashlib.blake2b(f"discord\n{key.message}\n{key.route}\n{stamp}\n{turn}".encode(), digest_size=16).digest()


class Correspondence:
    """All replies of this bot. Methods that take events return at once; the work is done in tasks."""

    def __init__(
        self, bot: discord.Client, client: Client, book: ReplyBook, flags: Flags, config: DiscordConfig
    ) -> None:
        self._bot = bot
        self._client = client
        self._book = book
        self._flags = flags
        self._config = config
        self._workers: dict[Key, asyncio.Task[None]] = {}
        self._changes: dict[Key, asyncio.Event] = {}
        self._look: set[Key] = set()  # entries whose reactions are to be counted again
        self._strays: OrderedDict[bytes, Answer] = OrderedDict()
        self._complained: OrderedDict[int, None] = OrderedDict()  # channels whose missing permission was logged
        self._rng = random.Random()
        self.answered = 0
        self.failed = 0

    # ---- events ----

    @property
    def open(self) -> int:
        """Replies in the making."""
        return len(self._workers)

    @property
    def full(self) -> bool:
        return len(self._workers) >= MAX_WORKERS

    def has(self, key: Key) -> bool:
        """Whether this translation is there or on its way, so that asking again changes nothing."""
        entry = self._book.get(key)
        return entry is not None and entry.state == WANTED

    def ask(self, key: Key, channel: int, guild: int | None, flag: Flag) -> None:
        """Somebody wants the translation."""
        entry = self._book.get(key)
        if entry is None:
            self._book.add(Entry(key, channel, guild, flag.emoji, time.time()))
        elif entry.state != WANTED:
            self._want(entry)
        self._call(key)

    def edited(self, message: int) -> None:
        """A message has another text, or may have."""
        for entry in self._book.of_message(message):
            if entry.state == TOLD:
                self._want(entry)
            if entry.state != GONE:
                self._call(entry.key)

    def deleted(self, message: int) -> None:
        """A message is gone: one that we replied to, or one of our own."""
        for entry in self._book.of_message(message):
            self._give_up(entry.key)
        ours = self._book.of_part(message)
        if ours is not None and ours.state != GONE:  # somebody deleted our reply: it stays away
            self._change(ours.key, parts=tuple([part for part in ours.parts if part != message]))
            self._give_up(ours.key)

    def reactions_gone(self, message: int, routes: set[str] | None = None) -> None:
        """Reactions were taken back: look whether one is left for each of ``routes``; None: for all."""
        for entry in self._book.of_message(message):
            if entry.state != GONE and (routes is None or entry.key.route in routes):
                self._look.add(entry.key)
                self._call(entry.key)

    def stray(self, answer: Answer) -> None:
        """A result that an earlier process asked for."""
        try:
            entry = self._book.get(self._place(answer))
        except (ValueError, TypeError, msgpack.UnpackException):
            entry = None
        if entry is None or entry.state != WANTED or entry.shown:
            self._client.ack(answer.job_id)
            return
        self._strays[answer.job_id] = answer
        while len(self._strays) > MAX_STRAYS:
            self._strays.popitem(last=False)  # the broker sends it again to the next process
        if self._bot.is_ready():
            self._call(entry.key)

    def resume(self) -> None:
        """Take up what an earlier process left, and look at what happened to the latest replies meanwhile."""
        now = time.time()
        expected = {self._place(answer) for answer in self._strays.values()}
        for entry in self._book.unsettled():
            if entry.state == WANTED and now - entry.asked > LATE_S and entry.key not in expected:
                self._give_up(entry.key)
            else:
                self._call(entry.key)
        for entry in self._book.latest(now - LOOK_BACK_S, LOOK_BACK):
            self._look.add(entry.key)
            self._call(entry.key)

    async def close(self) -> None:
        """Stop all workers; what they did not finish is taken up by the next process."""
        workers = list(self._workers.values())
        for worker in workers:
            worker.cancel()
        await asyncio.gather(*workers, return_exceptions=True)

    @staticmethod
    def _place(answer: Answer) -> Key:
        _, message, route = msgpack.unpackb(answer.reply_to)
        return Key(message, route)

    def _want(self, entry: Entry) -> None:
        self._change(entry.key, state=WANTED, shown="", turn=entry.turn + 1, asked=time.time())

    def _give_up(self, key: Key) -> None:
        self._change(key, state=GONE)
        self._call(key)

    def _change(self, key: Key, **values: Any) -> None:
        self._book.change(key, time.time(), **values)

    # ---- workers ----

    def _call(self, key: Key) -> None:
        """Let the worker of ``key`` look at its entry, now or again."""
        change = self._changes.setdefault(key, asyncio.Event())
        change.set()
        if key not in self._workers:
            self._workers[key] = asyncio.get_running_loop().create_task(self._work(key, change))

    async def _work(self, key: Key, change: asyncio.Event) -> None:
        pauses = Backoff(self._rng, most_s=RETRY_MAX_S)
        tries = 0
        try:
            while change.is_set():
                change.clear()
                try:
                    await self._bring(key, change)
                except (discord.DiscordServerError, aiohttp.ClientError, OSError) as error:
                    tries += 1
                    log.warning("message %d: Discord failed (%s), try %d", key.message, type(error).__name__, tries)
                    if tries >= TRIES:
                        raise
                    await asyncio.sleep(pauses.next_s())
                    change.set()
        except discord.HTTPException as error:
            self._unfit(key, error)
        except Exception as error:
            log.error("message %d: %s", key.message, trace(error))
        finally:
            del self._workers[key], self._changes[key]
            self._look.discard(key)

    def _unfit(self, key: Key, error: discord.HTTPException) -> None:
        """Discord will not have it, now or later: leave it."""
        entry = self._book.get(key)
        if entry is None:
            return
        if isinstance(error, discord.Forbidden):
            self._complain(entry, error)
        else:
            log.warning("message %d: Discord refused: %d, code %d", key.message, error.status, error.code)
        self.failed += 1
        if not entry.parts:
            self._book.forget(key)  # so that somebody may ask again

    def _complain(self, entry: Entry, error: discord.Forbidden) -> None:
        """Say once a channel what is missing and where to click."""
        if entry.channel in self._complained:
            return
        self._complained[entry.channel] = None
        while len(self._complained) > MAX_STRAYS:
            self._complained.popitem(last=False)
        log.warning(
            "channel %d of server %s: a permission is missing (code %d). Channel settings > Permissions > this bot's"
            " role: View Channel, Send Messages, Send Messages in Threads, Read Message History, Add Reactions,"
            " Attach Files",
            entry.channel, entry.guild or "(direct message)", error.code,
        )  # fmt: skip

    async def _bring(self, key: Key, change: asyncio.Event) -> None:
        """Do what the entry lacks; returns early when ``change`` says that it is another one by now."""
        entry = self._book.get(key)
        if entry is None:
            return
        if entry.state == GONE:
            await self._remove(entry)
        elif key not in self._look and (entry.state == TOLD or self._absent(key.route)):
            await self._tell_absent(entry)
        else:
            await self._compare(entry, change)
        await self._sign(key, False)

    async def _compare(self, entry: Entry, change: asyncio.Event) -> None:
        """Look at the message; translate it if the reply does not show what it says."""
        found = await self._find(entry)
        self._look.discard(entry.key)
        if found is None:
            self._give_up(entry.key)
        elif entry.state == WANTED and entry.shown != found.stamp:
            if self._absent(entry.key.route):
                await self._tell_absent(entry)
            elif not found.text:
                await self._show(entry, replies.Reply((replies.no_text(),), None), "", TOLD)
            else:
                await self._answer(entry, found, change)

    async def _tell_absent(self, entry: Entry) -> None:
        """Say which routes are there; once, and a translation that is there already stays."""
        if entry.state == WANTED and not entry.shown:
            text = replies.unavailable(entry.flag, entry.key.route, self._there())
            await self._show(entry, replies.Reply((text,), None), "", TOLD)

    async def _answer(self, entry: Entry, found: Source, change: asyncio.Event) -> None:
        started = time.monotonic()
        number = job_id(entry.key, found.stamp, entry.turn)
        end = await self._translation(entry, number, found, change)
        if isinstance(end, JobSettled):  # answered in another life, and the reply was lost since: a new job
            self._change(entry.key, turn=entry.turn + 1)
            change.set()
        elif isinstance(end, Answer) and end.texts is not None:
            await self._deliver(entry, end, replies.reply(self._header(entry), end.texts[0]), found.stamp, WANTED)
            self.answered += 1
            log.info("message %d: %s in %.2f s", entry.key.message, entry.key.route, time.monotonic() - started)
        elif end is not None:
            self.failed += 1
            log.info("message %d: %s not translated (%s)", entry.key.message, entry.key.route, _code(end))
            await self._deliver(entry, end, replies.Reply((notice(end),), None), "", TOLD)

    async def _deliver(self, entry: Entry, end: End, reply: replies.Reply, stamp: str, state: str) -> None:
        """Show what came of a job, and ack that once it is safe. If Discord fails, it is here for the next try."""
        if not isinstance(end, Answer):
            await self._show(entry, reply, stamp, state)
            return
        self._strays[end.job_id] = end
        try:
            await self._show(entry, reply, stamp, state)
        except discord.DiscordServerError:
            raise
        except discord.HTTPException:
            self._strays.pop(end.job_id, None)
            self._client.ack(end.job_id)
            raise
        self._strays.pop(end.job_id, None)
        self._client.ack(end.job_id)

    async def _translation(self, entry: Entry, number: bytes, found: Source, change: asyncio.Event) -> End | None:
        """The job's end; None when nobody wants it any more, or the text is another one by now."""
        early = self._strays.pop(number, None)
        if early is not None:
            return early
        loop = asyncio.get_running_loop()
        end: asyncio.Future[End] = loop.create_future()
        place = msgpack.packb([entry.channel, *entry.key])
        tenant = str(entry.guild or entry.channel)
        spec = JobSpec(number, entry.key.route, (found.text,), INTERACTIVE, tenant, self._config.deadline_s, place)
        self._client.submit(spec, functools.partial(_set, end))
        hourglass = loop.create_task(self._hourglass(entry))
        try:
            while not end.done():
                await _first(end, change)
                if not end.done() and change.is_set():
                    change.clear()
                    if not await self._still(entry, found.stamp):
                        self._client.cancel(number)  # not when this process stops: the next one gets the result
                        change.set()
                        return None
            return end.result()
        finally:
            hourglass.cancel()

    async def _hourglass(self, entry: Entry) -> None:
        """Show that it takes time. A task of its own: where Discord makes it wait, the reply does not."""
        await asyncio.sleep(self._config.hourglass_s)
        with contextlib.suppress(discord.HTTPException, aiohttp.ClientError, OSError):
            await self._sign(entry.key, True)

    async def _still(self, asked: Entry, stamp: str) -> bool:
        """Whether what was asked for is still what is wanted."""
        entry = self._book.get(asked.key)
        if entry is None or (entry.state, entry.turn) != (WANTED, asked.turn):
            return False
        found = await self._find(entry)
        return found is not None and found.stamp == stamp

    def _header(self, entry: Entry) -> str:
        flag = self._flags.get(entry.flag)
        return flag.header if flag is not None else self._flags.header(entry.key.route)

    def _absent(self, route: str) -> bool:
        """Whether others are there and this one is not; with none there, jobs wait for a node to come."""
        routes = {one.route for one in self._client.routes}
        return bool(routes) and not self._client.trouble and route not in routes

    def _there(self) -> str:
        return self._flags.describe([one.route for one in self._client.routes])

    # ---- Discord ----

    def _channel(self, entry: Entry) -> discord.PartialMessageable:
        return self._bot.get_partial_messageable(entry.channel, guild_id=entry.guild)

    async def _find(self, entry: Entry) -> Source | None:
        """The message's text; None when it is gone, not ours to answer, or its last flag was taken back."""
        number = entry.key.message
        message = next((one for one in reversed(self._bot.cached_messages) if one.id == number), None)
        if message is None:
            try:
                message = await self._channel(entry).fetch_message(number)
            except discord.NotFound:
                return None
        if message.author.bot or message.webhook_id is not None:
            return None
        if entry.key in self._look and not self._flagged(entry, message):
            return None
        return source(message)

    def _flagged(self, entry: Entry, message: discord.Message) -> bool:
        """Whether somebody's flag for this route is on ``message``."""
        for reaction in message.reactions:
            flag = self._flags.get(str(reaction.emoji))
            if flag is not None and flag.route == entry.key.route and reaction.count > reaction.me:
                return True
        return False

    async def _show(self, entry: Entry, reply: replies.Reply, stamp: str, state: str) -> None:
        """Make the reply show this: edit the messages that are there, post what is missing, delete the rest."""
        nonce = job_id(entry.key, stamp or reply.messages[0], entry.turn).hex()[:23]
        old, kept = list(entry.parts), []
        for index, content in enumerate(reply.messages):
            part = await self._edit(entry, old[index], content, reply.file) if index < len(old) else None
            if part is None:
                part = await self._post(entry, content, reply.file, f"{nonce}{index}")
            if part is None:
                self._give_up(entry.key)
                return
            kept.append(part)
            self._change(entry.key, parts=tuple(dict.fromkeys([*kept, *old])))
        self._change(entry.key, parts=tuple(kept))  # before, or our own deletions would look like a moderator's
        for part in set(old) - set(kept):
            await _gone_is_fine(self._channel(entry).get_partial_message(part).delete())
        current = self._book.get(entry.key)
        if current is not None and (current.state, current.turn) == (WANTED, entry.turn):
            self._change(entry.key, shown=stamp, state=state)
        else:
            self._call(entry.key)  # somebody changed their mind meanwhile

    async def _edit(self, entry: Entry, part: int, content: str, file: str | None) -> int | None:
        """Let one of our messages show ``content``; None when it is not there any more."""
        message = self._channel(entry).get_partial_message(part)
        try:
            await message.edit(content=content, attachments=_files(file), allowed_mentions=SILENT)
        except discord.NotFound:
            return None
        return part

    async def _post(self, entry: Entry, content: str, file: str | None, nonce: str) -> int | None:
        """Post a reply; its id, or None when the message that it would answer is gone."""
        to = discord.MessageReference(
            message_id=entry.key.message, channel_id=entry.channel, guild_id=entry.guild, fail_if_not_exists=True
        )
        try:
            sent = await self._channel(entry).send(
                content, files=_files(file), reference=to, nonce=nonce, allowed_mentions=SILENT, suppress_embeds=True
            )
        except discord.HTTPException as error:
            if error.code == UNKNOWN_MESSAGE or "message_reference" in error.text:
                return None
            raise
        return sent.id

    async def _remove(self, entry: Entry) -> None:
        """Delete what is left of the reply."""
        for part in entry.parts:
            await _gone_is_fine(self._channel(entry).get_partial_message(part).delete())
        if entry.parts:
            self._change(entry.key, parts=())

    async def _sign(self, key: Key, on: bool) -> None:
        """Put the hourglass on the message, or take it off; without the permission it stays away."""
        entry = self._book.get(key)
        if entry is None or entry.sign == on:
            return
        message = self._channel(entry).get_partial_message(key.message)
        if on:
            self._change(key, sign=True)  # before: one that was put there and forgotten would stay for ever
            await _gone_is_fine(message.add_reaction(HOURGLASS))
        else:
            assert self._bot.user is not None
            await _gone_is_fine(message.remove_reaction(HOURGLASS, self._bot.user))
            self._change(key, sign=False)


def _files(text: str | None) -> list[discord.File]:
    return [discord.File(io.BytesIO(text.encode()), "translation.txt")] if text is not None else []


async def _gone_is_fine(action: Coroutine[Any, Any, object]) -> None:
    """Wait for ``action``; that there is nothing left to act on, or that we may not, does not matter."""
    with contextlib.suppress(discord.NotFound, discord.Forbidden):
        await action


async def _first(end: asyncio.Future[End], change: asyncio.Event) -> None:
    """Wait for the first of both. The outbox ends every job by its deadline."""
    changed = asyncio.ensure_future(change.wait())
    try:
        both: set[asyncio.Future[Any]] = {end, changed}
        await asyncio.wait(both, return_when=asyncio.FIRST_COMPLETED)
    finally:
        changed.cancel()


def _set(future: asyncio.Future[End], end: End) -> None:
    if not future.done():
        future.set_result(end)


def _code(end: End) -> str:
    return getattr(end, "code", "") or type(end).__name__


def notice(end: End) -> str:
    """What people are told instead of a translation."""
    if isinstance(end, JobRejected) and end.retry_after_s:
        return replies.overloaded(end.retry_after_s)
    if isinstance(end, NoBroker):
        return replies.unreachable()
    if isinstance(end, Answer | JobRejected | JobFailed):
        return replies.failed(end.code)
    return replies.failed("")
