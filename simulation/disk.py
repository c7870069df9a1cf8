"""The disks: the broker's ledger, of which a crash leaves what was committed, and each gateway's book."""

from __future__ import annotations

import enum
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

from msgspec.structs import replace

from dolmetsch.effects import Op, Persist, Record, Recover
from dolmetsch.jobs import Outcome
from dolmetsch.ledger import MemoryLedger
from dolmetsch.messages import Answer, JobSpec

MAX_SETTLED: Final = 500  # more than any run has jobs


class Violation(Exception):
    """Raised when something that must always be true is not; ``rule`` names it, ``what`` says in which case."""

    def __init__(self, rule: str, what: str) -> None:
        super().__init__(f"{rule}: {what}")
        self.rule = rule
        self.what = what


@dataclass(slots=True)
class Row:
    """A live job as it stands on the disk."""

    job_id: bytes
    gateway: str
    state: str = "queued"
    attempt: int = 0
    outcome: Outcome | None = None


class Disk:
    """The in-memory ledger, which survives the broker that writes it; with an account of its own of what it holds.

    A transaction is on the disk when ``commit`` returns, all of it, and not at all before: what SQLite's write-ahead
    log leaves of a torn write. So a crash before ``commit`` returns drops the tail, and nothing else does.
    """

    def __init__(self) -> None:
        self._ledger = MemoryLedger(MAX_SETTLED)
        self._deadline_s: dict[int, float] = {}  # by row: from when the job came, for another boot
        self._anew: dict[int, float] = {}  # by row: the deadline in this boot, when the row is of an earlier one
        self.rows: dict[int, Row] = {}
        self.jobs: dict[bytes, Row] = {}
        self.ever: set[bytes] = set()  # every job that was ever committed
        self.settled: set[bytes] = set()

    def load(self, now: float, *, rebooted: bool) -> Recover:
        """What a broker finds when it starts; after a reboot its clock means nothing, so deadlines begin anew."""
        found = self._ledger.load(now)
        if rebooted:
            self._anew = {one.seq: now + self._deadline_s[one.seq] for one in found.records}
        return Recover(tuple([self._dated(one) for one in found.records]), found.settled)

    def _dated(self, record: Record) -> Record:
        anew = self._anew.get(record.seq)
        return record if anew is None else replace(record, deadline=anew)

    def commit(self, changes: Sequence[Persist]) -> None:
        """All of ``changes`` are on the disk when this returns."""
        self._ledger.commit(changes)
        for change in changes:
            self._note(change)

    def _note(self, change: Persist) -> None:
        match change:
            case Persist(Op.INSERT, (seq, job_id, gateway, *_, deadline, now, _)):
                if job_id in self.ever:
                    raise Violation("an accepted job is done once", f"j{int.from_bytes(job_id)} was accepted again")
                self.ever.add(job_id)
                self._deadline_s[seq] = deadline - now
                self.rows[seq] = self.jobs[job_id] = Row(job_id, gateway)
            case Persist(Op.LEASE, (seq, attempt, _)):
                self.rows[seq].state, self.rows[seq].attempt = "leased", attempt
            case Persist(Op.QUEUE, (seq, *_)):
                self.rows[seq].state, self.rows[seq].outcome = "queued", None
                self._anew.pop(seq, None)
            case Persist(Op.OWN, (seq, gateway)):
                self.rows[seq].gateway = gateway
            case Persist(Op.FINISH, (seq, state, outcome)):
                self.rows[seq].state, self.rows[seq].outcome = state, outcome
            case Persist(Op.REMOVE, (seq, job_id)):
                del self.rows[seq], self.jobs[job_id], self._deadline_s[seq]
                self._anew.pop(seq, None)
                self.settled.add(job_id)


class End(enum.Enum):
    """How a request ended, as its gateway's book says."""

    ANSWERED = enum.auto()
    REFUSED = enum.auto()
    CANCELLED = enum.auto()
    GIVEN_UP = enum.auto()
    SETTLED = enum.auto()  # the broker says that its answer was acked before


@dataclass(slots=True)
class Line:
    """A request in a gateway's book."""

    spec: JobSpec
    by: float  # virtual seconds: nobody wants the answer after that
    tries: int = 0
    end: End | None = None
    answer: Answer | None = None


@dataclass(slots=True)
class Book:
    """What a gateway knows after a crash: what it was asked for, and what it has replied."""

    lines: dict[bytes, Line] = field(default_factory=dict)

    @property
    def open(self) -> list[Line]:
        """Requests that are not over."""
        return [line for line in self.lines.values() if line.end is None]
