"""The chronicle: how long jobs took, which ended lately, and which nodes are no more. Pure.

A cluster ends thousands of jobs a second, so each costs only a count and a look at how slow it was: reports are made of
the few that are kept, once a second, when somebody asks.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import OrderedDict, deque
from collections.abc import Iterable
from typing import Final

from msgspec import Struct

from dolmetsch.jobs import Job, State, Times
from dolmetsch.messages import LANES
from dolmetsch.reports import LATENCY_MS, Departed, Histogram, JobReport, StoryLine

RECENT: Final = 24  # of the jobs that ended since the last report, the latest ...
SLOW: Final = 8  # ... and the slowest
DEAD: Final = 48  # dead letters told, the latest
DEPARTED: Final = 64  # nodes remembered that left or were lost


class _Ended(Struct, frozen=True, gc=False):
    took_s: float
    at: float
    job: Job


class _Gone(Struct, frozen=True, gc=False):
    how: str
    why: str
    at: float


class Chronicle:
    """Counts since the broker started, and what ended since ``take`` was called last."""

    def __init__(self) -> None:
        self._counts = [[0] * (len(LATENCY_MS) + 1) for _ in LANES]
        self._sums_ms = [0 for _ in LANES]
        self._recent: deque[_Ended] = deque(maxlen=RECENT)
        self._slow: list[_Ended] = []
        self._slow_from_s = 0.0  # what is quicker is not among the slowest
        self._departed: OrderedDict[str, _Gone] = OrderedDict()

    # ---- jobs ----

    def done(self, lane: int, took_ms: int) -> None:
        """A job has a result."""
        self._counts[lane][bisect_left(LATENCY_MS, took_ms)] += 1
        self._sums_ms[lane] += took_ms

    def ended(self, job: Job, now: float) -> None:
        """A job is over: acked, or dead."""
        took_s = now - job.queued_at
        ended = _Ended(took_s, now, job)
        self._recent.append(ended)
        if took_s > self._slow_from_s or len(self._slow) < SLOW:
            self._slow.append(ended)
            if len(self._slow) > SLOW:
                self._slow.remove(min(self._slow, key=lambda one: one.took_s))
                self._slow_from_s = min(one.took_s for one in self._slow)

    def take(self, now: float) -> tuple[JobReport, ...]:
        """Reports of the latest and the slowest jobs that ended since the last call, and begin anew."""
        kept = {one.job.id: one for one in (*self._recent, *self._slow)}
        self._recent.clear()
        self._slow.clear()
        self._slow_from_s = 0.0
        return tuple([report(one.job, one.at, now) for one in kept.values()])

    def latency(self) -> tuple[Histogram, ...]:
        """By lane."""
        return tuple(
            [Histogram(tuple(counts), sum_ms) for counts, sum_ms in zip(self._counts, self._sums_ms, strict=True)]
        )

    # ---- nodes ----

    def departed(self, name: str, how: str, why: str, now: float) -> None:
        """The node called ``name`` is no more."""
        self._departed.pop(name, None)
        self._departed[name] = _Gone(how, why, now)
        if len(self._departed) > DEPARTED:
            self._departed.popitem(last=False)

    def came(self, name: str) -> None:
        """The node called ``name`` is here."""
        self._departed.pop(name, None)

    def absent(self, now: float) -> tuple[Departed, ...]:
        """Nodes that are no more, the latest last."""
        return tuple([
            Departed(name, gone.how, gone.why, max(0.0, now - gone.at)) for name, gone in self._departed.items()
        ])  # fmt: skip


def reports_of_dead(dead: Iterable[Job], now: float) -> tuple[JobReport, ...]:
    """The latest dead letters."""
    return tuple([report(job, _result_at(job, now), now) for job in deque(dead, maxlen=DEAD)])


def report(job: Job, ended: float, now: float) -> JobReport:
    """What is told of a job that ended at ``ended``; none of its texts."""
    outcome = job.outcome
    result_at = _result_at(job, ended)
    leased = job.attempt > 0 and result_at >= job.leased_at
    at_node_ms = _ms(result_at - job.leased_at) if leased else 0
    # A node that did not finish the job says nothing of its time: count it as work.
    times = job.times or Times(0, at_node_ms)
    return JobReport(
        job_id=job.id,
        state=State.DEAD.value if outcome is None or outcome.texts is None else State.DONE.value,
        gateway=job.gateway,
        lane=job.lane,
        route=job.route,
        chars=job.chars,
        node=job.node or "",
        model="" if outcome is None else outcome.model,
        attempts=job.attempt,
        cached=outcome is not None and outcome.cached,
        code="" if outcome is None else outcome.code,
        detail="" if outcome is None else outcome.detail,
        ended_s_ago=max(0.0, now - ended),
        gateway_ms=job.waited_ms,
        queue_ms=_ms((job.leased_at if leased else result_at) - job.queued_at),
        wire_ms=max(0, at_node_ms - times.wait_ms - times.work_ms),
        batch_ms=min(times.wait_ms, at_node_ms),
        decode_ms=min(times.work_ms, at_node_ms),
        reply_ms=_ms(ended - result_at),
        story=tuple([StoryLine(_ms(at - job.queued_at), what) for at, what in job.story or ()]),
    )


def _result_at(job: Job, otherwise: float) -> float:
    return otherwise if job.outcome is None else job.queued_at + job.outcome.took_ms / 1000


def _ms(seconds: float) -> int:
    return max(0, round(seconds * 1000))
