"""Rates and percentiles: what counters and histograms that only grow say of the last while. Pure."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import Final, NamedTuple

from dolmetsch.messages import BULK, INTERACTIVE, LANES, Telemetry
from dolmetsch.reports import LATENCY_MS, Counts, Histogram

WINDOW_S: Final = 60.0
MAX_READINGS: Final = 256  # of a window: some four a second, were a broker to publish so often
BUCKETS: Final = len(LATENCY_MS) + 1
NOTHING: Final = Histogram((0,) * BUCKETS, 0)


class Reading(NamedTuple):
    """What the counters said when the broker had been up for ``up_s``: its clock, so the network adds no jitter."""

    broker: str
    up_s: float
    counts: Counts
    latency: tuple[Histogram, ...]  # by lane, every bucket there


class Change(NamedTuple):
    """What happened in ``seconds``."""

    seconds: float
    done: int
    failed: int
    chars: int
    bad_frames: int
    latency: tuple[Histogram, ...]  # by lane

    @property
    def translations_per_s(self) -> float:
        """Jobs done a second."""
        return self.done / self.seconds

    @property
    def failed_per_s(self) -> float:
        """Jobs failed for good a second."""
        return self.failed / self.seconds

    @property
    def chars_per_s(self) -> float:
        """Characters translated a second."""
        return self.chars / self.seconds

    @property
    def error_rate(self) -> float:
        """The part (0 to 1) of the jobs that ended which failed."""
        ended = self.done + self.failed
        return self.failed / ended if ended else 0.0

    @property
    def mean_ms(self) -> float | None:
        """How long a job took."""
        done = sum([sum(one.counts) for one in self.latency])
        return sum([one.sum_ms for one in self.latency]) / done if done else None


class Latency(NamedTuple):
    """Percentiles in milliseconds; None where nothing was done."""

    p50_ms: float | None
    p95_ms: float | None
    p99_ms: float | None


def reading(telemetry: Telemetry) -> Reading:
    """The counters in ``telemetry``; buckets and lanes that it leaves out are empty."""
    latency = [*telemetry.latency, *[NOTHING] * len(LANES)][: len(LANES)]
    full = [Histogram((*one.counts, *NOTHING.counts)[:BUCKETS], one.sum_ms) for one in latency]
    return Reading(telemetry.broker, telemetry.up_s, telemetry.counts, tuple(full))


def between(old: Reading, new: Reading) -> Change | None:
    """What happened between two readings; None where they cannot be compared, as after the broker's restart."""
    if new.broker != old.broker or new.up_s <= old.up_s:
        return None
    change = Change(
        new.up_s - old.up_s,
        new.counts.done - old.counts.done,
        new.counts.failed - old.counts.failed,
        new.counts.chars_done - old.counts.chars_done,
        new.counts.bad_frames - old.counts.bad_frames,
        tuple([_less(one, before) for one, before in zip(new.latency, old.latency, strict=True)]),
    )
    numbers = (*change[1:5], *[number for one in change.latency for number in (*one.counts, one.sum_ms)])
    return change if min(numbers) >= 0 else None


class Window:
    """The readings of the last ``WINDOW_S`` seconds of one broker."""

    def __init__(self) -> None:
        self._readings: deque[Reading] = deque(maxlen=MAX_READINGS)

    def add(self, new: Reading) -> Change | None:
        """Take a reading; what happened since the one before, or None when this begins anew."""
        change = between(self._readings[-1], new) if self._readings else None
        if change is None:
            self._readings.clear()
        self._readings.append(new)
        while len(self._readings) > 2 and new.up_s - self._readings[1].up_s >= WINDOW_S:
            self._readings.popleft()
        return change

    def change(self) -> Change | None:
        """What happened in all of the window; None before there are two readings."""
        return between(self._readings[0], self._readings[-1]) if len(self._readings) > 1 else None


def latency_of(lanes: Sequence[Sequence[int]]) -> Latency:
    """Percentiles of the interactive lane if it had any job, else of all; ``lanes`` are counts a bucket, by lane."""
    counts = lanes[INTERACTIVE]
    if not any(counts):
        counts = [sum(bucket) for bucket in zip(*lanes, strict=True)]
    return Latency(percentile(counts, 0.5), percentile(counts, 0.95), percentile(counts, 0.99))


def bulk_p95_ms(change: Change) -> float | None:
    """The bulk lane's 95th percentile."""
    return percentile(change.latency[BULK].counts, 0.95)


def percentile(counts: Sequence[int], part: float) -> float | None:
    """Milliseconds that ``part`` (0 to 1) of the jobs did not exceed, read along a straight line inside its bucket.

    ``counts`` has a number for each of ``LATENCY_MS`` and one for what took longer: of these only that is known, so
    the last bound stands for them. None when nothing was counted.
    """
    wanted = part * sum(counts)
    before = 0
    low = 0.0
    found: float | None = None
    for high, count in zip((*LATENCY_MS, LATENCY_MS[-1]), counts, strict=True):
        if count:
            found = low + (high - low) * min(1.0, max(0.0, (wanted - before) / count))
            if before + count >= wanted:
                break
        before += count
        low = float(high)
    return found


def _less(new: Histogram, old: Histogram) -> Histogram:
    return Histogram(
        tuple([one - before for one, before in zip(new.counts, old.counts, strict=True)]), new.sum_ms - old.sum_ms
    )
