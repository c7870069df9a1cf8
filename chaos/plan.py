"""The plan: what a seed makes of the minutes. Which fault strikes whom, when, and for how long. Pure."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

NODES: Final = ("pi1", "pi2", "pi3")
BROKER: Final = ("broker",)
GATEWAYS: Final = ("load", "file")
CLOCKED: Final = ("pi3",)  # the node whose clock can be set

FIRST_S: Final = 5.0  # the load runs so long before the first fault
REST_S: Final = (4.0, 12.0)  # between a fault's end and the next one, unless they overlap
OVERLAPS: Final = 0.3  # the chance that a fault strikes while the one before it lasts
SETTLE_S: Final = 15.0  # a target is left alone for so long after its fault
LAST_S: Final = 20.0  # the end of the time has no faults


@dataclass(frozen=True, slots=True)
class Kind:
    """A sort of fault: whom it may strike, and how long it may last, in seconds (shortest, longest)."""

    targets: tuple[str, ...]
    for_s: tuple[float, float]
    what: str


KINDS: Final = {
    "kill-node": Kind(NODES, (0.0, 10.0), "kill -9 of a node, started again after a while"),
    "kill-broker": Kind(BROKER, (0.0, 6.0), "kill -9 of the broker, started again after a while"),
    "kill-child": Kind(NODES, (0.0, 0.0), "kill -9 of a child"),
    "kill-gateway": Kind(GATEWAYS, (0.0, 5.0), "kill -9 of a gateway, started again after a while"),
    "stop-node": Kind(NODES, (1.0, 15.0), "SIGSTOP to a node, then SIGCONT"),
    "stop-broker": Kind(BROKER, (1.0, 12.0), "SIGSTOP to the broker, then SIGCONT"),
    "stop-child": Kind(NODES, (2.0, 20.0), "SIGSTOP to a child, then SIGCONT if it still lives"),
    "full-disk": Kind(BROKER, (4.0, 12.0), "the disk of the broker's ledger is full"),
    "cut-link": Kind(NODES, (2.0, 20.0), "a node's cable is out, and both ends see it"),
    "mute-link": Kind(NODES, (2.0, 20.0), "what a node sends and is sent vanishes without a word"),
    "bad-link": Kind(NODES, (10.0, 25.0), "a node's cable delays by 200 ms ± 100 ms and loses 5 %"),
    "clock-back": Kind(CLOCKED, (8.0, 20.0), "a node's clock is set back an hour, and then right again"),
    "eat-memory": Kind(NODES, (0.0, 0.0), "a child eats memory until the kernel kills it"),
    "starve-child": Kind(NODES, (5.0, 10.0), "a child eats memory until there is no more for it, and lives on"),
    "poison": Kind(("cluster",), (0.0, 0.0), "a job that kills the child which works on it"),
}


@dataclass(frozen=True, slots=True)
class Trouble:
    """``fault`` strikes ``target``, ``at`` seconds after the beginning, and is healed ``for_s`` seconds later."""

    at: float
    fault: str
    target: str
    for_s: float

    @property
    def until(self) -> float:
        """When it is healed."""
        return self.at + self.for_s

    def __str__(self) -> str:
        lasts = f" for {self.for_s:.1f} s" if self.for_s else ""
        return f"at {self.at:6.1f} s  {self.fault:12} {self.target}{lasts}"


def plan(seed: int, minutes: float, kinds: Sequence[str]) -> tuple[Trouble, ...]:
    """The troubles of ``seed``, by time: of ``kinds`` only, each once before any comes again."""
    rng = random.Random(seed)
    names = _bag(kinds, rng)
    found: list[Trouble] = []
    at = FIRST_S
    while True:
        name = next(names)
        kind = KINDS[name]
        target = rng.choice(kind.targets)
        at = max(at, *(one.until + SETTLE_S for one in found if one.target == target), 0.0)
        trouble = Trouble(round(at, 1), name, target, round(rng.uniform(*kind.for_s), 1))
        if trouble.until > minutes * 60.0 - LAST_S:
            return tuple(found)
        found.append(trouble)
        overlaps = trouble.for_s > 0 and rng.random() < OVERLAPS
        at = rng.uniform(trouble.at, trouble.until) if overlaps else trouble.until + rng.uniform(*REST_S)


def _bag(kinds: Sequence[str], rng: random.Random) -> Iterator[str]:
    while True:
        yield from rng.sample(sorted(kinds), len(kinds))
