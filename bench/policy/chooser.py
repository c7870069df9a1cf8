"""The policies that are compared: the scheduler's own, and others that differ from it only in the node they choose."""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable
from typing import Final

from dolmetsch.config import SchedulerConfig
from dolmetsch.jobs import Job
from dolmetsch.roster import Node, Roster
from dolmetsch.scheduler import Scheduler

Choose = Callable[[list[Node], Job], Node]

OURS: Final = "earliest finish"
# The cache would answer texts that are all alike; nothing is refused, so that every policy does the same work.
CONFIG: Final = SchedulerConfig(cache_bytes=0, max_jobs=10_000_000, max_bytes=1 << 40)


class ChoosingRoster(Roster):
    """The roster, with another choice among the nodes that have room for a job."""

    def __init__(self, choose: Choose) -> None:
        super().__init__()
        self._choose = choose

    def earliest(self, job: Job) -> Node:
        """The chosen node; as in the roster, a job that came back rather goes elsewhere than where it came from."""
        able = [node for node in self.nodes.values() if node.room(job.lane) > 0 and job.route in node.routes]
        if job.attempt:
            able = [node for node in able if node.name != job.node] or able
        return self._choose(able, job)


class ChoosingScheduler(Scheduler):
    """The scheduler, with another choice of the node: lanes, credit, leases and all else are its own."""

    def __init__(self, choose: Choose) -> None:
        super().__init__(CONFIG, incarnation="simulated", now=0.0)
        self._roster = self.books.roster = ChoosingRoster(choose)


def round_robin() -> Choose:
    """Each in turn."""
    numbers = itertools.count()
    return lambda able, job: able[next(numbers) % len(able)]


def least_loaded() -> Choose:
    """The one with the fewest jobs; equals take turns."""
    numbers = itertools.count()

    def choose(able: list[Node], job: Job) -> Node:
        leases = [len(node.leases) for node in able]
        fewest = min(leases)
        start = next(numbers) % len(able)
        return able[leases.index(fewest, start) if fewest in leases[start:] else leases.index(fewest)]

    return choose


def at_random(seed: int) -> Choose:
    """Any."""
    rng = random.Random(seed)
    return lambda able, job: able[int(rng.random() * len(able))]


def scheduler(policy: str, seed: int) -> Scheduler:
    """A new scheduler with ``policy``; ours is the product's class, untouched."""
    match policy:
        case "earliest finish":
            return Scheduler(CONFIG, incarnation="simulated", now=0.0)
        case "least loaded":
            return ChoosingScheduler(least_loaded())
        case "round robin":
            return ChoosingScheduler(round_robin())
        case "random":
            return ChoosingScheduler(at_random(seed))
        case _:
            raise ValueError(f"unknown policy {policy!r}")


POLICIES: Final = (OURS, "least loaded", "round robin", "random")
