"""A node's side of the conversation with the broker. Pure.

One door, as in the scheduler: ``handle(event, now)`` gives effects. The rules:

1. Register when there is something to offer; again whenever the broker does not know us or was silent too long.
2. What is leased is *held* until its outcome is received. A registration lists all of it; a heartbeat only what is
   still worked on, because an outcome goes the same way before it.
3. An outcome is sent at once (bulk ones of a busy node are gathered for a moment), and again every ``RESEND_S`` until
   the broker says that it has it.
4. A node that drains takes nothing more, finishes what it holds, says goodbye and leaves; past its time it leaves
   anyway, and the broker gives the rest to others. Drained by an operator it stays, until it is told to resume.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Final

from msgspec import Struct
from msgspec.structs import replace

from dolmetsch.errors import LocalError
from dolmetsch.link import Link
from dolmetsch.messages import (
    DRAIN,
    INTERACTIVE,
    MAX_CAPACITY,
    RESTART,
    RESUME,
    Done,
    Error,
    Failed,
    Failure,
    Finished,
    Goodbye,
    Heartbeat,
    HeldLease,
    Lease,
    LeasedJob,
    Message,
    Order,
    Pong,
    Received,
    Register,
    Reregister,
    Revoke,
    Welcome,
    batches,
    text_bytes,
)
from dolmetsch.reports import NO_TEMPERATURE_C, NOTHING_KNOWN, About, ChildStatus, Route

RESEND_S: Final = 2.0
PREFETCH_S: Final = 1.0  # work in hand: children never wait for the network, idle nodes are not starved for long
MIN_CREDIT: Final = 368  # jobs for each worker there may be; bulk's part is more than a window, or the pool never grows
GATHER_S: Final = 0.2  # a busy node gathers bulk outcomes this long: each message wakes the broker, and it a disk
GATHER_JOBS: Final = 256  # ... or until there are so many; and it is busy when it works on more than that, ...
BUSY_S: Final = 1.0  # ... or on what takes it longer than this: who waits so long waits a fifth longer at most
HOT_C: Final = 80.0  # a Raspberry Pi begins to throttle here
FATAL: Final = frozenset({"name_taken", "wrong_version"})  # errors that trying again cannot mend


class Health(Struct, frozen=True, kw_only=True):
    """What the node has measured of itself, for the heartbeat."""

    workers: int
    slots: int
    queued: int
    in_flight: int
    jobs_per_s: float
    chars_per_s: float
    cpu_percent: float
    core_percent: tuple[float, ...]
    ram_percent: float
    ram_used_bytes: int
    temperature_c: float | None
    throttled: bool
    children: tuple[ChildStatus, ...]


class FromBroker(Struct, frozen=True):
    """A valid message came."""

    message: Message


class Offer(Struct, frozen=True):
    """The pool can translate these routes now; it may grow to so many workers."""

    routes: tuple[Route, ...]
    slots: int


class Ended(Struct, frozen=True):
    """Jobs have ended in the pool. Their attempts are the session's business.

    ``finished``: (id, texts, model, wait_ms, work_ms); ``failed``: (id, code, detail, retry).
    """

    finished: Sequence[tuple[bytes, tuple[str, ...], str, int, int]]
    failed: Sequence[tuple[bytes, str, str, bool]]


class Beat(Struct, frozen=True):
    """A second has passed; this is how the node feels."""

    health: Health


class Tick(Struct, frozen=True):
    """The end of one turn of the loop."""


class Drain(Struct, frozen=True):
    """Finish what is held, then leave; at ``by`` at the latest."""

    by: float


Event = FromBroker | Offer | Ended | Beat | Tick | Drain


class Send(Struct, frozen=True):
    """Send this to the broker; if it cannot be sent now, it will be asked for again."""

    message: Message


class Start(Struct, frozen=True):
    """Give these jobs to the pool."""

    jobs: tuple[LeasedJob, ...]


class Stop(Struct, frozen=True):
    """Take these jobs from the pool: nobody wants them."""

    job_ids: tuple[bytes, ...]


class Renew(Struct, frozen=True):
    """Start the children anew, one after the other."""


class Reconnect(Struct, frozen=True):
    """The broker is silent: make a new connection."""


class Joined(Struct, frozen=True):
    """The broker has welcomed us, and wants a heartbeat so often."""

    broker: str
    heartbeat_s: float


class Leave(Struct, frozen=True):
    """The session is over; ``why`` is a line for people when that was not asked for."""

    why: str | None


Effect = Send | Start | Stop | Renew | Reconnect | Joined | Leave


def capacity(slots: int, jobs_per_s: float, *, hot: bool) -> int:
    """Credit to ask for, in jobs: ``PREFETCH_S`` seconds of measured work, half of it when the board is too hot."""
    if not slots:
        return 0
    wanted = max(jobs_per_s * PREFETCH_S, MIN_CREDIT * slots)
    return min(MAX_CAPACITY, int(wanted / 2 if hot else wanted))


class Session:
    """What this node holds, what it owes, and whether the broker knows it."""

    def __init__(
        self, *, name: str, incarnation: str, engine: str, rng: random.Random, now: float, about: About = NOTHING_KNOWN
    ) -> None:
        self._name = name
        self._about = about  # as of ``now``
        self._started = now
        self._incarnation = incarnation
        self._engine = engine
        self._link = Link(rng, now)
        self._offer: Offer | None = None
        self._capacity = 0
        self._health: Health | None = None
        self._held: dict[bytes, int] = {}  # job id -> attempt, until its outcome is received
        self._outcomes: dict[bytes, Finished | Failure] = {}
        self._sent_at: dict[bytes, float] = {}  # outcomes that were sent
        self._unsent: list[bytes] = []
        self._urgent: set[bytes] = set()  # held jobs of the interactive lane
        self._send_at: float | None = None  # when gathered outcomes must go
        self._drain_by: float | None = None
        self._paused = False  # drained by an operator
        self._left = False
        self._resend_at = now + RESEND_S
        self._effects: list[Effect] = []

    @property
    def held(self) -> int:
        """Jobs held, finished ones that the broker has not received included."""
        return len(self._held)

    @property
    def up(self) -> bool:
        """Whether the broker knows this node."""
        return self._link.up

    def handle(self, event: Event, now: float) -> list[Effect]:
        """Take one event; the effects are to be carried out in order."""
        match event:
            case FromBroker(message):
                self._link.heard(now)
                self._from_broker(message, now)
            case Offer():
                self._offered(event, now)
            case Ended():
                self._ended(event)
            case Beat(health):
                self._beat(health)
            case Tick():
                self._tick(now)
            case Drain(by):
                self._drain_by = by
                self._capacity = 0
            case _:
                raise LocalError(f"unknown event {event!r}")
        effects, self._effects = self._effects, []
        return effects

    def next_deadline(self) -> float | None:
        """When ``Tick`` has something to do by itself."""
        if self._left or self._offer is None:
            return self._drain_by
        due = self._link.next_deadline()
        if self._link.up and self._outcomes:  # while it is down nothing is sent, so nothing is late
            due = min(due, self._resend_at)
        if self._link.up and self._send_at is not None:
            due = min(due, self._send_at)
        return due if self._drain_by is None else min(due, self._drain_by)

    def _from_broker(self, message: Message, now: float) -> None:
        match message:
            case Lease(jobs=jobs):
                self._leased(jobs)
            case Received(jobs=jobs):
                for lease in jobs:
                    if self._held.get(lease.job_id) == lease.attempt and lease.job_id in self._outcomes:
                        self._forget(lease.job_id)
            case Revoke(jobs=jobs):
                gone = [lease.job_id for lease in jobs if self._held.get(lease.job_id) == lease.attempt]
                for job_id in gone:
                    self._forget(job_id)
                if gone:
                    self._effects.append(Stop(tuple(gone)))
            case Welcome(broker=broker, heartbeat_s=heartbeat_s):
                if not self._link.up:
                    self._effects.append(Joined(broker, heartbeat_s))
                self._link.welcomed()
            case Order(action=action):
                self._order(action)
            case Reregister():
                self._link.unknown(now)
            case Error(code=code, detail=detail) if code in FATAL:
                self._leave(detail)
            case Error() | Pong():
                pass
            case _:
                pass  # a kind that no node is sent: of no use, and no harm

    def _order(self, action: str) -> None:
        if action == RESTART:
            self._effects.append(Renew())
        elif action in (DRAIN, RESUME):
            self._paused = action == DRAIN
            if self._health is not None:
                self._beat(self._health)  # the broker learns of it now, not in a second

    def _leased(self, jobs: tuple[LeasedJob, ...]) -> None:
        fresh: list[LeasedJob] = []
        for job in jobs:
            attempt = self._held.get(job.job_id)
            if attempt is not None and attempt >= job.attempt:
                continue  # an older message
            if attempt is None:
                fresh.append(job)
                if job.lane == INTERACTIVE:
                    self._urgent.add(job.job_id)
            # Held under an older attempt: the work goes on and counts for the new one.
            self._held[job.job_id] = job.attempt
            outcome = self._outcomes.get(job.job_id)
            if outcome is not None:
                self._outcomes[job.job_id] = replace(outcome, attempt=job.attempt)
                self._sent_at.pop(job.job_id, None)
                self._unsent.append(job.job_id)
        if fresh:
            self._effects.append(Start(tuple(fresh)))

    def _forget(self, job_id: bytes) -> None:
        del self._held[job_id]
        self._outcomes.pop(job_id, None)
        self._sent_at.pop(job_id, None)
        self._urgent.discard(job_id)

    def _offered(self, offer: Offer, now: float) -> None:
        if self._offer is not None and offer.routes != self._offer.routes:
            self._link.unknown(now)  # tell the broker what is new
        if self._offer is None:
            self._capacity = capacity(offer.slots, 0.0, hot=False)
        self._offer = offer

    def _ended(self, event: Ended) -> None:
        for job_id, texts, model, wait_ms, work_ms in event.finished:
            attempt = self._held.get(job_id)
            if attempt is not None:
                self._outcomes[job_id] = Finished(job_id, attempt, texts, model, wait_ms, work_ms)
                self._unsent.append(job_id)
        for job_id, code, detail, retry in event.failed:
            attempt = self._held.get(job_id)
            if attempt is not None:
                self._outcomes[job_id] = Failure(job_id, attempt, code, detail, retry)
                self._unsent.append(job_id)

    def _beat(self, health: Health) -> None:
        self._health = health
        hot = health.throttled or (health.temperature_c or 0.0) >= HOT_C
        draining = self._paused or self._drain_by is not None
        self._capacity = 0 if draining else capacity(health.slots, health.jobs_per_s, hot=hot)
        if not self._link.up:
            return
        beat = Heartbeat(
            held=tuple([HeldLease(*lease) for lease in self._held.items() if lease[0] not in self._sent_at]),
            capacity=self._capacity,
            draining=draining,
            workers=health.workers,
            queued=health.queued,
            in_flight=health.in_flight,
            chars_per_s=health.chars_per_s,
            cpu_percent=health.cpu_percent,
            core_percent=health.core_percent,
            ram_percent=health.ram_percent,
            ram_used_bytes=health.ram_used_bytes,
            temperature_c=NO_TEMPERATURE_C if health.temperature_c is None else health.temperature_c,
            throttled=health.throttled,
            children=health.children,
        )
        self._effects.append(Send(beat))

    def _leases(self) -> tuple[HeldLease, ...]:
        return tuple([HeldLease(job_id, attempt) for job_id, attempt in self._held.items()])

    def _tick(self, now: float) -> None:
        if self._left or self._offer is None:
            if self._drain_by is not None:
                self._leave(None)
            return
        if self._link.silent(now):
            self._effects.append(Reconnect())
        if self._link.introduce(now):
            self._register(self._offer, now)
        if self._link.up:
            self._send_outcomes(now)
        if self._drain_by is not None and (now >= self._drain_by or not self._held):
            self._leave(None)

    def _register(self, offer: Offer, now: float) -> None:
        self._sent_at.clear()  # the broker may have missed them
        self._unsent = list(self._outcomes)
        register = Register(
            node=self._name,
            incarnation=self._incarnation,
            routes=offer.routes,
            capacity=self._capacity,
            engine=self._engine,
            about=replace(self._about, up_s=self._about.up_s + now - self._started),
            held=self._leases(),
        )
        self._effects.append(Send(register))

    def _send_outcomes(self, now: float) -> None:
        if now >= self._resend_at:
            self._resend_at = now + RESEND_S
            self._unsent += [job_id for job_id, at in self._sent_at.items() if now - at >= RESEND_S]
        if not self._unsent or self._gathers(now):
            return
        unsent, self._unsent = dict.fromkeys(self._unsent), []
        finished: list[Finished] = []
        failed: list[Failure] = []
        for job_id in unsent:
            outcome = self._outcomes.get(job_id)
            if outcome is None:
                continue
            self._sent_at[job_id] = now
            if isinstance(outcome, Finished):
                finished.append(outcome)
            else:
                failed.append(outcome)
        self._effects += [Send(Done(jobs=part)) for part in batches(finished, weigh=_weigh)]
        self._effects += [Send(Failed(jobs=part)) for part in batches(failed)]

    def _gathers(self, now: float) -> bool:
        """Whether to wait for more: only bulk outcomes of a busy node wait, so nobody notices."""
        working = len(self._held) - len(self._outcomes)
        jobs_per_s = 0.0 if self._health is None else self._health.jobs_per_s
        busy = working > GATHER_JOBS or working > BUSY_S * jobs_per_s > 0
        if (
            busy
            and len(self._unsent) < GATHER_JOBS
            and self._drain_by is None
            and self._urgent.isdisjoint(self._unsent)
        ):
            if self._send_at is None:
                self._send_at = now + GATHER_S
            if now < self._send_at:
                return True
        self._send_at = None
        return False

    def _leave(self, why: str | None) -> None:
        if not self._left:
            self._left = True
            if self._link.up:
                self._effects.append(Send(Goodbye()))
            self._effects.append(Leave(why))


def _weigh(outcome: Finished) -> int:
    return text_bytes(outcome.texts)
