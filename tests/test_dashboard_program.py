"""The dashboard's start and end: its configuration, one clear line for what cannot be, systemd, its history."""

from __future__ import annotations

import re
import socket
import time
from pathlib import Path

import pytest

from bench.cluster import Cluster, command, free_port
from bench.telemetry import Publisher
from tests.conftest import wait_until
from tests.dashboards import QUICK_S, house, serve, told

__all__ = ["house", "told"]  # fixtures


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
