"""Engines: jobs in, batches of sentences through CTranslate2, outcomes out.

``ArgosEngine`` opens Argos packages and drives CTranslate2 directly. It is incremental: ``submit`` cuts a job's texts
into sentences and puts them among those waiting, ``next_batch`` chooses some, ``run`` translates them and returns the
jobs that are now complete. A batch is led by the oldest sentence (urgent ones first) and filled with those nearest to
it in length, so that nobody waits for a sort of everything, and sentences of different jobs share batches.

A text takes one *pass* for each package of its route: a route without a package of its own goes through English. A
sentence longer than a model takes is cut into chunks of tokens, and their outputs are joined.

Guards: an output's length is bounded by its input's; a sentence whose output is empty, loops or runs on waits for a
second try with repetition held down; if that does not help, its job fails as ``degenerate_output``.

ctranslate2 is imported when the first package is loaded, so that a child can set its thread count and core before.
"""

from __future__ import annotations

import heapq
import itertools
import logging
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any, Final, Generic, NamedTuple, Protocol, TypeVar

from dolmetsch.config import EngineConfig
from dolmetsch.errors import ConfigError, EngineError, LocalError, PackageError
from dolmetsch.messages import MAX_DETAIL_CHARS, MAX_ROUTES
from dolmetsch.packages import Package
from dolmetsch.segment import Document, parse
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

OLDEST_EVERY: Final = 4  # each fourth batch starts at the oldest sentence of all: urgent ones starve nobody
TRANSLATORS_KEPT: Final = 2  # loaded models in one child: both passes of a route through English
TOKENIZERS_KEPT: Final = 8  # they take a few MB each
PIVOT: Final = "en"
ECHO_JOBS: Final = 64  # jobs in one of the echo engine's batches

log = logging.getLogger(__name__)
T = TypeVar("T")


class Outcome(NamedTuple):
    """How a job ended. ``texts`` is None when it failed: then ``code`` and the one line ``detail`` say why."""

    key: bytes
    texts: tuple[str, ...] | None
    model: str
    code: str = ""
    detail: str = ""


@dataclass(frozen=True, slots=True)
class Batch:
    """What one ``run`` works on: ``sentences`` of the jobs ``keys``, and ``outcomes`` that need no model."""

    keys: tuple[bytes, ...]
    sentences: tuple[_Sentence, ...]
    outcomes: tuple[Outcome, ...]


class Engine(Protocol):
    """What a child's loop drives. Not thread-safe. A key is a job's from ``submit`` to its outcome or ``drop``."""

    @property
    def routes(self) -> Mapping[str, str]:
        """Each route ("de→en") and the version of the model that serves it."""
        ...

    @property
    def pending(self) -> int:
        """Sentences waiting, and jobs that have an outcome but no batch yet; 0: ``next_batch`` returns None."""
        ...

    def submit(
        self, key: bytes, route: str, texts: Sequence[str], *, urgent: bool = False, alone: bool = False
    ) -> None:
        """Take a job; never raises for its texts. A key that it has already is ignored.

        ``urgent``: ahead of the others. ``alone``: no other job shares its batches.
        """
        ...

    def drop(self, key: bytes) -> None:
        """Forget a job, if it is known."""
        ...

    def next_batch(self) -> Batch | None:
        """Take the next batch from what waits, to be handed to ``run``; None when nothing does."""
        ...

    def run(self, batch: Batch) -> list[Outcome]:
        """Translate ``batch``; return the jobs that are complete now."""
        ...


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
        equal = 0
        for token, earlier in zip(itertools.islice(tokens, period, None), tokens, strict=False):
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
    if len(output) - len(set(output)) < LOOP_TOKENS // 2:
        return ""  # two thirds of a loop are tokens that were there before: this is most sentences, quickly
    loop = loop_tokens(output)
    if loop >= LOOP_TOKENS and loop > 2 * loop_tokens(source):
        return f"the model repeated itself over {loop} tokens"
    return ""


# ---- models ----

Tokens = tuple[str, ...]


class _Models:
    """The models of the packages used last: sentences to tokens, tokens through CTranslate2, tokens to sentences.

    Methods raise ``PackageError`` or ``ConfigError`` when the package or the compute type turns out not to be usable.
    """

    def __init__(self, config: EngineConfig) -> None:
        self._config = config
        self._translators = _Shelf(TRANSLATORS_KEPT, self._open_translator)
        self._tokenizers = _Shelf(TOKENIZERS_KEPT, open_tokenizer)

    def warm(self, package: Package) -> None:
        self._tokenizers.get(package)
        self._translators.get(package)

    def encode(self, package: Package, sources: Sequence[str]) -> list[list[Tokens]]:
        """Each of ``sources`` as chunks of at most MAX_SOURCE_TOKENS; no chunk when there is nothing to translate."""
        tokenizer = self._tokenizers.get(package)
        return [list(_chunks(tokens, tokenizer)) for tokens in tokenizer.encode(sources)]

    def decode(self, package: Package, rows: Sequence[Sequence[str]]) -> list[str]:
        return [sentence.strip() for sentence in self._tokenizers.get(package).decode(rows)]

    def translate(self, package: Package, rows: list[Tokens], again: bool) -> dict[Tokens, list[str] | EngineError]:
        """The model's output for each of ``rows``; ``again``: as a second try, with repetition held down."""
        beam = self._config.beam_size
        options = {"beam_size": max(beam, RETRY_BEAM), **RETRY} if again else {"beam_size": beam}
        outputs = dict(zip(rows, self._run(package, rows, options), strict=True))
        for row, output in outputs.items():
            if not isinstance(output, EngineError) and (fault := degenerate(row, output)):
                outputs[row] = EngineError(DEGENERATE, fault)
        return outputs

    def _run(self, package: Package, rows: list[Tokens], options: Mapping[str, Any]) -> list[list[str] | EngineError]:
        """Decode ``rows`` in one batch. Where that fails, each is tried alone to find the culprit."""
        translator = self._translators.get(package)
        prefix = [package.target_prefix] if package.target_prefix else []
        try:
            results = translator.translate_batch(
                [list(row) for row in rows],
                target_prefix=[prefix] * len(rows) if prefix else None,
                max_input_length=0,
                max_decoding_length=max_target_tokens(max(map(len, rows))) + len(prefix),
                replace_unknowns=True,
                **options,
            )
        except Exception as error:  # any C++ exception, under whatever name pybind11 gives it
            if len(rows) > 1:
                return [self._run(package, [row], options)[0] for row in rows]
            return [EngineError("engine_error", f"CTranslate2: {one_line(error)}")]
        hypotheses: list[list[str]] = [result.hypotheses[0] for result in results]
        return [tokens[len(prefix) :] if tokens[: len(prefix)] == prefix else tokens for tokens in hypotheses]

    def _open_translator(self, package: Package) -> Any:
        import ctranslate2

        compute_type = self._config.compute_type
        known = {"default", "auto", *ctranslate2.get_supported_compute_types("cpu")}
        if compute_type not in known:
            raise ConfigError(f"compute_type = {compute_type!r}: this machine has {', '.join(sorted(known))}")
        try:
            translator = ctranslate2.Translator(
                str(package.path / "model"), compute_type=compute_type, inter_threads=1, intra_threads=1
            )
        except Exception as error:  # likewise: a broken file gives RuntimeError, IndexError and others
            raise PackageError(f"{package.path} cannot be loaded: {one_line(error)}") from error
        log.info("loaded %s %s (%s)", package.route, package.model_version, translator.compute_type)
        return translator


class _Shelf(Generic[T]):
    """What was opened for the packages used last; the one not used for longest goes before another is opened."""

    def __init__(self, limit: int, opener: Callable[[Package], T]) -> None:
        self._limit = limit
        self._opener = opener
        self._kept: OrderedDict[object, T] = OrderedDict()

    def get(self, package: Package) -> T:
        if package.path in self._kept:
            self._kept.move_to_end(package.path)
        else:
            while len(self._kept) >= self._limit:
                self._kept.popitem(last=False)
            self._kept[package.path] = self._opener(package)
        return self._kept[package.path]


def _chunks(tokens: Sequence[str], tokenizer: Tokenizer) -> Iterator[Tokens]:
    """``tokens`` in chunks of at most MAX_SOURCE_TOKENS, cut where a word begins if there is one in the second half."""
    while len(tokens) > MAX_SOURCE_TOKENS:
        ends = range(MAX_SOURCE_TOKENS, MAX_SOURCE_TOKENS // 2, -1)
        end = next((end for end in ends if tokenizer.starts_word(tokens, end)), MAX_SOURCE_TOKENS)
        yield tuple(tokens[:end])
        tokens = tokens[end:]
    if tokens:
        yield tuple(tokens)


# ---- jobs and what they are made of ----


@dataclass(slots=True, eq=False)
class _Job:
    key: bytes
    age: int  # 0 is the oldest
    model: str
    passes: tuple[Package, ...]
    urgent: bool
    alone: bool
    texts: list[str]  # each is replaced by its translation
    left: int  # texts not translated yet
    waiting: set[_Sentence] = field(default_factory=set)


@dataclass(slots=True, eq=False)
class _Text:
    """A text in one pass, or the pieces of a segment that lost a span: ``parent`` then takes their result."""

    job: _Job
    index: int  # among the job's texts, or the parent's segments
    stage: int  # which of the job's passes
    document: Document
    parent: _Text | None
    translations: list[str]
    left: int  # segments not translated yet


@dataclass(slots=True, eq=False)
class _Part:
    """A segment of a text, and what the model made of its chunks."""

    text: _Text
    index: int
    outputs: list[list[str]]
    left: int  # chunks not translated yet

    @property
    def tokens(self) -> list[str]:
        return [token for output in self.outputs for token in output]


@dataclass(frozen=True, slots=True, eq=False)
class _Sentence:
    """What waits and is translated: a segment, or a chunk of one, as tokens."""

    job: _Job
    package: Package
    part: _Part
    chunk: int
    tokens: Tokens
    again: bool = False  # the second try, as the output of the first was degenerate


class _Backlog:
    """Sentences that wait, to be found by age and, within a package, by length."""

    def __init__(self) -> None:
        self._pools: dict[object, dict[int, dict[_Sentence, None]]] = {}  # pool -> tokens -> sentences
        self._ages: dict[bool, list[tuple[int, int, _Sentence]]] = {True: [], False: []}  # urgent -> heap
        self._numbers = itertools.count()
        self._turn = 0
        self._size = 0

    def __len__(self) -> int:
        return self._size

    def add(self, sentence: _Sentence) -> None:
        job = sentence.job
        pool = self._pools.setdefault(_pool(sentence, job.urgent), {})
        pool.setdefault(len(sentence.tokens), {})[sentence] = None
        heapq.heappush(self._ages[job.urgent], (job.age, next(self._numbers), sentence))
        job.waiting.add(sentence)
        self._size += 1

    def remove(self, sentence: _Sentence) -> None:
        """Take it out. Its entry by age stays until that is the oldest."""
        key = _pool(sentence, sentence.job.urgent)
        pool = self._pools[key]
        tokens = len(sentence.tokens)
        del pool[tokens][sentence]
        if not pool[tokens]:
            del pool[tokens]
        if not pool:
            del self._pools[key]
        sentence.job.waiting.discard(sentence)
        self._size -= 1

    def take(self, batch_tokens: int) -> list[_Sentence]:
        """The next batch: at most ``batch_tokens`` tokens, padding counted, but always its leader."""
        leader = self._leader()
        if leader is None:
            return []
        batch = [leader]
        self.remove(leader)
        longest = near = len(leader.tokens)
        for urgent in (leader.job.urgent, not leader.job.urgent):
            lengths = self._pools.get(_pool(leader, urgent), {})
            for length in sorted(lengths, key=lambda length: abs(length - near)):
                room = batch_tokens // max(longest, length) - len(batch)
                if room > 0:
                    batch += itertools.islice(lengths[length], room)
                    longest = max(longest, length)
        for sentence in batch[1:]:
            self.remove(sentence)
        return batch

    def _leader(self) -> _Sentence | None:
        urgent, others = self._oldest(True), self._oldest(False)
        if urgent is None or others is None:
            self._turn = 0
            return urgent or others
        self._turn = (self._turn + 1) % OLDEST_EVERY
        return urgent if self._turn or urgent.job.age < others.job.age else others

    def _oldest(self, urgent: bool) -> _Sentence | None:
        ages = self._ages[urgent]
        while ages and ages[0][2] not in ages[0][2].job.waiting:
            heapq.heappop(ages)
        return ages[0][2] if ages else None


def _pool(sentence: _Sentence, urgent: bool) -> tuple[object, ...]:
    """Sentences with the same pool may share a batch."""
    return (sentence.package.path, sentence.again, urgent, sentence.job.key if sentence.job.alone else None)


# ---- the engines ----


class ArgosEngine:
    """Argos packages on CTranslate2, one thread.

    ``only``: the routes to serve; None: all that ``packages`` can, MAX_ROUTES at most. Raises ``PackageError`` when a
    route of ``only``, or any route at all, cannot be served. Nothing is loaded before ``warm`` or the first job.
    """

    def __init__(self, packages: Iterable[Package], config: EngineConfig, *, only: Iterable[str] | None = None) -> None:
        self._config = config
        self._passes = _routes(packages, only)
        self.routes: Mapping[str, str] = {
            route: "+".join([package.model_version for package in passes]) for route, passes in self._passes.items()
        }
        self._models = _Models(config)
        self._backlog = _Backlog()
        self._jobs: dict[bytes, _Job] = {}
        self._ages = itertools.count()
        self._finished: list[Outcome] = []

    def warm(self) -> None:
        """Load the first route's package. Raises ``PackageError`` or ``ConfigError``."""
        self._models.warm(next(iter(self._passes.values()))[0])

    @property
    def pending(self) -> int:
        return len(self._backlog) + len(self._finished)

    def submit(
        self, key: bytes, route: str, texts: Sequence[str], *, urgent: bool = False, alone: bool = False
    ) -> None:
        if key in self._jobs:
            return
        passes = self._passes.get(route)
        if passes is None:
            self._finished.append(_no_route(key, route))
            return
        job = _Job(key, next(self._ages), self.routes[route], passes, urgent, alone, list(texts), len(texts))
        self._jobs[key] = job
        with self._answering(job):
            for index, text in enumerate(texts):
                self._begin_pass(job, index, 0, text)
            if not texts:
                self._finish(job)

    def drop(self, key: bytes) -> None:
        self._finished = [outcome for outcome in self._finished if outcome.key != key]
        if key in self._jobs:
            self._forget(self._jobs[key])

    def next_batch(self) -> Batch | None:
        sentences = tuple(self._backlog.take(self._config.batch_tokens))
        outcomes, self._finished = tuple(self._finished), []
        keys = dict.fromkeys([outcome.key for outcome in outcomes])
        keys.update(dict.fromkeys([sentence.job.key for sentence in sentences]))
        return Batch(tuple(keys), sentences, outcomes) if keys else None

    def run(self, batch: Batch) -> list[Outcome]:
        wanted = [sentence for sentence in batch.sentences if self._has(sentence.job)]
        if wanted:
            self._translate(wanted[0].package, wanted, wanted[0].again)
        finished, self._finished = self._finished, []
        return [*batch.outcomes, *finished]

    def _begin_pass(self, job: _Job, index: int, stage: int, text: str) -> None:
        self._open(job, index, stage, parse(text, job.passes[stage].from_code), None)

    def _open(self, job: _Job, index: int, stage: int, document: Document, parent: _Text | None) -> None:
        segments = document.segments
        text = _Text(job, index, stage, document, parent, [""] * len(segments), len(segments))
        if not segments:
            self._complete(text)
            return
        package = job.passes[stage]
        sources = [segment.source for segment in segments]
        for number, chunks in enumerate(self._models.encode(package, sources)):
            if not chunks:  # nothing in it that the model could read
                self._restore(text, number, sources[number])
            part = _Part(text, number, [[] for _ in chunks], len(chunks))
            for place, tokens in enumerate(chunks):
                self._backlog.add(_Sentence(job, package, part, place, tokens))

    def _translate(self, package: Package, sentences: list[_Sentence], again: bool) -> None:
        rows = list(dict.fromkeys([sentence.tokens for sentence in sentences]))
        try:
            outputs = self._models.translate(package, rows, again)
        except (PackageError, ConfigError) as error:
            outputs = dict.fromkeys(rows, EngineError("engine_error", str(error)))
        parts = []
        for sentence in sentences:
            output, part = outputs[sentence.tokens], sentence.part
            if not isinstance(output, EngineError):
                part.outputs[sentence.chunk] = output
                part.left -= 1
                if not part.left:
                    parts.append(part)
            elif not self._has(sentence.job):
                continue  # another sentence of it failed just now
            elif output.code == DEGENERATE and not again:
                # In a batch of its own, so that no other job waits for it, and the parent sees progress.
                self._backlog.add(replace(sentence, again=True))
            else:
                self._fail(sentence.job, output.code, output.detail)
        translations = self._models.decode(package, [part.tokens for part in parts])
        for part, translation in zip(parts, translations, strict=True):
            if self._has(part.text.job):
                with self._answering(part.text.job):
                    self._restore(part.text, part.index, translation)

    def _restore(self, text: _Text, index: int, translation: str) -> None:
        segment = text.document.segments[index]
        restored = segment.restore(translation)
        if restored is not None:
            self._place(text, index, restored)
        elif text.parent is None:
            self._open(text.job, index, text.stage, segment.pieces(), text)
        else:
            raise LocalError("a piece of a sentence lost a span, and has none")

    def _place(self, text: _Text, index: int, translation: str) -> None:
        text.translations[index] = translation
        text.left -= 1
        if not text.left:
            self._complete(text)

    def _complete(self, text: _Text) -> None:
        translation = text.document.assemble(text.translations)
        job = text.job
        if text.parent is not None:
            self._place(text.parent, text.index, translation)
        elif text.stage + 1 < len(job.passes):
            self._begin_pass(job, text.index, text.stage + 1, translation)
        else:
            job.texts[text.index] = translation
            job.left -= 1
            if not job.left:
                self._finish(job)

    def _finish(self, job: _Job) -> None:
        self._forget(job)
        self._finished.append(Outcome(job.key, tuple(job.texts), job.model))

    def _fail(self, job: _Job, code: str, detail: str) -> None:
        self._forget(job)
        self._finished.append(Outcome(job.key, None, job.model, code, detail[:MAX_DETAIL_CHARS]))

    def _has(self, job: _Job) -> bool:
        """Whether it has neither ended nor been dropped."""
        return self._jobs.get(job.key) is job

    def _forget(self, job: _Job) -> None:
        del self._jobs[job.key]
        for sentence in list(job.waiting):
            self._backlog.remove(sentence)

    @contextmanager
    def _answering(self, job: _Job) -> Iterator[None]:
        """Let an error inside cost this job only."""
        try:
            yield
        except PackageError as error:
            self._fail(job, "engine_error", str(error))
        except Exception as error:
            log.exception("job %s failed", job.key.hex())
            self._fail(job, "engine_error", one_line(error))


class EchoEngine:
    """Returns every text as it is: for benchmarks of everything but the translating."""

    def __init__(self, routes: Iterable[str]) -> None:
        self.routes: Mapping[str, str] = dict.fromkeys(routes, "echo")
        self._alone: dict[bytes, Outcome] = {}
        self._urgent: dict[bytes, Outcome] = {}
        self._others: dict[bytes, Outcome] = {}
        log.info("echo engine: every text comes back untranslated")

    @property
    def pending(self) -> int:
        return len(self._alone) + len(self._urgent) + len(self._others)

    def submit(
        self, key: bytes, route: str, texts: Sequence[str], *, urgent: bool = False, alone: bool = False
    ) -> None:
        lane = self._alone if alone else self._urgent if urgent else self._others
        if route in self.routes:
            lane[key] = Outcome(key, tuple(texts), "echo")
        else:
            lane[key] = _no_route(key, route)

    def drop(self, key: bytes) -> None:
        for lane in (self._alone, self._urgent, self._others):
            lane.pop(key, None)

    def next_batch(self) -> Batch | None:
        for lane, limit in ((self._alone, 1), (self._urgent, ECHO_JOBS), (self._others, ECHO_JOBS)):
            if lane:
                keys = tuple(itertools.islice(lane, limit))
                return Batch(keys, (), tuple([lane.pop(key) for key in keys]))
        return None

    def run(self, batch: Batch) -> list[Outcome]:
        return list(batch.outcomes)


def _routes(packages: Iterable[Package], only: Iterable[str] | None) -> dict[str, tuple[Package, ...]]:
    """Each route and the packages that its texts pass through."""
    direct: dict[str, Package] = {}
    for package in packages:
        direct.setdefault(package.route, package)
    routes: dict[str, tuple[Package, ...]] = {route: (package,) for route, package in direct.items()}
    for first, second in itertools.product(direct.values(), repeat=2):
        if first.to_code == PIVOT == second.from_code and first.from_code != second.to_code:
            routes.setdefault(f"{first.from_code}→{second.to_code}", (first, second))
    if only is not None:
        wanted = list(dict.fromkeys(only))
        missing = [route for route in wanted if route not in routes]
        if missing:
            raise PackageError(f"no installed package translates {', '.join(missing)}")
        routes = {route: routes[route] for route in wanted}
    if not routes:
        raise PackageError("no Argos package was found")
    if len(routes) > MAX_ROUTES:
        log.warning("%d routes are more than %d: some of those through English are left out", len(routes), MAX_ROUTES)
    return dict(itertools.islice(routes.items(), MAX_ROUTES))


def _no_route(key: bytes, route: str) -> Outcome:
    return Outcome(key, None, "", "no_route", f"this node has no package for {route}"[:MAX_DETAIL_CHARS])


def one_line(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__
