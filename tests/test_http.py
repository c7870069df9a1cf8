"""The HTTP gateway as a program: LibreTranslate's own client, bytes, keys, signals, and everything that can fail."""

from __future__ import annotations

import contextlib
import json
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import hypothesis
import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given
from libretranslatepy import LibreTranslateAPI

from bench.cluster import HOUSE, Cluster, command, free_port
from dolmetsch.packages import EMBEDDED
from tests.conftest import wait_until

GERMAN = "Guten Morgen"
NO_LIMITS = {"DOLMETSCH_HTTP_PER_MINUTE": "0", "DOLMETSCH_HTTP_CHARS_PER_MINUTE": "0"}


class Gateway:
    """One gateway of a cluster, and requests to it."""

    def __init__(
        self,
        cluster: Cluster,
        name: str = "http",
        host: str = "127.0.0.1",
        more: tuple[str, ...] = (),
        **environment: str,
    ) -> None:
        self.cluster, self.name, self.port = cluster, name, free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        before = dict(cluster.environment)
        cluster.environment |= NO_LIMITS | environment
        where = f"{host}:{self.port}"
        self.program = cluster.start(name, "gateway_http.py", "--broker", cluster.address, "--listen", where, *more)
        cluster.environment = before

    def wait(self, status: int = 200) -> Gateway:
        wait_until(lambda: self._health() == status, 20, f"/health says {status}: {self.cluster.log(self.name)}")
        return self

    def _health(self) -> int:
        with contextlib.suppress(OSError):
            return self.call("/health")[0]
        return 0

    def call(self, path: str, fields: dict[str, Any] | None = None) -> tuple[int, Any, dict[str, str]]:
        """Status, JSON and headers."""
        body = None if fields is None else json.dumps(fields).encode()
        request = urllib.request.Request(self.url + path, data=body, headers={"Content-Type": "application/json"})
        try:
            with urllib.request.urlopen(request, timeout=30) as reply:
                return reply.status, json.loads(reply.read()), dict(reply.headers)
        except urllib.error.HTTPError as error:
            with error:
                return error.code, json.loads(error.read()), dict(error.headers)

    def translate(self, **fields: Any) -> tuple[int, Any, dict[str, str]]:
        return self.call("/translate", {"q": GERMAN, "source": "de", "target": "en"} | fields)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    """A gateway to the real model."""
    with Cluster(tmp_path_factory.mktemp("model")) as cluster:
        cluster.broker()
        cluster.node("one", "--packages", str(EMBEDDED), "--max-workers", "1")
        gateway = Gateway(cluster)
        yield gateway.wait()


@pytest.fixture(scope="module")
def echo(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    """A gateway to the echo engine."""
    with Cluster(tmp_path_factory.mktemp("echo")) as cluster:
        cluster.broker()
        cluster.node("one", "--engine", "echo", "--max-workers", "1")
        gateway = Gateway(cluster)
        yield gateway.wait()


# ---- as LibreTranslate ----


def test_libretranslates_own_client(model: Gateway) -> None:
    client = LibreTranslateAPI(model.url)
    assert "morning" in client.translate(GERMAN, "de", "en").lower()
    detected = client.detect("Wie geht es dir heute?")
    assert detected[0]["language"] == "de"
    assert 50 < detected[0]["confidence"] <= 100
    assert client.languages() == [
        {"code": code, "name": name, "targets": ["de", "en"]} for code, name in (("en", "English"), ("de", "German"))
    ]


def test_the_real_model_translates_lists_pages_and_alternatives(model: Gateway) -> None:
    status, reply, _ = model.translate(q=["Guten Morgen", "Wie geht es dir?"], source="auto", alternatives=2)
    assert status == 200
    assert [len(reply[name]) for name in ("translatedText", "detectedLanguage", "alternatives")] == [2, 2, 2]
    assert reply["alternatives"][1]
    for best, others in zip(reply["translatedText"], reply["alternatives"], strict=True):
        assert best not in others and len(others) == len(set(others)) <= 2
    page = '<p>Ich sehe <a href="/x">ein Haus</a>. <code>x = 1</code></p><p translate="no">Haus</p>'
    status, reply, _ = model.translate(q=page, format="html")
    assert status == 200
    for part in ('<a href="/x">', "</a>", "<code>x = 1</code>", '<p translate="no">Haus</p>', "I see"):
        assert reply["translatedText"].count(part) == 1, reply


def test_white_space_around_a_text_stays(model: Gateway) -> None:
    _, reply, _ = model.translate(q="  Guten Morgen\n\nGuten Abend \n")
    lines = reply["translatedText"].split("\n")
    assert [bool(line.strip()) for line in lines] == [True, False, True, False]


def test_32_clients_at_once_each_get_their_own(echo: Gateway) -> None:
    def ask(number: int) -> bool:
        q = [f"Satz {number} von {part}" for part in range(8)]
        return bool(echo.translate(q=q)[1] == {"translatedText": q})

    with ThreadPoolExecutor(32) as pool:
        assert all(pool.map(ask, range(200)))

    def told() -> bool:
        return any(
            one.kind == "http" and one.answered >= 200 and not one.queued for one in echo.cluster.status().gateways
        )

    wait_until(told, 5, "the broker knows of it")


def test_what_the_server_itself_refuses_has_the_same_form(echo: Gateway) -> None:
    for request, status in (
        (b"POST /translate HTTP/1.1\r\nHost: x\r\nContent-Length: 99999999\r\n\r\n", b"413"),
        (b"GET / HTTP/1.1\r\nHost: x\r\nX: " + b"x" * 70_000 + b"\r\n\r\n", b"431"),
        (b"nonsense\r\n\r\n", b"400"),
        (
            b"POST /translate HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n200000\r\n"
            + b"x" * 0x200000
            + b"\r\n0\r\n\r\n",
            b"413",
        ),
    ):
        with socket.create_connection(("127.0.0.1", echo.port), timeout=10) as connection:
            with contextlib.suppress(ConnectionError):
                connection.sendall(request)
            reply = b""
            with contextlib.suppress(ConnectionError):
                while part := connection.recv(65536):
                    reply += part
        head, _, body = reply.partition(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 " + status) or head.startswith(b"HTTP/1.0 " + status), head
        assert b"Access-Control-Allow-Origin: *" in head
        assert list(json.loads(body)) == ["error"]
    assert echo.translate()[0] == 200


def test_every_route_fuzzed_from_its_description(echo: Gateway) -> None:
    schema = schemathesis.openapi.from_dict(echo.call("/spec")[1])  # by its URL it would leave out that URL
    statuses: dict[str, set[int]] = {}
    for found in schema.get_all_operations():
        operation: Any = found.ok()  # type: ignore[union-attr]
        for mode in schemathesis.GenerationMode:
            if mode is schemathesis.GenerationMode.NEGATIVE and not operation.body:
                continue  # nothing in it can be wrong

            @hypothesis.settings(
                max_examples=60, derandomize=True, database=None, deadline=None, phases=[Phase.generate],
                suppress_health_check=list(HealthCheck),
            )  # fmt: skip
            @given(operation.as_strategy(generation_mode=mode))
            def fuzz(case: Any) -> None:
                reply = case.call(base_url=echo.url)
                statuses.setdefault(case.operation.label, set()).add(reply.status_code)
                # The description cannot say which pairs of languages there are, nor that fields of a form have names;
                # and schemathesis takes 413 for no refusal.
                right = reply.status_code == 413 or (
                    reply.status_code == 400
                    and any(words in reply.json()["error"] for words in ("is not available", "is not multipart"))
                )
                checks = ("positive_data_acceptance", "negative_data_rejection") if right else ()
                excluded: list[Any] = [schemathesis.checks.CHECKS.get_one(name) for name in checks]
                case.validate_response(reply, excluded_checks=excluded)

            fuzz()
    assert {200, 400} <= statuses["POST /translate"] <= {200, 400, 413}
    assert len(statuses) == 9
    assert all(status < 500 for some in statuses.values() for status in some)
    assert "a bug" not in echo.cluster.log("http")


# ---- keys ----


def keys(cluster: Cluster, *arguments: str) -> subprocess.CompletedProcess[str]:
    return command("gateway_http.py", "keys", *arguments, cluster=cluster)


def test_keys_come_and_go_while_the_gateway_runs(echo: Gateway) -> None:
    cluster = echo.cluster
    assert echo.translate(api_key="anything")[0] == 200
    made = keys(cluster, "add", "anna", "--per-minute", "2")
    assert (made.returncode, len(made.stdout.splitlines())) == (0, 1)
    key = made.stdout.strip()
    assert [echo.translate(api_key=key)[0] for _ in range(3)] == [200, 200, 429]
    assert 1 <= int(echo.translate(api_key=key)[2]["Retry-After"]) <= 61
    assert echo.translate(api_key="anything")[0] == 403
    assert echo.translate()[0] == 200
    assert keys(cluster, "list").stdout.startswith("anna: 2 requests, any characters a minute, since ")
    again = keys(cluster, "add", "anna")
    assert (again.returncode, again.stdout) == (1, "")
    assert_one_line(again.stderr, "already")
    assert keys(cluster, "remove", "anna").returncode == 0
    assert echo.translate(api_key=key)[0] == 200, "nobody has one any more, so it is ignored"
    assert keys(cluster, "remove", "anna").returncode == 1
    assert keys(cluster, "add", "bert", "--per-minute", "-1").returncode == 2
    assert not [line for line in cluster.log("http").splitlines() if key in line or GERMAN in line]


# ---- starting ----


def assert_one_line(stderr: str, *words: str) -> None:
    (line,) = stderr.strip().splitlines()
    for word in words:
        assert word in line


def refused(cluster: Cluster, *arguments: str) -> str:
    ended = command("gateway_http.py", "--broker", cluster.address, *arguments, cluster=cluster)
    assert ended.returncode == 1
    return ended.stderr


def test_what_keeps_it_from_starting(echo: Gateway, tmp_path: Path) -> None:
    cluster = echo.cluster
    assert_one_line(refused(cluster, "--listen", f"127.0.0.1:{echo.port}"), str(echo.port), "in use")
    for where in ("0.0.0.0:0", "[::]:0", "example.org:0"):
        assert_one_line(refused(cluster, "--listen", where), "http.require_key", "--open")
    for where in ("5050", "127.0.0.1:99999"):
        assert_one_line(refused(cluster, "--listen", where), "it looks like 127.0.0.1:")
    assert_one_line(refused(cluster, "--listen", "192.0.2.1:0", "--open"), "cannot listen at 192.0.2.1:0")
    (tmp_path / "c.toml").write_text("[http]\nkeys = '/dev/null/x'\n")
    assert_one_line(refused(cluster, "--config", str(tmp_path / "c.toml")), "http.keys")
    (tmp_path / "c.toml").write_text("[http]\nper_minute = 'x'\n")
    assert_one_line(refused(cluster, "--config", str(tmp_path / "c.toml")), "http.per_minute")
    shown = command("gateway_http.py", "--show-config", cluster=cluster)
    assert "per_minute = 120  # requests a minute" in shown.stdout


def test_beyond_loopback_with_keys_or_an_open_word(echo: Gateway) -> None:
    opened = Gateway(echo.cluster, "open", "0.0.0.0", ("--open",))
    keyed = Gateway(echo.cluster, "keys", "[::]", DOLMETSCH_HTTP_REQUIRE_KEY="true")
    assert opened.wait().translate()[0] == 200
    assert keyed.wait().translate()[0] == 400
    assert keyed.translate(api_key="x")[0] == 403
    assert (echo.cluster.end("open"), echo.cluster.end("keys")) == (0, 0)


# ---- a broker that comes and goes, and the end ----


@pytest.fixture
def notify(cluster: Cluster) -> Iterator[socket.socket]:
    """What systemd listens with."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as made:
        made.bind(str(cluster.folder / "notify"))
        made.settimeout(20)
        yield made


def heard(notify: socket.socket) -> set[bytes]:
    """What was said so far; a few words wait, and no more, so it is to be asked in time."""
    said = set()
    notify.setblocking(False)
    with contextlib.suppress(BlockingIOError):
        while True:
            said.add(notify.recv(100))
    return said


def test_broker_and_node_come_and_go_and_the_last_request_is_answered(cluster: Cluster, notify: socket.socket) -> None:
    gateway = Gateway(
        cluster, DOLMETSCH_HTTP_DEADLINE_S="1", NOTIFY_SOCKET=str(cluster.folder / "notify"), WATCHDOG_USEC="500000"
    ).wait(503)
    said = {notify.recv(100)}
    assert said == {b"READY=1"}, "it serves before there is a broker"
    status, _, headers = gateway.call("/languages")
    assert (status, headers["Retry-After"]) == (503, "5")
    cluster.broker()
    cluster.node("one", "--engine", "echo", "--max-workers", "1")
    gateway.wait()
    assert gateway.translate()[0] == 200
    cluster.kill("broker")
    assert gateway.translate()[0] in (503, 504), "its deadline passes"
    gateway.wait(503)
    cluster.broker()
    gateway.wait()
    assert gateway.translate()[0] == 200
    cluster.programs["one"].send_signal(signal.SIGSTOP)
    with ThreadPoolExecutor(1) as pool:
        asked = pool.submit(gateway.translate, q="liegt noch in keinem Cache")
        wait_until(lambda: cluster.status().leased == 1, 5, "a node has it that does nothing")
        said |= heard(notify)
        gateway.program.send_signal(signal.SIGTERM)
        wait_until(lambda: "stopping" in cluster.log("http"), 5, "it stops")
        with pytest.raises(OSError):
            gateway.call("/health")
        assert asked.result(10)[0] == 504, "who was asked answers first"
    assert gateway.program.wait(5) == 0
    cluster.kill("one")
    said |= heard(notify)
    assert said == {b"READY=1", b"WATCHDOG=1", b"STOPPING=1"}
    assert [line.split(" ", 2)[2] for line in cluster.log("http").splitlines()] == [
        f"http: listening at http://127.0.0.1:{gateway.port}, broker {cluster.address}",
        "http: stopping: answering what was asked",
        "http: stopped",
    ]


def test_a_stop_does_not_wait_for_ever(echo: Gateway) -> None:
    gateway = Gateway(echo.cluster, "slow", DOLMETSCH_HTTP_DRAIN_S="0.2").wait()
    echo.cluster.programs["one"].send_signal(signal.SIGSTOP)
    try:
        with ThreadPoolExecutor(1) as pool:
            asked = pool.submit(gateway.translate, q="bleibt liegen")
            wait_until(lambda: echo.cluster.status().leased > 0, 5, "the node has it")
            started = time.monotonic()
            assert echo.cluster.end("slow") == 0
            assert time.monotonic() - started < 5.0
            with pytest.raises((OSError, json.JSONDecodeError)):
                status, reply, _ = asked.result(10)
                raise OSError(f"{status} {reply}")  # or a last word: 503
    finally:
        echo.cluster.programs["one"].send_signal(signal.SIGCONT)


def test_it_is_a_program(echo: Gateway) -> None:
    shown = subprocess.run(
        [sys.executable, "gateway_http.py", "--help"], cwd=HOUSE, capture_output=True, text=True, timeout=20, check=True
    ).stdout
    assert "keys" in shown and "--open" in shown
