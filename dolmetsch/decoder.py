"""The decoder: sentences to tokens, tokens through CTranslate2, and a judgement on what comes out.

Guards: an output's length is bounded by its input's; one that is empty, loops or runs on is *degenerate*. It may be
tried once more with repetition held down.

The models used last stay loaded. ctranslate2 is imported with the first, so that a child can set its thread count and
core before. What CTranslate2 says of a batch may quote it, so no error here repeats that: texts stay out of logs.
"""

from __future__ import annotations

import logging
import operator
import os
import threading
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, Final, Generic, TypeVar

from dolmetsch.config import EngineConfig
from dolmetsch.errors import ConfigError, EngineError, PackageError
from dolmetsch.packages import Package
from dolmetsch.tokenizer import Tokenizer, open_tokenizer

MAX_SOURCE_TOKENS: Final = 200  # longer sentences are cut: some models know no position beyond 512
MAX_TARGET_TOKENS: Final = 2 * MAX_SOURCE_TOKENS  # likewise
OUT_PER_TOKEN: Final = 3  # target tokens for one of the source: sound translations in tests stay below 2
OUT_SPARE: Final = 20  # and so many more, for the shortest sources

LOOP_PERIOD: Final = 16  # tokens: the longest phrase looked for
LOOP_COPIES: Final = 3  # copies in a row that make a loop, as in Holtzman et al. 2020
LOOP_TOKENS: Final = 8  # shorter loops ("ha ha ha") are left alone
DEGENERATE: Final = "degenerate_output"
RETRY_BEAM: Final = 4  # with RETRY it cured all of 59 outputs; this beam alone 31, RETRY without n-grams 50
RETRY: Final[Mapping[str, Any]] = {"repetition_penalty": 1.2, "no_repeat_ngram_size": 3}

UNKNOWN: Final = "<unk>"  # what CTranslate2 writes for a word that is not in the vocabulary

TRANSLATORS_KEPT: Final = 2  # loaded models in one child: both passes of a route through English
TOKENIZERS_KEPT: Final = 8  # they take a few MB each
WARM_UP: Final = "OK, 1 2 3."  # in any language
TWICE_PART: Final = 1 / 32  # of this computer's memory: a smaller package is loaded once for each lane
PATIENT_NICE: Final = 19  # patient batches get what urgent ones beside them, and everybody else, leave of the core

log = logging.getLogger(__name__)
T = TypeVar("T")
Tokens = tuple[str, ...]


# ---- guards ----


def max_target_tokens(source_tokens: int) -> int:
    """Tokens at which the output for so many tokens is cut off: it is running on."""
    return min(OUT_PER_TOKEN * source_tokens + OUT_SPARE, MAX_TARGET_TOKENS)


def loop_tokens(tokens: Sequence[str]) -> int:
    """Length of the longest loop in ``tokens``: a phrase of at most LOOP_PERIOD tokens, LOOP_COPIES or more in a row.

    The phrase may break off in its last copy. 0: no loop.
    Source: after the repetitions of Holtzman et al. 2020, "The Curious Case of Neural Text Degeneration".
    """
    longest = 0
    for period in range(1, min(LOOP_PERIOD, len(tokens) // LOOP_COPIES) + 1):
        later = tokens[period:]
        if sum(map(operator.eq, later, tokens)) < period * (LOOP_COPIES - 1):
            continue  # most, quickly
        equal = 0
        for token, earlier in zip(later, tokens, strict=False):
            equal = equal + 1 if token == earlier else 0
            if equal >= period * (LOOP_COPIES - 1):
                longest = max(longest, equal + period)
    return longest


def degenerate(source: Sequence[str], output: Sequence[str]) -> str:
    """Say in words what is wrong with ``output`` (tokens), or "" when nothing is.

    It is empty, or cut off at ``max_target_tokens``, or has a loop of LOOP_TOKENS or more that is more than twice as
    long as any in ``source``: "nein nein nein nein" may be answered in kind.
    """
    if not "".join(output).strip("▁ "):
        return "the model returned nothing"
    if len(output) >= max_target_tokens(len(source)):
        return f"the model did not come to an end within {len(output)} tokens for {len(source)}"
    if len(output) - len(set(output)) < LOOP_TOKENS - LOOP_TOKENS // LOOP_COPIES:
        return ""  # two thirds of a loop are tokens that were there before: this is most sentences, quickly
    loop = loop_tokens(output)
    if loop >= LOOP_TOKENS and loop > 2 * loop_tokens(source):
        return f"the model repeated itself over {loop} tokens"
    return ""


# ---- models ----


class Decoder:
    """The models of the packages used last: sentences to tokens, tokens through CTranslate2, tokens to sentences.

    ``translate`` may be called by two threads at once, one of them with ``patient`` batches. Methods raise
    ``PackageError`` or ``ConfigError`` when the package or the compute type turns out not to be usable.
    """

    def __init__(self, config: EngineConfig) -> None:
        self._config = config
        self._translators = _Shelf(TRANSLATORS_KEPT, self._open_translators)
        self._tokenizers = _Shelf(TOKENIZERS_KEPT, open_tokenizer)

    def warm(self, package: Package) -> None:
        """Load it, and translate something: the first batch takes ten times as long as the next."""
        rows = self.encode(package, [WARM_UP])[0]
        for patient in (True, False):
            self.translate(package, rows, again=False, patient=patient)

    def encode(self, package: Package, sources: Sequence[str]) -> list[list[Tokens]]:
        """Each of ``sources`` as chunks of at most MAX_SOURCE_TOKENS; no chunk when there is nothing to translate."""
        tokenizer = self._tokenizers.get(package)
        return [_chunks(tokens, tokenizer) for tokens in tokenizer.encode(sources)]

    def decode(self, package: Package, rows: Sequence[Sequence[str]]) -> list[str]:
        return [sentence.strip() for sentence in self._tokenizers.get(package).decode(rows)]

    def translate(
        self, package: Package, rows: list[Tokens], *, again: bool, rank: int = 0, patient: bool = False
    ) -> dict[Tokens, list[str] | EngineError]:
        """The model's output for each of ``rows``.

        ``again``: as a second try, with repetition held down. ``rank``: 0 the best output, 1 the second-best.
        ``patient``: those beside it go first.
        """
        run = partial(_run, self._translators.get(package)[patient], package.target_prefix)
        beam = max(self._config.beam_size, rank + 1)
        options = {"beam_size": max(beam, RETRY_BEAM), **RETRY} if again else {"beam_size": beam}
        if rank:
            options["num_hypotheses"] = rank + 1
        outputs = dict(zip(rows, run(rows, options), strict=True))
        unknown = [row for row, output in outputs.items() if not isinstance(output, EngineError) and UNKNOWN in output]
        if unknown:  # only these pay for the attention that shows which word of the source it was: a twentieth more
            named = run(unknown, {**options, "replace_unknowns": True})
            outputs.update(zip(unknown, named, strict=True))
        for row, output in outputs.items():
            if not isinstance(output, EngineError) and (fault := degenerate(row, output)):
                outputs[row] = EngineError(DEGENERATE, fault)
        return outputs

    def _open_translators(self, package: Package) -> dict[bool, Any]:
        """Translators for patient batches (True) and for others (False), each with a thread of its own.

        One translator with two threads would give its batches to them in turn, whoever asks, and where those of a file
        hop between two threads with buffers of their own, a core's caches hold less: 8 % slower on a Xeon with a child
        on each core. But large weights are not kept twice, for the sake of a Pi's memory.
        """
        if package.size_bytes > TWICE_PART * _memory_bytes():
            one = self._open_translator(package, threads=2)
            translators = {True: one, False: one}
        else:
            patient = _patiently(partial(self._open_translator, package, threads=1))
            translators = {True: patient, False: self._open_translator(package, threads=1)}
        log.info("loaded %s %s (%s)", package.route, package.model_version, translators[True].compute_type)
        return translators

    def _open_translator(self, package: Package, threads: int) -> Any:
        import ctranslate2

        compute_type = self._config.compute_type
        known = {"default", "auto", *ctranslate2.get_supported_compute_types("cpu")}
        if compute_type not in known:
            raise ConfigError(f"compute_type = {compute_type!r}: this machine has {', '.join(sorted(known))}")
        try:
            return ctranslate2.Translator(
                str(package.path / "model"), compute_type=compute_type, inter_threads=threads, intra_threads=1
            )
        except Exception as error:  # likewise: a broken file gives RuntimeError, IndexError and others
            raise PackageError(f"{package.path} cannot be loaded: {' '.join(str(error).split())}") from error


def _run(
    translator: Any, target_prefix: str, rows: list[Tokens], options: Mapping[str, Any]
) -> list[list[str] | EngineError]:
    """Decode ``rows`` in one batch. Where that fails, each is tried alone to find the culprit."""
    prefix = [target_prefix] if target_prefix else []
    try:
        results = translator.translate_batch(
            rows,
            target_prefix=[prefix] * len(rows) if prefix else None,
            max_input_length=0,
            max_decoding_length=max_target_tokens(max(map(len, rows))) + len(prefix),
            use_vmap=True,  # of a package that has one
            **options,
        )
    except Exception as error:  # any C++ exception, under whatever name pybind11 gives it
        if len(rows) > 1:
            return [_run(translator, target_prefix, [row], options)[0] for row in rows]
        # Not its message, which may quote the tokens.
        return [EngineError("engine_error", f"CTranslate2: {type(error).__name__} for {len(rows[0])} tokens")]
    hypotheses: list[list[str]] = [result.hypotheses[-1] for result in results]  # the last that was asked for
    if prefix:
        return [tokens[1:] if tokens[:1] == prefix else tokens for tokens in hypotheses]
    return [*hypotheses]


def _patiently(opener: Callable[[], T]) -> T:
    """What ``opener`` returns. The threads that it starts are nice: a new thread is as nice as the one that made it."""
    with ThreadPoolExecutor(1, initializer=os.setpriority, initargs=(os.PRIO_PROCESS, 0, PATIENT_NICE)) as executor:
        return executor.submit(opener).result()


def _memory_bytes() -> int:
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


class _Shelf(Generic[T]):
    """What was opened for the packages used last; the one not used for longest goes before another is opened."""

    def __init__(self, limit: int, opener: Callable[[Package], T]) -> None:
        self._limit = limit
        self._opener = opener
        self._kept: OrderedDict[object, T] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, package: Package) -> T:
        with self._lock:
            if package.path in self._kept:
                self._kept.move_to_end(package.path)
            else:
                while len(self._kept) >= self._limit:
                    self._kept.popitem(last=False)
                self._kept[package.path] = self._opener(package)
            return self._kept[package.path]


def _chunks(tokens: Sequence[str], tokenizer: Tokenizer) -> list[Tokens]:
    """``tokens`` in chunks of at most MAX_SOURCE_TOKENS, cut where a word begins if there is one in the second half."""
    chunks = []
    while len(tokens) > MAX_SOURCE_TOKENS:
        ends = range(MAX_SOURCE_TOKENS, MAX_SOURCE_TOKENS // 2, -1)
        end = next((end for end in ends if tokenizer.starts_word(tokens, end)), MAX_SOURCE_TOKENS)
        chunks.append(tuple(tokens[:end]))
        tokens = tokens[end:]
    if tokens:
        chunks.append(tuple(tokens))
    return chunks
