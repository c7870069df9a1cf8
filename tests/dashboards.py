"""A running dashboard, for a test: against a broker that only publishes, or a cluster of the test's own."""

from __future__ import annotations

import contextlib
import json
import socket
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import pytest
import requests
import zmq

from bench.cluster import Cluster, free_port
from bench.telemetry import Publisher, Scene, node
from dashboard.guard import HEADERS
from dolmetsch.keys import Credentials, KeyPair, fingerprint
from dolmetsch.messages import Knock, Verdict
from dolmetsch.transport import DealerPort, door_address, telemetry_address
from dolmetsch.wire import decode
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


def do(served: Served, path: str, body: Any = None) -> requests.Response:
    return served.post(path, body, **ACTION, **BEARER)


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
