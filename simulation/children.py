"""The children of a node, as its shell sees the pool: slow, stuck, dying of some jobs, and started anew."""

from __future__ import annotations

import random
from collections import OrderedDict
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Final

from dolmetsch.messages import BULK, LeasedJob
from dolmetsch.session import Ended
from simulation.disk import Violation
from simulation.plan import NodePlan

JOB_LIMIT_S: Final = 3.0  # a child that is stuck for so long is killed; shorter than in life, as runs are
RESTART_S: Final = 0.5  # a child that died is there again after so long
MODEL: Final = "v1"


@dataclass(slots=True)
class _Child:
    """One process: what it has in hand, how and when that ends, or when it is ready."""

    job: LeasedJob | None = None
    how: str = ""
    until: float = 0.0


class Children:
    """A pool of ``plan.slots`` children, with the pool's promises: each job ends once, unless it is cancelled."""

    def __init__(self, plan: NodePlan, rng: random.Random, count: Callable[[], int], blame: Callable[[bytes], None]):
        self._plan = plan
        self._rng = rng
        self._count = count  # a number that nobody had before
        self._blame = blame  # told of each failure of a job
        self._children = [_Child() for _ in range(plan.slots)]
        self._lanes: tuple[OrderedDict[bytes, LeasedJob], ...] = (OrderedDict(), OrderedDict())

    @property
    def jobs(self) -> dict[bytes, int]:
        """Everything here: job id and the attempt under which it came."""
        waiting = [job for lane in self._lanes for job in lane.values()]
        return {one.job_id: one.attempt for one in (*waiting, *(child.job for child in self._children if child.job))}

    @property
    def queued(self) -> int:
        """Jobs that no child has yet."""
        return sum(map(len, self._lanes))

    @property
    def in_flight(self) -> int:
        """Jobs in children's hands."""
        return sum(child.job is not None for child in self._children)

    def next_deadline(self) -> float | None:
        """When something happens here by itself."""
        waits = [child.until for child in self._children if child.job is not None or self.queued]
        return min(waits, default=None)

    def submit(self, jobs: Iterable[LeasedJob], now: float) -> None:
        """Take ``jobs``; none of them may be here already."""
        here = self.jobs
        for job in jobs:
            if job.job_id in here:
                raise Violation("a node starts a job once", f"{job.job_id.hex()} was submitted twice to the pool")
            self._lanes[job.lane == BULK][job.job_id] = job
        self._feed(now)

    def cancel(self, job_ids: Iterable[bytes], now: float) -> None:
        """Forget jobs; those that are not here are passed over."""
        wanted = set(job_ids)
        for lane in self._lanes:
            for job_id in [one for one in lane if one in wanted]:
                del lane[job_id]
        for child in self._children:
            if child.job is not None and child.job.job_id in wanted:
                child.job, child.until = None, now + 0.01
        self._feed(now)

    def kill(self, number: int, now: float) -> None:
        """A child dies, whatever it does."""
        child = self._children[number % len(self._children)]
        if child.job is not None:
            child.how, child.until = "crash", now

    def tick(self, now: float) -> Ended | None:
        """What has ended by now."""
        finished: list[tuple[bytes, tuple[str, ...], str, int, int]] = []
        failed: list[tuple[bytes, str, str, bool]] = []
        for child in self._children:
            if child.job is None or child.until > now:
                continue
            job, child.job = child.job, None
            if child.how in ("crash", "hang"):
                child.until = now + RESTART_S
                code = "child_crashed" if child.how == "crash" else "child_timeout"
                failed.append((job.job_id, code, "its child died", True))
                self._blame(job.job_id)
            elif child.how == "broken":
                failed.append((job.job_id, "engine_error", "no such thing", False))
            else:
                if child.how == "short":
                    self._blame(job.job_id)
                finished.append((job.job_id, self._texts(job, child.how), MODEL, 1, 10))
        self._feed(now)
        return Ended(finished, failed) if finished or failed else None

    def _texts(self, job: LeasedJob, how: str) -> tuple[str, ...]:
        """A translation that tells by whom it was made: no two are equal."""
        mark = self._count()
        texts = tuple(f"{text}#{mark}" for text in job.texts * (1 + job.alternatives))
        return texts[1:] if how == "short" else texts

    def _feed(self, now: float) -> None:
        for child in self._children:
            if child.job is not None or child.until > now:
                continue
            lane = self._lanes[0] or self._lanes[1]
            if not lane:
                return
            _, job = lane.popitem(last=False)
            child.job = job
            child.how, wait_s = self._fate(job)
            child.until = now + wait_s

    def _fate(self, job: LeasedJob) -> tuple[str, float]:
        """How the job ends, and after how long."""
        rng = self._rng
        how = job.texts[0].partition(" ")[0]
        if how == "sound" and rng.random() < self._plan.crashes:
            how = "crash"
        elif how == "sound" and rng.random() < self._plan.hangs:
            how = "hang"
        if how == "hang":
            return how, JOB_LIMIT_S
        chars = sum(map(len, job.texts)) * (1 + job.alternatives)
        work_s = 0.01 + chars / self._plan.chars_per_s * rng.uniform(0.5, 1.5)
        return how, work_s * rng.random() if how == "crash" else work_s
