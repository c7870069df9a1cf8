"""The Pis of a simulated cluster: how fast each is, and when it throttles, crashes or cannot be reached.

Relative speeds are those of sysbench's prime numbers on four cores (leoncode.co.uk/articles/raspberry-pi-benchmarks:
Pi 3B+ 2459, Pi 4 5901, Pi 5 10 945 events/s), taken for a core each. That translation scales as prime numbers do is an
assumption, and so is the level: 1000 characters/s for a core of a Pi 4, which is what the broker assumes too
(``roster.ASSUMED_CHARS_PER_S``). Another level only stretches the seconds of a run.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Final

from dolmetsch.roster import ASSUMED_CHARS_PER_S

BATCH_CHARS: Final = 1536  # of a child's batch: handout.CHARS_PER_TOKEN times the engine's 512 tokens
# What a batch costs beside its characters, in characters. Measured with the embedded package and CTranslate2 4 on one
# x86-64 core: 1.2 ms + 31 us a character. In proportion to a core's speed, by assumption.
BATCH_FIXED_CHARS: Final = 40

THROTTLED: Final = 0.5  # of its speed is left to a board that is too hot
THROTTLE_EVERY_S: Final = 40.0  # cool and hot spells, on average
THROTTLE_FOR_S: Final = 20.0
CRASH_EVERY_S: Final = 60.0
CRASH_FOR_S: Final = (5.0, 15.0)
STALL_EVERY_S: Final = 30.0
STALL_FOR_S: Final = (1.0, 5.0)  # the broker gives a node up after 3 s


@dataclass(frozen=True, slots=True)
class Model:
    """A kind of Pi; ``children`` is what docs/operations.md recommends."""

    name: str
    children: int
    chars_per_s: float  # of a child, while its batch runs

    @property
    def full_chars_per_s(self) -> float:
        """What all children do with full batches: the most that they can."""
        return self.children * self.chars_per_s * BATCH_CHARS / (BATCH_CHARS + BATCH_FIXED_CHARS)


PI_3: Final = Model("Pi 3", 3, ASSUMED_CHARS_PER_S * 2459 / 5901)
PI_4: Final = Model("Pi 4", 4, ASSUMED_CHARS_PER_S)
PI_5: Final = Model("Pi 5", 4, ASSUMED_CHARS_PER_S * 10945 / 5901)


@dataclass(frozen=True, slots=True)
class Spell:
    """Trouble of one board, from ``at`` on: its ``kind`` is hot, crashed or unreachable."""

    at: float
    for_s: float
    kind: str


@dataclass(frozen=True, slots=True)
class Board:
    """One Pi and its troubles, in order of time."""

    name: str
    model: Model
    spells: tuple[Spell, ...] = ()

    def lost(self, horizon_s: float) -> float:
        """The part of this board's capacity that its spells cost until ``horizon_s``."""
        lost_s = 0.0
        for spell in self.spells:
            lasts_s = max(0.0, min(spell.at + spell.for_s, horizon_s) - max(spell.at, 0.0))
            lost_s += lasts_s * {"hot": 1 - THROTTLED, "crashed": 1.0, "unreachable": 0.0}[spell.kind]
        return lost_s / horizon_s


@dataclass(frozen=True, slots=True)
class Fleet:
    """All boards."""

    boards: tuple[Board, ...]
    full_chars_per_s: float = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "full_chars_per_s", sum(board.model.full_chars_per_s for board in self.boards))

    def capacity(self, horizon_s: float) -> float:
        """Characters a second that it can do on average until ``horizon_s``, its troubles counted."""
        return sum(board.model.full_chars_per_s * (1 - board.lost(horizon_s)) for board in self.boards)


def equal(count: int, model: Model = PI_4) -> Fleet:
    """Pis of one kind, without troubles."""
    return Fleet(tuple([Board(f"pi-{number}", model) for number in range(count)]))


def mixed(count: int, rng: random.Random, horizon_s: float, *, troubles: bool = True) -> Fleet:
    """A quarter Pi 3, half Pi 4, a quarter Pi 5, in any order.

    With ``troubles`` a quarter of all throttle now and then, never a Pi 3; of each 40 (at least one in all) one crashes
    and one has a link that stalls.
    """
    models = [(PI_3, PI_4, PI_4, PI_5)[number % 4] for number in range(count)]
    rng.shuffle(models)
    warm = [number for number, model in enumerate(models) if model is not PI_3]
    hot = set(rng.sample(warm, count // 4)) if troubles else set()
    flaky = rng.sample(range(count), 2 * max(1, count // 40)) if troubles else []
    crashing, stalling = set(flaky[::2]), set(flaky[1::2])
    boards = []
    for number, model in enumerate(models):
        spells: list[Spell] = []
        if number in hot:
            spells += _spells("hot", rng, horizon_s, THROTTLE_EVERY_S, None)
        if number in crashing:
            spells += _spells("crashed", rng, horizon_s, CRASH_EVERY_S, CRASH_FOR_S)
        if number in stalling:
            spells += _spells("unreachable", rng, horizon_s, STALL_EVERY_S, STALL_FOR_S)
        boards.append(Board(f"pi-{number}", model, tuple(sorted(spells, key=lambda spell: spell.at))))
    return Fleet(tuple(boards))


def _spells(
    kind: str, rng: random.Random, horizon_s: float, every_s: float, for_s: tuple[float, float] | None
) -> Iterator[Spell]:
    """Spells until ``horizon_s``; hot ones may have begun before the start, with the likelihood they have later."""
    begun = kind == "hot" and rng.random() < THROTTLE_FOR_S / (THROTTLE_FOR_S + every_s)
    at = 0.0 if begun else rng.expovariate(1 / every_s)
    while at < horizon_s:
        lasts_s = rng.expovariate(1 / THROTTLE_FOR_S) if for_s is None else rng.uniform(*for_s)
        yield Spell(at, lasts_s, kind)
        at += lasts_s + rng.expovariate(1 / every_s)
