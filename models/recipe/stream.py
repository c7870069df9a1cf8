"""The endless stream of batches. Any part of it can be made again from the seed alone, so a resumed run sees the same.

An epoch is the pairs in a new order, scarce ones more than once, cut into shards. A shard is augmented, cut into
tokens and packed into batches of sentences of about the same length; what it holds depends on the seed and its number
only. ``Place`` says where in the stream a run is.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator, Sequence, Set
from concurrent.futures import Future, ProcessPoolExecutor
from contextlib import ExitStack
from functools import lru_cache
from multiprocessing import get_context
from pathlib import Path
from typing import Any, Final, NamedTuple

from models.recipe.augment import augment
from models.recipe.pairs import Pair
from models.recipe.pieces import BOS, EOS, open_pieces, split_some, splits

SHARD_PAIRS: Final = 20_000
ROWS: Final = 8  # a batch has a multiple of this many sentences
LONGEST_TOKENS: Final = 200  # of one side; dolmetsch cuts longer sources
SPLIT: Final = 0.1  # of a source's pieces are cut in two

PHRASED: Final = 5  # times in an epoch for those the user calls phrases
OFTEN: Final = 3  # for sources with a number, or with so many words
LONG: Final = range(10, 25)  # longer ones are long enough to teach something at once

Ids = list[int]


class Batch(NamedTuple):
    """Ids of sources (with the end mark) and of targets (from the start mark to the end mark)."""

    sources: list[Ids]
    targets: list[Ids]


class Place(NamedTuple):
    shard: int = 0
    batch: int = 0


def encode(pairs: Sequence[Pair], processor: Any) -> list[tuple[Ids, Ids]]:
    """Ids of each pair, those left out that are empty or longer than LONGEST_TOKENS."""
    sources, targets = (processor.encode([pair[side] for pair in pairs], num_threads=1) for side in (0, 1))
    return [
        ([*source, EOS], [BOS, *target, EOS])
        for source, target in zip(sources, targets, strict=True)
        if 0 < len(source) <= LONGEST_TOKENS and 0 < len(target) <= LONGEST_TOKENS
    ]


def pack(rows: Sequence[tuple[Ids, Ids]], batch_tokens: int) -> list[Batch]:
    """Batches of at most ``batch_tokens`` tokens of both sides, padding counted; sources of one length together.

    Widths and numbers of sentences are rounded, so that few shapes come up: a processor's matrix kernels are made anew
    for each shape that was not seen before, which takes longer than to use them.
    """
    batches: list[Batch] = []
    sources: list[Ids] = []
    targets: list[Ids] = []
    widest = 0
    ordered = sorted(rows, key=lambda row: (even(len(row[0])), len(row[1])))
    for some in (ordered[at : at + ROWS] for at in range(0, len(rows), ROWS)):
        widest = max(widest, *(len(target) for _, target in some))
        width = even(len(some[-1][0])) + even(widest - 1)  # sorted: no source so far is longer
        if sources and width * (len(sources) + len(some)) > batch_tokens:
            batches.append(Batch(sources, targets))
            sources, targets = [], []
            widest = max(len(target) for _, target in some)
        sources = sources + [source for source, _ in some]
        targets = targets + [target for _, target in some]
    return [*batches, Batch(sources, targets)] if sources else batches


def even(width: int) -> int:
    return width + width % 2


def times(pair: Pair, phrases: Set[Pair]) -> int:
    """How often a pair is used in an epoch: people write more of these kinds than Tatoeba has."""
    if pair in phrases:
        return PHRASED
    return OFTEN if len(pair.source.split()) in LONG or any(map(str.isdigit, pair.source)) else 1


class Stream:
    """Makes shards. ``pairs`` may not change during a run."""

    def __init__(
        self,
        pairs: Sequence[Pair],
        pieces: Path,
        codes: tuple[str, str],
        *,
        batch_tokens: int,
        seed: int,
        phrases: Set[Pair] = frozenset(),
    ) -> None:
        self.pairs = pairs
        self.often = [at for at, pair in enumerate(pairs) for _ in range(times(pair, phrases))]
        self._pieces = pieces
        self._codes = codes
        self._batch_tokens = batch_tokens
        self._seed = seed
        self._processor: Any = None
        self._splits: dict[int, list[tuple[int, int]]] = {}

    def shard(self, number: int) -> list[Batch]:
        if self._processor is None:
            self._processor = open_pieces(self._pieces)
            self._splits = splits(self._processor)
        in_epoch = -(-len(self.often) // SHARD_PAIRS)
        epoch, part = divmod(number, in_epoch)
        order = _order(len(self.often), f"{self._seed} epoch {epoch}")[part * SHARD_PAIRS : (part + 1) * SHARD_PAIRS]
        rng = random.Random(f"{self._seed} shard {number}")
        some = [self.pairs[self.often[at]] for at in order]
        chat = [augment(pair, rng.choice(self.pairs), rng, self._codes) for pair in some]
        rows = encode(chat, self._processor)
        batches = pack(
            [(split_some(row, self._splits, SPLIT, rng), target) for row, target in rows], self._batch_tokens
        )
        rng.shuffle(batches)
        return batches

    def batches(self, place: Place, helpers: int = 0) -> Iterator[tuple[Place, Batch]]:
        """From ``place`` on: each batch, and the place behind it. ``helpers``: processes that make shards ahead."""
        with ExitStack() as stack:
            for shard, batches in self._shards(place.shard, helpers, stack):
                for number in range(place.batch if shard == place.shard else 0, len(batches)):
                    yield Place(shard, number + 1), batches[number]

    def _shards(self, first: int, helpers: int, stack: ExitStack) -> Iterator[tuple[int, list[Batch]]]:
        if not helpers:
            yield from ((number, self.shard(number)) for number in itertools.count(first))
            return
        self._processor = None  # is not to be sent to another process
        context = get_context("spawn")  # torch's threads do not survive a fork
        pool = stack.enter_context(ProcessPoolExecutor(helpers, context, initializer=_keep, initargs=(self,)))
        ahead: dict[int, Future[list[Batch]]] = {}
        for number in itertools.count(first):
            for wanted in range(number, number + helpers + 1):
                if wanted not in ahead:
                    ahead[wanted] = pool.submit(_kept_shard, wanted)
            yield number, ahead.pop(number).result()


@lru_cache(maxsize=1)
def _order(count: int, seed: str) -> list[int]:
    order = list(range(count))
    random.Random(seed).shuffle(order)
    return order


_stream: Stream | None = None  # in a helper process


def _keep(stream: Stream) -> None:
    global _stream
    _stream = stream


def _kept_shard(number: int) -> list[Batch]:
    assert _stream is not None
    return _stream.shard(number)
