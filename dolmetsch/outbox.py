"""A gateway's side of the conversation with the broker. Pure.

One door: ``handle(event, now)`` gives effects. The rules:

1. A job is sent until the broker accepts or refuses it, and again to a restarted one: its id makes that safe.
2. A result is delivered to the gateway once, and acked when the gateway says that it has it: the broker keeps it till
   then.
3. A result that nobody here asked for belongs to an earlier process of this gateway: it is delivered as a stray.
4. A job whose deadline passes while the broker cannot be reached is given up here, with one honest word.
5. Each ping says which edition of the routes is known here: when it is old, the broker sends the present one.
"""

from __future__ import annotations

import enum
import random
from collections import deque
from collections.abc import Iterable
from typing import Final

from msgspec import Struct
from msgspec.structs import replace

from dolmetsch.errors import LocalError
from dolmetsch.link import Link
from dolmetsch.messages import (
    MAX_JOBS,
    Accepted,
    Ack,
    Answer,
    Ask,
    Cancel,
    Error,
    Hello,
    JobSpec,
    JobState,
    Manage,
    Managed,
    Message,
    Ping,
    Pong,
    Refusal,
    Rejected,
    Report,
    Reregister,
    Result,
    Routes,
    Status,
    Submit,
    Welcome,
    batches,
    text_bytes,
)
from dolmetsch.reports import Route

RESEND_S: Final = 2.0
PING_S: Final = 1.0
ACK_S: Final = 0.05  # acks are gathered this long: nobody waits for them, and each message costs the broker a commit
MOMENT_S: Final = 0.01  # nobody misses so much of a deadline: the broker need not be told that it has passed
DEADLINE_GRACE_S: Final = 2.0  # the broker's own word on a deadline comes first if it can come
MAX_WISHES: Final = 64  # of an operator that wait for the broker
MAX_ACKED: Final = 4096  # answers acked lately, so that a late copy is acked again and not taken for a stray


class _Phase(enum.Enum):
    UNSENT = enum.auto()
    SENT = enum.auto()
    ACCEPTED = enum.auto()
    DELIVERED = enum.auto()


class _Parcel:
    """A job on its way."""

    __slots__ = ("deadline", "phase", "sent_at", "spec")

    def __init__(self, spec: JobSpec, deadline: float) -> None:
        self.spec = spec
        self.deadline = deadline
        self.phase = _Phase.UNSENT
        self.sent_at = 0.0


class Post(Struct, frozen=True):
    """Submit these jobs."""

    specs: tuple[JobSpec, ...]


class Have(Struct, frozen=True):
    """The gateway has these results safely."""

    job_ids: tuple[bytes, ...]


class Withdraw(Struct, frozen=True):
    """Nobody waits for these jobs any more."""

    job_ids: tuple[bytes, ...]


class Enquire(Struct, frozen=True):
    """Ask for the cluster's status."""


class Operate(Struct, frozen=True):
    """Ask the broker for what an operator wants; asked once, for the answer may be lost but the deed done."""

    manage: Manage


class Tell(Struct, frozen=True):
    """Tell the broker how the gateway is, if it is there now: the next report is a second away."""

    report: Report


class FromBroker(Struct, frozen=True):
    """A valid message came."""

    message: Message


class Tick(Struct, frozen=True):
    """The end of one turn of the loop."""


Event = Post | Have | Withdraw | Enquire | Operate | Tell | FromBroker | Tick


class Send(Struct, frozen=True):
    """Send this to the broker; if it cannot be sent now, it will be asked for again."""

    message: Message


class Deliver(Struct, frozen=True):
    """The job has ended; a stray was submitted by an earlier process of this gateway."""

    answer: Answer
    stray: bool


class Refuse(Struct, frozen=True):
    """The broker will not take the job."""

    refusal: Refusal


class Settled(Struct, frozen=True):
    """The broker knows that this gateway had the result of this job before."""

    job_id: bytes


class GiveUp(Struct, frozen=True):
    """The job's deadline, ``after_s`` seconds, passed without a word from the broker."""

    job_id: bytes
    after_s: float


class Informed(Struct, frozen=True):
    """The cluster's status."""

    status: Status


class Operated(Struct, frozen=True):
    """What became of it."""

    managed: Managed


class Reconnect(Struct, frozen=True):
    """The broker is silent: make a new connection."""


class Up(Struct, frozen=True):
    """The broker has welcomed us; it offers these routes."""

    routes: tuple[Route, ...]


class Offered(Struct, frozen=True):
    """The broker offers these routes from now on."""

    routes: tuple[Route, ...]


class Down(Struct, frozen=True):
    """The broker is not to be talked to: ``why`` says so for people."""

    why: str
    fatal: bool


Effect = Send | Deliver | Refuse | Settled | GiveUp | Informed | Operated | Reconnect | Up | Offered | Down


class Outbox:
    """The jobs of one gateway that are not over yet."""

    def __init__(self, *, gateway: str, incarnation: str, rng: random.Random, now: float) -> None:
        self._hello = Hello(gateway=gateway, incarnation=incarnation)
        self._link = Link(rng, now)
        self._parcels: dict[bytes, _Parcel] = {}
        self._unsent: dict[bytes, None] = {}
        self._acks: list[bytes] = []
        self._acked: dict[bytes, None] = {}
        self._withdrawn: list[bytes] = []
        self._enquiry_at: float | None = None
        self._wishes: deque[Manage] = deque(maxlen=MAX_WISHES)
        self._edition = 0  # of the routes that were told last
        self._ping_at = now
        self._ack_at: float | None = None
        self._look_at = now
        self._effects: list[Effect] = []

    @property
    def open(self) -> int:
        """Jobs that have not been delivered, refused or given up."""
        return sum(one.phase is not _Phase.DELIVERED for one in self._parcels.values())

    @property
    def unanswered(self) -> int:
        """Jobs of which the broker has not said anything yet."""
        return sum(one.phase in (_Phase.UNSENT, _Phase.SENT) for one in self._parcels.values())

    @property
    def idle(self) -> bool:
        """Whether nothing waits to be said to the broker."""
        return not (self._acks or self._withdrawn or self._unsent)

    def handle(self, event: Event, now: float) -> list[Effect]:
        """Take one event; the effects are to be carried out in order."""
        match event:
            case Post(specs):
                for spec in specs:
                    self._post(spec, now)
            case Have(job_ids):
                self._have(job_ids)
            case Withdraw(job_ids):
                self._withdraw(job_ids)
            case Enquire():
                self._enquiry_at = now
            case Operate(manage):
                self._wishes.append(manage)
            case Tell(report):
                if self._link.up:
                    self._effects.append(Send(report))
            case FromBroker(message):
                self._link.heard(now)
                self._from_broker(message, now)
            case Tick():
                self._tick(now)
            case _:
                raise LocalError(f"unknown event {event!r}")
        effects, self._effects = self._effects, []
        return effects

    def next_deadline(self) -> float:
        """When ``Tick`` has something to do by itself."""
        due = min(self._link.next_deadline(), self._look_at)
        if not self._link.up:  # nothing is sent, so nothing is late
            return due
        due = min(due, self._ping_at)
        return due if self._ack_at is None else min(due, self._ack_at)

    def _post(self, spec: JobSpec, now: float) -> None:
        if spec.job_id not in self._parcels:
            self._parcels[spec.job_id] = _Parcel(spec, now + spec.deadline_s)
            self._unsent[spec.job_id] = None

    def _have(self, job_ids: Iterable[bytes]) -> None:
        for job_id in job_ids:
            self._parcels.pop(job_id, None)
            self._acks.append(job_id)
            self._acked[job_id] = None
        if len(self._acked) > 2 * MAX_ACKED:
            for job_id in list(self._acked)[:MAX_ACKED]:
                del self._acked[job_id]

    def _withdraw(self, job_ids: Iterable[bytes]) -> None:
        for job_id in job_ids:
            if self._parcels.pop(job_id, None) is not None:
                self._unsent.pop(job_id, None)
                self._withdrawn.append(job_id)

    # ---- what the broker says ----

    def _from_broker(self, message: Message, now: float) -> None:
        match message:
            case Result(jobs=answers):
                for answer in answers:
                    self._result(answer)
            case Accepted(jobs=states):
                self._accepted(states)
            case Rejected(jobs=refusals):
                for refusal in refusals:
                    self._unsent.pop(refusal.job_id, None)  # a second copy may wait to be sent
                    if self._parcels.pop(refusal.job_id, None) is not None:
                        self._effects.append(Refuse(refusal))
            case Welcome(edition=edition, routes=routes):
                self._link.welcomed()
                self._edition = edition
                self._send_all_again()
                self._effects.append(Up(routes))
            case Routes(edition=edition, routes=routes):
                self._edition = edition
                self._effects.append(Offered(routes))
            case Reregister():
                self._link.unknown(now)
            case Status():
                self._enquiry_at = None
                self._effects.append(Informed(message))
            case Managed():
                self._effects.append(Operated(message))
            case Error(code="wrong_version" | "full" | "not_allowed", detail=detail):
                self._effects.append(Down(detail, True))
            case Error() | Pong():
                pass
            case _:
                pass  # a kind that no gateway is sent: of no use, and no harm

    def _result(self, answer: Answer) -> None:
        parcel = self._parcels.get(answer.job_id)
        if parcel is None:
            if answer.job_id in self._acked:
                self._acks.append(answer.job_id)
                return
            # Known from now on, so that a copy of it is not delivered twice.
            parcel = self._parcels[answer.job_id] = _Parcel(_no_spec(answer.job_id), 0.0)
            self._effects.append(Deliver(answer, stray=True))
        elif parcel.phase is not _Phase.DELIVERED:
            self._unsent.pop(answer.job_id, None)
            self._effects.append(Deliver(answer, stray=False))
        parcel.phase = _Phase.DELIVERED

    def _accepted(self, states: Iterable[JobState]) -> None:
        for one in states:
            job_id = one.job_id
            parcel = self._parcels.get(job_id)
            if parcel is None or parcel.phase is _Phase.DELIVERED:
                continue
            if one.state == "settled":
                del self._parcels[job_id]
                self._unsent.pop(job_id, None)
                self._effects.append(Settled(job_id))
            else:
                parcel.phase = _Phase.ACCEPTED

    # ---- what time does ----

    def _tick(self, now: float) -> None:
        if self._link.silent(now):
            self._effects += [Down("the broker does not answer", False), Reconnect()]
        if self._link.introduce(now):
            self._effects.append(Send(self._hello))
        self._look(now)
        if not self._link.up:
            return
        if now >= self._ping_at:
            self._ping_at = now + PING_S
            self._effects.append(Send(Ping(edition=self._edition)))
        if self._enquiry_at is not None and now >= self._enquiry_at:
            self._enquiry_at = now + RESEND_S
            self._effects.append(Send(Ask()))
        while self._wishes:
            self._effects.append(Send(self._wishes.popleft()))
        self._send_what_waits(now)

    def _look(self, now: float) -> None:
        """Once in a while: what was not answered, and what is too late."""
        if now < self._look_at:
            return
        self._look_at = now + 0.25
        for job_id, parcel in list(self._parcels.items()):
            if parcel.phase is _Phase.DELIVERED:
                continue
            if now >= parcel.deadline + DEADLINE_GRACE_S:
                del self._parcels[job_id]
                self._unsent.pop(job_id, None)
                self._effects.append(GiveUp(job_id, parcel.spec.deadline_s))
            elif parcel.phase is _Phase.SENT and now - parcel.sent_at >= RESEND_S:
                self._unsent[job_id] = None

    def _send_all_again(self) -> None:
        for job_id, parcel in self._parcels.items():
            if parcel.phase is not _Phase.DELIVERED:
                self._unsent[job_id] = None

    def _send_what_waits(self, now: float) -> None:
        if self._unsent:
            specs: list[JobSpec] = []
            for job_id in self._unsent:
                parcel = self._parcels[job_id]
                parcel.phase, parcel.sent_at = _Phase.SENT, now
                spec, left_s = parcel.spec, max(0.001, parcel.deadline - now)
                specs.append(spec if left_s >= spec.deadline_s - MOMENT_S else replace(spec, deadline_s=left_s))
            self._unsent.clear()
            self._effects += [Send(Submit(jobs=part)) for part in batches(specs, weigh=_weigh)]
        self._send_acks(now)
        if self._withdrawn:
            self._effects += [Send(Cancel(jobs=part)) for part in batches(self._withdrawn)]
            self._withdrawn = []

    def _send_acks(self, now: float) -> None:
        if self._acks and self._ack_at is None:
            self._ack_at = now + ACK_S
        if self._ack_at is not None and (now >= self._ack_at or len(self._acks) >= MAX_JOBS):
            self._effects += [Send(Ack(jobs=part)) for part in batches(self._acks)]
            self._acks, self._ack_at = [], None


def _no_spec(job_id: bytes) -> JobSpec:
    return JobSpec(job_id, "", (), 0, "", 0.0, b"")


def _weigh(spec: JobSpec) -> int:
    return text_bytes(spec.texts) + len(spec.reply_to)
