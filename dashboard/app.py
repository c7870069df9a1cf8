"""The application: Bottle's routes, and the door in front of them.

Requests only read what the collector and the history hold; the few that do something go through the guard to the
operator. Nothing that is answered or logged holds a text that somebody translates.
"""

from __future__ import annotations

import logging
import math
import os
import platform
import re
import sqlite3
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any, Final, Literal, Protocol, TypeVar

import bottle
import msgspec
import zmq
from msgspec import Meta, Struct

from dashboard.charts import SPANS
from dashboard.guard import HEADERS, Guard, Refusal
from dashboard.jobbook import KINDS
from dashboard.operator import Busy, Hands
from dashboard.pages import JSON, Made, Page, bake, encode_json, same
from dashboard.server import MAX_BODY_BYTES
from dashboard.snapshot import Snapshot
from dolmetsch import __version__, logs
from dolmetsch.errors import DolmetschError, JobFailed, JobRejected, NoBroker, RemoteError, TransportError
from dolmetsch.messages import (
    APPROVE,
    DRAIN,
    MAX_JOBS,
    MAX_TEXT_CHARS,
    PURGE,
    REFUSE,
    REQUEUE,
    RESTART,
    RESUME,
    Managed,
)

HOUSE: Final = Path(__file__).resolve().parent
FRESH: Final = "no-cache"  # keep it, but ask whether it is still so
NEVER: Final = "no-store"
HTML: Final = "text/html; charset=utf-8"
RETRY_S: Final = 5
TYPES: Final = {  # of static files, and which there may be: the system's own table may say anything
    ".css": "text/css; charset=utf-8",
    ".html": HTML,
    ".ico": "image/x-icon",
    ".js": "text/javascript; charset=utf-8",
    ".json": JSON,
    ".png": "image/png",
    ".svg": "image/svg+xml",
    ".txt": "text/plain; charset=utf-8",
    ".webmanifest": "application/manifest+json",
    ".woff2": "font/woff2",
}
TOLD: Final = 16  # strange names that are logged; whoever has more of them has no dashboard
FINGERPRINT: Final = re.compile("[0-9a-f]{4}(?:-[0-9a-f]{4}){3}")  # of a key, as keys.py writes it
GZIP: Final = re.compile(r"\bgzip(?!\s*;\s*q=0(?:\.0*)?\s*(?:,|$))", re.IGNORECASE)

Environ = dict[str, Any]
StartResponse = Callable[..., Any]

Shape = TypeVar("Shape", bound=Struct)

log = logging.getLogger("http")


class Watcher(Protocol):
    """The collector, as the routes see it."""

    where: str
    last_error: str

    @property
    def snapshot(self) -> Snapshot:
        """The cluster now."""

    @property
    def well(self) -> bool:
        """Whether it listens."""


class Charted(Protocol):
    """The history, as the routes see it."""

    problem: str

    def knows(self, node: str) -> bool:
        """Whether there may be something of ``node``."""

    def page(self, span: str, now: float, node: str | None = None) -> Page:
        """A chart."""

    def size_bytes(self) -> int:
        """What it takes on disk."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Parts:
    """What the application is made of. It was started at ``started``, monotonic seconds."""

    collector: Watcher
    history: Charted
    operator: Hands
    guard: Guard
    broker: str
    started: float
    views: Path = HOUSE / "views"
    static: Path = HOUSE / "static"
    clock: Callable[[], float] = time.time


class TranslateBody(Struct, forbid_unknown_fields=True):
    """What POST /api/translate takes."""

    text: Annotated[str, Meta(min_length=1, max_length=MAX_TEXT_CHARS)]
    route: Annotated[str, Meta(pattern=r"^[a-z]{2,3}(?:_[A-Za-z]{2,4})?→[a-z]{2,3}(?:_[A-Za-z]{2,4})?$")]


class JobsBody(Struct, forbid_unknown_fields=True):
    """What POST /api/jobs/requeue and /purge take."""

    jobs: (
        Literal["all"]
        | Annotated[
            list[Annotated[str, Meta(pattern="^[0-9a-f]{32}$")]], Meta(min_length=1, max_length=MAX_JOBS)
        ]
    )  # fmt: skip


class NoBody(Struct, forbid_unknown_fields=True):
    """What other actions take: an empty object, or nothing at all."""


class _Bottle(bottle.Bottle):  # type: ignore[misc]
    """What Bottle itself refuses (no such path, another method) is refused in our form."""

    def default_error_handler(self, res: bottle.HTTPError) -> bytes:
        words = {404: "there is nothing here", 405: "this method is not for this address"}
        bottle.response.content_type = JSON
        bottle.response.set_header("Cache-Control", NEVER)
        return encode_json({"error": words.get(res.status_code, str(res.body))})


class Dashboard:
    """The routes. ``wsgi`` is the application with its door."""

    def __init__(self, parts: Parts) -> None:
        self._parts = parts
        self._openapi = bake(HOUSE.joinpath("openapi.json").read_bytes())
        self._files: dict[Path, tuple[int, Made]] = {}
        self._told: set[str] = set()
        app = _Bottle()
        app.config["catchall"] = False  # the door catches, and knows what may be logged
        gets: dict[str, Callable[..., Any]] = {
            "/": self._root, "/dashboard": self._dashboard, "/static/<path:path>": self._static,
            "/openapi.json": lambda: _send(self._openapi), "/metrics": lambda: _send(self._now.metrics.made()),
            "/health": _healthy, "/healthz": self._healthz, "/readyz": self._readyz,
            "/api/cluster": self._cluster, "/api/nodes": lambda: _send(self._now.all_nodes.made()),
            "/api/nodes/<name>": self._node, "/api/waiting": lambda: _send(self._now.waiting.made()),
            "/api/jobs": self._jobs, "/api/history": self._history, "/api/stats": lambda: _answer(self._now.stats),
            "/api/debug": self._debug,
        }  # fmt: skip
        posts: dict[str, Callable[..., Any]] = {
            "/api/nodes/<name>/drain": lambda name: self._order(DRAIN, name),
            "/api/nodes/<name>/resume": lambda name: self._order(RESUME, name),
            "/api/nodes/<name>/restart": lambda name: self._order(RESTART, name),
            "/api/waiting/<fingerprint>/approve": lambda fingerprint: self._judge(APPROVE, fingerprint),
            "/api/waiting/<fingerprint>/refuse": lambda fingerprint: self._judge(REFUSE, fingerprint),
            "/api/jobs/requeue": lambda: self._dead(REQUEUE),
            "/api/jobs/purge": lambda: self._dead(PURGE),
            "/api/translate": self._translate,
        }
        for path, handler in gets.items():
            app.route(path, "GET", handler)
        for path, handler in posts.items():
            app.route(path, "POST", self._guarded(handler))
        self._app = app

    # ---- the door ----

    def wsgi(self, environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
        """Check the name that is asked for and the size, answer, and put the headers on that every answer has."""

        def start(status: str, headers: list[tuple[str, str]], exc_info: Any = None) -> Any:
            return start_response(status, [*headers, *HEADERS])

        if not self._parts.guard.knows(environ):
            self._tell_strange(str(environ.get("HTTP_HOST", "")))
            return _plain(start, "403 Forbidden", "this dashboard has another name: add this one to dashboard.hosts")
        if _length(environ) > MAX_BODY_BYTES:
            return _plain(start, "413 Request Entity Too Large", f"more than {MAX_BODY_BYTES} bytes")
        try:
            return self._app(environ, start)  # type: ignore[no-any-return]
        except Exception as error:  # never its message: it may quote a text
            log.error("a bug: %s", logs.trace(error))
            return _plain(start, "500 Internal Server Error", "an error inside the dashboard: see its log")

    def _tell_strange(self, host: str) -> None:
        """Say once that somebody uses another name: it may be the owner, through a new tunnel."""
        if host not in self._told and len(self._told) < TOLD:
            self._told.add(host)
            log.warning("refused: asked for as %.80r, which dashboard.hosts does not have", host)

    # ---- reading ----

    @property
    def _now(self) -> Snapshot:
        return self._parts.collector.snapshot

    def _root(self) -> Any:
        # Relative: only the browser knows by which scheme it came.
        return bottle.HTTPResponse(b"", status=302, headers={"Location": "/dashboard", "Cache-Control": NEVER})

    def _dashboard(self) -> Any:
        def render(content: bytes) -> Made:
            return bake(bottle.SimpleTemplate(content.decode()).render(version=__version__).encode(), HTML)

        return _send(self._read(self._parts.views / "dashboard.tpl", render))

    def _static(self, path: str) -> Any:
        file = _inside(self._parts.static, path)
        kind = TYPES.get(Path(path).suffix)
        if file is None or kind is None:
            return _refuse(404, "there is no such file")
        return _send(self._read(file, lambda content: bake(content, kind)))

    def _read(self, file: Path, make: Callable[[bytes], Made]) -> Made:
        """A file as it is sent, made anew when it is another one. There are as many as in our own folders."""
        stamp = file.stat().st_mtime_ns
        known = self._files.get(file)
        if known is None or known[0] != stamp:
            known = self._files[file] = (stamp, make(file.read_bytes()))
        return known[1]

    def _healthz(self) -> Any:
        if not self._parts.collector.well:
            return _refuse(503, "the collector does not go round")
        return _healthy()

    def _readyz(self) -> Any:
        why = self._now.unready
        return _answer({"ready": not why, "reason": why}, 503 if why else 200)

    def _cluster(self) -> Any:
        mode = self._parts.guard.mode(bottle.request.environ)
        return _send(self._now.cluster[mode].made())

    def _node(self, name: str) -> Any:
        node = self._now.nodes.get(name)
        return _refuse(404, "there is no node of this name") if node is None else _answer(node)

    def _jobs(self) -> Any:
        kind = bottle.request.query.getunicode("kind", "recent")
        if kind not in KINDS:
            return _refuse(400, f"kind is one of {', '.join(KINDS)}")
        return _send(self._now.jobs[kind].made())

    def _history(self) -> Any:
        span = bottle.request.query.getunicode("span", "5m")
        node = bottle.request.query.getunicode("node")
        if span not in [one.name for one in SPANS]:
            return _refuse(400, f"span is one of {', '.join(one.name for one in SPANS)}")
        if node is not None and not (node in self._now.nodes or self._parts.history.knows(node)):
            return _refuse(404, "there is no node of this name")
        return _send(self._parts.history.page(span, self._parts.clock(), node).made())

    def _debug(self) -> Any:
        snapshot, collector = self._now, self._parts.collector
        libraries = ("bottle", "waitress", "pyzmq", "msgspec", "prometheus-client")
        return _answer({
            "version": __version__,
            "python": platform.python_version(),
            "libraries": {name: version(name) for name in libraries}
            | {"libzmq": zmq.zmq_version(), "sqlite": sqlite3.sqlite_version},
            "pid": os.getpid(),
            "up_s": round(time.monotonic() - self._parts.started, 1),
            "threads": sorted(thread.name for thread in threading.enumerate()),
            "broker": self._parts.broker,
            "telemetry": collector.where,
            "alive": snapshot.alive,
            "last_telemetry_at": snapshot.at,
            "nodes": len(snapshot.nodes),
            "history_bytes": self._parts.history.size_bytes(),
            "history_problem": self._parts.history.problem,
            "last_error": collector.last_error,
        })  # fmt: skip

    # ---- doing ----

    def _guarded(self, handler: Callable[..., Any]) -> Callable[..., Any]:
        def guarded(**arguments: str) -> Any:
            refusal = self._parts.guard.refusal(bottle.request.environ)
            if refusal is not None:
                return _refuse_action(refusal)
            if bottle.request.content_type.partition(";")[0].strip().lower() != JSON:
                return _refuse(400, "the body must be JSON, and Content-Type must say so")
            try:
                return handler(**arguments)
            except Busy:
                return _refuse(503, "others are at it: try again in a moment", RETRY_S)
            except DolmetschError as error:
                return _of_error(error)

        return guarded

    def _order(self, action: str, name: str) -> Any:
        if _body(NoBody, empty=b"{}") is None:
            return _refuse(400, "the body must be empty or {}")
        return _managed(self._parts.operator.manage(action, node=name), 404)

    def _judge(self, action: str, fingerprint: str) -> Any:
        # The broker would take a name as well; but names are what strangers say of themselves.
        if not FINGERPRINT.fullmatch(fingerprint):
            return _refuse(404, "a key's fingerprint looks like 5e2f-90c1-7a44-0b3d")
        return self._order(action, fingerprint)

    def _dead(self, action: str) -> Any:
        body = _body(JobsBody)
        if body is None:
            return _refuse(400, f'the body must be {{"jobs": "all"}} or a list of 1 to {MAX_JOBS} job ids')
        jobs = () if body.jobs == "all" else tuple(bytes.fromhex(job) for job in body.jobs)
        return _managed(self._parts.operator.manage(action, jobs=jobs), 409)

    def _translate(self) -> Any:
        body = _body(TranslateBody)
        if body is None or not body.text.strip():
            return _refuse(400, f'the body must have "text", 1 to {MAX_TEXT_CHARS} characters, and "route", like de→en')
        answer = self._parts.operator.translate(body.text, body.route)
        return _answer({
            "translation": (answer.texts or ("",))[0],
            "model": answer.model,
            "took_ms": answer.took_ms,
            "cached": answer.cached,
        })  # fmt: skip


# ---- answers ----


def _send(made: Made) -> Any:
    """A page: all of it, compressed where that is understood, or word that it is still the same."""
    environ, response = bottle.request.environ, bottle.response
    response.headers["ETag"] = made.etag
    response.headers["Cache-Control"] = FRESH
    response.headers["Vary"] = "Accept-Encoding"
    known = environ.get("HTTP_IF_NONE_MATCH")
    if known and same(made.etag, known):
        response.status = 304
        return b""
    response.content_type = made.content_type
    if made.gzipped is not None and GZIP.search(environ.get("HTTP_ACCEPT_ENCODING", "")):
        response.headers["Content-Encoding"] = "gzip"
        return made.gzipped
    return made.body


def _answer(value: Any, status: int = 200) -> Any:
    """Something that is made for this request alone."""
    return bottle.HTTPResponse(
        encode_json(value), status=status, headers={"Content-Type": JSON, "Cache-Control": NEVER}
    )


def _refuse(status: int, words: str, retry_after_s: float | None = None) -> Any:
    found = _answer({"error": words}, status)
    if retry_after_s is not None:
        found.set_header("Retry-After", str(max(1, math.ceil(retry_after_s))))
    return found


def _refuse_action(refusal: Refusal) -> Any:
    found = _refuse(refusal.status, refusal.words, 60 if refusal.status == 429 else None)
    if refusal.status == 401:
        found.set_header("WWW-Authenticate", 'Bearer realm="dolmetsch"')
    return found


def _plain(start: StartResponse, status: str, words: str) -> list[bytes]:
    """An answer that does not pass through Bottle."""
    body = encode_json({"error": words})
    start(status, [("Content-Type", JSON), ("Content-Length", str(len(body))), ("Cache-Control", NEVER)])
    return [body]


def _inside(folder: Path, path: str) -> Path | None:
    """The file at ``path`` in ``folder``, and in no other."""
    try:
        root = folder.resolve()
        file = (root / path).resolve()
        return file if file.is_relative_to(root) and file.is_file() else None
    except (OSError, ValueError):  # a name that no file can have
        return None


def _healthy() -> Any:
    return _answer({"status": "ok"})


def _managed(managed: Managed, otherwise: int) -> Any:
    """What became of it: a problem in words is an error where nothing was done at all."""
    if managed.problem and not managed.count:
        return _refuse(otherwise, managed.problem)
    problem = {"problem": managed.problem} if managed.problem else {}
    return _answer({"done": True, "count": managed.count} | problem)


def _of_error(error: DolmetschError) -> Any:
    """What is told of an error from within."""
    match error:
        case JobRejected(code="overloaded" | "draining") | JobFailed(code="draining"):
            return _refuse(503, str(error), getattr(error, "retry_after_s", None) or RETRY_S)
        case JobRejected(code="unknown_route"):
            return _refuse(404, str(error))
        case JobRejected():
            return _refuse(400, str(error))
        case JobFailed(code="deadline"):
            return _refuse(504, str(error))
        case NoBroker() | TransportError():
            return _refuse(503, str(error), RETRY_S)
        case JobFailed() | RemoteError():
            return _refuse(502, str(error))
    raise error


def _body(shape: type[Shape], empty: bytes = b"") -> Shape | None:
    """The body as ``shape``; None when it is anything else. What was wrong is not said: that might quote a text."""
    try:
        return msgspec.json.decode(bottle.request.body.read(MAX_BODY_BYTES) or empty, type=shape)
    except (msgspec.DecodeError, UnicodeDecodeError):  # ValidationError is one of them
        return None


def _length(environ: Environ) -> int:
    """The length of the body; waitress has put it right, chunked or not."""
    text = environ.get("CONTENT_LENGTH") or "0"
    return int(text) if text.isdecimal() else 0
