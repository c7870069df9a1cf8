"""The dashboard, as a program: against a broker that only publishes, and then against a real cluster."""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import json
import re
import socket
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import requests
import schemathesis
import zmq
from hypothesis import HealthCheck, given, settings
from schemathesis import GenerationMode

from bench.cluster import Cluster, command, free_port
from bench.telemetry import Publisher, Scene, dead, node
from dashboard import collector, operator
from dashboard.guard import HEADERS, WRONG_TOKENS, Guard
from dashboard.history import History
from dashboard.server import MAX_BODY_BYTES
from dolmetsch.client import Client
from dolmetsch.errors import JobFailed, NoBroker
from dolmetsch.keys import Credentials, KeyPair, fingerprint
from dolmetsch.messages import Knock, Verdict
from dolmetsch.transport import DealerPort, door_address, telemetry_address
from dolmetsch.wire import PROTOCOL, decode
from tests.conftest import wait_until
from tests.test_gate import Owner

QUICK_S = 5.0
TOKEN = "correct-horse-battery-staple"
BEARER = {"Authorization": f"Bearer {TOKEN}"}
ACTION = {"X-Dolmetsch": "1"}
SECRET = "Geheimnis der Brombeerhecke"
GETS = (
    "/api/cluster", "/api/nodes", "/api/nodes/pi-1", "/api/waiting", "/api/jobs?kind=recent", "/api/jobs?kind=slow",
    "/api/jobs?kind=dead", "/api/history?span=5m", "/api/history?span=1h", "/api/history?span=24h&node=pi-1",
    "/api/stats", "/api/debug", "/health", "/healthz", "/readyz", "/metrics", "/openapi.json", "/", "/dashboard",
    "/static/favicon.svg",
)  # fmt: skip


@dataclass
class Served:
    """A running dashboard."""

    cluster: Cluster
    port: int
    name: str

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def get(self, path: str, **headers: str) -> requests.Response:
        return requests.get(self.url + path, headers=headers, timeout=QUICK_S, allow_redirects=False)

    def post(self, path: str, body: Any = None, **headers: str) -> requests.Response:
        return requests.post(self.url + path, json={} if body is None else body, headers=headers, timeout=40.0)

    def now(self) -> Any:
        return self.get("/api/cluster").json()

    @property
    def log(self) -> str:
        return self.cluster.log(self.name)


def serve(cluster: Cluster, *more: str, name: str = "dashboard", host: str = "127.0.0.1", **environment: str) -> Served:
    """Start one; it answers when this returns."""
    port = free_port()
    before = dict(cluster.environment)
    cluster.environment |= environment
    where = ("--listen", f"{host}:{port}", "--broker", cluster.address)
    program = cluster.start(name, "-m", "dashboard", *where, "--env", "no-such-file", *more)
    cluster.environment = before
    served = Served(cluster, port, name)

    def answers() -> bool:
        assert program.poll() is None, served.log
        with contextlib.suppress(requests.ConnectionError):
            return served.get("/health").status_code == 200
        return False

    wait_until(answers, 10.0, "the dashboard answers")
    return served


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    with Cluster(tmp_path_factory.mktemp("told")) as made:
        yield made


@pytest.fixture(scope="module")
def told(house: Cluster) -> Iterator[Publisher]:
    """A broker that only publishes, ten times as often as a real one."""
    with Publisher(telemetry_address(house.address), Scene(), every_s=0.1) as publisher:
        yield publisher


@pytest.fixture(scope="module")
def program(house: Cluster, told: Publisher) -> Served:
    return serve(house, DOLMETSCH_DASHBOARD_HOSTS="cluster.example.org, other.example.org:443")


def ready(served: Served) -> set[str]:
    """Names of the nodes that are here."""
    return {one["name"] for one in served.now()["nodes"] if one["state"] == "ready"}


@pytest.fixture
def shown(program: Served, told: Publisher) -> Served:
    """The dashboard, with a cluster of two nodes on it."""
    told.scene.nodes = (node("pi-1"), node("pi-kitchen"))
    told.scene.departed, told.scene.dead, told.scene.waiting = (), (), ()
    wait_until(lambda: {"pi-1", "pi-kitchen"} <= ready(program), QUICK_S, "both nodes are shown")
    return program


# ---- reading ----


def test_the_cluster_for_all_who_ask_compressed_and_only_once(shown: Served) -> None:
    answer = shown.get("/api/cluster", **{"Accept-Encoding": "gzip"})
    assert answer.headers["Content-Encoding"] == "gzip" and answer.headers["Cache-Control"] == "no-cache"
    seen = answer.json()
    assert (seen["alive"], seen["since"], seen["actions"]) == (True, None, "open")
    assert seen["broker"]["address"] == shown.cluster.address and abs(seen["now"] - time.time()) < 5.0
    assert {"pi-1", "pi-kitchen"} <= {one["name"] for one in seen["nodes"]}

    def unchanged() -> bool:
        etag = shown.get("/api/cluster").headers["ETag"]
        again = shown.get("/api/cluster", **{"If-None-Match": f'"other", {etag}'})
        return again.status_code == 304 and again.content == b"" and again.headers["ETag"] == etag

    wait_until(unchanged, QUICK_S, "the same snapshot twice")


def test_what_is_wrong_is_said_in_words(shown: Served, told: Publisher) -> None:
    told.scene.nodes = (node("pi-1"), node("pi-kitchen", throttled=True, temperature_c=82.3))
    problem = {"level": "warning", "text": "pi-kitchen is throttled: 82 °C", "node": "pi-kitchen"}
    wait_until(lambda: problem in shown.now()["problems"], QUICK_S, "the throttled node is named")


def test_fifty_nodes(shown: Served, told: Publisher) -> None:
    told.scene.nodes = tuple([node(f"pi-{number}") for number in range(50)])
    wait_until(lambda: shown.now()["totals"]["nodes_up"] == 50, QUICK_S, "all are here")
    assert shown.now()["totals"]["workers"] == 150
    assert len(shown.get("/api/nodes").json()["nodes"]) >= 50
    assert shown.get("/api/nodes/pi-49").json()["board"] == "Raspberry Pi 5 Model B"
    wait_until(lambda: "pi-49" in shown.get("/api/history?span=5m").json()["nodes"], QUICK_S, "and in the charts")


def test_charts_jobs_and_the_first_bots_keys(shown: Served, told: Publisher) -> None:
    told.scene.dead = (dead(7),)
    wait_until(lambda: shown.get("/api/jobs?kind=dead").json()["jobs"] != [], QUICK_S, "the dead letter is shown")
    assert [one["id"] for one in shown.get("/api/jobs?kind=dead").json()["jobs"]] == [f"{7:032x}"]
    assert shown.get("/api/jobs").json()["kind"] == "recent"
    chart = shown.get("/api/history?span=1h&node=pi-1").json()
    assert (chart["step_s"], len(chart["times"]), list(chart["nodes"])) == (10, 360, ["pi-1"])
    assert [one for one in chart["cluster"]["translations_per_s"] if one is not None]
    assert set(shown.get("/api/stats").json()) == {
        "cpu_percent", "ram_percent", "queue_count", "active_jobs", "avg_response_time", "server_count", "timestamp",
    }  # fmt: skip
    assert shown.get("/api/debug").json()["history_bytes"] > 0
    assert shown.get("/health").json() == shown.get("/healthz").json() == {"status": "ok"}
    assert shown.get("/readyz").json() == {"ready": True, "reason": ""}
    metrics = shown.get("/metrics")
    assert metrics.headers["Content-Type"] == "text/plain; version=0.0.4; charset=utf-8"
    assert "\ndolmetsch_up 1.0\n" in metrics.text


@pytest.mark.parametrize(
    ("path", "status"),
    [
        ("/api/nodes/nobody", 404),
        ("/api/history?span=2h", 400),
        ("/api/history?node=nobody", 404),
        ("/api/jobs?kind=all", 400),
        ("/api/nothing", 404),
        ("/static/nothing.js", 404),
        ("/static/../app.py", 404),
        ("/static/..%2fapp.py", 404),
        ("/static/%2e%2e/__init__.py", 404),
        ("/static/favicon.svg%00.js", 404),
        ("/api/nodes/%ff", 404),
    ],
)
def test_what_is_not_there_is_said_in_json(shown: Served, path: str, status: int) -> None:
    request = f"GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
    assert_refused(raw(shown.port, request.encode()), status)


def raw(port: int, request: bytes) -> bytes:
    """The answer to exactly these bytes."""
    with socket.create_connection(("127.0.0.1", port), QUICK_S) as connection:
        connection.settimeout(QUICK_S)
        connection.sendall(request)
        found = b""
        while more := connection.recv(65_536):
            found += more
        return found


def assert_refused(answer: bytes, status: int) -> None:
    head, _, body = answer.partition(b"\r\n\r\n")
    assert head.startswith(f"HTTP/1.1 {status} ".encode()), answer[:200]
    assert list(json.loads(body)) == ["error"]
    assert_headers({line.split(": ", 1)[0]: line.split(": ", 1)[1] for line in head.decode().split("\r\n")[1:]})


def assert_headers(headers: Any) -> None:
    lower = {name.lower(): value for name, value in headers.items()}
    for name, value in HEADERS:
        assert lower[name.lower()] == value
    assert "unsafe" not in lower["content-security-policy"] and "server" not in lower
    assert lower["cache-control"] in ("no-cache", "no-store")


@pytest.mark.parametrize("path", GETS)
def test_every_answer_has_its_headers_and_head_and_other_methods_work(shown: Served, path: str) -> None:
    answer = shown.get(path)
    assert answer.status_code == (302 if path == "/" else 200)
    assert_headers(answer.headers)
    head = requests.head(shown.url + path, timeout=QUICK_S)
    assert head.status_code == answer.status_code and head.content == b""
    other = requests.delete(shown.url + path, timeout=QUICK_S)
    assert other.status_code == 405 and "GET" in other.headers["Allow"] and list(other.json()) == ["error"]
    assert_headers(other.headers)


def test_the_page_and_its_files(shown: Served) -> None:
    assert shown.get("/").headers["Location"] == "/dashboard"
    page = shown.get("/dashboard")
    assert page.headers["Content-Type"] == "text/html; charset=utf-8" and "dolmetsch" in page.text
    assert not re.search(r"<script(?![^>]*\bsrc=)[^>]*>|<style|\sstyle=|\son\w+=", page.text), (
        "the policy forbids these"
    )
    assert shown.get("/dashboard", **{"If-None-Match": page.headers["ETag"]}).status_code == 304
    kinds = {".js": "text/javascript; charset=utf-8", ".css": "text/css; charset=utf-8", ".svg": "image/svg+xml"}
    found = re.findall(r'(?:src|href)="(/?static/[^"?]+)', page.text)
    assert found
    for path in found:
        file = shown.get("/" + path.lstrip("/"))
        assert file.status_code == 200 and file.headers["Content-Type"] == kinds.get(Path(path).suffix), path
        again = shown.get("/" + path.lstrip("/"), **{"If-None-Match": file.headers["ETag"]})
        assert again.status_code == 304


def test_no_http_and_too_large_are_refused_in_our_form(shown: Served) -> None:
    assert_refused(raw(shown.port, b"GET / HTTP/1.1\r\nHost: localhost\r\nContent-Length: -1\r\n\r\n"), 400)
    head = b"POST /api/translate HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Length: "
    assert_refused(raw(shown.port, head + b"99999999\r\n\r\n"), 413)
    body = b" " * (MAX_BODY_BYTES + 1)
    assert_refused(raw(shown.port, head + str(len(body)).encode() + b"\r\n\r\n" + body), 413)


def test_two_hundred_browsers_keep_their_connections(shown: Served) -> None:
    request = b"GET /api/cluster HTTP/1.1\r\nHost: localhost\r\nAccept-Encoding: gzip\r\n\r\n"
    with contextlib.ExitStack() as stack:
        crowd = [stack.enter_context(socket.create_connection(("127.0.0.1", shown.port), QUICK_S)) for _ in range(200)]
        files = [stack.enter_context(one.makefile("rb")) for one in crowd]
        for _ in range(2):
            for one in crowd:
                one.sendall(request)
            for file in files:
                assert file.readline() == b"HTTP/1.1 200 OK\r\n"
                length = 0
                while (line := file.readline()) != b"\r\n":
                    if line.lower().startswith(b"content-length:"):
                        length = int(line.split(b":")[1])
                assert len(file.read(length)) == length > 0


# ---- a broker that is lost, and nonsense ----


def test_what_is_no_telemetry_is_counted_and_harms_nothing(shown: Served, told: Publisher) -> None:
    told.nonsense(PROTOCOL, b"TELEMETRY", b"\xc1")
    told.nonsense(PROTOCOL, b"PONG", b"\x80")
    told.nonsense(PROTOCOL)
    wait_until(lambda: "not understood" in shown.get("/api/debug").json()["last_error"], QUICK_S, "it is noted")
    wait_until(
        lambda: "dolmetsch_dashboard_telemetry_refused_total 2.0" in shown.get("/metrics").text, QUICK_S, "both counted"
    )
    assert shown.now()["alive"]


def test_a_lost_broker_greys_the_page_says_since_when_and_comes_back_by_itself(shown: Served, told: Publisher) -> None:
    assert shown.now()["alive"]
    told.silence()
    silenced = time.time()
    with concurrent.futures.ThreadPoolExecutor(1) as other, contextlib.ExitStack() as stack:
        stack.callback(told.speak)
        body = {"text": SECRET, "route": "de→en"}
        asked = other.submit(shown.post, "/api/translate", body, **ACTION)
        wait_until(lambda: not shown.now()["alive"], 5.0, "it is said")
        seen = shown.now()
        assert silenced - 1.0 < seen["since"] <= silenced + 0.2 and seen["at"] == seen["since"]
        assert seen["problems"][0]["text"] == f"no word from the broker at {shown.cluster.address}: is it running?"
        assert len(seen["nodes"]) >= 2, "what was known last is still there"
        unready = shown.get("/readyz")
        assert unready.status_code == 503 and unready.json() == {"ready": False, "reason": "no word from the broker"}
        assert "\ndolmetsch_up 0.0\n" in shown.get("/metrics").text and "node_cpu" not in shown.get("/metrics").text
        assert shown.get("/healthz").status_code == 200, "the dashboard itself is well"
        refused = asked.result(QUICK_S)
        assert refused.status_code == 503 and list(refused.json()) == ["error"] and "Retry-After" in refused.headers
    wait_until(lambda: bool(shown.now()["alive"]), 10.0, "it is back")
    assert shown.now()["since"] is None and shown.get("/readyz").status_code == 200


def test_a_socket_that_stays_silent_is_made_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(collector, "RECONNECT_S", 0.1)
    monkeypatch.setattr(collector, "RECONNECT_MAX_S", 0.2)
    where = f"tcp://127.0.0.1:{free_port()}"
    history = History(tmp_path / "history.sqlite3")
    listening = collector.Collector(where, "tcp://127.0.0.1:5570", history)
    listening.start()
    try:
        first = listening._port
        assert first is not None
        socket_ = first.socket
        wait_until(lambda: first.socket is not socket_, QUICK_S, "another socket")
        with Publisher(where, Scene(nodes=(node("pi-1"),)), every_s=0.1):
            wait_until(lambda: listening.snapshot.alive, QUICK_S, "it hears")
            assert listening.well and listening.last_error == ""
    finally:
        listening.close()
    assert not listening.alive


# ---- who may do what ----


def test_the_names_it_answers_to(shown: Served) -> None:
    for host in ("localhost", "LOCALHOST:1", "127.0.0.1", "[::1]:5000", "cluster.example.org", "other.example.org:8"):
        assert shown.get("/api/stats", Host=host).status_code == 200, host
    for host in ("evil.example.org", "localhost.evil.example.org", "192.0.2.7", "localhost@evil", "", "a b", "[::1"):
        answer = shown.get("/api/stats", Host=host)
        assert answer.status_code in (400, 403), host
        assert_headers(answer.headers)
    assert_refused(raw(shown.port, b"GET /health HTTP/1.1\r\nConnection: close\r\n\r\n"), 403)
    assert shown.log.count("evil.example.org', which") == 2


FORWARDED = (
    {"X-Forwarded-For": "192.0.2.7"},
    {"Forwarded": "for=192.0.2.7"},
    {"Via": "1.1 proxy"},
    {"CF-Connecting-IP": "192.0.2.7"},
    {"X-Real-IP": "192.0.2.7"},
    {"Tailscale-User-Login": "a"},
    {"Host": "cluster.example.org"},
)


@pytest.mark.parametrize("headers", FORWARDED, ids=lambda one: next(iter(one)))
def test_behind_a_tunnel_without_a_token_it_is_read_only(shown: Served, headers: dict[str, str]) -> None:
    assert shown.get("/api/cluster", **headers).json()["actions"] == "off"
    answer = shown.post("/api/jobs/purge", {"jobs": "all"}, **ACTION, **headers)
    assert answer.status_code == 403 and "DASHBOARD_TOKEN" in answer.json()["error"]


def test_a_proxy_that_hides_itself_as_nginx_does_is_noticed_by_its_protocol(shown: Served) -> None:
    answer = raw(shown.port, b"GET /api/cluster HTTP/1.0\r\nHost: 127.0.0.1:5000\r\n\r\n")
    assert json.loads(answer.partition(b"\r\n\r\n")[2])["actions"] == "off"


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 403),
        ({"X-Dolmetsch": "0"}, 403),
        ({**ACTION, "Origin": "https://evil.example.org"}, 403),
        ({**ACTION, "Origin": "null"}, 403),
        ({**ACTION, "Origin": "http://["}, 403),
        ({**ACTION, "Sec-Fetch-Site": "cross-site"}, 403),
        ({**ACTION, "Sec-Fetch-Site": "same-site"}, 403),
        ({**ACTION, "Content-Type": "text/plain"}, 400),
        (ACTION, 400),
        ({**ACTION, "Sec-Fetch-Site": "same-origin"}, 400),
    ],
)
def test_a_page_elsewhere_cannot_have_a_browser_do_anything(
    shown: Served, headers: dict[str, str], status: int
) -> None:
    """400 is the body's: the request was let in."""
    answer = shown.post("/api/jobs/purge", {"jobs": []}, **headers)
    assert answer.status_code == status and list(answer.json()) == ["error"]
    own = {**ACTION, "Origin": shown.url}
    assert shown.post("/api/jobs/purge", {"jobs": []}, **own).status_code == 400


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/api/jobs/requeue", {"jobs": "some"}),
        ("/api/jobs/requeue", {"jobs": ["XYZ"]}),
        ("/api/jobs/purge", {"jobs": ["0" * 32] * 257}),
        ("/api/jobs/purge", {"jobs": "all", "more": 1}),
        ("/api/jobs/purge", []),
        ("/api/translate", {"text": SECRET}),
        ("/api/translate", {"text": " \n", "route": "de→en"}),
        ("/api/translate", {"text": SECRET, "route": "deen"}),
        ("/api/translate", {"text": "x" * 20_001, "route": "de→en"}),
        ("/api/translate", {"text": 7, "route": "de→en"}),
        ("/api/nodes/pi-1/drain", {"now": True}),
    ],
)
def test_a_bad_body_is_refused_and_not_repeated(shown: Served, path: str, body: Any) -> None:
    answer = shown.post(path, body, **ACTION)
    assert answer.status_code == 400 and SECRET not in answer.text


def environ(**changes: str) -> dict[str, str]:
    return {"HTTP_HOST": "127.0.0.1:5000", "REMOTE_ADDR": "127.0.0.1", "SERVER_PROTOCOL": "HTTP/1.1", **changes}


@pytest.mark.parametrize(
    ("bound", "host", "peer", "knows", "mode"),
    [
        ("127.0.0.1", "localhost", "127.0.0.1", True, "open"),
        ("::1", "[::1]:5000", "::1", True, "open"),
        ("127.0.0.1", "pi.example.org", "127.0.0.1", True, "off"),
        ("0.0.0.0", "localhost", "127.0.0.1", True, "off"),
        ("0.0.0.0", "192.0.2.7:5000", "192.0.2.9", True, "off"),
        ("0.0.0.0", "evil.example.org", "192.0.2.9", False, "off"),
        ("::", "[2001:db8::7]:5000", "::ffff:192.0.2.9", True, "off"),
        ("192.0.2.7", "192.0.2.7", "192.0.2.9", True, "off"),
        ("192.0.2.7", "192.0.2.8", "192.0.2.9", False, "off"),
        ("0.0.0.0", socket.gethostname(), "192.0.2.9", True, "off"),
        ("127.0.0.1", socket.gethostname() + ".evil", "127.0.0.1", False, "off"),
    ],
)
def test_who_is_known_and_what_they_may_do(bound: str, host: str, peer: str, knows: bool, mode: str) -> None:
    guard = Guard(bound, frozenset({"pi.example.org"}))
    asked = environ(HTTP_HOST=host, REMOTE_ADDR=peer)
    assert (guard.knows(asked), guard.mode(asked)) == (knows, mode)
    assert Guard(bound, frozenset(), TOKEN).mode(asked) == "token"


def test_wrong_tokens_are_counted_by_address() -> None:
    guard = Guard("127.0.0.1", frozenset(), TOKEN)

    def status(token: str, peer: str = "192.0.2.9") -> int:
        asked = environ(REMOTE_ADDR=peer, HTTP_AUTHORIZATION=f"Bearer {token}", HTTP_X_DOLMETSCH="1")
        refusal = guard.refusal(asked)
        return 200 if refusal is None else refusal.status

    assert status(TOKEN) == 200
    assert [status(f"wrong-{number}ü") for number in range(WRONG_TOKENS)] == [401] * WRONG_TOKENS
    assert status("wrong") == status(TOKEN) == 429, "nothing is told any more, not even that it is right"
    assert status(TOKEN, "192.0.2.10") == 200


# ---- start and end ----


def test_it_is_read_only_beyond_loopback_without_a_token(house: Cluster, told: Publisher, tmp_path: Path) -> None:
    served = serve(house, "--history", str(tmp_path / "h"), name="open", host="0.0.0.0")
    assert "actions are off: there is no DASHBOARD_TOKEN" in served.log
    assert served.now()["actions"] == "off"
    assert served.post("/api/jobs/purge", {"jobs": "all"}, **ACTION).status_code == 403
    assert served.get("/api/cluster", Host=f"192.0.2.7:{served.port}").status_code == 200
    assert served.get("/api/cluster", Host="evil.example.org").status_code == 403
    assert house.end("open") == 0


@pytest.mark.parametrize(
    ("arguments", "environment", "words"),
    [
        (("--listen", "{taken}"), {}, "choose another with --listen"),
        (("--listen", "nowhere"), {}, "it looks like 127.0.0.1:5000"),
        (("--history", "{text}"), {}, "is no history of a dashboard"),
        (("--telemetry", "tcp://"), {}, "cannot understand the address"),
        ((), {"DASHBOARD_TOKEN": "too-short"}, "fewer than 16 characters"),
        ((), {"DASHBOARD_TOKEN": "with a space in between"}, "without spaces"),
        ((), {"DOLMETSCH_DASHBOARD_HOSTS": "https://a.example"}, "dashboard.hosts"),
    ],
)
def test_what_cannot_be_is_one_clear_line(
    tmp_path: Path, arguments: tuple[str, ...], environment: dict[str, str], words: str
) -> None:
    (tmp_path / "text").write_text("a shopping list\n" * 99)
    with Cluster(tmp_path) as cluster, socket.create_server(("127.0.0.1", 0)) as taken:
        cluster.environment |= environment
        places = {"taken": f"127.0.0.1:{taken.getsockname()[1]}", "text": str(tmp_path / "text")}
        given_ = [one.format(**places) for one in arguments]
        where = () if "--listen" in arguments else ("--listen", f"127.0.0.1:{free_port()}")
        ended = command("-m", "dashboard", "--env", "no-such-file", *where, *given_, cluster=cluster, timeout_s=10)
    (line,) = ended.stderr.splitlines()
    assert ended.returncode == 1 and words in line
    assert "too-short" not in line and "space in between" not in line, "a token is shown to nobody"


def test_the_configuration_is_documented(house: Cluster) -> None:
    shown = command("-m", "dashboard", "--show-config", cluster=house).stdout
    section = shown.partition("[dashboard]")[2]
    assert all(re.search(rf"^{key} = .+ # \w", section, re.MULTILINE) for key in ("listen", "history", "hosts"))
    assert "token" not in section.lower()


def test_it_tells_systemd_ends_within_seconds_and_remembers(house: Cluster, told: Publisher, tmp_path: Path) -> None:
    history = ("--history", str(tmp_path / "history.sqlite3"))
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notify:
        notify.bind(str(tmp_path / "notify"))
        notify.settimeout(QUICK_S)
        served = serve(
            house, *history, name="short", NOTIFY_SOCKET=str(tmp_path / "notify"), WATCHDOG_USEC="400000"
        )  # fmt: skip
        assert notify.recv(100) == b"READY=1" and notify.recv(100) == b"WATCHDOG=1"
        assert f"info dashboard: http://127.0.0.1:{served.port}/dashboard" in served.log.splitlines()[0]

        def points() -> int:
            found = served.get("/api/history").json()["cluster"]["translations_per_s"]
            return len([one for one in found if one is not None])

        wait_until(lambda: points() >= 2, QUICK_S, "two seconds are in the chart")
        before = points()
        with socket.create_connection(("127.0.0.1", served.port)):
            started = time.monotonic()
            assert house.end("short") == 0
            assert time.monotonic() - started < 4.0
        while (word := notify.recv(100)) != b"STOPPING=1":
            assert word == b"WATCHDOG=1"
    served = serve(house, *history, name="short")
    assert points() >= before, "it is there at once, from the file"
    house.end("short")


# ---- a real cluster ----


@pytest.fixture(scope="module")
def living(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """A broker, an echo node, and a dashboard with a token."""
    with Cluster(tmp_path_factory.mktemp("real")) as cluster:
        cluster.broker()
        for name in ("one", "two"):
            cluster.node(name, "--engine", "echo", "--max-workers", "1")
        served = serve(cluster, DASHBOARD_TOKEN=TOKEN)
        cluster.wait_ready(2, 2)
        wait_until(lambda: served.get("/readyz").status_code == 200, QUICK_S, "it is seen")
        yield served
        for name in list(cluster.programs):
            cluster.kill(name)


def do(served: Served, path: str, body: Any = None) -> requests.Response:
    return served.post(path, body, **ACTION, **BEARER)


def node_state(served: Served, name: str) -> str:
    answer = served.get(f"/api/nodes/{name}")
    return str(answer.json()["state"]) if answer.status_code == 200 else ""


def test_actions_need_the_token(living: Served) -> None:
    assert living.now()["actions"] == "token"
    body = {"text": "Guten Morgen", "route": "de→en"}
    for headers in ({}, {"Authorization": "Bearer wrong"}, {"Authorization": f"Basic {TOKEN}"}):
        answer = living.post("/api/translate", body, **ACTION, **headers)
        assert answer.status_code == 401 and answer.headers["WWW-Authenticate"].startswith("Bearer")
    assert living.post("/api/translate", body, **BEARER).status_code == 403, "a token is no protection against forgery"
    for action in ("approve", "refuse"):
        path = f"/api/waiting/5e2f-90c1-7a44-0b3d/{action}"
        assert living.post(path, **ACTION).status_code == 401 and living.post(path, **BEARER).status_code == 403
        answer = do(living, path)
        assert answer.status_code == 404 and "has no keys" in answer.json()["error"]
    assert TOKEN not in living.log


def test_a_killed_node_is_lost_within_five_seconds(living: Served) -> None:
    assert node_state(living, "two") == "ready"
    living.cluster.kill("two")
    took_s = wait_until(lambda: node_state(living, "two") == "lost", 5.0, "it is lost")
    assert took_s < 5.0
    assert any(one["text"].startswith("two is lost: not heard for") for one in living.now()["problems"])
    assert node_state(living, "one") == "ready" and living.get("/readyz").status_code == 200


def test_a_translation_is_tried_and_its_text_is_nowhere_else(living: Served) -> None:
    answer = do(living, "/api/translate", {"text": SECRET, "route": "de→en"})
    assert answer.status_code == 200
    assert set(answer.json()) == {"translation", "model", "took_ms", "cached"}
    assert SECRET.split()[0] in answer.json()["translation"]
    assert do(living, "/api/translate", {"text": SECRET, "route": "fr→en"}).status_code == 404
    wait_until(lambda: living.get("/api/jobs").json()["jobs"] != [], QUICK_S, "the job is told of")
    job = living.get("/api/jobs").json()["jobs"][0]
    assert (job["state"], job["node"], job["chars"], job["lane"]) == ("done", "one", len(SECRET), "interactive")
    assert job["gateway"].startswith("dashboard-") and job["story"]
    for path in GETS:
        assert "Brombeer" not in living.get(path.replace("pi-1", "one")).text, path
    files = [path for path in living.cluster.folder.rglob("*") if path.is_file() and "ledger" not in path.name]
    assert len(files) >= 3 and not [path for path in files if b"Brombeer" in path.read_bytes()]


def fail_some(living: Served, number: int) -> None:
    """Jobs that nobody does in time."""

    async def run() -> None:
        async with Client(living.cluster.address, gateway="unlucky") as client:
            jobs = [client.translate(f"{SECRET} {one}", "de→en", deadline_s=0.2) for one in range(number)]
            ended = await asyncio.gather(*jobs, return_exceptions=True)
            assert all(isinstance(one, JobFailed) for one in ended)

    asyncio.run(run())


def test_a_node_is_drained_and_resumed_and_dead_letters_are_requeued_and_purged(living: Served) -> None:
    assert do(living, "/api/nodes/nobody/drain").status_code == 404
    here = ready(living)
    for name in here:
        assert do(living, f"/api/nodes/{name}/drain").json() == {"done": True, "count": 1}
    wait_until(lambda: {node_state(living, name) for name in here} == {"draining"}, QUICK_S, "nobody works")
    assert living.get("/readyz").json()["reason"] == "no node is ready"
    fail_some(living, 3)

    def letters() -> list[str]:
        return [str(job["id"]) for job in living.get("/api/jobs?kind=dead").json()["jobs"]]

    wait_until(lambda: len(letters()) == 3, QUICK_S, "three dead letters")
    assert "3 dead letters wait to be requeued or purged" in [one["text"] for one in living.now()["problems"]]
    first, second, _ = letters()
    assert do(living, "/api/jobs/purge", {"jobs": [first]}).json() == {"done": True, "count": 1}
    assert do(living, "/api/jobs/purge", {"jobs": [first]}).json() == {"done": True, "count": 0}
    for name in here:
        assert do(living, f"/api/nodes/{name}/resume").json() == {"done": True, "count": 1}
    assert do(living, "/api/jobs/requeue", {"jobs": [second]}).json() == {"done": True, "count": 1}
    assert do(living, "/api/jobs/purge", {"jobs": "all"}).json() == {"done": True, "count": 1}
    wait_until(lambda: letters() == [] and ready(living) == here, QUICK_S, "all work, and no letter is left")


def test_every_route_survives_what_its_description_allows_and_what_it_forbids(living: Served) -> None:
    schema: Any = schemathesis.openapi.from_dict(living.get("/openapi.json").json())
    operations = [found.ok() for found in schema.get_all_operations()]
    assert len(operations) == 23
    with requests.Session() as session:
        for operation in operations:
            fuzz(living, session, operation, GenerationMode.POSITIVE)
            if operation.body or operation.query:  # else there is nothing that could be wrong
                fuzz(living, session, operation, GenerationMode.NEGATIVE)
    assert living.get("/healthz").status_code == 200 and "a bug" not in living.log


def fuzz(living: Served, session: requests.Session, operation: Any, mode: GenerationMode) -> None:
    """Every answer is one that the description has; none is a 500."""
    posts = operation.method == "post"
    cases = operation.as_strategy(generation_mode=mode, headers=BEARER if posts else None)

    @settings(
        max_examples=6 if posts else 4, derandomize=True, deadline=None, database=None,
        suppress_health_check=list(HealthCheck),
    )  # fmt: skip
    @given(case=cases)
    def run(case: Any) -> None:
        case.validate_response(case.call(base_url=living.url, session=session, timeout=QUICK_S))

    run()


def test_after_the_brokers_restart_all_is_well(living: Served) -> None:
    living.cluster.kill("broker")
    living.cluster.broker()
    wait_until(lambda: living.now()["totals"]["accepted"] == 0, 10.0, "another broker counts anew")
    wait_until(lambda: living.get("/readyz").status_code == 200, 15.0, "a node can translate again")
    assert do(living, "/api/translate", {"text": SECRET, "route": "de→en"}).status_code == 200
    assert "Traceback" not in living.log and SECRET not in living.log


# ---- a broker with keys ----


@contextlib.contextmanager
def stranger(owner: Owner) -> Iterator[tuple[str, Callable[[str], str]]]:
    """A computer that nobody invited: its key's fingerprint, and how it knocks by some name and hears the verdict."""
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    pair = KeyPair(*zmq.curve_keypair())
    key = fingerprint(pair.public)
    ours = Credentials(pair, owner.pair.public)
    door = DealerPort(context, door_address(owner.cluster.address), f"stranger/{key}", ours)

    def knock(name: str) -> str:
        door.send(Knock(name=name, token=b""))
        assert door.socket.poll(10_000)
        (verdict,) = [decode(frames) for frames in door.receive(1)]
        assert isinstance(verdict, Verdict)
        return verdict.state

    try:
        yield key, knock
    finally:
        door.close()
        context.term()


def test_who_waits_is_let_in_or_turned_away(cluster: Cluster) -> None:
    owner = Owner(cluster)
    owner.start()
    served = serve(cluster, DASHBOARD_TOKEN=TOKEN)
    hostile = "<script>alert(1)</script> מחשב " + "x" * 97

    def waiting() -> set[tuple[str, ...]]:
        return {tuple(one.values()) for one in served.get("/api/waiting").json()["waiting"]}

    with stranger(owner) as (key, knock), stranger(owner) as (other_key, other_knock):
        assert knock("pi4") == other_knock(hostile) == "pending"
        both = {("pi4", "127.0.0.1", key), (hostile, "127.0.0.1", other_key)}
        wait_until(lambda: waiting() == both, QUICK_S, "both are shown")
        assert "2 computers wait to be let in" in [one["text"] for one in served.now()["problems"]]
        assert "\ndolmetsch_waiting_computers 2.0\n" in served.get("/metrics").text
        assert served.post(f"/api/waiting/{key}/approve", **ACTION).status_code == 401
        assert do(served, "/api/waiting/pi4/approve").status_code == 404, "a name is not enough"
        assert do(served, "/api/waiting/0000-0000-0000-0000/approve").status_code == 404
        assert knock("pi4") == "pending"
        assert do(served, f"/api/waiting/{key}/approve").json() == {"done": True, "count": 1}
        assert do(served, f"/api/waiting/{other_key}/refuse").json() == {"done": True, "count": 1}
        assert do(served, f"/api/waiting/{other_key}/approve").status_code == 404, "it does not wait any more"
        assert (knock("pi4"), other_knock("pi5")) == ("admitted", "refused")
        wait_until(lambda: waiting() == set(), QUICK_S, "nobody waits")
    assert "a bug" not in served.log and "Traceback" not in served.log + cluster.log("broker")


def test_a_broker_that_goes_away_in_the_middle_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    class Away:
        trouble = "the broker does not answer"

    monkeypatch.setattr(operator, "LOOK_S", 0.01)
    monkeypatch.setattr(operator, "AWAY_S", 0.03)

    async def run() -> None:
        never: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        client: Any = Away()
        with pytest.raises(NoBroker):
            await operator._while_there(never, client, "tcp://pi-0:5570")
        client.trouble = ""
        asyncio.get_running_loop().call_later(0.1, never.set_result, None)
        await operator._while_there(never, client, "tcp://pi-0:5570")

    asyncio.run(run())
