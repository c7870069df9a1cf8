"""Correspondence: brings each reply in Discord to where the reply book says it should be.

An event only changes an entry of the book (``ask``, ``edited``, ``deleted``, ...) and calls for its worker; the worker
looks at the message and at what the reply shows, and does what is missing: translate, post, edit, delete. So a crash, a
missed event or two at once need no care of their own: after a restart the workers look again. One worker an entry.

Exactly once: the job's id is a digest of message, route, text and turn, so a second submission is the same job. The
result is acked when the book has the reply.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import logging
import random
import time
from collections import OrderedDict
from typing import Any, Final

import aiohttp
import discord
import msgpack
from msgspec.structs import replace

from dolmetsch import replies
from dolmetsch.backoff import Backoff
from dolmetsch.client import Client
from dolmetsch.config import DiscordConfig
from dolmetsch.errors import DolmetschError, JobFailed, JobRejected, JobSettled, NoBroker
from dolmetsch.flags import Flag, Flags
from dolmetsch.logs import trace
from dolmetsch.messages import INTERACTIVE, Answer, JobSpec
from dolmetsch.postbox import Postbox, Source, passing
from dolmetsch.replybook import GONE, TOLD, WANTED, Entry, Key, ReplyBook

MAX_WORKERS: Final = 5_000  # replies in the making; beyond that people are asked to wait
MAX_RESULTS: Final = 5_000  # results that wait for their worker
LATE_S: Final = 900.0  # a request older than this is not taken up again after a restart, unless its result is there
RESULTS_S: Final = 10.0  # after a restart the broker has this long to send the results it kept
LOOK_BACK_S: Final = 86_400.0  # after a restart, replies younger than this are compared with their messages
LOOK_BACK: Final = 100  # ... and at most so many
TRIES: Final = 60  # when Discord itself fails, with growing pauses: about an hour
RETRY_MAX_S: Final = 60.0
AGAIN_S: Final = 1.0  # when a message could not be looked at while its translation is awaited

log = logging.getLogger("gateway")
End = Answer | DolmetschError


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
        self._postbox = Postbox(bot, book, flags)
        self._workers: dict[Key, asyncio.Task[None]] = {}
        self._changes: dict[Key, asyncio.Event] = {}
        self._look: set[Key] = set()  # entries whose reactions are to be counted again
        self._results: OrderedDict[Key, Answer] = OrderedDict()  # not shown yet: of an earlier process, or try
        self._signing: dict[Key, asyncio.Future[None]] = {}  # hourglasses on their way
        self._resumed = False
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

    def again(self, key: Key) -> bool:
        """Somebody wants it too; whether the translation is there or on its way, so that this is all there is to do."""
        entry = self._book.get(key)
        if entry is None or entry.state != WANTED:
            return False
        if key in self._workers:  # which may be about to find out that the flag was taken back
            self._look.discard(key)
            self._call(key)
        return True

    def ask(self, key: Key, channel: int, guild: int | None, flag: Flag) -> None:
        """Somebody wants the translation."""
        entry = self._book.get(key)
        if entry is None:
            self._book.add(Entry(key, channel, guild, flag.emoji, time.time()))
        elif entry.state != WANTED:
            self._want(entry)
        self._look.discard(key)
        self._call(key)

    def edited(self, message: int) -> None:
        """A message has another text, or may have."""
        for entry in self._book.of_message(message):
            if entry.state == TOLD:
                self._want(entry)
            elif entry.state == WANTED:
                self._change(entry.key)  # among the latest now: looked at again if we are killed
            if entry.state != GONE:
                self._call(entry.key)

    def deleted(self, message: int) -> None:
        """A message is gone: one that we replied to, or one of our own."""
        for entry in self._book.of_message(message):
            self._give_up(entry.key)
        ours = self._book.of_part(message)
        if ours is not None and ours.state != GONE and not self._postbox.deleted_by_us(message):
            self._change(ours.key, parts=tuple([part for part in ours.parts if part != message]))
            self._give_up(ours.key)  # somebody deleted our reply: it stays away

    def reactions_gone(self, message: int, routes: set[str] | None = None) -> None:
        """Reactions were taken back: look whether one is left for each of ``routes``; None: for all."""
        for entry in self._book.of_message(message):
            if entry.state != GONE and (routes is None or entry.key.route in routes):
                self._look.add(entry.key)
                self._call(entry.key)

    def stray(self, answer: Answer) -> None:
        """A result that an earlier process asked for, or that crossed our word that nobody wants it."""
        entry = self._book.get(_place(answer))
        if entry is None or entry.state != WANTED or entry.shown:
            self._client.ack(answer.job_id)
            return
        self._keep(entry.key, answer)
        if self._bot.is_ready():
            self._call(entry.key)

    def resume(self) -> None:
        """Take up what an earlier process left, and look at what happened to the latest replies meanwhile."""
        now = time.time()
        for entry in self._book.unsettled():
            if entry.key in self._workers:
                continue
            if entry.state == WANTED and now - entry.asked > LATE_S and entry.key not in self._results:
                continue  # too late to ask for it again: see _drop_late
            self._look.add(entry.key)
            self._call(entry.key)
        for entry in self._book.latest(now - LOOK_BACK_S, LOOK_BACK):
            self._look.add(entry.key)
            self._call(entry.key)
        if not self._resumed:
            self._resumed = True
            asyncio.get_running_loop().call_later(RESULTS_S, self._drop_late)

    async def close(self) -> None:
        """Stop all workers; what they did not finish is taken up by the next process."""
        workers = list(self._workers.values())
        for worker in workers:
            worker.cancel()
        await asyncio.gather(*workers, return_exceptions=True)

    def _drop_late(self) -> None:
        """Give up old requests whose result the broker has not sent by now."""
        if self._bot.is_closed():
            return
        if self._client.trouble:  # it cannot have
            asyncio.get_running_loop().call_later(RESULTS_S, self._drop_late)
            return
        now = time.time()
        for entry in self._book.unsettled():
            if entry.state == WANTED and now - entry.asked > LATE_S and entry.key not in self._workers:
                self._give_up(entry.key)

    def _want(self, entry: Entry) -> None:
        self._change(entry.key, state=WANTED, shown="", turn=entry.turn + 1, asked=time.time())

    def _give_up(self, key: Key) -> None:
        self._change(key, state=GONE)
        self._call(key)

    def _change(self, key: Key, **values: Any) -> None:
        self._book.change(key, time.time(), **values)

    def _keep(self, key: Key, answer: Answer) -> None:
        """Keep a result until it is shown. It takes the place of an older one, which at worst is asked for anew."""
        if key in self._results and self._results[key].job_id != answer.job_id:
            self._ack(key)
        self._results[key] = answer
        while len(self._results) > MAX_RESULTS:
            self._results.popitem(last=False)  # the broker sends it again to the next process

    def _ack(self, key: Key) -> None:
        """The result that is kept for ``key``, if there is one, is not needed any more."""
        answer = self._results.pop(key, None)
        if answer is not None:
            self._client.ack(answer.job_id)

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
                except Exception as error:
                    tries += 1
                    if not passing(error) or tries >= TRIES:
                        await self._leave(key, error)
                        continue
                    log.warning("message %d: Discord failed (%s), try %d", key.message, type(error).__name__, tries)
                    await asyncio.sleep(pauses.next_s())
                    change.set()
        finally:
            del self._workers[key], self._changes[key]
            self._look.discard(key)

    async def _leave(self, key: Key, error: Exception) -> None:
        """It cannot be done: say so in the log, and forget it, so that somebody may ask again."""
        self.failed += 1
        self._ack(key)
        entry = self._book.get(key)
        if entry is None:
            return
        if isinstance(error, discord.Forbidden):
            self._postbox.complain(entry, error)
        elif isinstance(error, discord.HTTPException):
            log.warning("message %d: Discord refused: %d, code %d", key.message, error.status, error.code)
        else:
            log.error("message %d: %s", key.message, trace(error))
        with contextlib.suppress(discord.HTTPException, aiohttp.ClientError, OSError):
            await self._unsign(key)
        entry = self._book.get(key)
        if entry is None:
            return
        if not (entry.parts or entry.sign or entry.posting):
            self._book.forget(key)
        elif not entry.shown:  # what is left of it is seen to when somebody asks again, or by the next process
            self._change(key, state=TOLD if entry.parts else GONE)

    async def _bring(self, key: Key, change: asyncio.Event) -> None:
        """Do what the entry lacks; returns early when ``change`` says that it is another one by now."""
        entry = self._book.get(key)
        if entry is not None and entry.posting:
            await self._postbox.recover(entry)
            entry = self._book.get(key)
        if entry is None:
            return
        if entry.state == GONE:
            self._ack(key)
            await self._postbox.remove(entry)
        elif entry.state == WANTED or key in self._look:
            await self._compare(entry, change)
        await self._unsign(key)

    async def _compare(self, entry: Entry, change: asyncio.Event) -> None:
        """Look at the message; translate it if the reply does not show what it says."""
        key, look = entry.key, entry.key in self._look
        self._look.discard(key)
        started = time.monotonic()
        try:
            found = await self._postbox.find(entry, flagged=look)
        except BaseException:
            if look:
                self._look.add(key)
            raise
        if found is None:
            if not change.is_set():  # else look again: a flag may have come back meanwhile
                self._give_up(key)
        elif entry.state == WANTED and entry.shown != found.stamp:
            if self._absent(key.route):
                if not entry.shown:  # a translation that is there already stays
                    await self._tell(entry, replies.unavailable(entry.flag, key.route, self._there()))
            elif not found.text:
                await self._tell(entry, replies.no_text())
            else:
                await self._answer(entry, found, change, started)

    async def _answer(self, entry: Entry, found: Source, change: asyncio.Event, started: float) -> None:
        end = await self._translation(entry, found, change, started)
        if isinstance(end, JobSettled):  # answered in another life, and the reply was lost since: a new job
            self._change(entry.key, turn=entry.turn + 1)
            change.set()
        elif isinstance(end, Answer) and end.texts is not None:
            self._keep(entry.key, end)
            if await self._show(entry, replies.reply(self._header(entry), end.texts[0]), found.stamp, WANTED):
                self.answered += 1
                log.info("message %d: %s in %.2f s", entry.key.message, entry.key.route, time.monotonic() - started)
        elif end is not None:
            self.failed += 1
            log.info("message %d: %s not translated (%s)", entry.key.message, entry.key.route, _code(end))
            if isinstance(end, Answer):
                self._keep(entry.key, end)
            await self._tell(entry, notice(end))

    async def _tell(self, entry: Entry, text: str) -> None:
        """Put a notice where the translation would be."""
        await self._show(entry, replies.Reply((text,), None), "", TOLD)

    async def _show(self, entry: Entry, reply: replies.Reply, stamp: str, state: str) -> bool:
        """Show what came of it, and ack that; whether it is there. If Discord fails, it is kept for the next try."""
        if not await self._postbox.show(entry, reply):
            self._give_up(entry.key)
            return False
        current = self._book.get(entry.key)
        if current is not None and (current.state, current.turn) == (WANTED, entry.turn):
            self._change(entry.key, shown=stamp, state=state)
        else:
            self._call(entry.key)  # somebody changed their mind meanwhile
        self._ack(entry.key)
        return True

    async def _translation(self, entry: Entry, found: Source, change: asyncio.Event, started: float) -> End | None:
        """The job's end; None when nobody wants it any more, or the text is another one by now."""
        number = job_id(entry.key, found.stamp, entry.turn)
        kept = self._results.get(entry.key)
        if kept is not None and kept.job_id == number:
            return kept
        loop = asyncio.get_running_loop()
        end: asyncio.Future[End] = loop.create_future()

        def ending(one: End) -> None:
            if not end.done():
                end.set_result(one)
            elif isinstance(one, Answer):
                self._keep(entry.key, one)  # for the next try

        waited_ms = int((time.monotonic() - started) * 1000)
        self._client.submit(replace(self._spec(entry, number, found.text), waited_ms=waited_ms), ending)
        hourglass = loop.call_later(self._config.hourglass_s, self._hourglass, entry.key)
        try:
            while not end.done():
                await _first(end, change)
                if not end.done() and change.is_set():
                    change.clear()
                    if not await self._still(entry, found.stamp, change):
                        self._client.cancel(number)  # not when this process stops: the next one gets the result
                        change.set()
                        return None
            return end.result()
        finally:
            end.cancel()
            hourglass.cancel()

    def _spec(self, entry: Entry, number: bytes, text: str) -> JobSpec:
        place = msgpack.packb([entry.channel, *entry.key])
        tenant = str(entry.guild or entry.channel)
        return JobSpec(number, entry.key.route, (text,), INTERACTIVE, tenant, self._config.deadline_s, place)

    def _hourglass(self, key: Key) -> None:
        """Show that it takes time. Once on its way it is not called back: taken off before it came, it would stay."""
        self._signing[key] = asyncio.ensure_future(self._postbox.sign(key, True))

    async def _unsign(self, key: Key) -> None:
        """Take the hourglass off again, if there is one."""
        signing = self._signing.pop(key, None)
        if signing is not None:
            await asyncio.wait({signing})  # as long as an HTTP request may take
            if not signing.cancelled() and (error := signing.exception()) is not None:
                log.warning("message %d: no hourglass (%s)", key.message, type(error).__name__)
        await self._postbox.sign(key, False)

    async def _still(self, asked: Entry, stamp: str, change: asyncio.Event) -> bool:
        """Whether what was asked for is still what is wanted; if that cannot be seen now, it is looked at again."""
        entry = self._book.get(asked.key)
        if entry is None or (entry.state, entry.turn) != (WANTED, asked.turn):
            return False
        try:
            found = await self._postbox.find(entry, flagged=asked.key in self._look)
        except (discord.HTTPException, aiohttp.ClientError, OSError):
            asyncio.get_running_loop().call_later(AGAIN_S, change.set)
            return True
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


async def _first(end: asyncio.Future[End], change: asyncio.Event) -> None:
    """Wait for the first of both. The outbox ends every job by its deadline."""
    changed = asyncio.ensure_future(change.wait())
    try:
        both: set[asyncio.Future[Any]] = {end, changed}
        await asyncio.wait(both, return_when=asyncio.FIRST_COMPLETED)
    finally:
        changed.cancel()


def _place(answer: Answer) -> Key:
    """Where an answer belongs; a key of nothing when it is none of ours."""
    try:
        _, message, route = msgpack.unpackb(answer.reply_to)
        return Key(int(message), str(route))
    except (ValueError, TypeError, OverflowError, msgpack.UnpackException):
        return Key(0, "")


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
