"""Virtual time: what happens when, and the clocks of hosts, which run at speeds of their own."""

from __future__ import annotations

import heapq
from collections.abc import Callable
from typing import Any, Final, NamedTuple

LATE_S: Final = 0.001  # a poll wakes up to a millisecond after what it waits for, never before


class Timeline:
    """Actions in order of time; those of one moment in the order in which they were planned."""

    def __init__(self) -> None:
        self.now = 0.0
        self._planned: list[tuple[float, int, Callable[..., None], tuple[Any, ...]]] = []
        self._count = 0

    def at(self, when: float, action: Callable[..., None], *arguments: Any) -> None:
        """Have ``action(*arguments)`` happen at ``when``, or now if that is past."""
        self._count += 1
        heapq.heappush(self._planned, (max(when, self.now), self._count, action, arguments))

    def after(self, wait_s: float, action: Callable[..., None], *arguments: Any) -> None:
        """Have ``action(*arguments)`` happen in ``wait_s`` seconds."""
        self.at(self.now + wait_s, action, *arguments)

    def step(self) -> None:
        """Let the next thing happen."""
        self.now, _, action, arguments = heapq.heappop(self._planned)
        action(*arguments)

    @property
    def steps(self) -> int:
        """Things planned so far: how much has been going on."""
        return self._count


class Clock(NamedTuple):
    """A host's monotonic clock: where it began, and how fast it runs."""

    offset_s: float
    speed: float

    def read(self, now: float) -> float:
        """What the clock shows at ``now``."""
        return self.offset_s + now * self.speed

    def when(self, shown_s: float) -> float:
        """When a program that sleeps until the clock shows ``shown_s`` is awake."""
        return (shown_s - self.offset_s) / self.speed + LATE_S
