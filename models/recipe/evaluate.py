"""What a package is worth: BLEU and chrF2 on the validation file, clean and as chat; tokens a second; size.

A package is asked as dolmetsch asks it: by its decoder, at its default beam, with its second try. Speed is counted in
seconds of one core's time, so that other work on the machine does not show in it.
"""

from __future__ import annotations

import itertools
import random
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from dolmetsch.config import EngineConfig
from dolmetsch.decoder import Decoder, Tokens
from dolmetsch.errors import EngineError
from dolmetsch.packages import Package
from models.recipe.augment import NAMES_F, NAMES_M, NUMBER, drop_end, emoji, join, lower_case, plain_umlauts, typo
from models.recipe.pairs import Pair

TYPO_CHARS: Final = 25  # one slip for so many characters
CHAT: Final = "chat: the three above"
CLEAN: Final = "clean"
ROUNDS: Final = 3  # the speed is the best of these

# Of people and in chat; none of them is in what the embedded packages are trained on.
STRANGERS: Final = (
    "Kardec", "Philidor", "Ariel", "Beth", "Jensen", "Gökhan", "Sieglinde", "Quentin", "Dragan", "Ludmila", "Zoltan",
    "Tarkan", "Branko", "Anouk", "Hjalmar", "Ngozi", "Kunigunde", "Edeltraud", "Jolanda", "Leopoldine", "Milorad",
    "Nadeschda", "Pankraz", "Radomir", "Svetozar", "Valeska", "Zdenka", "frodo_77", "Nachtfalke", "gamerboi99",
    "Zwiebelchen", "d0nut", "Schnitzelkoenig", "lalaland", "MrSpock", "kiwi.tv", "ghost123",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Score:
    """Of one copy of the validation file."""

    bleu: float
    chrf: float


@dataclass(frozen=True, slots=True)
class Scores:
    """All that is known of a package. ``signatures`` are sacrebleu's, of BLEU and of chrF2.

    ``kept``: the shares of unknown names and of numbers that are in the translation as they are in the source.
    """

    model: str
    beam: int
    copies: dict[str, Score]
    kept: dict[str, float]
    tokens_per_s: float
    size_bytes: int
    signatures: tuple[str, str]

    @property
    def loss_percent(self) -> float:
        """What of the clean BLEU is lost on chat."""
        clean = self.copies[CLEAN].bleu
        return 100 * (1 - self.copies[CHAT].bleu / clean) if clean else 0.0


# --- perturbed copies -------------------------------------------------------------------


def perturbed(pairs: Sequence[Pair]) -> dict[str, list[Pair]]:
    """Copies of ``pairs`` as they might be written in chat; always the same."""
    return {name: _copy(pairs, make) for name, make in _COPIES.items()} | {"two in one message": _joined(pairs)}


def _copy(pairs: Sequence[Pair], make: Callable[[Pair, random.Random], Pair]) -> list[Pair]:
    rng = random.Random(0)
    return [make(pair, rng) for pair in pairs]


def _joined(pairs: Sequence[Pair]) -> list[Pair]:
    rng = random.Random(0)
    return [join(first, second, rng) for first, second in zip(pairs[::2], pairs[1::2], strict=False)]


def _chat(pair: Pair, rng: random.Random) -> Pair:
    return drop_end(plain_umlauts(lower_case(pair, rng), rng), rng)


def _typos(pair: Pair, rng: random.Random) -> Pair:
    for _ in range(-(-len(pair.source) // TYPO_CHARS)):
        pair = typo(pair, rng)
    return pair


def with_strangers(pairs: Sequence[Pair]) -> list[tuple[str, str]]:
    """Sources with a name of STRANGERS for one that stands once on both sides, and which name that is."""
    strangers = itertools.cycle(STRANGERS)
    found = []
    for pair in pairs:
        for name in (*NAMES_M, *NAMES_F):
            if all(len(re.findall(rf"\b{name}\b", text)) == 1 for text in pair):
                stranger = next(strangers)
                found.append((re.sub(rf"\b{name}\b", stranger, pair.source), stranger))
    return found


def with_numbers(pairs: Sequence[Pair]) -> list[tuple[str, str]]:
    """Sources with a number, a time or a version that their targets have, too, and which that is."""
    both = [(pair, set(NUMBER.findall(pair.source)) & set(NUMBER.findall(pair.target))) for pair in pairs]
    return [(pair.source, number) for pair, numbers in both for number in sorted(numbers)]


def _strange(pairs: Sequence[Pair]) -> dict[str, list[tuple[str, str]]]:
    return {"unknown names": with_strangers(pairs), "numbers": with_numbers(pairs)}


_COPIES: Final[Mapping[str, Callable[[Pair, random.Random], Pair]]] = {
    CLEAN: lambda pair, rng: pair,
    "lower case": lower_case,
    "ae, oe, ue, ss": plain_umlauts,
    "no final punctuation": drop_end,
    CHAT: _chat,
    "typos": _typos,
    "emoji": emoji,
}


# --- translating ------------------------------------------------------------------------


class Translator:
    """A package, asked as dolmetsch asks it."""

    def __init__(self, package: Package, beam: int | None = None) -> None:
        self.config = EngineConfig() if beam is None else EngineConfig(beam_size=beam)
        self._package = package
        self._decoder = Decoder(self.config)
        self._decoder.warm(package)

    def translate(self, sentences: Sequence[str]) -> list[str]:
        encoded = self._decoder.encode(self._package, sentences)
        outputs: dict[Tokens, list[str]] = {}
        for batch in _batches({chunk for chunks in encoded for chunk in chunks}, self.config.batch_tokens):
            outputs |= self._decode(batch)
        joined = [" ".join(self._decoder.decode(self._package, [outputs[c] for c in chunks])) for chunks in encoded]
        return [text.strip() for text in joined]

    def _decode(self, batch: list[Tokens]) -> dict[Tokens, list[str]]:
        """Outputs of a batch; what is degenerate even at the second try is empty."""
        found = self._decoder.translate(self._package, batch, again=False)
        failed = [row for row, output in found.items() if isinstance(output, EngineError)]
        if failed:
            found |= self._decoder.translate(self._package, failed, again=True)
        return {row: [] if isinstance(output, EngineError) else output for row, output in found.items()}

    def tokens_per_s(self, sentences: Sequence[str]) -> float:
        """Target tokens for each second of one core."""
        rows = {chunk for chunks in self._decoder.encode(self._package, sentences) for chunk in chunks}
        speeds = []
        for _ in range(ROUNDS):
            began = time.process_time()
            tokens = sum(len(output) for batch in _batches(rows, self.config.batch_tokens)
                         for output in self._decode(batch).values())  # fmt: skip
            speeds.append(tokens / (time.process_time() - began))
        return max(speeds)


def _batches(rows: set[Tokens], batch_tokens: int) -> Iterator[list[Tokens]]:
    """Rows of about the same length, at most ``batch_tokens`` in a batch with its padding."""
    batch: list[Tokens] = []
    for row in sorted(rows, key=lambda row: (len(row), row)):
        if batch and len(row) * (len(batch) + 1) > batch_tokens:
            yield batch
            batch = []
        batch.append(row)
    if batch:
        yield batch


# --- scoring ----------------------------------------------------------------------------


def evaluate(package: Package, pairs: Sequence[Pair], beam: int | None = None) -> Scores:
    """Scores of ``package`` on ``pairs``; ``beam`` None: dolmetsch's default."""
    from sacrebleu.metrics import BLEU, CHRF

    translator = Translator(package, beam)
    bleu, chrf = BLEU(force=True), CHRF()  # force: no warning that short sentences look tokenised
    copies = {}
    for name, copy in perturbed(pairs).items():
        ours, references = translator.translate([pair.source for pair in copy]), [[pair.target for pair in copy]]
        copies[name] = Score(
            round(bleu.corpus_score(ours, references).score, 1), round(chrf.corpus_score(ours, references).score, 1)
        )
    return Scores(
        model=package.model_version,
        beam=translator.config.beam_size,
        copies=copies,
        kept={name: kept(translator, sources) for name, sources in _strange(pairs).items() if sources},
        tokens_per_s=round(translator.tokens_per_s([pair.source for pair in pairs]), -1),
        size_bytes=package.size_bytes,
        signatures=(str(bleu.get_signature()), str(chrf.get_signature())),
    )


def kept(translator: Translator, sources: Sequence[tuple[str, str]]) -> float:
    """Of ``sources`` (one at least), each with a word in it: the share whose translations have that word."""
    outputs = translator.translate([source for source, _ in sources])
    found = [
        re.search(rf"(?<!\d){re.escape(word)}(?!\d)", output)
        for output, (_, word) in zip(outputs, sources, strict=True)
    ]
    return sum(match is not None for match in found) / len(found)


def table(all_scores: Sequence[Scores]) -> str:
    """Markdown: a row for each copy, a column for each package."""
    rows = [["validation file", *(f"{scores.model}, beam {scores.beam}: BLEU / chrF2" for scores in all_scores)]]
    rows.append(["---"] * len(rows[0]))
    for name in all_scores[0].copies:
        rows.append([name, *(f"{s.copies[name].bleu:.1f} / {s.copies[name].chrf:.1f}" for s in all_scores)])
    rows.append(["BLEU lost on chat", *(f"{s.loss_percent:.0f} %" for s in all_scores)])
    for name in all_scores[0].kept:
        rows.append([f"{name} that are kept", *(f"{100 * s.kept[name]:.0f} %" for s in all_scores)])
    rows.append(["target tokens/s, one core", *(f"{s.tokens_per_s:.0f}" for s in all_scores)])
    rows.append(["size", *(f"{s.size_bytes / 1e6:.1f} MB" for s in all_scores)])
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)
