"""The shortlist: for each piece of the source, the pieces that its translations are made of.

With it the decoder scores some hundreds of pieces in place of all, which saves a tenth of its time. It is counted in
the pairs, plain and as chat, and written as CTranslate2's ``vmap.txt``: a line for each source piece, a tab, and target
pieces with spaces between them; the line without a source piece holds for all.

Source: lexical shortlists, after Jean et al. 2015, "On Using Very Large Target Vocabulary for Neural Machine
Translation", 3.3; the file's format: CTranslate2, "Vocabulary mapping".
"""

from __future__ import annotations

import math
import random
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Final

from dolmetsch.packages import SHORTLIST
from models.recipe.augment import careless, lower_case
from models.recipe.pairs import Pair
from models.recipe.pieces import vocabulary

# With 20 and 200 it is a little faster still, and 0.3 BLEU are lost; with 60 and 300 less than chance makes.
LISTED: Final = 60  # target pieces for one of the source
ALWAYS: Final = 300  # the most frequent are candidates in any sentence
SAMPLE: Final = 300_000  # pairs it is counted in, at most
SPACE: Final = "▁"  # before a word in bytes it is a piece of its own
FIRST_BYTE: Final = 0xC2  # a character of several bytes begins with this one or a higher one (RFC 3629)


def write_shortlist(model: Path, pairs: Sequence[Pair], processor: Any, from_code: str, seed: int = 1) -> None:
    """Count ``pairs`` and write the file into ``model``, the folder of a package's weights."""
    rng = random.Random(f"shortlist {seed}")
    rows = _rows(rng.sample(pairs, min(SAMPLE, len(pairs))), processor, from_code == "de", rng)
    found = shortlist(rows, [piece for piece in vocabulary(processor) if is_byte(piece)])
    lines = [f"{piece}\t{' '.join(candidates)}\n" for piece, candidates in found.items()]
    (model / SHORTLIST).write_text("".join(lines), encoding="utf-8", newline="\n")


def shortlist(rows: Iterable[tuple[set[str], set[str]]], byte_pieces: Sequence[str]) -> dict[str, list[str]]:
    """The candidates of each source piece; "" has those of every sentence. ``rows`` are pairs as sets of pieces.

    A piece is its own candidate, as names are copied, and a character in bytes may become any other. Of the others
    those go first that add most to the mutual information of source and target.
    """
    together: defaultdict[str, Counter[str]] = defaultdict(Counter)
    targets: Counter[str] = Counter()
    sources: Counter[str] = Counter()
    count = 0
    for source, target in rows:
        count += 1
        sources.update(source)
        targets.update(target)
        for piece in source:
            together[piece].update(target)

    def information(piece: str, candidate: str, common: int) -> float:
        return common * math.log(common * count / (sources[piece] * targets[candidate]))

    found = {"": _most_frequent(targets)}
    for piece in sorted(together):
        scored = [(information(piece, other, common), other) for other, common in together[piece].items()]
        best = [other for score, other in sorted(scored, key=lambda one: (-one[0], one[1])) if score > 0][:LISTED]
        found[piece] = list(dict.fromkeys([piece, *best]))
    beyond_ascii = [SPACE, *(piece for piece in byte_pieces if int(piece[1:-1], 16) >= 0x80)]
    for piece in byte_pieces:
        number = int(piece[1:-1], 16)
        if number >= FIRST_BYTE:
            found[piece] = beyond_ascii
        elif number < 0x80:
            found[piece] = [piece, SPACE]
    return found


def _most_frequent(targets: Counter[str]) -> list[str]:
    return sorted(targets, key=lambda piece: (-targets[piece], piece))[:ALWAYS]


def _rows(
    pairs: Sequence[Pair], processor: Any, german: bool, rng: random.Random
) -> Iterator[tuple[set[str], set[str]]]:
    for pair in pairs:
        for one in (pair, lower_case(pair, rng), careless(pair, rng, german)):
            yield set(processor.encode(one.source, out_type=str)), set(processor.encode(one.target, out_type=str))


def is_byte(piece: str) -> bool:
    """Whether it stands for a byte of a character that the vocabulary has not."""
    return len(piece) == 6 and piece.startswith("<0x")
