"""SentencePiece: one vocabulary for both languages, made from text as the model will see it."""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from models.recipe.augment import augment
from models.recipe.pairs import Pair

UNK: Final = 0
BOS: Final = 1  # the decoder starts from it
EOS: Final = 2
SAMPLE: Final = 300_000  # pairs it is made from, at most: more change little


def make_pieces(pairs: Sequence[Pair], codes: tuple[str, str], size: int, path: Path, seed: int) -> None:
    """Write ``path`` (sentencepiece.model). Unknown characters fall back to bytes, so emoji can be copied."""
    import sentencepiece

    with path.open("wb") as file:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=_texts(pairs, codes, random.Random(f"pieces {seed}")),
            model_writer=file,
            vocab_size=size,
            hard_vocab_limit=False,  # a small corpus gives fewer
            byte_fallback=True,
            character_coverage=0.9995,
            unk_id=UNK,
            bos_id=BOS,
            eos_id=EOS,
            num_threads=1,
            minloglevel=2,
        )


def _texts(pairs: Sequence[Pair], codes: tuple[str, str], rng: random.Random) -> Iterator[str]:
    for pair in rng.sample(pairs, min(SAMPLE, len(pairs))):
        yield from augment(pair, rng.choice(pairs), rng, codes)


def open_pieces(path: Path) -> Any:
    import sentencepiece

    return sentencepiece.SentencePieceProcessor(model_file=str(path))


def splits(processor: Any) -> dict[int, list[tuple[int, int]]]:
    """For each piece, the pairs of pieces that make it up."""
    ids = {piece: number for number, piece in enumerate(vocabulary(processor)) if not piece.startswith("<")}
    found = {
        number: [
            (ids[piece[:at]], ids[piece[at:]]) for at in range(1, len(piece)) if piece[:at] in ids and piece[at:] in ids
        ]
        for piece, number in ids.items()
    }
    return {number: pairs for number, pairs in found.items() if pairs}


def split_some(
    row: Sequence[int], pairs: Mapping[int, Sequence[tuple[int, int]]], share: float, rng: random.Random
) -> list[int]:
    """``row`` with that share of its pieces cut in two, at random: a word is learnt from all of its parts.

    Source: Provilkov et al. 2020, "BPE-Dropout: Simple and Effective Subword Regularization", done here to the
    pieces of a unigram vocabulary.
    """
    made: list[int] = []
    for number in row:
        if number in pairs and rng.random() < share:
            made += rng.choice(pairs[number])
        else:
            made.append(number)
    return made


def vocabulary(processor: Any) -> list[str]:
    """All pieces, in the order of their ids."""
    return [processor.id_to_piece(number) for number in range(processor.get_piece_size())]
