"""The client that every gateway uses: asyncio around the outbox and one DEALER socket.

    async with Client("tcp://127.0.0.1:5570", gateway="my-program") as client:
        result = await client.translate("Guten Morgen", "de→en")
        print(result.texts[0])

zmq.asyncio would cost several times as much a message; the loop watches the socket's descriptor instead, and each wake
reads all there is.
"""

from __future__ import annotations

import asyncio
import math
import random
import secrets
import time
import uuid
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Final, Self, TypeVar

import zmq

from dolmetsch.errors import DolmetschError, JobFailed, JobRejected, JobSettled, NoBroker, RemoteError
from dolmetsch.keys import Credentials
from dolmetsch.messages import BULK, INTERACTIVE, JOB_ID_BYTES, Answer, JobSpec, Manage, Managed, Report, Status
from dolmetsch.outbox import (
    Deliver,
    Down,
    Effect,
    Enquire,
    Event,
    FromBroker,
    GiveUp,
    Have,
    Informed,
    Offered,
    Operate,
    Operated,
    Outbox,
    Post,
    Reconnect,
    Refuse,
    Send,
    Settled,
    Tell,
    Tick,
    Up,
    Withdraw,
)
from dolmetsch.reports import NO_LATENCY_MS, Route
from dolmetsch.transport import DealerPort
from dolmetsch.wire import decode

__all__ = ["BULK", "INTERACTIVE", "Answer", "Client", "new_job_id"]

DEADLINE_S: Final = 60.0  # longer than anybody looks at a screen for one message
READ_AT_ONCE: Final = 256
CLOSE_S: Final = 1.0  # the last acks have this long to leave

Ending = Callable[[Answer | DolmetschError], None]


Value = TypeVar("Value")


def new_job_id() -> bytes:
    """An id that no other job has. Chance alone: a UUID takes six times as long to make."""
    return secrets.token_bytes(JOB_ID_BYTES)


async def _within(future: asyncio.Future[Value], within_s: float, where: str) -> Value:
    try:
        async with asyncio.timeout(within_s):
            return await asyncio.shield(future)
    except TimeoutError:
        raise NoBroker(where, within_s) from None


class Client:
    """A connection to the broker. ``gateway`` is the name under which results are kept for the next process; ``keys``
    are needed for a broker beyond this computer.

    ``on_stray`` takes results that an earlier process of this gateway asked for; it must ``ack`` them when they are
    safe. Without it they are acked unread.
    """

    def __init__(
        self,
        where: str,
        *,
        gateway: str,
        keys: Credentials | None = None,
        on_stray: Callable[[Answer], None] | None = None,
    ) -> None:
        self._where = where
        self._keys = keys
        self._gateway = gateway
        self._incarnation = uuid.uuid4().hex
        self._on_stray = on_stray
        self._endings: dict[bytes, Ending] = {}
        self._status: asyncio.Future[Status] | None = None
        self._managed: list[tuple[Manage, asyncio.Future[Managed]]] = []
        self._up = asyncio.Event()
        self._refused: RemoteError | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._pumping: asyncio.Handle | None = None
        self._fd = -1
        self.routes: tuple[Route, ...] = ()  # what nodes offer: at most some seconds old while there is a broker
        self.trouble = ""  # why the broker cannot be talked to, in words; empty when it can

    async def __aenter__(self) -> Self:
        self._loop = asyncio.get_running_loop()
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        name = f"gateway/{self._gateway}/{self._incarnation}"
        try:
            self._port = DealerPort(self._context, self._where, name, self._keys)
        except BaseException:
            self._context.destroy(linger=0)
            raise
        self._outbox = Outbox(
            gateway=self._gateway, incarnation=self._incarnation, rng=random.Random(), now=time.monotonic()
        )
        self._watch()
        self._pump_soon()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._handle(Tick())
        until = self._loop.time() + CLOSE_S
        while self._up.is_set() and not self._outbox.idle and self._loop.time() < until:
            await asyncio.sleep(0.01)
        self._loop.remove_reader(self._fd)
        for handle in (self._timer, self._pumping):
            if handle is not None:
                handle.cancel()
        self._port.close()
        self._context.term()

    # ---- for gateways ----

    @property
    def refusal(self) -> str:
        """Why the broker and this program do not take each other's keys, in words; empty when that is not so."""
        return self._port.trouble

    async def wait_up(self, within_s: float) -> None:
        """Return once the broker has welcomed us. Raises ``NoBroker``, or ``RemoteError`` if it speaks otherwise."""
        try:
            async with asyncio.timeout(within_s):
                await self._up.wait()
        except TimeoutError:
            raise NoBroker(self._where, within_s, self.refusal) from None
        if self._refused is not None:
            raise self._refused

    def submit(self, spec: JobSpec, ending: Ending) -> None:
        """Submit a job; ``ending`` is called once, with the answer or with why there is none.

        Errors: ``JobRejected``, ``JobSettled``, past the deadline with no broker ``NoBroker``, or ``RemoteError``. An
        answer is the caller's to ``ack`` as soon as it is safe.
        """
        try:
            "".join(spec.texts).encode()
        except UnicodeEncodeError:
            self._loop.call_soon(ending, JobRejected("bad_text", "the text is not valid Unicode"))
            return
        self._endings[spec.job_id] = ending
        self._handle(Post((spec,)))
        self._pump_soon()

    def ack(self, job_id: bytes) -> None:
        """The answer is safe: the broker may forget the job."""
        self._handle(Have((job_id,)))
        self._pump_soon()

    def cancel(self, job_id: bytes) -> None:
        """Nobody waits for the job any more; its ``ending`` is not called."""
        self._endings.pop(job_id, None)
        self._handle(Withdraw((job_id,)))
        self._pump_soon()

    def report(
        self, *, kind: str, servers: int, latency_ms: float | None, queued: int, answered: int, failed: int
    ) -> None:
        """Tell the broker how this gateway is; without one nothing happens, for the next report is a second away.

        ``latency_ms`` is to the gateway's own service: None, NaN, infinity or below 0 for none. ``queued`` are requests
        without an answer yet; ``answered`` and ``failed`` count since the gateway started.
        """
        if latency_ms is None or not math.isfinite(latency_ms) or latency_ms < 0:
            latency_ms = NO_LATENCY_MS
        report = Report(
            kind=kind,
            servers=servers,
            latency_ms=latency_ms,
            queued=queued,
            answered=answered,
            failed=failed,
        )
        self._handle(Tell(report))
        self._pump_soon()

    async def translate(
        self,
        texts: str | Sequence[str],
        route: str,
        *,
        lane: int = INTERACTIVE,
        tenant: str = "",
        deadline_s: float = DEADLINE_S,
        job_id: bytes | None = None,
        reply_to: bytes = b"",
        alternatives: int = 0,
    ) -> Answer:
        """Translate and ack. Raises ``JobRejected``, ``JobFailed``, ``JobSettled`` or ``NoBroker``.

        With ``alternatives`` the answer has the best translations of all texts, then the second-best, and so on.
        """
        spec = JobSpec(
            job_id or new_job_id(),
            route,
            (texts,) if isinstance(texts, str) else tuple(texts),
            lane,
            tenant,
            deadline_s,
            reply_to,
            alternatives,
        )
        future: asyncio.Future[Answer] = self._loop.create_future()

        def ending(end: Answer | DolmetschError) -> None:
            if future.done():
                return
            if isinstance(end, DolmetschError):
                future.set_exception(end)
            else:
                future.set_result(end)

        self.submit(spec, ending)
        try:
            answer = await future
        except asyncio.CancelledError:
            self.cancel(spec.job_id)
            raise
        self.ack(spec.job_id)
        if answer.texts is None:
            raise JobFailed(answer.code, answer.detail, answer.attempts)
        return answer

    async def status(self, within_s: float = 5.0) -> Status:
        """The cluster at a glance. Raises ``NoBroker``."""
        if self._status is None:
            self._status = self._loop.create_future()
            self._handle(Enquire())
            self._pump_soon()
        return await _within(self._status, within_s, self._where)

    async def manage(
        self, action: str, *, node: str = "", jobs: Sequence[bytes] = (), within_s: float = 5.0
    ) -> Managed:
        """Ask for what an operator wants: see ``messages.Manage``. Raises ``NoBroker``: it may have been done then."""
        manage = Manage(action=action, node=node, jobs=tuple(jobs))
        future: asyncio.Future[Managed] = self._loop.create_future()
        self._managed.append((manage, future))
        self._handle(Operate(manage))
        self._pump_soon()
        try:
            return await _within(future, within_s, self._where)
        finally:
            self._managed = [one for one in self._managed if one[1] is not future]

    # ---- the loop's side ----

    def _watch(self) -> None:
        self._fd = self._port.fd
        self._loop.add_reader(self._fd, self._pump)

    def _pump_soon(self) -> None:
        if self._pumping is None:
            self._pumping = self._loop.call_soon(self._pump)

    def _pump(self) -> None:
        """Read, tick, and arm the timer. The descriptor tells of changes only: so look again after sends."""
        if self._pumping is not None:
            self._pumping.cancel()  # this is the turn it wanted; forgotten only, it could come after the close
            self._pumping = None
        try:
            self._turn()
        finally:  # whatever went wrong in one turn, there is a next one
            if self._timer is not None:
                self._timer.cancel()
            wait_s = max(0.0, self._outbox.next_deadline() - time.monotonic())
            self._timer = self._loop.call_later(wait_s, self._pump)

    def _turn(self) -> None:
        for frames in self._port.receive(READ_AT_ONCE):
            try:
                message = decode(frames)
            except RemoteError as error:
                if error.code == "wrong_version":
                    self._refuse(error)
                else:
                    self._loop.call_exception_handler({"message": f"not understood, from the broker: {error}"})
                continue
            self._handle(FromBroker(message))
        self._handle(Tick())
        if self._port.readable:
            self._pump_soon()

    def _handle(self, event: Event) -> None:
        for effect in self._outbox.handle(event, time.monotonic()):
            self._carry_out(effect)

    def _carry_out(self, effect: Effect) -> None:
        match effect:
            case Send(message):
                self._port.send(message)
            case Deliver(answer, stray):
                self._deliver(answer, stray)
            case Refuse(refusal):
                retry = refusal.retry_after_s or None
                self._end(refusal.job_id, JobRejected(refusal.code, refusal.detail, retry))
            case Settled(job_id):
                self._end(job_id, JobSettled(job_id))
            case GiveUp(job_id, after_s):
                late = JobFailed("deadline", f"there was no result within {after_s:g} s", 0)
                self._end(job_id, NoBroker(self._where, after_s, self.refusal) if self.trouble else late)
            case Informed(status):
                if self._status is not None:
                    self._status.set_result(status)
                    self._status = None
            case Operated(managed):
                self._operated(managed)
            case Reconnect():
                self._loop.remove_reader(self._fd)
                self._port.reconnect()
                self._watch()
            case Up(routes):
                self.routes, self.trouble, self._refused = routes, "", None
                self._up.set()
            case Offered(routes):
                self.routes = routes
            case Down(why, fatal):
                self.trouble = why
                self._up.clear()
                if fatal:
                    self._refuse(RemoteError("refused", why))

    def _operated(self, managed: Managed) -> None:
        for manage, future in self._managed:
            if (manage.action, manage.node) == (managed.action, managed.node) and not future.done():
                future.set_result(managed)
                return

    def _deliver(self, answer: Answer, stray: bool) -> None:
        if not stray:
            self._end(answer.job_id, answer)
        elif self._on_stray is not None:
            self._on_stray(answer)
        else:
            self._handle(Have((answer.job_id,)))

    def _end(self, job_id: bytes, end: Answer | DolmetschError) -> None:
        ending = self._endings.pop(job_id, None)
        if ending is not None:
            ending(end)

    def _refuse(self, error: RemoteError) -> None:
        """The broker will have nothing to do with us: whoever waits is told so now."""
        self._refused = error
        self._up.set()
        for job_id in list(self._endings):
            self._end(job_id, error)
        for future in (self._status, *(future for _, future in self._managed)):
            if future is not None and not future.done():
                future.set_exception(error)
