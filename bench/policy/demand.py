"""What people and programs ask of a simulated cluster: when, how much, in which lane, for which tenant.

Lengths are log-normal. Chat: the median of bench/sentences.de.txt, 41 characters, with twice its spread (sigma 1.0
instead of 0.5), because a message is one sentence or several: 1 in 100 has over 420 characters. Bulk: median 200, sigma
1.2. Both spreads are assumptions. Arrivals are Poisson, or Poisson with bursts: 1 s at 2.4 times the mean rate, 2 s at
0.3 times, both exponential.
"""

from __future__ import annotations

import functools
import itertools
import math
import random
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from dolmetsch.messages import BULK, INTERACTIVE, MAX_TEXT_CHARS, JobSpec

ROUTE: Final = "de→en"
DEADLINE_S: Final = 86_400.0  # nothing expires: what is late shows as late
CHAT_MAX_CHARS: Final = 4000  # Discord's longest message
BURST_S: Final = 1.0
BURST: Final = 2.4
LULL_S: Final = 2.0
LULL: Final = 0.3

QUIET: Final = tuple(f"tenant {letter}" for letter in "abcdefgh")
FLOODER: Final = "flooder"


@dataclass(frozen=True, slots=True)
class Lengths:
    """Log-normal lengths in characters."""

    median: float
    sigma: float
    most: int

    @property
    def mean(self) -> float:
        """Without the cut at ``most``, which takes off less than 1 %."""
        return self.median * math.exp(self.sigma**2 / 2)

    def draw(self, rng: random.Random) -> int:
        """One length."""
        return max(1, min(self.most, round(rng.lognormvariate(math.log(self.median), self.sigma))))


LENGTHS: Final = {
    INTERACTIVE: Lengths(41.0, 1.0, CHAT_MAX_CHARS),
    BULK: Lengths(200.0, 1.2, MAX_TEXT_CHARS),
}


@dataclass(frozen=True, slots=True)
class Load:
    """How much is asked, as a share of the cluster's capacity in characters a second, and by whom.

    ``chat`` and ``bulk``: by tenant, its part of what is asked in that lane; ``bulk_part``: of all characters.
    """

    name: str
    share: float
    bursts: bool = False
    bulk_part: float = 0.5
    flooder: float = 4.0  # times as much as each of the quiet tenants

    @property
    def jobs_per_char(self) -> dict[int, float]:
        """By lane, the jobs that come with each character of the whole."""
        return {
            INTERACTIVE: (1 - self.bulk_part) / LENGTHS[INTERACTIVE].mean,
            BULK: self.bulk_part / LENGTHS[BULK].mean,
        }

    def span_s(self, jobs: int, chars_per_s: float) -> float:
        """Seconds that ``jobs`` jobs take to come, about, where the capacity is ``chars_per_s``."""
        return jobs / (self.share * chars_per_s * sum(self.jobs_per_char.values()))


LOADS: Final = (
    Load("Poisson 50 %", 0.50),
    Load("Poisson 80 %", 0.80),
    Load("Poisson 95 %", 0.95),
    Load("Poisson 120 %", 1.20),
    Load("bursts 80 %", 0.80, bursts=True),
    Load("flood 120 %", 1.20, bulk_part=0.0, flooder=16.0),  # quiet tenants ask for 40 % of capacity, one for 80 %
)


@dataclass(frozen=True, slots=True)
class Demand:
    """Jobs in order of time; the id of each is its number."""

    times: list[float]
    specs: list[JobSpec]

    @property
    def span_s(self) -> float:
        """Until the last one came."""
        return self.times[-1] if self.times else 0.0


def arrivals(load: Load, capacity: float, jobs: int, rng: random.Random) -> Demand:
    """``jobs`` jobs at the rate that ``load`` asks of ``capacity`` characters a second."""
    rates = {lane: load.share * capacity * jobs_per_char for lane, jobs_per_char in load.jobs_per_char.items()}
    total = sum(rates.values())
    tenants = (*QUIET, FLOODER)
    weights = list(itertools.accumulate([1.0] * len(QUIET) + [load.flooder]))
    demand = Demand([], [])
    for at in itertools.islice(_times(total, load.bursts, rng), jobs):
        lane = INTERACTIVE if rng.random() * total < rates[INTERACTIVE] else BULK
        (tenant,) = rng.choices(tenants, cum_weights=weights)
        _add(demand, at, lane, tenant, rng)
    return demand


def batch(jobs: int, rng: random.Random) -> Demand:
    """``jobs`` bulk jobs, all there at once."""
    demand = Demand([], [])
    for _ in range(jobs):
        _add(demand, 0.0, BULK, rng.choice(QUIET), rng)
    return demand


def _add(demand: Demand, at: float, lane: int, tenant: str, rng: random.Random) -> None:
    job_id = len(demand.specs).to_bytes(16)
    texts = _texts(LENGTHS[lane].draw(rng))
    demand.times.append(at)
    demand.specs.append(JobSpec(job_id, ROUTE, texts, lane, tenant, DEADLINE_S, b""))


def _times(rate: float, bursts: bool, rng: random.Random) -> Iterator[float]:
    now = 0.0
    if not bursts:
        while True:
            now += rng.expovariate(rate)
            yield now
    busy = rng.random() < BURST_S / (BURST_S + LULL_S)
    while True:
        until = now + rng.expovariate(1 / (BURST_S if busy else LULL_S))
        present = rate * (BURST if busy else LULL)
        while (now := now + rng.expovariate(present)) < until:
            yield now
        now, busy = until, not busy  # exponential gaps have no memory: the next may be drawn anew


@functools.cache
def _texts(chars: int) -> tuple[str, ...]:
    return ("x" * chars,)
