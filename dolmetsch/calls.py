"""Calls: what the requests of a gateway share. One client, several jobs for each request, and a report a second.

    async with Calls(broker, gateway="my-program", kind="http") as calls:  # and beside it: calls.report()
        (answer,) = await calls.translate([Work("de→en", ("Guten Morgen",))], deadline_s=30.0)

All jobs that requests bring within one turn of the loop leave for the broker in one message.
"""

from __future__ import annotations

import asyncio
import functools
import time
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Final, NamedTuple, Self

from dolmetsch.client import Client, new_job_id
from dolmetsch.errors import DolmetschError, JobFailed, NoBroker, RemoteError
from dolmetsch.keys import Credentials
from dolmetsch.messages import BULK, Answer, JobSpec
from dolmetsch.reports import Route
from dolmetsch.transport import address

PATIENCE_S: Final = 5.0  # a broker that was only restarted is back by then: until then calls wait for it
LATE_S: Final = 0.5  # the broker's own word on a deadline comes first if it can come
REPORT_S: Final = 1.0


class Work(NamedTuple):
    """One job to be: what a caller knows of it."""

    route: str
    texts: tuple[str, ...]
    tenant: str = ""
    alternatives: int = 0
    lane: int = BULK


class _Call:
    """One caller that waits for the answers to its jobs. ``outcome`` is None once all of them are there."""

    __slots__ = ("answers", "missing", "outcome", "specs")

    def __init__(self, specs: list[JobSpec], outcome: asyncio.Future[DolmetschError | None]) -> None:
        self.specs = specs
        self.answers: list[Answer | None] = [None] * len(specs)
        self.missing = len(specs)
        self.outcome = outcome

    def end(self, error: DolmetschError | None) -> None:
        """Let the caller go on, if it still waits."""
        if not self.outcome.done():
            self.outcome.set_result(error)


class Calls:
    """A connection to the broker for many callers. ``units`` counts whom this gateway serves (guilds, keys), for the
    broker's status.

    A broker that is away is waited for: calls made meanwhile go to it when it is back, within their deadlines. Raises
    ``TransportError`` for an address that is none.
    """

    def __init__(
        self,
        where: str,
        *,
        gateway: str,
        kind: str,
        keys: Credentials | None = None,
        units: Callable[[], int] = lambda: 0,
    ) -> None:
        self._where = address(where)
        self._kind = kind
        self._units = units
        self._calls: set[_Call] = set()
        self._answered = 0
        self._failed = 0
        self._away_since: float | None = time.monotonic()
        self._stopped = False
        self.client = Client(self._where, gateway=gateway, keys=keys)

    async def __aenter__(self) -> Self:
        await self.client.__aenter__()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Say goodbye; whoever still waits gets ``JobFailed`` with the code ``draining``."""
        self._stopped = True
        for call in self._calls:
            call.end(_stopping())
        await asyncio.sleep(0)  # their turn: they withdraw what is not done
        await self.client.__aexit__(kind, error, trace)

    @property
    def routes(self) -> tuple[Route, ...]:
        """What nodes offer, at most some seconds old while there is a broker."""
        return self.client.routes

    @property
    def trouble(self) -> str:
        """Why the broker cannot be talked to, in words; empty when it can."""
        return self.client.trouble or ("" if self._away_since is None else "the broker does not answer")

    async def translate(self, works: Sequence[Work], *, deadline_s: float, since: float | None = None) -> list[Answer]:
        """Do all of ``works`` at once; their answers in this order, each of them with texts.

        ``since`` says when the request came (monotonic seconds), for the times that the broker shows.

        The first that fails ends the call with its error, and the others are cancelled, as they all are when the
        deadline passes or the caller is cancelled. Raises ``JobRejected``, ``JobFailed`` (code ``deadline`` when that
        was it), ``NoBroker``.
        """
        if not works:
            return []
        now, away_since = time.monotonic(), self._away_since
        if self._stopped:
            raise _stopping()
        if away_since is not None and now - away_since > PATIENCE_S:
            raise NoBroker(self._where, round(now - away_since))
        waited_ms = 0 if since is None else int((now - since) * 1000)
        specs = [_spec(work, deadline_s, waited_ms) for work in works]
        call = _Call(specs, asyncio.get_running_loop().create_future())
        self._calls.add(call)
        try:
            for number, spec in enumerate(specs):
                self.client.submit(spec, functools.partial(self._ended, call, number))
            error = await self._outcome(call, deadline_s)
        finally:
            self._leave(call)
        if error is not None:
            raise error
        return [answer for answer in call.answers if answer is not None]

    async def _outcome(self, call: _Call, deadline_s: float) -> DolmetschError | None:
        try:
            async with asyncio.timeout(deadline_s + LATE_S):
                return await call.outcome
        except TimeoutError:
            late = JobFailed("deadline", f"there was no result within {deadline_s:g} s", 0)
            return NoBroker(self._where, deadline_s) if self.trouble else late

    def _ended(self, call: _Call, number: int, end: Answer | DolmetschError) -> None:
        """One job of a call is over."""
        if isinstance(end, DolmetschError):
            call.end(end)
            return
        self.client.ack(end.job_id)
        if end.texts is None:
            call.end(JobFailed(end.code, end.detail, end.attempts))
            return
        call.answers[number] = end
        call.missing -= 1
        if not call.missing:
            call.end(None)

    def _leave(self, call: _Call) -> None:
        """The caller goes on: withdraw what it does not wait for any more."""
        self._calls.discard(call)
        if not call.missing:
            self._answered += 1
            return
        self._failed += 1
        for spec, answer in zip(call.specs, call.answers, strict=True):
            if answer is None:
                self.client.cancel(spec.job_id)

    # ---- the broker ----

    async def report(self) -> None:
        """For ever, once a second: see whether the broker is there, and tell it how we are."""
        while True:
            if await self.is_there():
                self.client.report(
                    kind=self._kind, servers=self._units(), latency_ms=None,
                    queued=len(self._calls), answered=self._answered, failed=self._failed,
                )  # fmt: skip
                await asyncio.sleep(REPORT_S)

    async def is_there(self) -> bool:
        """Whether the broker talks to us; waits for that, a second at most."""
        try:
            await self.client.wait_up(REPORT_S)
        except NoBroker:
            self._away_since = self._away_since or time.monotonic()
            return False
        except RemoteError:  # it is there and wants nothing to do with us
            self._away_since = self._away_since or time.monotonic()
            await asyncio.sleep(REPORT_S)
            return False
        self._away_since = None
        return True


def _spec(work: Work, deadline_s: float, waited_ms: int) -> JobSpec:
    """A job of its own each time: two requests for one text are two requests."""
    return JobSpec(
        new_job_id(),
        work.route,
        work.texts,
        work.lane,
        work.tenant,
        deadline_s,
        b"",
        work.alternatives,
        waited_ms,
    )


def _stopping() -> JobFailed:
    return JobFailed("draining", "this gateway is being stopped", 0)
