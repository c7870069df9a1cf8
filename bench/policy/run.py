"""One run: the real scheduler, driven in virtual time by simulated arrivals and nodes.

Messages take no time, but the broker takes a turn every ``TURN_S`` only, as a commit to its disk takes about that long:
it reads what has come, ends its tick, and what it sends is there at once. The gateway acks what it got every 50 ms.
Nothing is random here: a run is decided by its fleet, its demand and its policy.
"""

from __future__ import annotations

import heapq
import itertools
import math
import time
from dataclasses import dataclass
from typing import Final

from bench.policy.demand import QUIET, Demand
from bench.policy.figures import fairness, percentile
from bench.policy.fleet import Fleet, Spell
from bench.policy.node import Batch, Node
from dolmetsch.effects import FromPeer, Send, Tick
from dolmetsch.errors import LocalError
from dolmetsch.messages import (
    BULK,
    INTERACTIVE,
    Ack,
    Hello,
    JobSpec,
    Lease,
    Message,
    Ping,
    Received,
    Reregister,
    Result,
    Revoke,
    Submit,
    batches,
)
from dolmetsch.outbox import ACK_S
from dolmetsch.scheduler import Scheduler

TURN_S: Final = 0.002
BEAT_S: Final = 1.0
SILENCE_S: Final = 3.0  # after so long without the broker a node introduces itself again (link.SILENCE_S)
WARM: Final = 0.2  # of the time in which jobs come: they count for nothing but fairness
MOST_S: Final = 1e6  # of virtual time: no run takes a day
GATEWAY: Final = b"gateway"

Event = tuple[float, int, str, "Node | None", "Batch | Spell | None"]


@dataclass(slots=True)
class Record:
    """What is seen of a run. Times in virtual seconds, by the number of the job; ``-1.0``: no result."""

    ended: list[float]
    answers: int = 0
    again: int = 0  # results of a job that had one already
    busy_s: float = 0.0  # of children, while jobs that count came
    scheduler_s: float = 0.0  # real seconds inside the scheduler
    real_s: float = 0.0
    makespan_s: float = 0.0


class Run:
    """A cluster from its first job to the last result."""

    def __init__(self, scheduler: Scheduler, fleet: Fleet, demand: Demand) -> None:
        self.scheduler = scheduler
        self.demand = demand
        self.nodes = {board.name.encode(): Node(board) for board in fleet.boards}
        self.record = Record([-1.0] * len(demand.specs))
        self._numbers = itertools.count()
        self._events: list[Event] = []
        self._next = 0  # the next job to come
        self._messages: list[tuple[bytes, Message]] = []
        self._talkative: dict[bytes, Node] = {}  # with outcomes to send
        self._unacked: list[bytes] = []
        self._ack_at = math.inf
        self._warm_s, self._last_s = WARM * demand.span_s, demand.span_s
        self._start(fleet)

    def _start(self, fleet: Fleet) -> None:
        self._messages.append((GATEWAY, Hello(gateway="load", incarnation="1")))
        self._at(BEAT_S, "ping")
        for number, board in enumerate(fleet.boards):
            node = self.nodes[board.name.encode()]
            self._messages += [(node.peer, node.register()), (node.peer, node.heartbeat())]
            self._at(BEAT_S * (number + 1) / len(fleet.boards), "beat", node)
            for spell in board.spells:
                self._at(spell.at, "begins", node, spell)
                self._at(spell.at + spell.for_s, "ends", node, spell)
        self._turn(0.0)

    def _at(self, when: float, kind: str, node: Node | None = None, what: Batch | Spell | None = None) -> None:
        heapq.heappush(self._events, (when, next(self._numbers), kind, node, what))

    # ---- the loop ----

    def run(self) -> Record:
        """Until every job has its result; raises ``LocalError`` when that takes impossibly long."""
        started = time.perf_counter()
        times, specs, events = self.demand.times, self.demand.specs, self._events
        jobs = len(specs)
        while self.record.answers < jobs:
            due = min(events[0][0], self._ack_at)
            if self._next < jobs and times[self._next] < due:
                due = times[self._next]
            turn = (math.floor(due / TURN_S) + 1) * TURN_S
            if turn > MOST_S:
                raise LocalError(f"{jobs - self.record.answers} jobs are never answered")
            while events[0][0] <= turn:
                self._happen(heapq.heappop(events))
            first = self._next
            while self._next < jobs and times[self._next] <= turn:
                self._next += 1
            self._submit(specs[first : self._next])
            self._turn(turn)
        self.record.real_s = time.perf_counter() - started
        self.record.makespan_s = max(self.record.ended)
        return self.record

    def _submit(self, specs: list[JobSpec]) -> None:
        if specs:
            self._messages += [(GATEWAY, Submit(jobs=part)) for part in batches(specs)]

    def _turn(self, now: float) -> None:
        """The broker reads, decides and sends."""
        record, handle = self.record, self.scheduler.handle
        if self._ack_at <= now:
            self._messages += [(GATEWAY, Ack(jobs=part)) for part in batches(self._unacked)]
            self._unacked, self._ack_at = [], math.inf
        for peer, node in self._talkative.items():
            if node.reachable and node.registered:
                self._messages += [(peer, done) for done in node.outcomes()]
        self._talkative = {peer: node for peer, node in self._talkative.items() if node.unsent}
        messages, self._messages = self._messages, []
        started = time.perf_counter()
        effects = [effect for peer, message in messages for effect in handle(FromPeer(peer, message), now)]
        effects += handle(Tick(), now)
        record.scheduler_s += time.perf_counter() - started
        for effect in effects:
            if type(effect) is Send:
                if effect.peer == GATEWAY:
                    if type(effect.message) is Result:
                        self._answered(effect.message, now)
                else:
                    self._tell(self.nodes[effect.peer], effect.message, now)

    # ---- the gateway ----

    def _answered(self, result: Result, now: float) -> None:
        record = self.record
        for answer in result.jobs:
            number = int.from_bytes(answer.job_id)
            if answer.texts is None:
                raise LocalError(f"job {number} failed: {answer.code} {answer.detail}")
            if record.ended[number] >= 0:
                record.again += 1
            else:
                record.answers += 1
                record.ended[number] = now
            self._unacked.append(answer.job_id)
        self._ack_at = min(self._ack_at, now + ACK_S)

    # ---- nodes ----

    def _tell(self, node: Node, message: Message, now: float) -> None:
        if not node.up:
            return
        kind = type(message)
        if kind is Lease:
            assert isinstance(message, Lease)
            node.take(message.jobs)
            self._work(node, now)
        elif kind is Received:
            node.received()
        elif kind is Revoke:
            assert isinstance(message, Revoke)
            node.revoke(message.jobs)
        elif kind is Reregister and node.reachable:
            self._register(node)

    def _register(self, node: Node) -> None:
        self._messages += [(node.peer, node.register()), (node.peer, node.heartbeat())]
        if node.unsent:
            self._talkative[node.peer] = node

    def _work(self, node: Node, now: float) -> None:
        for batch in node.begin(now):
            self._at(batch.ends, "batch", node, batch)

    def _happen(self, event: Event) -> None:
        now, _, kind, node, what = event
        if node is None:
            self._messages.append((GATEWAY, Ping(edition=1)))
            self._at(now + BEAT_S, "ping")
        elif kind == "batch":
            assert isinstance(what, Batch)
            if what.life == node.life:
                self.record.busy_s += max(0.0, min(now, self._last_s) - max(what.begun, self._warm_s))
                node.end(what)
                if node.unsent:
                    self._talkative[node.peer] = node
                self._work(node, now)
        elif kind == "beat":
            if node.up and node.reachable and node.registered:
                self._messages.append((node.peer, node.heartbeat()))
            self._at(now + BEAT_S, "beat", node)
        else:
            assert isinstance(what, Spell)
            self._spell(node, what, begins=kind == "begins")

    def _spell(self, node: Node, spell: Spell, *, begins: bool) -> None:
        if spell.kind == "hot":
            node.hot = begins
        elif spell.kind == "unreachable":
            node.reachable = not begins
            if node.reachable and node.up:
                if spell.for_s >= SILENCE_S:
                    self._register(node)
                else:
                    self._messages.append((node.peer, node.heartbeat()))
        elif begins:
            node.crash()
        else:
            node.up = True
            self._register(node)

    # ---- figures ----

    def used(self) -> float:
        """The part of all children's time, crashed ones' included, in which they worked, while jobs that count came."""
        children = sum(node.model.children for node in self.nodes.values())
        span_s = children * (self._last_s - self._warm_s)
        return self.record.busy_s / span_s if span_s else math.nan

    def latencies(self, tenants: tuple[str, ...] | None = None) -> list[float]:
        """Seconds, ascending, of the interactive jobs that count; of ``tenants`` only."""
        times, specs, ended = self.demand.times, self.demand.specs, self.record.ended
        first = next((number for number, at in enumerate(times) if at >= self._warm_s), len(times))
        return sorted(
            ended[number] - times[number]
            for number in range(first, len(times))
            if specs[number].lane == INTERACTIVE and (tenants is None or specs[number].tenant in tenants)
        )

    def fairness(self) -> float:
        """Jain's index of the lane where it is lower, of all that was done before the last job came."""
        indices = []
        for lane in (INTERACTIVE, BULK):
            got: dict[str, float] = {}
            wanted: dict[str, float] = {}
            for spec, ended in zip(self.demand.specs, self.record.ended, strict=True):
                if spec.lane == lane:
                    chars = len(spec.texts[0])
                    wanted[spec.tenant] = wanted.get(spec.tenant, 0.0) + chars
                    if ended <= self._last_s:
                        got[spec.tenant] = got.get(spec.tenant, 0.0) + chars
            if wanted:
                indices.append(fairness(got, wanted))
        return min(indices)


@dataclass(frozen=True, slots=True)
class Figures:
    """A run, in short. Seconds are virtual, except for the last two."""

    jobs: int
    p50_s: float
    p95_s: float
    p99_s: float
    quiet_p95_s: float  # of those who do not flood
    used: float
    fairness: float
    makespan_s: float
    scheduler_s: float
    real_s: float


def simulate(scheduler: Scheduler, fleet: Fleet, demand: Demand) -> Figures:
    """Run it, and judge it."""
    run = Run(scheduler, fleet, demand)
    record = run.run()
    if record.again:
        raise LocalError(f"{record.again} jobs were answered more than once")
    everybody, quiet = run.latencies(), run.latencies(QUIET)
    return Figures(
        jobs=len(demand.specs),
        p50_s=percentile(everybody, 50), p95_s=percentile(everybody, 95), p99_s=percentile(everybody, 99),
        quiet_p95_s=percentile(quiet, 95),
        used=run.used(),
        fairness=run.fairness(),
        makespan_s=record.makespan_s,
        scheduler_s=record.scheduler_s,
        real_s=record.real_s,
    )  # fmt: skip
