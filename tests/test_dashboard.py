"""The dashboard, as a program, against a broker that only publishes: what it shows, also when the broker is lost."""

from __future__ import annotations

import concurrent.futures
import contextlib
import re
import socket
import time
from pathlib import Path

import pytest
import requests

from bench.cluster import free_port
from bench.telemetry import Publisher, Scene, dead, node
from dashboard import collector
from dashboard.history import History
from dashboard.server import MAX_BODY_BYTES
from dolmetsch.wire import PROTOCOL
from tests.conftest import wait_until
from tests.dashboards import (
    ACTION,
    GETS,
    QUICK_S,
    SECRET,
    Served,
    assert_headers,
    assert_refused,
    house,
    program,
    raw,
    shown,
    told,
)

__all__ = ["house", "program", "shown", "told"]  # fixtures


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
