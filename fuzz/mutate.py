"""Mutations without a tracer: the same number gives the same inputs, on every computer."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from typing import Final

MOST_CHANGES: Final = 6
MOST_REPEATS: Final = 40
NASTY: Final = bytes((0x00, 0x01, 0x7F, 0x80, 0x90, 0xC0, 0xC1, 0xDD, 0xDF, 0xFF, ord("<"), ord("["), ord('"')))


def mutants(
    seeds: Sequence[bytes], tokens: Sequence[bytes], most_bytes: int, count: int, number: int
) -> Iterator[bytes]:
    """``count`` inputs of at most ``most_bytes``: the seeds as they are, then seeds with one to six changes."""
    yield from seeds[:count]
    rng = random.Random(number)
    for _ in range(count - len(seeds)):
        data = bytearray(rng.choice(seeds))
        for _ in range(rng.randint(1, MOST_CHANGES)):
            _change(data, seeds, tokens, rng)
        yield bytes(data[:most_bytes])


def _change(data: bytearray, seeds: Sequence[bytes], tokens: Sequence[bytes], rng: random.Random) -> None:
    start = rng.randint(0, len(data))
    end = min(len(data), start + rng.randint(1, 16))
    match rng.randrange(8):
        case 0:
            data[start : start + 1] = bytes((rng.choice(NASTY),))
        case 1:
            data[start : start + 1] = rng.randbytes(1)
        case 2:
            del data[start:end]
        case 3:
            data[start:start] = data[start:end] * rng.randint(1, MOST_REPEATS)
        case 4 | 5 if tokens:
            data[start : rng.choice((start, end))] = rng.choice(tokens)
        case 6:
            other = rng.choice(seeds)
            data[start:] = other[rng.randint(0, len(other)) :]
        case _:
            del data[start:]
