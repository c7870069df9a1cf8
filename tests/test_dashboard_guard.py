"""The dashboard's guard: who may read, who may act, and which requests are refused."""

from __future__ import annotations

import json
import socket
from pathlib import Path
from typing import Any

import pytest

from bench.cluster import Cluster
from bench.telemetry import Publisher
from dashboard.guard import WRONG_TOKENS, Guard
from tests.dashboards import (
    ACTION,
    SECRET,
    TOKEN,
    Served,
    assert_headers,
    assert_refused,
    house,
    program,
    raw,
    serve,
    shown,
    told,
)

__all__ = ["house", "program", "shown", "told"]  # fixtures


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


def test_it_is_read_only_beyond_loopback_without_a_token(house: Cluster, told: Publisher, tmp_path: Path) -> None:
    served = serve(house, "--history", str(tmp_path / "h"), name="open", host="0.0.0.0")
    assert "actions are off: there is no DASHBOARD_TOKEN" in served.log
    assert served.now()["actions"] == "off"
    assert served.post("/api/jobs/purge", {"jobs": "all"}, **ACTION).status_code == 403
    assert served.get("/api/cluster", Host=f"192.0.2.7:{served.port}").status_code == 200
    assert served.get("/api/cluster", Host="evil.example.org").status_code == 403
    assert house.end("open") == 0
