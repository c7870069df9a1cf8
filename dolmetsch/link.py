"""A peer's link to the broker: introduce yourself, notice silence, come back. Pure.

Nodes and gateways share these rules. The link is *up* from the broker's WELCOME until it says REREGISTER or has been
silent for too long; then it is down, and the introduction is sent again, over a new connection after each silence.
"""

from __future__ import annotations

import random
from typing import Final

from dolmetsch.backoff import Backoff

INTRODUCE_S: Final = 1.0  # seconds between introductions while the link is down
SILENCE_S: Final = 3.0  # the broker answers every heartbeat and ping, one a second
RECONNECT_MOST_S: Final = 10.0  # a new connection asks for the broker's address anew, and costs next to nothing


class Link:
    """Whether the broker is there, and what to do when it is not."""

    def __init__(self, rng: random.Random, now: float) -> None:
        self._backoff = Backoff(rng, first_s=SILENCE_S, most_s=RECONNECT_MOST_S)
        self.up = False
        self._introduce_at = now
        self._reconnect_at = now + self._backoff.next_s()

    def heard(self, now: float) -> None:
        """Anything came from the broker."""
        self._backoff.reset()
        self._reconnect_at = now + SILENCE_S

    def welcomed(self) -> None:
        """The broker knows us."""
        self.up = True

    def unknown(self, now: float) -> None:
        """The broker does not know us (any more): introduce at once."""
        self.up = False
        self._introduce_at = now

    def introduce(self, now: float) -> bool:
        """Whether to send the introduction now."""
        if self.up or now < self._introduce_at:
            return False
        self._introduce_at = now + INTRODUCE_S
        return True

    def silent(self, now: float) -> bool:
        """Whether the silence has lasted so long that the connection should be made anew; the link is down then."""
        if now < self._reconnect_at:
            return False
        self.up = False
        self._introduce_at = now
        self._reconnect_at = now + self._backoff.next_s()
        return True

    def next_deadline(self) -> float:
        """When one of the above changes by itself."""
        return self._reconnect_at if self.up else min(self._reconnect_at, self._introduce_at)
