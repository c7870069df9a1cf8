"""Fixtures: a real cluster in a folder of its own, and a wait with a deadline."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import NoReturn

import pytest

from bench.cluster import Cluster

# Helpers too say what they saw when an assert fails.
HELPERS = {path.stem for path in Path(__file__).parent.glob("*.py") if not path.name.startswith("test_")}
pytest.register_assert_rewrite(*(f"tests.{name}" for name in HELPERS - {"__init__", "conftest"}))

# Files that take longest, longest first: what begins last should end soon, or one processor waits for the other.
LONG_FILES = (
    "gate", "cluster", "dashboard_browser", "discord_faults", "storm", "secrets", "discord_load", "idle",
    "dashboard_actions", "discord", "cli", "replay", "http", "limits", "wire", "discord_crashes", "telemetry",
    "discord_start", "simulation", "discord_commands", "reports", "scheduler_properties", "dashboard",
    "dashboard_program",
)  # fmt: skip
_RANKS = {f"test_{name}.py": rank for rank, name in enumerate(LONG_FILES)}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: _RANKS.get(item.path.name, len(_RANKS)))


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Cluster]:
    """No program runs yet; whatever the test starts is ended."""
    with Cluster(tmp_path) as made:
        yield made


@pytest.fixture
def echo(cluster: Cluster) -> Cluster:
    """A cluster that gives texts back."""
    cluster.broker()
    cluster.node("one", "--engine", "echo", "--max-workers", "1")
    cluster.wait_ready(1, 1)
    return cluster


@contextmanager
def sigterm_cleans_up() -> Iterator[None]:
    """Within it a SIGTERM ends the tests as Ctrl-C does: what they made outside this process is taken down."""

    def end(number: int, _: FrameType | None) -> NoReturn:
        raise KeyboardInterrupt(f"signal {number}")

    before = signal.signal(signal.SIGTERM, end)
    yield
    signal.signal(signal.SIGTERM, before)


def wait_until(true: Callable[[], bool], within_s: float, what: str) -> float:
    """Look again and again until ``true()``; the seconds it took. Fails with ``what`` when time is over."""
    started = time.monotonic()
    while not true():
        if time.monotonic() - started > within_s:
            pytest.fail(f"not within {within_s:g} s: {what}")
        time.sleep(0.02)
    return time.monotonic() - started
