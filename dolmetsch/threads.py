"""The client for threads: one loop and one ``Client`` in a thread of their own, blocking calls from all the others.

    with BlockingClient("tcp://127.0.0.1:5570", gateway="my-program", kind="http") as client:
        (answer,) = client.translate([Work("de→en", ("Guten Morgen",))], deadline_s=30.0)

However many threads call at the same moment, the loop is woken once and the broker gets their jobs in one message.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import functools
import logging
import queue
import threading
import time
import uuid
from collections import deque
from collections.abc import Callable, Coroutine, Sequence
from types import TracebackType
from typing import Any, Final, NamedTuple, Self, TypeVar

from dolmetsch import logs
from dolmetsch.client import Client
from dolmetsch.errors import DolmetschError, JobFailed, LocalError, NoBroker, RemoteError
from dolmetsch.keys import Credentials
from dolmetsch.messages import BULK, Answer, JobSpec
from dolmetsch.reports import Route
from dolmetsch.transport import address

START_S: Final = 5.0  # making a thread, a loop and a socket
CLOSE_S: Final = 5.0  # the client's own goodbye takes at most a second
PATIENCE_S: Final = 5.0  # a broker that was only restarted is back by then: until then calls wait for it
LATE_S: Final = 0.5  # the broker's own word on a deadline comes first if it can come
REPORT_S: Final = 1.0

log = logging.getLogger("client")

Value = TypeVar("Value")


class Work(NamedTuple):
    """One job to be: what a caller knows of it."""

    route: str
    texts: tuple[str, ...]
    tenant: str = ""
    alternatives: int = 0
    lane: int = BULK


class _Call:
    """One thread that waits for the answers to its jobs."""

    __slots__ = ("answers", "ended", "missing", "outcome", "specs")

    def __init__(self, specs: list[JobSpec]) -> None:
        self.specs = specs
        self.answers: list[Answer | None] = [None] * len(specs)
        self.missing = len(specs)
        self.ended = False
        # Put once, by the loop. A SimpleQueue takes an eighth of the time of a threading.Event.
        self.outcome: queue.SimpleQueue[DolmetschError | None] = queue.SimpleQueue()


class BlockingClient:
    """What threads share. ``units`` counts whom this gateway serves (guilds, keys), for the broker's status.

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
        self._keys = keys
        self._gateway = gateway
        self._kind = kind
        self._units = units
        self._inbox: deque[Callable[[], None]] = deque()
        self._rung = False  # whether the loop is about to look into the inbox
        self._calls: set[_Call] = set()  # this and the counters belong to the loop's thread
        self._answered = 0
        self._failed = 0
        self._away_since: float | None = time.monotonic()
        self._started: queue.SimpleQueue[BaseException | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="client", daemon=True)

    def __enter__(self) -> Self:
        """Start the thread; the broker need not be there."""
        self._thread.start()
        try:
            error = self._started.get(timeout=START_S)
        except queue.Empty:
            error = LocalError(f"the client's thread did not start within {START_S:g} s")
        if error is not None:
            raise error
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End the thread; whoever still waits gets ``JobFailed`` with the code ``draining``."""
        with contextlib.suppress(DolmetschError):  # it has ended by itself
            self._tell(self._stop)
        self._thread.join(CLOSE_S)

    @property
    def alive(self) -> bool:
        """Whether the thread runs; when it does not, nothing can be translated any more."""
        return self._thread.is_alive()

    @property
    def routes(self) -> tuple[Route, ...]:
        """What nodes offer, at most some seconds old while there is a broker."""
        return self._client.routes

    @property
    def trouble(self) -> str:
        """Why the broker cannot be talked to, in words; empty when it can."""
        return self._client.trouble or ("" if self._away_since is None else "the broker does not answer")

    def translate(self, works: Sequence[Work], *, deadline_s: float, since: float | None = None) -> list[Answer]:
        """Do all of ``works`` at once; their answers in this order, each of them with texts.

        ``since`` says when the request came (monotonic seconds), for the times that the broker shows.

        The first that fails ends the call with its error, and the others are cancelled, as they all are when the
        deadline passes. Raises ``JobRejected``, ``JobFailed`` (code ``deadline`` when that was it), ``NoBroker``.
        """
        if not works:
            return []
        now, away_since = time.monotonic(), self._away_since
        if away_since is not None and now - away_since > PATIENCE_S:
            raise NoBroker(self._where, round(now - away_since))
        waited_ms = 0 if since is None else int((now - since) * 1000)
        call = _Call([_spec(work, deadline_s, waited_ms) for work in works])
        self._tell(functools.partial(self._submit, call))
        try:
            error = call.outcome.get(timeout=deadline_s + LATE_S)
        except queue.Empty:
            late = JobFailed("deadline", f"there was no result within {deadline_s:g} s", 0)
            error = NoBroker(self._where, deadline_s) if self.trouble else late
            self._tell(functools.partial(self._end, call, error))
        if error is not None:
            raise error
        return [answer for answer in call.answers if answer is not None]

    def call(self, act: Callable[[Client], Coroutine[Any, Any, Value]], within_s: float) -> Value:
        """Have the loop run ``act``; what it returns or raises. Past ``within_s`` it is cancelled: ``NoBroker``."""
        coroutine = act(self._client)
        try:
            future = asyncio.run_coroutine_threadsafe(coroutine, self._loop)
        except RuntimeError as error:
            coroutine.close()
            raise _stopped() from error
        try:
            return future.result(within_s)
        except TimeoutError:
            future.cancel()
            raise NoBroker(self._where, within_s) from None
        except concurrent.futures.CancelledError:
            raise _stopped() from None

    # ---- between the threads ----

    def _tell(self, act: Callable[[], None]) -> None:
        """Have the loop do ``act``. Any thread may call it; one wakeup serves all that comes before the loop looks."""
        self._inbox.append(act)
        if not self._rung:  # the loop clears this before it looks, so nothing is left lying
            self._rung = True
            try:
                self._loop.call_soon_threadsafe(self._look)
            except RuntimeError as error:
                raise _stopped() from error

    def _look(self) -> None:
        self._rung = False
        while self._inbox:
            self._inbox.popleft()()

    # ---- the loop's thread ----

    def _stop(self) -> None:
        self._task.cancel()

    def _run(self) -> None:
        try:
            asyncio.run(self._serve())
        except BaseException as error:
            self._started.put(error)  # after the start nobody reads it; ``alive`` says the rest
            log.error("the client's thread has ended: %s", logs.trace(error))

    async def _serve(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._loop.set_exception_handler(_complain)
        task = asyncio.current_task()
        assert task is not None
        self._task = task
        async with Client(self._where, gateway=self._gateway, keys=self._keys) as self._client:
            self._started.put(None)
            with contextlib.suppress(asyncio.CancelledError):  # that is how __exit__ says stop
                while True:
                    await self._beat(self._client)
            for call in list(self._calls):
                self._end(call, _stopped())

    async def _beat(self, client: Client) -> None:
        """Once a second: see whether the broker is there, and tell it how we are."""
        try:
            await client.wait_up(REPORT_S)
        except NoBroker:
            self._away_since = self._away_since or time.monotonic()
            return
        except RemoteError:  # it is there and wants nothing to do with us
            self._away_since = self._away_since or time.monotonic()
        else:
            self._away_since = None
            client.report(
                kind=self._kind, servers=self._units(), latency_ms=None,
                queued=len(self._calls), answered=self._answered, failed=self._failed,
            )  # fmt: skip
        await asyncio.sleep(REPORT_S)

    def _submit(self, call: _Call) -> None:
        self._calls.add(call)
        for number, spec in enumerate(call.specs):
            self._client.submit(spec, functools.partial(self._ended, call, number))

    def _ended(self, call: _Call, number: int, end: Answer | DolmetschError) -> None:
        """One job of a call is over."""
        if isinstance(end, DolmetschError):
            self._end(call, end)
            return
        self._client.ack(end.job_id)
        if end.texts is None:
            self._end(call, JobFailed(end.code, end.detail, end.attempts))
            return
        call.answers[number] = end
        call.missing -= 1
        if not call.missing:
            self._end(call, None)

    def _end(self, call: _Call, error: DolmetschError | None) -> None:
        """Let the caller go on, and withdraw what it does not wait for any more."""
        if call.ended:
            return
        call.ended = True
        self._calls.discard(call)
        if error is None:
            self._answered += 1
        else:
            self._failed += 1
            for spec, answer in zip(call.specs, call.answers, strict=True):
                if answer is None:
                    self._client.cancel(spec.job_id)
        call.outcome.put(error)


def _spec(work: Work, deadline_s: float, waited_ms: int) -> JobSpec:
    """A job of its own each time: two requests for one text are two requests."""
    return JobSpec(
        uuid.uuid4().bytes,
        work.route,
        work.texts,
        work.lane,
        work.tenant,
        deadline_s,
        b"",
        work.alternatives,
        waited_ms,
    )


def _stopped() -> JobFailed:
    return JobFailed("draining", "this gateway is being stopped", 0)


def _complain(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    """asyncio's own report would quote the error's message, and that may quote a text."""
    error = context.get("exception")
    log.error("%s: %s", context["message"], logs.trace(error) if error else "")
