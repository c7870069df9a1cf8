"""Engines: jobs in, outcomes out, a batch at a time.

``ArgosEngine`` translates with Argos packages. It is incremental: ``submit`` cuts a job's texts into sentences and puts
them into the backlog, ``next_batch`` chooses some of them, ``run`` translates these, and ``finish`` returns the jobs
that are now complete. ``run`` takes long and may have a thread of its own, so that an urgent batch need not wait for
the end of another. ``EchoEngine`` returns every text as it is.

A text takes one *pass* for each package of its route: a route without a package of its own goes through English. A
sentence longer than a model takes is cut into chunks of tokens, and their outputs are joined. A sentence whose output
is degenerate waits for a second try; if that does not help, its job fails as ``degenerate_output``.

With *alternatives*, a text is translated once more for each: by the model's second-best output, third-best, and so on.
"""

from __future__ import annotations

import itertools
import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple, Protocol

from msgspec import structs

from dolmetsch.backlog import Backlog, Job, Part, Sentence, Text
from dolmetsch.config import EngineConfig
from dolmetsch.decoder import DEGENERATE, Decoder, Tokens
from dolmetsch.errors import ConfigError, EngineError, LocalError, PackageError
from dolmetsch.logs import trace
from dolmetsch.messages import MAX_DETAIL_CHARS, MAX_ROUTES
from dolmetsch.packages import Package
from dolmetsch.segment import Document, parse

PIVOT: Final = "en"
ECHO_JOBS: Final = 64  # jobs in one of the echo engine's batches

log = logging.getLogger(__name__)


class Outcome(NamedTuple):
    """How a job ended. ``texts`` is None when it failed: then ``code`` and the one line ``detail`` say why."""

    key: bytes
    texts: tuple[str, ...] | None
    model: str
    code: str = ""
    detail: str = ""


@dataclass(frozen=True, slots=True, repr=False)
class Batch:
    """What one ``run`` works on: ``sentences`` of the jobs ``keys``, and ``outcomes`` that need no model."""

    keys: tuple[bytes, ...]
    sentences: tuple[Sentence, ...]
    outcomes: tuple[Outcome, ...]

    @property
    def patient(self) -> bool:
        """Whether it may be long, and others may be run beside it."""
        return bool(self.sentences) and not (self.sentences[0].job.urgent or self.sentences[0].job.alone)


Outputs = Mapping[Tokens, list[str] | EngineError]  # what the model made of each row of tokens


class Engine(Protocol):
    """What a child's loop drives. A key is a job's from ``submit`` to its outcome or ``drop``.

    Not thread-safe but for ``run``, which two threads may be in at once.
    """

    @property
    def routes(self) -> Mapping[str, str]:
        """Each route ("de→en") and the version of the model that serves it."""
        ...

    @property
    def pending(self) -> int:
        """Sentences waiting, and jobs that have an outcome but no batch yet; 0: ``next_batch`` returns None."""
        ...

    def submit(
        self,
        key: bytes,
        route: str,
        texts: Sequence[str],
        *,
        urgent: bool = False,
        alone: bool = False,
        alternatives: int = 0,
    ) -> None:
        """Take a job; never raises for its texts. A key that it has already is ignored.

        ``urgent``: ahead of the others. ``alone``: no other job shares its batches. Its outcome has ``texts``
        1 + ``alternatives`` times, the best translations first.
        """
        ...

    def drop(self, key: bytes) -> None:
        """Forget a job, if it is known."""
        ...

    def next_batch(self, *, beside: bool = False) -> Batch | None:
        """Take the next batch from what waits, to be handed to ``run``; None when nothing does.

        ``beside``: only one that need not wait until another batch has been run.
        """
        ...

    def run(self, batch: Batch) -> Outputs:
        """Translate ``batch``, for ``finish``."""
        ...

    def finish(self, batch: Batch, outputs: Outputs) -> list[Outcome]:
        """Take what ``run`` made of ``batch``; return the jobs that are complete now."""
        ...


class ArgosEngine:
    """Argos packages on CTranslate2.

    ``only``: the routes to serve; None: all that ``packages`` can, MAX_ROUTES at most. Raises ``PackageError`` when a
    route of ``only``, or any route at all, cannot be served. Nothing is loaded before ``warm`` or the first job.
    """

    def __init__(self, packages: Iterable[Package], config: EngineConfig, *, only: Iterable[str] | None = None) -> None:
        self._config = config
        self._passes = _routes(packages, only)
        self.routes: Mapping[str, str] = {
            route: "+".join([package.model_version for package in passes]) for route, passes in self._passes.items()
        }
        self._decoder = Decoder(config)
        self._backlog = Backlog()
        self._jobs: dict[bytes, Job] = {}
        self._ages = itertools.count()
        self._finished: list[Outcome] = []

    def warm(self) -> None:
        """Load the first route's package. Raises ``PackageError`` or ``ConfigError``."""
        self._decoder.warm(next(iter(self._passes.values()))[0])

    @property
    def pending(self) -> int:
        return len(self._backlog) + len(self._finished)

    def submit(
        self,
        key: bytes,
        route: str,
        texts: Sequence[str],
        *,
        urgent: bool = False,
        alone: bool = False,
        alternatives: int = 0,
    ) -> None:
        if key in self._jobs:
            return
        passes = self._passes.get(route)
        if passes is None:
            self._finished.append(_no_route(key, route))
            return
        ranked = [*texts] * (1 + alternatives)
        job = Job(key, next(self._ages), self.routes[route], passes, urgent, alone, ranked, len(ranked))
        self._jobs[key] = job
        self._guarded(job, self._begin, job, len(texts))

    def drop(self, key: bytes) -> None:
        self._finished = [outcome for outcome in self._finished if outcome.key != key]
        if key in self._jobs:
            self._forget(self._jobs[key])

    def next_batch(self, *, beside: bool = False) -> Batch | None:
        sentences = tuple(self._backlog.take(self._config.batch_tokens, beside=beside))
        outcomes, self._finished = tuple(self._finished), []
        keys = dict.fromkeys([outcome.key for outcome in outcomes])
        keys.update(dict.fromkeys([sentence.job.key for sentence in sentences]))
        return Batch(tuple(keys), sentences, outcomes) if keys else None

    def run(self, batch: Batch) -> Outputs:
        rows = list(dict.fromkeys([sentence.tokens for sentence in batch.sentences if self._has(sentence.job)]))
        if not rows:
            return {}
        first = batch.sentences[0]
        try:
            return self._decoder.translate(
                first.package, rows, again=first.again, rank=first.part.text.rank, patient=batch.patient
            )
        except (PackageError, ConfigError) as error:
            return dict.fromkeys(rows, EngineError("engine_error", str(error)))

    def finish(self, batch: Batch, outputs: Outputs) -> list[Outcome]:
        wanted = [sentence for sentence in batch.sentences if self._has(sentence.job)]
        if wanted:
            self._place_outputs(wanted[0].package, wanted, outputs)
        finished, self._finished = self._finished, []
        return [*batch.outcomes, *finished]

    def _begin(self, job: Job, texts: int) -> None:
        for index, text in enumerate([*job.texts]):
            self._begin_pass(job, index, 0, text, index // texts)
        if not texts:
            self._finish(job)

    def _begin_pass(self, job: Job, index: int, stage: int, text: str, rank: int) -> None:
        self._open(job, index, stage, parse(text, job.passes[stage].from_code), None, rank)

    def _open(self, job: Job, index: int, stage: int, document: Document, parent: Text | None, rank: int) -> None:
        segments = document.segments
        text = Text(job, index, stage, document, parent, [""] * len(segments), len(segments), rank)
        if not segments:
            self._complete(text)
            return
        package = job.passes[stage]
        sources = [segment.source for segment in segments]
        for number, chunks in enumerate(self._decoder.encode(package, sources)):
            if not chunks:  # nothing in it that the model could read
                self._restore(text, number, sources[number])
            part = Part(text, number, [[] for _ in chunks], len(chunks))
            for place, tokens in enumerate(chunks):
                self._backlog.add(Sentence(job, package, part, place, tokens))

    def _place_outputs(self, package: Package, sentences: list[Sentence], outputs: Outputs) -> None:
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
            elif output.code == DEGENERATE and not sentence.again:
                # In a batch of its own, so that no other job waits for it, and the parent sees progress.
                self._backlog.add(structs.replace(sentence, again=True))
            else:
                self._fail(sentence.job, output.code, output.detail)
        translations = self._decoder.decode(package, [part.tokens for part in parts])
        for part, translation in zip(parts, translations, strict=True):
            if self._has(part.text.job):
                self._guarded(part.text.job, self._restore, part.text, part.index, translation)

    def _restore(self, text: Text, index: int, translation: str) -> None:
        segment = text.document.segments[index]
        restored = segment.restore(translation)
        if restored is not None:
            self._place(text, index, restored)
        elif text.parent is None:
            self._open(text.job, index, text.stage, segment.pieces(), text, text.rank)
        else:
            raise LocalError("a piece of a sentence lost a span, and has none")

    def _place(self, text: Text, index: int, translation: str) -> None:
        text.translations[index] = translation
        text.left -= 1
        if not text.left:
            self._complete(text)

    def _complete(self, text: Text) -> None:
        translation = text.document.assemble(text.translations)
        job = text.job
        if text.parent is not None:
            self._place(text.parent, text.index, translation)
        elif text.stage + 1 < len(job.passes):
            self._begin_pass(job, text.index, text.stage + 1, translation, text.rank)
        else:
            job.texts[text.index] = translation
            job.left -= 1
            if not job.left:
                self._finish(job)

    def _finish(self, job: Job) -> None:
        self._forget(job)
        self._finished.append(Outcome(job.key, tuple(job.texts), job.model))

    def _fail(self, job: Job, code: str, detail: str) -> None:
        self._forget(job)
        self._finished.append(Outcome(job.key, None, job.model, code, detail[:MAX_DETAIL_CHARS]))

    def _has(self, job: Job) -> bool:
        """Whether it has neither ended nor been dropped."""
        return self._jobs.get(job.key) is job

    def _forget(self, job: Job) -> None:
        del self._jobs[job.key]
        for sentence in list(job.waiting):
            self._backlog.remove(sentence)

    def _guarded(self, job: Job, step: Callable[..., None], *arguments: object) -> None:
        """Call ``step``; let an error inside cost this job only."""
        try:
            step(*arguments)
        except PackageError as error:
            self._fail(job, "engine_error", str(error))
        except Exception as error:
            log.error("job %s failed: %s", job.key.hex(), trace(error))
            self._fail(job, "engine_error", trace(error))


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
        self,
        key: bytes,
        route: str,
        texts: Sequence[str],
        *,
        urgent: bool = False,
        alone: bool = False,
        alternatives: int = 0,
    ) -> None:
        lane = self._alone if alone else self._urgent if urgent else self._others
        if route in self.routes:
            lane[key] = Outcome(key, tuple(texts) * (1 + alternatives), "echo")
        else:
            lane[key] = _no_route(key, route)

    def drop(self, key: bytes) -> None:
        for lane in (self._alone, self._urgent, self._others):
            lane.pop(key, None)

    def next_batch(self, *, beside: bool = False) -> Batch | None:
        for lane, limit in ((self._alone, 1), (self._urgent, ECHO_JOBS), (self._others, ECHO_JOBS)):
            if lane:
                keys = tuple(itertools.islice(lane, limit))
                return Batch(keys, (), tuple([lane.pop(key) for key in keys]))
        return None

    def run(self, batch: Batch) -> Outputs:
        return {}

    def finish(self, batch: Batch, outputs: Outputs) -> list[Outcome]:
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
