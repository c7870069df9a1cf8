"""What goes into the scheduler and what comes out: events and effects. Pure."""

from __future__ import annotations

import enum
from collections.abc import Sequence
from typing import Any

from msgspec import Struct

from dolmetsch.jobs import Outcome
from dolmetsch.messages import Message, Telemetry
from dolmetsch.reports import BrokerHealth


class FromPeer(Struct, frozen=True):
    """A valid message came from the peer with this routing identity."""

    peer: bytes
    message: Message


class PeerGone(Struct, frozen=True):
    """The socket says that nobody is behind this routing identity any more."""

    peer: bytes


class Tick(Struct, frozen=True):
    """The end of one turn of the loop: timers, dispatch, results."""


class Drain(Struct, frozen=True):
    """The broker is about to stop: take nothing new, lease nothing more."""


class Beat(Struct, frozen=True):
    """A second has passed, and this is how the broker's process is: publish how everything is."""

    health: BrokerHealth


class Record(Struct, frozen=True):
    """A job as the ledger keeps it; ``deadline`` in this broker's monotonic seconds."""

    seq: int
    job_id: bytes
    gateway: str
    tenant: str
    lane: int
    route: str
    texts: tuple[str, ...]
    reply_to: bytes
    deadline: float
    state: str
    attempt: int
    failures: int
    outcome: Outcome | None
    alternatives: int = 0
    deadline_s: float = 0.0  # from when the job came, for another boot


class Recover(Struct, frozen=True):
    """What the ledger held when the broker started."""

    records: Sequence[Record]
    settled: Sequence[bytes]


Event = FromPeer | PeerGone | Tick | Drain | Recover | Beat


class Op(enum.StrEnum):
    """What to write in the ledger; the comment gives the row, which begins with the job's number."""

    INSERT = "insert"  # seq, job_id, gateway, tenant, lane, route, texts, reply_to, deadline, now, alternatives
    LEASE = "lease"  # seq, attempt, node
    QUEUE = "queue"  # seq, failures, deadline
    OWN = "own"  # seq, gateway
    FINISH = "finish"  # seq, state, outcome: "done" drops the texts
    REMOVE = "remove"  # seq, job_id: settled

    __hash__ = str.__hash__  # an enum's own is a function in Python, and there are four of these for a job


class Persist(Struct, frozen=True, gc=False):
    """Commit this before anything is sent."""

    op: Op
    row: tuple[Any, ...]


class Send(Struct, frozen=True, gc=False):
    """Send this once everything is committed."""

    peer: bytes
    message: Message


class Publish(Struct, frozen=True, gc=False):
    """Tell this to whoever listens."""

    message: Telemetry


Effect = Persist | Send | Publish
