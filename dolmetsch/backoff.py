"""Backoff: how long to wait before the next try. Pure."""

from __future__ import annotations

import random
from typing import Final

FIRST_S: Final = 1.0
MOST_S: Final = 30.0


class Backoff:
    """Doubling waits from ``first_s`` to ``most_s`` seconds, spread by a quarter so that nodes do not come in step."""

    def __init__(self, rng: random.Random, first_s: float = FIRST_S, most_s: float = MOST_S) -> None:
        self._rng = rng
        self._first_s = first_s
        self._most_s = most_s
        self._tries = 0

    def next_s(self) -> float:
        """The next wait, in seconds."""
        wait_s = min(self._most_s, self._first_s * 2.0 ** min(self._tries, 30))
        self._tries += 1
        return wait_s * self._rng.uniform(0.75, 1.25)

    def reset(self) -> None:
        """It worked: start from ``first_s`` again."""
        self._tries = 0
