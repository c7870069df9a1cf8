"""SentencePiece: one vocabulary for both languages, made from text as the model will see it."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
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


def vocabulary(processor: Any) -> list[str]:
    """All pieces, in the order of their ids."""
    return [processor.id_to_piece(number) for number in range(processor.get_piece_size())]
