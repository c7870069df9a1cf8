"""The backlog: jobs, what they are made of, and which of their sentences are translated next.

A batch is led by the oldest sentence (urgent ones first) and filled with those nearest to it in length, so that nobody
waits for a sort of everything, and sentences of different jobs share batches. Urgent sentences and others do not: a
batch takes as long as all of it.

The records show no fields when printed, so that no error that names one can quote a text.
"""

from __future__ import annotations

import heapq
import itertools
from typing import Final

from msgspec import Struct, field

from dolmetsch.decoder import Tokens
from dolmetsch.packages import Package
from dolmetsch.segment import Document

OLDEST_EVERY: Final = 4  # each fourth batch starts at the oldest sentence of all: urgent ones starve nobody


class _Record(Struct):
    """Shows no fields. Python need not look for cycles here: a job that ends lets go of the sentences that wait."""

    def __repr__(self) -> str:
        return f"<{type(self).__name__}>"


class Job(_Record, eq=False, gc=False):
    key: bytes
    age: int  # 0 is the oldest
    model: str
    passes: tuple[Package, ...]
    urgent: bool
    alone: bool
    texts: list[str]  # each is replaced by its translation; alternatives follow
    left: int  # texts not translated yet
    waiting: dict[Sentence, None] = field(default_factory=dict)  # in the order in which they came


class Text(_Record, eq=False, gc=False):
    """A text in one pass, or the pieces of a segment that lost a span: ``parent`` then takes their result."""

    job: Job
    index: int  # among the job's texts, or the parent's segments
    stage: int  # which of the job's passes
    document: Document
    parent: Text | None
    translations: list[str]
    left: int  # segments not translated yet
    rank: int = 0  # which translation is wanted: 0 the best, 1 the second-best


class Part(_Record, eq=False, gc=False):
    """A segment of a text, and what the model made of its chunks."""

    text: Text
    index: int
    outputs: list[list[str]]
    left: int  # chunks not translated yet

    @property
    def tokens(self) -> list[str]:
        return [token for output in self.outputs for token in output]


class Sentence(_Record, eq=False, gc=False):
    """What waits and is translated: a segment, or a chunk of one, as tokens. It does not change."""

    job: Job
    package: Package
    part: Part
    chunk: int
    tokens: Tokens
    again: bool = False  # the second try, as the output of the first was degenerate


class Backlog:
    """Sentences that wait, to be found by age and, within a package, by length."""

    def __init__(self) -> None:
        self._groups: dict[object, dict[int, dict[Sentence, None]]] = {}  # group -> tokens -> sentences
        self._ages: dict[bool, list[tuple[int, int, Job]]] = {True: [], False: []}  # urgent -> heap
        self._numbers = itertools.count()
        self._turn = 0
        self._size = 0

    def __len__(self) -> int:
        return self._size

    def add(self, sentence: Sentence) -> None:
        job = sentence.job
        group = self._groups.setdefault(_group(sentence), {})
        group.setdefault(len(sentence.tokens), {})[sentence] = None
        if not job.waiting:
            heapq.heappush(self._ages[job.urgent], (job.age, next(self._numbers), job))
        job.waiting[sentence] = None
        self._size += 1

    def remove(self, sentence: Sentence) -> None:
        """Take it out."""
        self._remove(_group(sentence), sentence)

    def _remove(self, key: object, sentence: Sentence) -> None:
        """Take it out of the group ``key``. Its job's entry by age stays until that is the oldest."""
        group = self._groups[key]
        tokens = len(sentence.tokens)
        del group[tokens][sentence]
        if not group[tokens]:
            del group[tokens]
        if not group:
            del self._groups[key]
        del sentence.job.waiting[sentence]
        self._size -= 1

    def take(self, batch_tokens: int, *, beside: bool = False) -> list[Sentence]:
        """The next batch: at most ``batch_tokens`` tokens, padding counted, but always its leader.

        ``beside``: another batch is being translated, so only one that is urgent and may have company is wanted.
        """
        leader = self._oldest(True) if beside else self._leader()
        if leader is None or (beside and leader.job.alone):
            return []
        batch = [leader]
        key = _group(leader)
        self._remove(key, leader)
        longest = near = len(leader.tokens)
        lengths = self._groups.get(key, {})
        for length in sorted(lengths, key=lambda length: abs(length - near)):
            room = batch_tokens // max(longest, length) - len(batch)
            if room > 0:
                batch += itertools.islice(lengths[length], room)
                longest = max(longest, length)
        for sentence in batch[1:]:
            self._remove(key, sentence)
        return batch

    def _leader(self) -> Sentence | None:
        urgent, others = self._oldest(True), self._oldest(False)
        if urgent is None or others is None:
            self._turn = 0
            return urgent or others
        self._turn = (self._turn + 1) % OLDEST_EVERY
        return urgent if self._turn or urgent.job.age < others.job.age else others

    def _oldest(self, urgent: bool) -> Sentence | None:
        ages = self._ages[urgent]
        while ages and not ages[0][2].waiting:
            heapq.heappop(ages)
        return next(iter(ages[0][2].waiting)) if ages else None


def _group(sentence: Sentence) -> tuple[object, ...]:
    """Sentences of the same group may share a batch."""
    job, rank = sentence.job, sentence.part.text.rank
    return (sentence.package.path, sentence.again, job.urgent, rank, job.key if job.alone else None)
