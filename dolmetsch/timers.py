"""Timers: which keys are due by when, for hundreds of thousands of them. Pure.

A heap with lazy deletion keeps every cancelled entry until it is due; at thousands of jobs a second with deadlines of
minutes that is a leak. So times are rounded up to slots, and a slot is a set: cancelling really removes.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Hashable
from typing import Final, Generic, TypeVar

Key = TypeVar("Key", bound=Hashable)

RESOLUTION_S: Final = 0.25  # a deadline may strike this much late, never early


class Timers(Generic[Key]):
    """Keys by the slot in which they are due."""

    def __init__(self, resolution_s: float = RESOLUTION_S) -> None:
        self._resolution_s = resolution_s
        self._slots: dict[int, set[Key]] = {}
        self._order: list[int] = []

    def add(self, key: Key, when: float) -> set[Key]:
        """Have ``key`` due at ``when`` (seconds); the slot returned is needed to cancel it."""
        number = math.ceil(when / self._resolution_s)
        slot = self._slots.get(number)
        if slot is None:
            slot = self._slots[number] = set()
            heapq.heappush(self._order, number)
        slot.add(key)
        return slot

    def cancel(self, key: Key, slot: set[Key]) -> None:
        """Forget ``key``, which ``add`` put in ``slot``."""
        slot.discard(key)

    def due(self, now: float) -> list[Key]:
        """Every key whose time has come, and forget it."""
        found: list[Key] = []
        while self._order and self._order[0] * self._resolution_s <= now:
            found.extend(self._slots.pop(heapq.heappop(self._order)))
        return found

    def next(self) -> float | None:
        """When the next slot that holds a key is due; None without any."""
        while self._order and not self._slots[self._order[0]]:
            del self._slots[heapq.heappop(self._order)]
        return self._order[0] * self._resolution_s if self._order else None

    def __len__(self) -> int:
        return sum(map(len, self._slots.values()))
