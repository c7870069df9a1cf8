"""A node's pinned child processes: spawn, feed, watch, restart, grow and shrink.

It lives inside the node's one polling loop, so nothing in it waits (``close`` alone does, with a bound): the
loop polls ``fds()``, calls ``on_readable`` and ``on_writable``, and ``tick`` about ten times a second while there is
work. Rules:

- Whatever was submitted comes out once: as an outcome, or not at all when it was cancelled.
- While every child has bulk work in hand for a while, what they say is read ten times a second: to wake for each
  batch would take the core from them each time.
- A child is handed a small window of work (``handout.py``).
- A child that dies or is stuck takes only the batch it had begun with it; the rest goes back to the queue's
  front, and to the broker when no child will be there soon.
- Children are added for a backlog, on a free core, while the machine has CPU and RAM to spare; idle ones end.

Every ``now`` is in monotonic seconds.
"""

from __future__ import annotations

import contextlib
import math
import random
import subprocess
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Final

from msgspec import Struct

from dolmetsch.child import (
    BROKEN_STATUS,
    WORKER,
    Child,
    ChildInfo,
    PoolJob,
    PoolOutcome,
    Slot,
    spawn,
    worker_command,
)
from dolmetsch.config import EngineConfig, PoolConfig
from dolmetsch.errors import LocalError, RemoteError
from dolmetsch.handout import Queue
from dolmetsch.messages import GIVEN_BACK, MAX_HELD
from dolmetsch.stats import Rate

__all__ = ["ChildInfo", "Load", "Pool", "PoolJob", "PoolOutcome"]

MAX_JOBS: Final = MAX_HELD  # a heartbeat cannot list more leases than that, so more could not be kept alive
OCCUPIED_S: Final = 0.3  # of work in every child's hands: three ticks, so that none is without before it is looked at
START_LIMIT_S: Final = 60.0  # reading a model from a slow SD card takes seconds; a minute is stuck
START_TRIES: Final = 5  # deaths before the first child was ever ready: it is the installation, not chance
AWAY_S: Final = 1.0  # no child for longer than this: others may do the work meanwhile
STEADY_S: Final = 30.0  # a child that lived this long was well: its next restart is quick again
EXIT_WAIT_S: Final = 1.0  # between a child's end of file and its exit status
END_GRACE_S: Final = 5.0  # for an idle child that was told to end
GROW_HOLD_S: Final = 0.5  # a backlog shorter than this is gone before a new child has its model
GROW_BACKLOG: Final = 0.5  # of what the children have in hand: less is hardly worth another model in memory
POLL_S: Final = 0.02  # how soon to look again when only looking helps
KILL_WAIT_S: Final = 5.0  # the kernel ends a killed process in milliseconds, unless a disk hangs
BUSY_WINDOW_S: Final = 1.0  # the busy percentage covers at least this long
MAX_READS: Final = 64  # reads that empty a dead child's socket: far above what a window of answers needs


class Load(Struct, frozen=True):
    """How busy the machine is: percent for each core (index: core number), and percent of RAM in use."""

    cpu: tuple[float, ...]
    ram: float


class Pool:
    """The children of one node, on ``cores``; ``rng`` gives the restarts' jitter, ``command`` starts a child.

    ``routes`` (route to model version) comes from the children; ``broken`` says in one line why none can
    start, and ``last_death`` how the last one was lost, for the log.
    """

    def __init__(
        self,
        pool: PoolConfig,
        engine: EngineConfig,
        *,
        engine_kind: str = "argos",
        routes: Sequence[str] = (),
        packages: Sequence[Path] = (),
        cores: Sequence[int],
        rng: random.Random | None = None,
        command: Sequence[str] = WORKER,
    ) -> None:
        if not cores:
            raise LocalError("a pool needs at least one core")
        self.config = pool
        self.cores = tuple(cores)
        self.max_workers = max(pool.max_workers or len(self.cores), pool.min_workers)
        self.routes: Mapping[str, str] = {}
        self.broken: str | None = None
        self.last_death = ""
        self._command = worker_command(command, engine, engine_kind, routes, packages)
        self._rng = rng or random.Random()
        self._queue = Queue(engine.batch_tokens, self.max_workers)
        self._slots: list[Slot] = []
        self._leaving: list[Child] = []  # told to end, or killed, and not reaped yet
        self._renewing: list[Child] = []  # to be replaced, one after the other; the first gets no more work
        self._rate = Rate()
        self._now = 0.0  # the last time it was told
        self._ever_ready = False
        self.away = False  # no child translates, nor will one soon: no work is wanted, and what comes is given back
        self._backlog_since: float | None = None
        self._busy_at = 0.0

    # ---- what it is doing ----

    @property
    def ready(self) -> int:
        """Children that can translate."""
        return sum(slot.ready is not None for slot in self._slots)

    @property
    def size(self) -> int:
        """Children kept, those that start or wait for a restart included."""
        return len(self._slots)

    @property
    def queued(self) -> int:
        """Jobs no child has yet."""
        return len(self._queue)

    @property
    def queued_chars(self) -> int:
        """Characters of those."""
        return self._queue.chars

    @property
    def in_flight(self) -> int:
        """Jobs in children's hands."""
        return sum(len(slot.child.hand) for slot in self._slots if slot.child)

    @property
    def at_rest(self) -> bool:
        """Whether there is nothing to do: no job, and every child ready for one."""
        return not (self.queued or self.in_flight or self._leaving or self._renewing) and self.ready == self.size

    @property
    def chars_per_s(self) -> float:
        """Characters a second the ready children do while they have work; 0.0 before any was measured."""
        return self._rate.chars_per_s * max(1, self.ready)

    @property
    def jobs_per_s(self) -> float:
        """Jobs a second, likewise."""
        return self._rate.jobs_per_s * max(1, self.ready)

    @property
    def occupied(self) -> bool:
        """Whether every child has work for longer than OCCUPIED_S, and none of it is urgent."""
        chars = OCCUPIED_S * self._rate.chars_per_s
        if self._queue.urgent or not chars:
            return False
        children = [slot.ready for slot in self._slots]
        return all(child is not None and not child.urgent and child.hand_chars > chars for child in children)

    def fds(self) -> Mapping[int, bool]:
        """Return the descriptors to poll for reading, and whether each is to be polled for writing too.

        None while the children are ``occupied``: then only ``tick`` reads and writes.
        """
        if self.occupied:
            return {}
        return {
            slot.child.fd: bool(slot.child.out)
            for slot in self._slots
            if slot.child is not None and slot.child.eof_at is None
        }

    def children(self) -> list[ChildInfo]:
        """Describe every child, also those that are ending."""
        return [slot.describe(self._now) for slot in self._slots] + [
            ChildInfo(child.process.pid, child.core, "ending", child.rss_bytes(), 0, child.jobs_done, 0, 0.0, 0.0)
            for child in self._leaving
        ]

    def next_deadline(self) -> float | None:
        """Return when ``tick`` should next be called, None when nothing is due; never a time already past."""
        times = [self._due(slot) for slot in self._slots]
        if self._leaving:
            times.append(self._now + POLL_S)
        if self._backlog_since is not None:
            times.append(self._backlog_since + GROW_HOLD_S)
        due = min(times, default=math.inf)
        return None if due == math.inf else max(due, self._now + POLL_S)

    def _due(self, slot: Slot) -> float:
        child = slot.child
        if child is None:
            return math.inf if self.broken else slot.restart_at
        if child.eof_at is not None:
            return self._now + POLL_S
        if child.ready_at is None:
            return child.started_at + START_LIMIT_S
        if child.hand:
            return self._now - child.stalled_s(self._now) + self.config.job_limit_s
        return child.idle_since + self.config.idle_s if self.size > self.config.min_workers else math.inf

    # ---- work in, outcomes out ----

    def start(self, now: float) -> None:
        """Spawn ``min_workers`` children."""
        self._now = self._busy_at = now
        while self.size < self.config.min_workers:
            self._add_slot(self._free_core(()), now)

    def submit(self, jobs: Sequence[PoolJob], now: float) -> None:
        """Queue ``jobs``; raises LocalError beyond ``MAX_JOBS`` in all, or when a key is here already."""
        self._now = now
        if self.queued + self.in_flight + len(jobs) > MAX_JOBS:
            raise LocalError(f"more than {MAX_JOBS} jobs were submitted to the pool")
        hands = [slot.child.hand for slot in self._slots if slot.child]
        for job in jobs:
            if job.key in self._queue or any(job.key in hand for hand in hands):
                raise LocalError(f"job {job.key.hex()} was submitted twice")
            self._queue.add(job)
        self._feed(now)

    def cancel(self, keys: Iterable[bytes]) -> None:
        """Forget jobs, queued or in hand; keys that are not here are passed over."""
        wanted = set(keys)
        self._queue.drop(wanted)
        for slot in self._slots:
            if slot.child is not None:
                slot.child.drop(slot.child.hand.keys() & wanted, self._now)
        self._feed(self._now)

    def renew(self) -> None:
        """Replace each child by a new one, once it has finished what it has in hand."""
        self._renewing = [slot.child for slot in self._slots if slot.child is not None]

    def on_readable(self, fd: int, now: float) -> list[PoolOutcome]:
        """Read what the child behind ``fd`` sent; a descriptor that is gone gives nothing."""
        self._now = now
        outcomes: list[PoolOutcome] = []
        for slot in self._slots:
            child = slot.child
            if child is not None and child.fd == fd and child.eof_at is None:
                self._receive(slot, child, now, outcomes)
                if slot.child is child and child.eof_at is not None:
                    self._watch(slot, child, now, outcomes)
                self._feed(now)
                break
        return outcomes

    def on_writable(self, fd: int, now: float) -> None:
        """Go on writing to the child behind ``fd``."""
        self._now = now
        for slot in self._slots:
            if slot.child is not None and slot.child.fd == fd:
                slot.child.flush()

    def tick(self, now: float, load: Load) -> list[PoolOutcome]:
        """Watch, kill the stuck, restart, feed, shrink and grow; return what that brought out."""
        self._now = now
        outcomes: list[PoolOutcome] = []
        for slot in self._slots:
            if slot.child is not None:
                self._watch(slot, slot.child, now, outcomes)
        self._reap(now)
        self._renew(now)
        self._restart(now, load)
        self._give_back(now, outcomes)
        self._feed(now)
        self._shrink(now, load)
        self._grow(now, load)
        self._measure(now)
        return outcomes

    def _feed(self, now: float) -> None:
        resting = self._renewing[0] if self._renewing else None
        children = [child for slot in self._slots if (child := slot.ready) is not None and child is not resting]
        for child, jobs in self._queue.hand_out(children, now).items():
            child.give(jobs)

    def _receive(self, slot: Slot, child: Child, now: float, outcomes: list[PoolOutcome], reads: int = 1) -> None:
        was_ready, before = child.ready_at is not None, len(outcomes)
        try:
            chars = child.receive(now, outcomes, reads)
        except RemoteError as error:
            self._lose(slot, child, error.code, error.detail, now, outcomes)
            return
        if len(outcomes) > before:
            busy_s = child.busy_s(now)
            self._rate.add(busy_s - slot.rated_s, chars, len(outcomes) - before)
            slot.rated_s = busy_s
        if not was_ready and child.ready_at is not None:
            self.routes, self._ever_ready = child.routes, True

    # ---- watching ----

    def _watch(self, slot: Slot, child: Child, now: float, outcomes: list[PoolOutcome]) -> None:
        """Hear ``child``, and find out whether it has died or is stuck; what it said before that still counts."""
        exited = child.exited()
        if child.eof_at is None:
            child.flush()
            self._receive(slot, child, now, outcomes, MAX_READS if exited or self._overdue(child, now) else 1)
        if slot.child is not child:
            return  # it was lost while reading
        if child.eof_at is not None:
            exited = child.exited() or now >= child.eof_at + EXIT_WAIT_S
        if exited:
            self._lose(slot, child, "child_crashed", child.epitaph(), now, outcomes)
        elif child.eof_at is None and self._overdue(child, now):
            limit_s = START_LIMIT_S if child.ready_at is None else self.config.job_limit_s
            self._lose(slot, child, "child_timeout", f"made no progress for {limit_s:g} s", now, outcomes)

    def _overdue(self, child: Child, now: float) -> bool:
        if child.ready_at is None:
            return now >= child.started_at + START_LIMIT_S
        return child.stalled_s(now) >= self.config.job_limit_s

    def _lose(self, slot: Slot, child: Child, code: str, words: str, now: float, outcomes: list[PoolOutcome]) -> None:
        """Part with a dead or stuck child: blame the batch it had begun, requeue the rest, plan a restart."""
        self.last_death = f"the child on core {child.core} (pid {child.process.pid}) {words}"
        for key in child.batch:
            if child.hand.pop(key, None) is not None:
                outcomes.append(PoolOutcome(key, None, "", code, self.last_death, True))
        for job in reversed(child.hand.values()):
            self._queue.add(job, front=True)
        status = child.process.returncode
        child.kill()
        self._leaving.append(child)
        slot.child = None
        slot.jobs_done += child.jobs_done
        slot.busy_percent = 0.0
        if child.ready_at is not None and now - child.ready_at >= STEADY_S:
            slot.failures = 0
        broken = child.broken or ("found nothing to translate with" if status == BROKEN_STATUS else None)
        self._plan_restart(slot, now, broken)

    def _plan_restart(self, slot: Slot, now: float, broken: str | None) -> None:
        slot.back_off(now, self._rng)
        if self._ever_ready:
            return
        if broken is not None:
            self.broken = broken
        elif slot.failures >= START_TRIES:
            self.broken = f"no child could start in {START_TRIES} tries: {self.last_death}"

    def _reap(self, now: float) -> None:
        for child in self._leaving[:]:
            if child.exited():
                child.sock.close()
                self._leaving.remove(child)
            elif now >= child.kill_at:
                child.kill()

    def _measure(self, now: float) -> None:
        elapsed_s = now - self._busy_at
        if elapsed_s < BUSY_WINDOW_S:
            return
        self._busy_at = now
        for slot in self._slots:
            if slot.child is not None:
                busy_s = slot.child.busy_s(now)
                slot.busy_percent = min(100.0, 100.0 * (busy_s - slot.busy_mark_s) / elapsed_s)
                slot.busy_mark_s = busy_s

    def _give_back(self, now: float, outcomes: list[PoolOutcome]) -> None:
        """While all children wait for their restart, and until one is ready, nobody should wait for them."""
        if self.ready or not self._slots or not self._ever_ready:
            self.away = False
        elif all(slot.child is None and slot.restart_at > now + AWAY_S for slot in self._slots):
            self.away = True
        if self.away:
            why = "its children start anew"
            outcomes += [PoolOutcome(key, None, "", GIVEN_BACK, why, True) for key in self._queue.clear()]

    # ---- how many ----

    def _spawn(self, slot: Slot, now: float) -> None:
        slot.busy_mark_s = slot.rated_s = 0.0
        try:
            slot.child = spawn(self._command, slot.core, now)
        except OSError as error:
            self.last_death = f"no child could be started on core {slot.core}: {error}"
            self._plan_restart(slot, now, None)

    def _add_slot(self, core: int, now: float) -> None:
        slot = Slot(core, now)
        self._slots.append(slot)
        self._spawn(slot, now)

    def _restart(self, now: float, load: Load) -> None:
        if self.broken:
            return
        for slot in self._slots[:]:
            if slot.child is not None or now < slot.restart_at or self._is_left(slot.core):
                continue
            if self.size > self.config.min_workers and load.ram > self.config.max_ram:
                self._slots.remove(slot)
            else:
                slot.restarts += 1
                self._spawn(slot, now)

    def _renew(self, now: float) -> None:
        """End the first of those to be replaced when its hands are empty; the next waits until all are ready again."""
        while self._renewing:
            child = self._renewing[0]
            slot = next((slot for slot in self._slots if slot.child is child), None)
            if slot is None:  # it has gone meanwhile
                if any(slot.ready is None for slot in self._slots):
                    return
                del self._renewing[0]
                continue
            if child.ready_at is not None and not child.hand:
                child.end(now + END_GRACE_S)
                self._leaving.append(child)
                slot.jobs_done += child.jobs_done
                slot.child, slot.busy_percent, slot.restart_at = None, 0.0, now
            return

    def _shrink(self, now: float, load: Load) -> None:
        """End what is idle above ``min_workers``, the longest idle first."""
        spare = self.size - self.config.min_workers
        if spare <= 0:
            return
        idle = [(slot, child) for slot in self._slots if (child := slot.ready) is not None and not child.hand]
        idle.sort(key=lambda pair: pair[1].idle_since)
        for slot, child in idle[:spare]:
            if load.ram > self.config.max_ram or now - child.idle_since >= self.config.idle_s:
                child.end(now + END_GRACE_S)
                self._leaving.append(child)
                self._slots.remove(slot)

    def _grow(self, now: float, load: Load) -> None:
        """Add a child when more than ``GROW_BACKLOG`` of what the children have in hand waits; one at a time."""
        in_hand = sum(slot.child.hand_chars for slot in self._slots if slot.child)
        settled = self.ready == self.size < self.max_workers
        if self.broken or not settled or self.queued_chars <= GROW_BACKLOG * in_hand:
            self._backlog_since = None
            return
        if self._backlog_since is None:
            self._backlog_since = now
        core = self._free_core(load.cpu)
        room = _percent(load.cpu, core) <= self.config.max_cpu and load.ram <= self.config.max_ram
        if now - self._backlog_since >= GROW_HOLD_S and room and not self._is_left(core):
            self._backlog_since = None
            self._add_slot(core, now)

    def _free_core(self, cpu: Sequence[float]) -> int:
        """Return the core with the fewest children, of those the least busy one."""
        taken = [slot.core for slot in self._slots] + [child.core for child in self._leaving]
        return min(self.cores, key=lambda core: (taken.count(core), _percent(cpu, core)))

    def _is_left(self, core: int) -> bool:
        """Whether a child is still leaving ``core``: its memory is not free before it has gone."""
        return any(child.core == core for child in self._leaving)

    # ---- the end ----

    def close(self, now: float, grace_s: float) -> None:
        """End and reap all children, killing those still there after ``grace_s`` seconds; forget all jobs."""
        self._now = now
        children = [slot.child for slot in self._slots if slot.child] + self._leaving
        for child in children:
            child.end(math.inf)
        _wait(children, grace_s)
        for child in children:
            child.kill()
        _wait(children, KILL_WAIT_S)
        self._slots.clear()
        self._leaving.clear()
        self._queue.clear()


def _wait(children: Iterable[Child], limit_s: float) -> None:
    """Reap ``children``, for ``limit_s`` seconds at most in all."""
    until = time.monotonic() + limit_s
    for child in children:
        with contextlib.suppress(subprocess.TimeoutExpired):
            child.process.wait(max(0.0, until - time.monotonic()))


def _percent(cpu: Sequence[float], core: int) -> float:
    """Return how busy ``core`` is; a core that is not listed counts as idle."""
    return cpu[core] if core < len(cpu) else 0.0
