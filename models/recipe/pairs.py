"""Parallel text: read it, drop what would teach nothing, and keep the validation file out of it.

A pair is dropped as a *near-duplicate* when either of its sides is one of a validation sentence: equal once case,
accents, digits and punctuation are put aside, or with so many character 4-grams in common that their Jaccard
similarity is at least NEAR. Candidates come from an index of each validation sentence's rarest 4-grams.

Source of the index: prefix filtering, Bayardo, Ma and Srikant 2007, "Scaling Up All Pairs Similarity Search".
"""

from __future__ import annotations

import gzip
import math
import random
import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, NamedTuple

LONGEST_CHARS: Final = 400  # chat comes a sentence at a time
LONGEST_WORDS: Final = 60
RATIO_MAX: Final = 2.5  # of the lengths of the two sides; beyond it they are seldom translations of each other
RATIO_FREE_CHARS: Final = 25  # "Hi." and "Guten Tag, mein Herr." are fine
NEAR: Final = 0.7  # Jaccard similarity of two sets of 4-grams
GRAM: Final = 4

_GAPS: Final = re.compile(r"\W+")
_DIGITS: Final = re.compile(r"\d+")
_FOLD: Final = str.maketrans({"ä": "ae", "ö": "oe", "ü": "ue", "ß": "ss"})


class Pair(NamedTuple):
    source: str
    target: str


def read_pairs(path: Path, reverse: bool = False) -> list[Pair]:
    """The first two columns of a tab-separated file, plain or ``.gz``; lines with fewer are left out."""
    with (gzip.open if path.suffix == ".gz" else open)(path, "rt", encoding="utf-8") as file:
        rows = [line.rstrip("\n").split("\t") for line in file]
    pairs = [Pair(unicodedata.normalize("NFC", row[0]).strip(), unicodedata.normalize("NFC", row[1]).strip())
             for row in rows if len(row) >= 2]  # fmt: skip
    return [Pair(pair.target, pair.source) for pair in pairs] if reverse else pairs


def is_useful(pair: Pair) -> bool:
    """Whether both sides are there, hold letters, are not too long and of about the same length."""
    for text in pair:
        if not any(character.isalpha() for character in text):
            return False
        if len(text) > LONGEST_CHARS or len(text.split()) > LONGEST_WORDS:
            return False
    short, long = sorted(map(len, pair))
    return long <= max(RATIO_FREE_CHARS, RATIO_MAX * short)


def plain(text: str) -> str:
    """``text`` with nothing left of case, accents, digits and punctuation: what near-duplicates are compared by."""
    folded = text.casefold().translate(_FOLD)
    if not folded.isascii():  # few are left, and this is slow
        folded = "".join(c for c in unicodedata.normalize("NFKD", folded) if not unicodedata.combining(c))
    return _DIGITS.sub("0", _GAPS.sub(" ", folded).strip())


def grams(text: str) -> frozenset[str]:
    """The character 4-grams of a text that has gone through ``plain``, its ends marked."""
    padded = f" {text} "
    return frozenset(padded[at : at + GRAM] for at in range(max(1, len(padded) - GRAM + 1)))


class NearDuplicates:
    """Answers whether a sentence is a near-duplicate of one of ``sentences``."""

    def __init__(self, sentences: Iterable[str]) -> None:
        self._plain = {plain(sentence) for sentence in sentences}
        self._grams = [grams(text) for text in sorted(self._plain)]
        self._counts = Counter(gram for one in self._grams for gram in one)
        self._index: defaultdict[str, list[int]] = defaultdict(list)
        for number, one in enumerate(self._grams):
            for gram in self._rarest(one):
                self._index[gram].append(number)

    def __contains__(self, sentence: str) -> bool:
        text = plain(sentence)
        if text in self._plain:
            return True
        mine = grams(text)
        candidates = {number for gram in self._rarest(mine) for number in self._index.get(gram, ())}
        return any(similarity(mine, self._grams[number]) >= NEAR for number in candidates)

    def _rarest(self, one: frozenset[str]) -> list[str]:
        """So many that two sets with NEAR in common share one of them."""
        counts = self._counts
        return sorted(one, key=lambda gram: (counts.get(gram, 0), gram))[: len(one) - math.ceil(NEAR * len(one)) + 1]


def similarity(one: frozenset[str], other: frozenset[str]) -> float:
    """Jaccard similarity: what two sets have in common, as a part of all that is in either."""
    common = len(one & other)
    return common / (len(one) + len(other) - common)


@dataclass(slots=True)
class Tally:
    """How many pairs were read, and why some were dropped."""

    read: int = 0
    dropped: Counter[str] = field(default_factory=Counter)

    def __str__(self) -> str:
        reasons = ", ".join(f"{count} {reason}" for reason, count in sorted(self.dropped.items()))
        return f"{self.read} pairs read, {self.read - self.dropped.total()} kept; dropped: {reasons or 'none'}"


def select(pairs: Iterable[Pair], validation: Sequence[Pair], tally: Tally) -> Iterator[Pair]:
    """Those of ``pairs`` that training may use, each once."""
    sources = NearDuplicates(pair.source for pair in validation)
    targets = NearDuplicates(pair.target for pair in validation)
    seen: set[Pair] = set()
    for pair in pairs:
        tally.read += 1
        if not is_useful(pair):
            tally.dropped["too long, too unequal or without letters"] += 1
        elif pair in seen:
            tally.dropped["there twice"] += 1
        elif pair.source in sources or pair.target in targets:
            tally.dropped["near-duplicates of the validation file"] += 1
        else:
            seen.add(pair)
            yield pair


def training_pairs(corpora: Sequence[Path], validation: Sequence[Pair], reverse: bool, tally: Tally) -> list[Pair]:
    """All that training may see of ``corpora``."""
    return list(select((pair for path in corpora for pair in read_pairs(path, reverse)), validation, tally))


def hold_out(pairs: Sequence[Pair], count: int, rng: random.Random) -> tuple[list[Pair], list[Pair]]:
    """Split ``pairs`` into those to train on and about ``count`` to watch the loss on; no sentence is in both."""
    chosen = rng.sample(pairs, min(count, len(pairs) // 10))
    sources, targets = {pair.source for pair in chosen}, {pair.target for pair in chosen}
    rest = [pair for pair in pairs if pair.source not in sources and pair.target not in targets]
    return rest, chosen
