"""More pairs out of those that are there: each source as one package translates it, each target as another does back.

A network that sees several ways to say a thing learns less by heart. Source: Nguyen et al. 2020, "Data Diversification:
A Simple Strategy For Neural Machine Translation".
"""

from __future__ import annotations

import gzip
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

from tqdm import tqdm

from dolmetsch.packages import Package
from models.recipe.evaluate import Translator
from models.recipe.pairs import Pair, is_useful

BLOCK: Final = 5_000  # sentences at a time, sorted by length in there


def diversify(pairs: Sequence[Pair], there: Package, back: Package) -> Iterator[Pair]:
    """New pairs, none of which is among ``pairs``; ``there`` translates sources, ``back`` targets."""
    known = set(pairs)
    yield from (pair for pair in _translated([pair.source for pair in pairs], there) if pair not in known)
    for pair in _translated([pair.target for pair in pairs], back):
        if (turned := Pair(pair.target, pair.source)) not in known:
            yield turned


def _translated(sentences: Sequence[str], package: Package) -> Iterator[Pair]:
    """Each sentence and its translation, where that is of any use."""
    translator = Translator(package)
    distinct = sorted(set(sentences))
    for start in tqdm(range(0, len(distinct), BLOCK), desc=package.route, unit="block"):
        block = distinct[start : start + BLOCK]
        for pair in map(Pair, block, translator.translate(block)):
            if is_useful(pair):
                yield pair


def write(path: Path, pairs: Iterator[Pair]) -> int:
    """Write ``pairs`` as a corpus, gzipped; how many there are."""
    count = 0
    with gzip.open(path, "wt", encoding="utf-8") as file:
        for pair in pairs:
            file.write(f"{pair.source}\t{pair.target}\n")
            count += 1
    return count
