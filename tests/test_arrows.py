"""The house: who may import whom, and which rooms are pure."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

HOUSE = Path(__file__).parent.parent
PURE = {
    "access", "admission", "backoff", "books", "cache", "chronicle", "effects", "errors", "flags", "html", "jobs",
    "lanes", "link", "markup", "members", "messages", "outbox", "replies", "reports", "roster", "scheduler", "segment",
    "sentences", "session", "settled", "spans", "timers", "turns", "views",
}  # fmt: skip
# What a pure room may not touch: sockets, loops, disks, clocks, chance, logs.
IMPURE = {
    "asyncio", "ctranslate2", "logging", "os", "pathlib", "psutil", "socket", "sqlite3", "subprocess", "sys",
    "threading", "time", "zmq",
}  # fmt: skip
# Each room imports only rooms further left (or beside it, where that is said).
LAYERS = (
    {"errors", "bootstrap", "logs", "lifecycle", "reports"},
    {"messages", "config", "spans", "stats", "backoff", "timers", "settled", "store", "archive", "download",
     "cache", "link", "replybook", "apikeys", "listening", "detect"},
    {"jobs", "admission", "wire", "packages", "sentences", "markup", "replies", "manners", "httpspec", "access",
     "keys"},
    {"flags", "effects", "chronicle", "lanes", "roster", "tokenizer", "transport", "segment", "html",
     "keyring"},
    {"books", "session", "outbox", "turns", "oldledger", "decoder", "backlog", "child", "gate", "owner", "enrol",
     "discovery"},
    {"views", "client", "handout", "engine", "ledger"},
    {"members", "lines", "pool", "worker", "postbox", "calls"},
    {"scheduler", "correspondence", "httpapi", "threads"},
    {"slash", "httpserver"},
    {"bot"},
)  # fmt: skip
PROGRAMS = ("broker", "node", "gateway_cli", "gateway_discord", "gateway_http")


def imports(path: Path) -> set[str]:
    """Every module that a file imports, wherever in it, dotted."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module)
            if node.module in ("dolmetsch", "dashboard"):
                found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def rooms() -> dict[str, Path]:
    return {path.stem: path for path in (HOUSE / "dolmetsch").glob("*.py") if path.stem != "__init__"}


def of_the_house(path: Path) -> set[str]:
    return {name.split(".")[1] for name in imports(path) if name.startswith("dolmetsch.")} & rooms().keys()


def test_every_room_has_its_place() -> None:
    placed = set().union(*LAYERS)
    assert rooms().keys() <= placed, f"no place for {rooms().keys() - placed}"


@pytest.mark.parametrize("room", sorted(rooms()))
def test_arrows_point_one_way(room: str) -> None:
    level = {name: number for number, layer in enumerate(LAYERS) for name in layer}
    for other in of_the_house(rooms()[room]):
        same = level[other] == level[room]
        assert level[other] < level[room] or (same and room not in of_the_house(rooms()[other])), f"{room} -> {other}"


@pytest.mark.parametrize("room", sorted(PURE))
def test_pure_rooms_touch_nothing(room: str) -> None:
    found = {name.split(".")[0] for name in imports(rooms()[room])}
    assert not found & IMPURE
    assert of_the_house(rooms()[room]) <= PURE | {"config"}  # config: only its frozen structs


@pytest.mark.parametrize("room", sorted(PURE))
def test_pure_rooms_take_chance_from_outside(room: str) -> None:
    text = rooms()[room].read_text(encoding="utf-8")
    assert "import random" not in text or "rng: random.Random" in text


def test_only_transport_sets_options_of_zeromq() -> None:
    for path in [*rooms().values(), *(HOUSE / f"{name}.py" for name in PROGRAMS)]:
        if path.stem != "transport":
            assert not re.search(r"\.setsockopt\w*\(\s*zmq", path.read_text(encoding="utf-8")), path.name


def test_only_programs_join_core_and_adapters() -> None:
    for room, path in rooms().items():
        assert not {name.split(".")[0] for name in imports(path)} & set(PROGRAMS), room
    joined = {room for room, path in rooms().items() if {"scheduler", "transport"} <= of_the_house(path)}
    assert joined == set()


# ---- the dashboard: a house beside it, which may use its rooms ----

DASHBOARD = {path.stem: path for path in (HOUSE / "dashboard").glob("*.py") if path.stem != "__init__"}
DASHBOARD_PURE = {"attendance", "charts", "jobbook", "picture", "problems", "rates"}
DASHBOARD_LAYERS = (
    {"attendance", "jobbook", "pages", "rates", "serving"},
    {"charts", "metrics", "picture", "problems", "snapshot"},
    {"guard", "history", "operator", "watch"},
    {"collector", "server"},
    {"app"},
    {"__main__"},
)


def of_the_dashboard(path: Path) -> set[str]:
    return {name.split(".")[1] for name in imports(path) if name.startswith("dashboard.")} & DASHBOARD.keys()


def test_nobody_in_the_house_knows_the_dashboard() -> None:
    for path in [*rooms().values(), *(HOUSE / f"{name}.py" for name in PROGRAMS)]:
        assert "dashboard" not in {name.split(".")[0] for name in imports(path)}, path.name


@pytest.mark.parametrize("room", sorted(DASHBOARD))
def test_the_dashboards_arrows_point_one_way(room: str) -> None:
    level = {name: number for number, layer in enumerate(DASHBOARD_LAYERS) for name in layer}
    assert all(level[other] < level[room] for other in of_the_dashboard(DASHBOARD[room]))
    assert not {name.split(".")[0] for name in imports(DASHBOARD[room])} & set(PROGRAMS)
    assert "scheduler" not in of_the_house(DASHBOARD[room])
    assert ".setsockopt(" not in DASHBOARD[room].read_text(encoding="utf-8")


@pytest.mark.parametrize("room", sorted(DASHBOARD_PURE))
def test_the_dashboards_pure_rooms_touch_nothing(room: str) -> None:
    assert not {name.split(".")[0] for name in imports(DASHBOARD[room])} & (IMPURE | {"random"})
    assert of_the_house(DASHBOARD[room]) <= PURE and of_the_dashboard(DASHBOARD[room]) <= DASHBOARD_PURE


FILES = [*rooms().values(), *DASHBOARD.values(), *(HOUSE / f"{name}.py" for name in PROGRAMS)]


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_a_file_says_what_room_it_is(path: Path) -> None:
    assert ast.get_docstring(ast.parse(path.read_text(encoding="utf-8")))


@pytest.mark.parametrize("program", ["broker", "node", "dolmetsch.worker"])
def test_programs_on_every_pi_start_without_asyncio(program: str) -> None:
    """It would take a twelfth of their start and 3 MiB of each, for a loop that they do not have."""
    code = f"import sys, {program}; sys.exit('asyncio' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=HOUSE, timeout=30, check=False).returncode == 0
