"""A simulated node: children that work through leased jobs in batches, and what the node says of itself.

As in ``pool.py`` and ``backlog.py``, as far as time is concerned: urgent jobs first, but each fourth batch begins with
the others; a long job is worked on in pieces, with urgent ones between; a batch is never waited for. Simpler than
there: one queue for all children, every child is always warm, and outcomes are not gathered before they are sent.
"""

from __future__ import annotations

from collections import deque
from typing import Final, NamedTuple

from bench.policy.fleet import BATCH_CHARS, BATCH_FIXED_CHARS, THROTTLED, Board
from dolmetsch.backlog import OLDEST_EVERY
from dolmetsch.messages import BULK, INTERACTIVE, Done, Finished, Heartbeat, HeldLease, LeasedJob, Register, batches
from dolmetsch.reports import NO_TEMPERATURE_C, Route
from dolmetsch.session import capacity
from dolmetsch.stats import RATE_WINDOW_S, Rate

ROUTES: Final = (Route("de→en", "simulated"),)
TRANSLATED: Final = ("",)  # nobody reads it


class Part(NamedTuple):
    """A job, or what is left of a long one, in characters."""

    job_id: bytes
    chars: int
    whole: int


class Batch(NamedTuple):
    """What a child works on: the jobs that are complete afterwards, and when that is."""

    child: int
    life: int
    begun: float
    ends: float
    complete: list[Part]


class Node:
    """One board at work. ``life`` counts its crashes; nothing of an earlier life matters any more."""

    def __init__(self, board: Board) -> None:
        self.name = board.name
        self.peer = board.name.encode()
        self.model = board.model
        self.life = 0
        self.hot = False
        self.up = True
        self.reachable = True
        self.registered = False
        self.unsent: list[Finished] = []
        self._sent: list[Finished] = []  # not received yet
        self._held: dict[bytes, HeldLease] = {}  # without an outcome
        self._queues: tuple[deque[Part], deque[Part]] = (deque(), deque())  # by lane
        self._rests: list[list[Part | None]] = []  # of each child, by lane: a job that it has begun
        self._turns: list[int] = []
        self._idle: list[int] = []
        self._rate = Rate()
        # It has measured itself before: how a cluster starts is not the question here.
        self._rate.add(RATE_WINDOW_S, RATE_WINDOW_S * board.model.full_chars_per_s / board.model.children, 0)
        self._rest()

    def _rest(self) -> None:
        children = self.model.children
        self._rests = [[None, None] for _ in range(children)]
        self._turns = [0] * children
        self._idle = list(range(children))

    # ---- what it says ----

    @property
    def _capacity(self) -> int:
        return capacity(self.model.children, self._rate.jobs_per_s * self.model.children, hot=self.hot)

    def register(self) -> Register:
        """How it introduces itself, with all it holds."""
        self.registered = True
        self.unsent = self._sent + self.unsent
        self._sent = []
        held = (*self._held.values(), *(HeldLease(one.job_id, one.attempt) for one in self.unsent))
        return Register(
            node=self.name, incarnation=f"{self.name}/{self.life}", routes=ROUTES, capacity=self._capacity,
            engine="simulated", held=held,
        )  # fmt: skip

    def heartbeat(self) -> Heartbeat:
        """What it says each second."""
        return Heartbeat(
            held=tuple(self._held.values()),
            capacity=self._capacity,
            draining=False,
            workers=self.model.children,
            queued=sum(map(len, self._queues)),
            in_flight=self.model.children - len(self._idle),
            chars_per_s=self._rate.chars_per_s * self.model.children,
            cpu_percent=0.0,
            core_percent=(),
            ram_percent=0.0,
            ram_used_bytes=0,
            temperature_c=NO_TEMPERATURE_C,
            throttled=self.hot,
            children=(),
        )

    def outcomes(self) -> list[Done]:
        """What is to be sent now."""
        done = [Done(jobs=part) for part in batches(self.unsent)]
        self._sent += self.unsent
        self.unsent = []
        return done

    # ---- what it is told ----

    def take(self, jobs: tuple[LeasedJob, ...]) -> None:
        """Leased jobs. One that is here already counts for the new attempt."""
        for job in jobs:
            here = job.job_id in self._held
            self._held[job.job_id] = HeldLease(job.job_id, job.attempt)
            if not here:
                chars = len(job.texts[0])
                self._queues[job.lane].append(Part(job.job_id, chars, chars))

    def received(self) -> None:
        """The broker has what was sent."""
        self._sent.clear()

    def revoke(self, leases: tuple[HeldLease, ...]) -> None:
        """The broker wants these no more."""
        for lease in leases:
            if self._held.get(lease.job_id) == lease:
                del self._held[lease.job_id]

    def crash(self) -> None:
        """All is lost."""
        self.life += 1
        self.up = self.registered = False
        self._held.clear()
        for queue in self._queues:
            queue.clear()
        self.unsent, self._sent = [], []
        self._rest()

    # ---- work ----

    def begin(self, now: float) -> list[Batch]:
        """A batch for every child that has none, as far as there is work."""
        begun: list[Batch] = []
        while self._idle:
            batch = self._begin(self._idle[-1], now)
            if batch is None:
                break
            self._idle.pop()
            begun.append(batch)
        return begun

    def end(self, batch: Batch) -> None:
        """The child has finished ``batch``, in this life."""
        self._idle.append(batch.child)
        chars = 0
        for part in batch.complete:
            chars += part.whole
            lease = self._held.pop(part.job_id, None)
            if lease is not None:  # else it was revoked meanwhile
                self.unsent.append(Finished(lease.job_id, lease.attempt, TRANSLATED, "simulated"))
        self._rate.add(batch.ends - batch.begun, chars, len(batch.complete))

    def _begin(self, child: int, now: float) -> Batch | None:
        complete: list[Part] = []
        turn = self._turns[child] = (self._turns[child] + 1) % OLDEST_EVERY
        room = BATCH_CHARS
        for lane in (INTERACTIVE, BULK) if turn else (BULK, INTERACTIVE):
            room = self._fill(child, lane, room, complete)
        if room == BATCH_CHARS:
            return None
        speed = self.model.chars_per_s * (THROTTLED if self.hot else 1.0)
        return Batch(child, self.life, now, now + (BATCH_CHARS - room + BATCH_FIXED_CHARS) / speed, complete)

    def _fill(self, child: int, lane: int, room: int, complete: list[Part]) -> int:
        """Put work of ``lane`` into the child's batch, first what it has begun; the room that is left."""
        queue, rests = self._queues[lane], self._rests[child]
        while room and (rests[lane] is not None or queue):
            part = rests[lane] or queue.popleft()
            rests[lane] = None
            if part.job_id not in self._held:
                continue  # revoked
            if part.chars > room:
                rests[lane] = Part(part.job_id, part.chars - room, part.whole)
                return 0
            complete.append(part)
            room -= part.chars
        return room
