"""Tokenizers: between sentences and the subword tokens that the model of an Argos package reads and writes.

A package has one of two kinds. The usual one is a SentencePiece model. The older one, ``bpe.model``, is a list of
byte pair merges in the format of subword-nmt, applied to words that the Moses tokenizer has made.

Sources: Kudo and Richardson 2018, "SentencePiece"; Sennrich, Haddow and Birch 2016, "Neural Machine Translation of
Rare Words with Subword Units"; the file format of subword-nmt 0.2 and, without a version line, 0.1.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from itertools import pairwise
from pathlib import Path
from typing import Final, Protocol

from dolmetsch.errors import PackageError
from dolmetsch.packages import Package

WORD_START: Final = "▁"  # SentencePiece writes a space so
JOINER: Final = "@@"  # subword-nmt ends a token so when its word goes on
WORD_END: Final = "</w>"  # in a list of merges: the last symbol of a word ends so
WORDS_KEPT: Final = 8192  # words whose split is remembered; most of a text is made of far fewer


class Tokenizer(Protocol):
    """Sentences to tokens and back, many at a time."""

    def encode(self, sentences: Sequence[str]) -> list[list[str]]: ...

    def decode(self, rows: Sequence[Sequence[str]]) -> list[str]: ...

    def starts_word(self, tokens: Sequence[str], at: int) -> bool:
        """Whether a word begins at ``tokens[at]``, so that a row may be cut there."""
        ...


def open_tokenizer(package: Package) -> Tokenizer:
    """Load the tokenizer of ``package``. Raises ``PackageError`` when its file cannot be read or understood."""
    if (package.path / "sentencepiece.model").is_file():
        return SentencePieceTokenizer(package.path / "sentencepiece.model")
    return BpeTokenizer(package.path / "bpe.model", package.from_code, package.to_code)


class SentencePieceTokenizer:
    """``sentencepiece.model``."""

    def __init__(self, path: Path) -> None:
        import sentencepiece

        try:
            self._processor = sentencepiece.SentencePieceProcessor(model_file=str(path))
        except Exception as error:  # whatever a broken file makes its C++ raise
            raise PackageError(f"{path} is not a SentencePiece model") from error

    def encode(self, sentences: Sequence[str]) -> list[list[str]]:
        # One at a time: for a list, the library starts threads, which costs more than a short list takes.
        return [self._processor.encode(sentence, out_type=str) for sentence in sentences]

    def decode(self, rows: Sequence[Sequence[str]]) -> list[str]:
        sentences: list[str] = self._processor.decode([*map(list, rows)], num_threads=1) if rows else []
        return sentences

    def starts_word(self, tokens: Sequence[str], at: int) -> bool:
        return tokens[at].startswith(WORD_START)


class BpeTokenizer:
    """``bpe.model``: Moses punctuation normalisation and words, then byte pair merges."""

    def __init__(self, path: Path, from_code: str, to_code: str) -> None:
        # Few packages need it, and it is slow to import and large.
        try:
            from sacremoses import MosesDetokenizer, MosesPunctNormalizer, MosesTokenizer
        except ImportError as error:
            raise PackageError(f"{path} needs the library sacremoses: pip install sacremoses") from error

        self._merges = Merges.read(path)
        self._normalizer = MosesPunctNormalizer(from_code)
        self._tokenizer = MosesTokenizer(from_code)
        self._detokenizer = MosesDetokenizer(to_code)

    def encode(self, sentences: Sequence[str]) -> list[list[str]]:
        return [self._encode(sentence) for sentence in sentences]

    def _encode(self, sentence: str) -> list[str]:
        words = self._tokenizer.tokenize(self._normalizer.normalize(sentence))
        return [token for word in words for token in self._merges.split(word)]

    def decode(self, rows: Sequence[Sequence[str]]) -> list[str]:
        return [self._decode(row) for row in rows]

    def _decode(self, row: Sequence[str]) -> str:
        sentence: str = self._detokenizer.detokenize(
            "".join([f"{token} " for token in row]).replace(f"{JOINER} ", "").split()
        )
        return sentence

    def starts_word(self, tokens: Sequence[str], at: int) -> bool:
        return at == 0 or not tokens[at - 1].endswith(JOINER)


class Merges:
    """A ranked list of byte pair merges. ``ranks``: pair of symbols -> rank, lowest first.

    ``joined_end``: the end mark is part of a word's last character (format 0.2), not a symbol of its own (0.1).
    """

    def __init__(self, ranks: dict[tuple[str, str], int], joined_end: bool) -> None:
        self._ranks = ranks
        self._joined_end = joined_end
        self.split = lru_cache(maxsize=WORDS_KEPT)(self._split)

    @classmethod
    def read(cls, path: Path) -> Merges:
        """Read a file of merges, one a line. Raises ``PackageError``."""
        try:
            lines = path.read_text(encoding="utf-8").split("\n")
        except (OSError, UnicodeDecodeError) as error:
            raise PackageError(f"{path} cannot be read as a list of merges") from error
        version = lines.pop(0).split()[-1] if lines[0].startswith("#version:") else "0.1"
        if version not in ("0.1", "0.2"):
            raise PackageError(f"{path} has the version {version!r}: only 0.1 and 0.2 can be read")
        ranks: dict[tuple[str, str], int] = {}
        for number, line in enumerate(lines):
            pair = tuple(line.strip("\r ").split(" "))
            if len(pair) == 2:
                ranks.setdefault(pair, number)
            elif pair != ("",):
                raise PackageError(f"{path} is not a list of merges: {line[:80]!r} is not a pair")
        return cls(ranks, joined_end=version == "0.2")

    def _split(self, word: str) -> tuple[str, ...]:
        """The tokens of ``word``, all but the last with the joiner."""
        symbols = [*word[:-1], word[-1] + WORD_END] if self._joined_end else [*word, WORD_END]
        while len(symbols) > 1:
            best = min(pairwise(symbols), key=self._rank)
            if best not in self._ranks:
                break
            symbols = _merged(symbols, best)
        symbols[-1] = symbols[-1].removesuffix(WORD_END)
        tokens = [symbol for symbol in symbols if symbol]
        return (*[token + JOINER for token in tokens[:-1]], tokens[-1])

    def _rank(self, pair: tuple[str, str]) -> float:
        return self._ranks.get(pair, float("inf"))


def _merged(symbols: Sequence[str], pair: tuple[str, str]) -> list[str]:
    """``symbols`` with every occurrence of ``pair``, from the left, made one symbol."""
    out: list[str] = []
    at = 0
    while at < len(symbols):
        if at + 1 < len(symbols) and (symbols[at], symbols[at + 1]) == pair:
            out.append(symbols[at] + symbols[at + 1])
            at += 2
        else:
            out.append(symbols[at])
            at += 1
    return out
