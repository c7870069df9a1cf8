"""The LibreTranslate API, a request in and a reply out: same paths, fields, status codes and error shape.

A request's way: body to fields, key or address to caller, fields to ``Wish``, wish to jobs, answers to JSON. Whatever
is wrong is an ``HttpError`` and ends as ``{"error": "..."}``. No text gets into a log. Pages are taken apart and put
together in threads, as a large one takes a moment; all else is done in the loop.

Where LibreTranslate answers 500, this says what is the matter: 502 when a text could not be translated, 503 without a
broker or a node, 504 when time is over.
"""

from __future__ import annotations

import asyncio
import functools
import logging
import math
import time
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from types import TracebackType
from typing import Any, Final, NamedTuple, Protocol, Self, TypeVar

import msgspec

from dolmetsch import __version__, detect, logs
from dolmetsch.apikeys import Allowance, Keys, Windows
from dolmetsch.calls import Work
from dolmetsch.config import HttpConfig
from dolmetsch.detect import UNKNOWN, Detector, Guess
from dolmetsch.errors import DolmetschError, JobFailed, JobRejected, LedgerError, NoBroker, RemoteError
from dolmetsch.html import Page, has_words, without_tags
from dolmetsch.httpspec import HttpError, Request, Wish, address_of, described, fields_of, texts_of, wish_of
from dolmetsch.messages import MAX_ROUTES, MAX_TEXTS, Answer
from dolmetsch.reports import Route

JOB_CHARS: Final = 2000  # of a page's texts in one job: a long page is spread over the cluster
AWAY_RETRY_S: Final = 5.0
BUSY_RETRY_S: Final = 1.0
PAGE_THREADS: Final = 2
DAY_S: Final = 86_400
CORS: Final = {
    "Access-Control-Allow-Origin": "*",
    "Access-Control-Allow-Methods": "GET, POST",
    "Access-Control-Allow-Headers": "Authorization, Content-Type",
    "Access-Control-Expose-Headers": "Retry-After",
    "Access-Control-Max-Age": str(20 * DAY_S),
}

JSON: Final = "application/json"
TEXT: Final = "text/plain; charset=utf-8"

log = logging.getLogger("http")

T = TypeVar("T")


class Reply(NamedTuple):
    """What goes back."""

    status: int
    headers: dict[str, str]
    body: bytes


class Translator(Protocol):
    """What this room needs of the cluster: ``calls.Calls``, or a test's own."""

    @property
    def routes(self) -> tuple[Route, ...]: ...

    @property
    def trouble(self) -> str: ...

    async def translate(
        self, works: Sequence[Work], *, deadline_s: float, since: float | None = None
    ) -> list[Answer]: ...


class Caller(NamedTuple):
    """Who asks: a key's holder or an address."""

    tenant: str
    allowance: Allowance


class Languages:
    """What the nodes offer. Codes are the packages'; callers may also use LibreTranslate's, in any case."""

    def __init__(self, routes: Iterable[Route]) -> None:
        self.routes = frozenset(route.route for route in routes)
        self.targets: dict[str, set[str]] = {}
        for route in self.routes:
            source, _, target = route.partition("→")
            self.targets.setdefault(source, {source}).add(target)
            self.targets.setdefault(target, {target})
        self._codes = {detect.shown(code).lower(): code for code in self.targets}
        self._codes |= {code.lower(): code for code in self.targets}

    def code(self, asked: str) -> str:
        """The package's code. Raises ``HttpError``."""
        code = self._codes.get(asked.lower())
        if code is None:
            raise HttpError(400, f"{asked[:20]} is not supported")
        return code

    def listed(self) -> list[dict[str, Any]]:
        """As ``/languages`` shows them; a language is always a target of its own."""
        return [
            {"code": detect.shown(code), "name": detect.name(code), "targets": sorted(map(detect.shown, targets))}
            for code, targets in sorted(self.targets.items(), key=lambda item: detect.name(item[0]))
        ]


Do = Callable[..., Awaitable[list[tuple[str, ...]]]]
"""From jobs, and how many alternatives each is to have, to the texts of each."""
Way = Callable[[Request], Awaitable[Any]]
"""From a request to what is said in JSON, or to a text. Raises ``DolmetschError``."""


class Api:
    """``answer`` answers one request; many may be under way in one loop."""

    def __init__(self, config: HttpConfig, translator: Translator, keys: Keys, detector: Detector) -> None:
        self._config = config
        self._translator = translator
        self._keys = keys
        self._detector = detector
        self._windows = Windows()
        self._at_once = 0
        self._languages = Languages(())
        self._told: tuple[Route, ...] = ()
        self._seen: set[str] = set()  # routes that were on offer since the start
        self._pages = ThreadPoolExecutor(PAGE_THREADS, "pages")
        self._ways: Mapping[str, tuple[str, Way]] = {
            "/": ("GET", self._index),
            "/translate": ("POST", self._translate),
            "/detect": ("POST", self._detect),
            "/languages": ("GET", self._list),
            "/frontend/settings": ("GET", self._settings),
            "/health": ("GET", self._health),
            "/spec": ("GET", self._show_spec),
            "/translate_file": ("POST", _no_files),
            "/suggest": ("POST", _no_suggestions),
        }

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End its threads."""
        self._pages.shutdown()

    async def answer(self, request: Request) -> Reply:
        """Whatever happens, there is a reply."""
        try:
            method, way = self._ways.get(request.path, ("", _nowhere))
            if method and request.method == "OPTIONS":  # a browser asks whether its page may ask
                return Reply(200, {**CORS, "Content-Type": TEXT}, b"")
            if method and request.method != method and (request.method, method) != ("HEAD", "GET"):
                return refusal(HttpError(405, f"this takes {method}"), Allow=f"{method}, OPTIONS")
            body = await way(request)
            if isinstance(body, str):
                return Reply(200, {**CORS, "Content-Type": TEXT}, body.encode())
            return Reply(200, {**CORS, "Content-Type": JSON}, msgspec.json.encode(body))
        except DolmetschError as error:
            return refusal(http_error(error))
        except Exception as error:
            log.error("a bug: %s", logs.trace(error))  # never its message: it may quote a text
            return refusal(HttpError(500, "Internal error"))

    async def _apart(self, do: Callable[..., T], *arguments: Any) -> T:
        """What takes a moment, in a thread, so that others need not wait for it."""
        return await asyncio.get_running_loop().run_in_executor(self._pages, do, *arguments)

    # ---- what is asked for ----

    async def _translate(self, request: Request) -> dict[str, Any]:
        since = time.monotonic()
        fields = fields_of(request)
        caller = self._caller(request, fields)
        wish = wish_of(fields, self._config)
        with self._slot():
            self._charge(caller, sum(map(len, wish.texts)))
            return await self._fulfil(wish, caller.tenant, since)

    async def _fulfil(self, wish: Wish, tenant: str, since: float) -> dict[str, Any]:
        languages = self._offered()
        target = languages.code(wish.target)
        source, guess = await self._source(wish, target, languages)
        result: dict[str, Any]
        others: list[list[str]] = [[] for _ in wish.texts]
        if source == target or source not in languages.targets:
            new = wish.texts
        else:
            do = functools.partial(self._do, self._route(languages, source, target), tenant, since)
            if wish.as_html:
                new = await self._translate_pages(wish.texts, source, do)
            else:
                new, others = await _translate_texts(wish.texts, wish.alternatives, do)
        result = {"translatedText": new if wish.batch else new[0]}
        if wish.source.lower() == "auto":
            shown = _shown(guess)
            result["detectedLanguage"] = [shown] * len(new) if wish.batch else shown
        if wish.alternatives:
            result["alternatives"] = others if wish.batch else others[0]
        return result

    async def _source(self, wish: Wish, target: str, languages: Languages) -> tuple[str, Guess]:
        """The language to translate from. What cannot be told is left as it is: then it is "" or the target."""
        if wish.source.lower() != "auto":
            return languages.code(wish.source), UNKNOWN
        text = "\n".join(wish.texts)
        if wish.as_html:
            text = await self._apart(without_tags, text)
        guess = self._detector.detect(text, languages.targets)[0]
        if guess == UNKNOWN and target not in languages.targets.get(guess.language, ()):
            return "", guess
        return guess.language, guess

    def _route(self, languages: Languages, source: str, target: str) -> str:
        """Raises ``HttpError`` when no node offers it."""
        route = f"{source}→{target}"
        if route in languages.routes:
            return route
        names = f"{detect.name(source)} to {detect.name(target)}"
        if route in self._seen:
            raise HttpError(503, f"no node translates {names} at this moment", AWAY_RETRY_S)
        raise HttpError(400, f"{names} is not available: see /languages")

    async def _do(
        self, route: str, tenant: str, since: float, jobs: Iterable[tuple[str, ...]], alternatives: int = 0
    ) -> list[tuple[str, ...]]:
        """Each job's translations."""
        works = [Work(route, texts, tenant, alternatives) for texts in jobs]
        answers = await self._translator.translate(works, deadline_s=self._config.deadline_s, since=since)
        return [answer.texts or () for answer in answers]

    async def _translate_pages(self, texts: list[str], source: str, do: Do) -> list[str]:
        """Jobs of many short texts each."""
        pages = await self._apart(lambda: [Page(text, source) for text in texts])
        jobs = list(_packed(dict.fromkeys(text for page in pages for text in page.texts)))
        translated: dict[str, str] = {}
        for job, new in zip(jobs, await do(jobs), strict=True):
            translated.update(zip(job, new, strict=True))
        return await self._apart(lambda: [page.render(translated) for page in pages])

    async def _detect(self, request: Request) -> list[dict[str, Any]]:
        fields = fields_of(request)
        caller = self._caller(request, fields)
        texts, _ = texts_of(fields)
        self._charge(caller, min(sum(map(len, texts)), detect.MAX_CHARS))
        guesses = self._detector.detect("\n".join(texts), self._offered().targets)
        return [_shown(guess) for guess in guesses]

    async def _list(self, request: Request) -> list[dict[str, Any]]:
        return self._offered().listed()

    async def _settings(self, request: Request) -> dict[str, Any]:
        """As LibreTranslate's page for browsers reads them."""
        targets = {target for source, some in self._current().targets.items() for target in some if target != source}
        target = min(targets, default="en", key=detect.name)
        keys = self._config.require_key or self._keys.count() > 0
        return {
            "charLimit": self._config.char_limit,
            "frontendTimeout": 500,
            "apiKeys": keys,
            "keyRequired": self._config.require_key,
            "suggestions": False,
            "filesTranslation": False,
            "supportedFilesFormat": [],
            "language": {
                "source": {"code": "auto", "name": "Auto Detect"},
                "target": {"code": detect.shown(target), "name": detect.name(target)},
            },
        }

    async def _health(self, request: Request) -> dict[str, str]:
        """Whether it could translate now: for load balancers and people."""
        if self._translator.trouble:
            raise HttpError(503, self._translator.trouble, AWAY_RETRY_S)
        self._offered()
        return {"status": "ok"}

    async def _show_spec(self, request: Request) -> Any:
        """The description of this API, with the limits and languages of now."""
        return described(self._config, sorted(map(detect.shown, self._current().targets)))

    async def _index(self, request: Request) -> str:
        return (
            f"dolmetsch {__version__}: translations by the LibreTranslate API.\n\n"
            "POST /translate           q, source, target, format, alternatives, api_key\n"
            "POST /detect              q, api_key\n"
            "GET  /languages           what can be translated now\n"
            "GET  /frontend/settings   limits, and whether a key is needed\n"
            "GET  /health              whether it can translate\n"
            "GET  /spec                all of this as OpenAPI\n"
        )

    # ---- who asks, and for how much ----

    def _caller(self, request: Request, fields: Mapping[str, Any]) -> Caller:
        key = fields.get("api_key")
        if not isinstance(key, str | None):
            raise HttpError(400, "Invalid request: api_key is a text")
        if key:
            if (holder := self._keys.find(key)) is not None:
                return Caller(f"http:key:{holder.name}", holder.allowance)
            # Where nobody has a key, one that a client brings from elsewhere does no harm.
            if self._config.require_key or self._keys.count():
                raise HttpError(403, "Invalid API key")
        elif self._config.require_key:
            raise HttpError(
                400, "an API key is needed here: ask whoever runs this server for one, and send it as api_key"
            )
        allowance = Allowance(self._config.per_minute, self._config.chars_per_minute)
        return Caller(f"http:ip:{address_of(request, self._config.trusted_proxies)}", allowance)

    def _charge(self, caller: Caller, chars: int) -> None:
        wait_s = self._windows.take(caller.tenant, caller.allowance, chars, time.monotonic())
        if wait_s:
            requests, most = caller.allowance
            limits = [f"{requests} requests"] * (requests > 0) + [f"{most} characters"] * (most > 0)
            raise HttpError(429, f"Slowdown: {' or '.join(limits)} a minute", wait_s)

    @contextmanager
    def _slot(self) -> Iterator[None]:
        """One of the requests that are worked on at once."""
        if self._at_once >= self._config.concurrent:
            raise HttpError(429, "Slowdown: too many requests at once", BUSY_RETRY_S)
        self._at_once += 1
        try:
            yield
        finally:
            self._at_once -= 1

    def _current(self) -> Languages:
        routes = self._translator.routes
        if routes is not self._told:
            self._languages = Languages(routes)
            if len(self._seen) < MAX_ROUTES:
                self._seen |= self._languages.routes
            self._told = routes
        return self._languages

    def _offered(self) -> Languages:
        """What nodes offer now. Raises ``HttpError`` when there is nothing."""
        languages = self._current()
        if not languages.routes:
            raise HttpError(503, self._translator.trouble or "no node is there to translate", AWAY_RETRY_S)
        return languages


# ---- texts ----


async def _translate_texts(texts: list[str], alternatives: int, do: Do) -> tuple[list[str], list[list[str]]]:
    """A job for each text; what has no words stays as it is."""
    places = [place for place, text in enumerate(texts) if has_words(text)]
    done = await do([(texts[place],) for place in places], alternatives)
    new, others = list(texts), [[] for _ in texts]  # type: tuple[list[str], list[list[str]]]
    for place, (best, *more) in zip(places, done, strict=True):
        new[place] = best
        others[place] = [text for text in dict.fromkeys(more) if text not in ("", best)]
    return new, others


def _packed(texts: Iterable[str]) -> Iterator[tuple[str, ...]]:
    job: list[str] = []
    chars = 0
    for text in texts:
        if job and (len(job) >= MAX_TEXTS or chars + len(text) > JOB_CHARS):
            yield tuple(job)
            job, chars = [], 0
        job.append(text)
        chars += len(text)
    if job:
        yield tuple(job)


def _shown(guess: Guess) -> dict[str, Any]:
    return {"confidence": guess.confidence, "language": detect.shown(guess.language)}


# ---- answers ----


def refusal(error: HttpError, **headers: str) -> Reply:
    """LibreTranslate's form of an error."""
    if error.retry_after_s is not None:
        headers["Retry-After"] = str(max(1, math.ceil(error.retry_after_s)))
    body = msgspec.json.encode({"error": str(error)})
    return Reply(error.status, {**CORS, "Content-Type": JSON, **headers}, body)


def http_error(error: DolmetschError) -> HttpError:
    """What a caller is told of an error from within."""
    match error:
        case HttpError():
            return error
        case JobRejected(code="overloaded"):
            return HttpError(429, f"Slowdown: {error}", error.retry_after_s or BUSY_RETRY_S)
        case JobRejected(code="draining") | JobFailed(code="draining"):
            return HttpError(503, str(error), AWAY_RETRY_S)
        case JobRejected():
            return HttpError(400, f"Invalid request: {error}")
        case JobFailed(code="deadline"):
            return HttpError(504, str(error))
        case JobFailed():
            return HttpError(502, f"the text could not be translated: {error}")
        case NoBroker() | RemoteError():  # whose own words name addresses
            return HttpError(503, "the cluster cannot be reached at this moment", AWAY_RETRY_S)
        case LedgerError():
            log.error("%s", error)
            return HttpError(503, "API keys cannot be looked up at this moment", AWAY_RETRY_S)
    log.error("a bug: %s", logs.trace(error))
    return HttpError(500, "Internal error")


async def _nowhere(request: Request) -> Any:
    raise HttpError(404, "there is nothing at this path: / says what there is")


async def _no_files(request: Request) -> Any:
    raise HttpError(403, "this server translates no files")


async def _no_suggestions(request: Request) -> Any:
    raise HttpError(403, "this server takes no suggestions")
