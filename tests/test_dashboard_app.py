"""The application without a server: what becomes of everything that may go wrong behind an action."""

from __future__ import annotations

import io
import json
import logging
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from bench.telemetry import Scene, node
from dashboard.app import Dashboard, Parts
from dashboard.guard import HEADERS, Guard, check_token, names
from dashboard.history import History
from dashboard.operator import AT_ONCE, Busy, Operator
from dashboard.pages import Page, bake, same
from dashboard.snapshot import Snapshot
from dashboard.watch import Watch
from dolmetsch.errors import (
    ConfigError,
    JobFailed,
    JobRejected,
    JobSettled,
    NoBroker,
    RemoteError,
    TransportError,
)
from dolmetsch.messages import Answer, Managed
from dolmetsch.reports import Waiting

SECRET = "Geheimnis der Brombeerhecke"
KEY = "5e2f-90c1-7a44-0b3d"
TRANSLATE = {"text": SECRET, "route": "de→en"}


@dataclass
class Listening:
    """A collector that has heard one message."""

    snapshot: Snapshot
    where: str = "tcp://pi-0:5571"
    last_error: str = ""
    well: bool = True


class Hands:
    """An operator that does what a test wants."""

    def __init__(self) -> None:
        self.outcome: Any = None
        self.asked: list[tuple[Any, ...]] = []

    def _do(self) -> Any:
        if isinstance(self.outcome, Exception):
            raise self.outcome
        return self.outcome

    def manage(self, action: str, *, node: str = "", jobs: Sequence[bytes] = ()) -> Managed:
        self.asked.append((action, node, *jobs))
        found = self._do()
        assert isinstance(found, Managed)
        return found

    def translate(self, text: str, route: str) -> Answer:
        self.asked.append((text, route))
        found = self._do()
        assert isinstance(found, Answer)
        return found


class Desk:
    """The application and a caller."""

    def __init__(self, folder: Path) -> None:
        watch = Watch("tcp://pi-0:5570", 0.0, 1.8e9)
        watch.take(Scene(nodes=(node("pi-1"),)).telemetry(), 1.0, 1.8e9 + 1)
        self.hands = Hands()
        self.listening = Listening(watch.snapshot(1.0, 1.8e9 + 1))
        self.history = History(folder / "history.sqlite3")
        self.history.open()
        parts = Parts(
            collector=self.listening, history=self.history, operator=self.hands, guard=Guard("127.0.0.1", frozenset()),
            broker="tcp://pi-0:5570", started=time.monotonic(), views=folder, static=folder,
        )  # fmt: skip
        self.app = Dashboard(parts)

    def ask(self, method: str, path: str, body: Any = None, **changes: str) -> tuple[int, dict[str, str], Any]:
        content = b"" if body is None else json.dumps(body).encode()
        environ = {
            "REQUEST_METHOD": method, "PATH_INFO": path, "HTTP_HOST": "localhost", "REMOTE_ADDR": "127.0.0.1",
            "SERVER_PROTOCOL": "HTTP/1.1", "SERVER_NAME": "x", "SERVER_PORT": "80", "wsgi.url_scheme": "http",
            "CONTENT_LENGTH": str(len(content)), "CONTENT_TYPE": "application/json", "HTTP_X_DOLMETSCH": "1",
            "wsgi.input": io.BytesIO(content), "wsgi.errors": io.StringIO(), **changes,
        }  # fmt: skip
        started: list[Any] = []
        answer = b"".join(self.app.wsgi(environ, lambda *given: started.append(given)))
        status, headers = started[-1][:2]
        assert len(started) == 1 and set(HEADERS) <= set(headers)
        return int(status.split()[0]), dict(headers), answer


@pytest.fixture
def desk(tmp_path: Path) -> Any:
    made = Desk(tmp_path)
    yield made
    made.history.close()


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (Busy(), 503),
        (NoBroker("tcp://pi-0:5570", 3.0), 503),
        (TransportError("cannot connect"), 503),
        (RemoteError("refused", "the broker wants nothing to do with us"), 502),
        (JobRejected("overloaded", "overloaded: try again in 12 s", 12.0), 503),
        (JobRejected("draining", "the broker is about to stop", 5.0), 503),
        (JobRejected("unknown_route", "no node offers fr→en; there is de→en"), 404),
        (JobRejected("bad_text", "the text is not valid Unicode"), 400),
        (JobFailed("deadline", "there was no result within 30 s", 0), 504),
        (JobFailed("degenerate_output", "the translation ran on", 3), 502),
        (JobFailed("draining", "this gateway is being stopped", 0), 503),
    ],
    ids=lambda one: getattr(one, "code", type(one).__name__) if isinstance(one, Exception) else "",
)
def test_what_goes_wrong_is_told_with_its_status(desk: Desk, error: Exception, status: int) -> None:
    desk.hands.outcome = error
    found, headers, body = desk.ask("POST", "/api/translate", TRANSLATE)
    assert (found, list(json.loads(body)), headers["Content-Type"]) == (status, ["error"], "application/json")
    assert ("Retry-After" in headers) == (status == 503)
    assert desk.hands.asked == [(SECRET, "de→en")]


@pytest.mark.parametrize("error", [RuntimeError(SECRET), JobSettled(b"x" * 16)])
def test_a_bug_is_one_line_in_the_log_and_no_text_in_either(
    desk: Desk, error: Exception, caplog: pytest.LogCaptureFixture
) -> None:
    desk.hands.outcome = error
    with caplog.at_level(logging.INFO):
        status, _, body = desk.ask("POST", "/api/translate", TRANSLATE)
    assert status == 500 and list(json.loads(body)) == ["error"]
    (record,) = caplog.records
    assert record.getMessage().startswith("a bug: ") and "\n" not in record.getMessage()
    assert SECRET not in caplog.text + body.decode() and record.exc_info is None


def test_what_the_broker_says_of_an_order(desk: Desk) -> None:
    def told(count: int, problem: str) -> Managed:
        return Managed(action="purge", node="", count=count, problem=problem)

    desk.hands.outcome = told(2, "")
    status, _, body = desk.ask("POST", "/api/jobs/purge", {"jobs": ["0a" * 16, "0b" * 16]})
    assert (status, json.loads(body)) == (200, {"done": True, "count": 2})
    assert list(desk.hands.asked[-1]) == ["purge", "", b"\x0a" * 16, b"\x0b" * 16]
    desk.hands.outcome = told(1, "1 not purged: their gateways have not been told yet")
    assert json.loads(desk.ask("POST", "/api/jobs/purge", {"jobs": "all"})[2])["problem"].startswith("1 not purged")
    assert list(desk.hands.asked[-1]) == ["purge", ""], "no ids are all of them"
    desk.hands.outcome = told(0, "3 not purged: their gateways have not been told yet")
    assert desk.ask("POST", "/api/jobs/purge", {"jobs": "all"})[0] == 409
    desk.hands.outcome = told(0, "there is no node called 'pi 9 ü' now")
    assert desk.ask("POST", "/api/nodes/pi 9 ü/drain".encode().decode("latin-1"))[0] == 404
    assert list(desk.hands.asked[-1]) == ["drain", "pi 9 ü"]


def test_a_stranger_is_let_in_or_turned_away_by_its_key_alone(desk: Desk) -> None:
    bodies: tuple[Any, ...] = (None, {})
    for action in ("approve", "refuse"):
        desk.hands.outcome = Managed(action=action, node=KEY, count=1, problem="")
        for body in bodies:
            status, _, answer = desk.ask("POST", f"/api/waiting/{KEY}/{action}", body)
            assert (status, json.loads(answer)) == (200, {"done": True, "count": 1})
            assert desk.hands.asked[-1] == (action, KEY)
        desk.hands.outcome = Managed(action=action, node=KEY, count=0, problem=f"nobody called {KEY} waits")
        status, _, answer = desk.ask("POST", f"/api/waiting/{KEY}/{action}")
        assert (status, json.loads(answer)) == (404, {"error": f"nobody called {KEY} waits"})
        desk.hands.asked.clear()
        assert desk.ask("POST", f"/api/waiting/{KEY}/{action}", {"name": "pi4"})[0] == 400
        assert desk.ask("POST", f"/api/waiting/{KEY}/{action}", HTTP_X_DOLMETSCH="0")[0] == 403
        names = ("pi4", KEY.upper(), f"{KEY}-0b3d", f"{KEY}\n", "<img src=x>", "\u202e4ip", "\ud800", "x" * 5000, "\0")
        for name in names:
            path = f"/api/waiting/{name}/{action}".encode("utf-8", "surrogatepass").decode("latin-1")
            status, _, answer = desk.ask("POST", path)
            assert status == 404 and list(json.loads(answer)) == ["error"], name
        assert desk.hands.asked == []


def test_strangers_names_are_listed_as_they_are(desk: Desk) -> None:
    names = ["<script>alert(1)</script>", '"onmouseover="alert(1)', "\u202e4ip", "x" * 128, "e" + 127 * "\u0301"]
    scene = Scene(waiting=tuple([Waiting(name, "192.0.2.4", KEY) for name in names]))
    watch = Watch("tcp://pi-0:5570", 0.0, 1.8e9)
    watch.take(scene.telemetry(), 1.0, 1.8e9 + 1)
    desk.listening.snapshot = watch.snapshot(1.0, 1.8e9 + 1)
    status, headers, body = desk.ask("GET", "/api/waiting")
    assert (status, headers["Content-Type"]) == (200, "application/json")
    told = json.loads(body)["waiting"]
    assert told == [{"name": name, "address": "192.0.2.4", "fingerprint": KEY} for name in names]
    assert json.loads(desk.ask("GET", "/api/cluster")[2])["waiting"] == told
    assert desk.ask("GET", "/api/waiting", HTTP_IF_NONE_MATCH=headers["Etag"])[0] == 304
    metrics = desk.ask("GET", "/metrics")[2].decode()
    assert "\ndolmetsch_waiting_computers 5.0\n" in metrics and "alert" not in metrics


def test_a_collector_that_hangs_is_said_so(desk: Desk) -> None:
    assert desk.ask("GET", "/healthz")[0] == 200
    desk.listening.well = False
    assert desk.ask("GET", "/healthz")[0] == 503 and desk.ask("GET", "/health")[0] == 200


def test_files_are_served_anew_when_they_change_and_only_from_their_folder(desk: Desk, tmp_path: Path) -> None:
    (tmp_path / "dashboard.tpl").write_text("<p>{{version}} ü</p>")
    first = desk.ask("GET", "/dashboard")
    assert first[0] == 200 and first[2].decode().endswith(" ü</p>")
    assert desk.ask("GET", "/dashboard", HTTP_IF_NONE_MATCH=first[1]["Etag"])[0] == 304
    (tmp_path / "dashboard.tpl").write_text("<p>another</p>")
    assert desk.ask("GET", "/dashboard", HTTP_IF_NONE_MATCH=first[1]["Etag"])[2] == b"<p>another</p>"
    (tmp_path / "big.js").write_text("// text\n" * 1000)
    packed = desk.ask("GET", "/static/big.js", HTTP_ACCEPT_ENCODING="br, gzip")
    assert packed[1]["Content-Encoding"] == "gzip" and len(packed[2]) < 1000
    assert desk.ask("GET", "/static/big.js", HTTP_ACCEPT_ENCODING="gzip;q=0")[2].startswith(b"// text")
    (tmp_path / "secret.key").write_text("x")
    (tmp_path / "out.js").symlink_to(__file__)
    for path in ("secret.key", "out.js", "../x.js", "a" * 5000 + ".js", ".js", "dashboard.tpl"):
        assert desk.ask("GET", f"/static/{path}")[0] == 404, path


def test_pages_are_made_once_by_whoever_asks_first() -> None:
    made: list[int] = []
    page = Page(lambda: made.append(1) or b"x" * 2000)  # type: ignore[func-returns-value]
    threads = [threading.Thread(target=page.made) for _ in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert made == [1] and page.made() is page.made() and page.made().gzipped is not None
    assert bake(b"small").gzipped is None


@pytest.mark.parametrize(
    ("etag", "header", "known"),
    [
        ('W/"a"', 'W/"a"', True),
        ('W/"a"', '"a"', True),
        ('W/"a"', '"b", W/"a"', True),
        ('W/"a"', "*", True),
        ('W/"a"', '"b"', False),
        ('W/"a"', "a", False),
        ('W/"a"', "", False),
    ],
)
def test_etags_are_compared_as_the_standard_says(etag: str, header: str, known: bool) -> None:
    assert same(etag, header) is known


def test_only_so_many_wait_for_the_broker_at_once() -> None:
    operator = Operator("tcp://127.0.0.1:1")
    for _ in range(AT_ONCE):
        assert operator._places.acquire(blocking=False)
    with pytest.raises(Busy):
        operator.manage("drain", node="pi-1")
    operator.close()


def test_tokens_and_names() -> None:
    assert check_token("") == "" and check_token("  " + "x" * 16 + "\n") == "x" * 16
    for token in ("x" * 15, "ü" * 20, "x" * 8 + " " + "x" * 8):
        with pytest.raises(ConfigError) as raised:
            check_token(token)
        assert token not in str(raised.value)
    assert names(("A.Example.org", " b.example:443 ", "[2001:db8::7]:80")) == {
        "a.example.org", "b.example", "2001:db8::7",
    }  # fmt: skip
    with pytest.raises(ConfigError, match=r"dashboard\.hosts"):
        names(("https://a.example",))
