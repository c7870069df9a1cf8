"""Chaos with real processes, for ``CHAOS_MINUTES`` (10): nothing lost, nothing twice, and nothing left behind.

Not part of ``make test``: it needs root, and minutes. ``CHAOS_SEED`` repeats a run.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest

from chaos import faults, ground
from chaos.plan import KINDS
from tests.conftest import wait_until

MINUTES = float(os.environ.get("CHAOS_MINUTES", "10"))
ENOUGH_MINUTES = 10.0  # each fault comes at least once in this time
SETTING_UP_S = 300.0  # before the first fault and after the last

pytestmark = [
    pytest.mark.timeout(MINUTES * 60 + 2 * SETTING_UP_S),
    pytest.mark.skipif(bool(ground.missing()), reason=ground.missing() or "this computer has all that is needed"),
]


def test_nothing_is_lost_and_nothing_is_done_twice(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    seed = ["--seed", seed] if (seed := os.environ.get("CHAOS_SEED")) else []
    command = [sys.executable, "-m", "chaos", "--minutes", str(MINUTES), "--logs", str(tmp_path), *seed]
    ended = subprocess.run(
        command, cwd=ground.HOUSE, capture_output=True, text=True, timeout=MINUTES * 60 + SETTING_UP_S, check=False
    )
    with capsys.disabled():  # the recovery times are what one wants to see
        print(f"\n{ended.stdout}")
    assert ended.returncode == 0, ended.stderr
    figures = json.loads(ended.stdout.splitlines()[-1])
    assert (figures["lost"], figures["doubled"], figures["wrong"], figures["failed"]) == (0, 0, 0, 0)
    assert figures["answered_once"] == figures["jobs"] > MINUTES * 60
    assert figures["dead"] == figures["faults"].get("poison", {"times": 0})["times"]
    if MINUTES >= ENOUGH_MINUTES:
        assert figures["faults"].keys() == KINDS.keys() - faults.lacking().keys()


@contextmanager
def at_work(folder: Path) -> Iterator[tuple[psutil.Process, list[psutil.Process]]]:
    """Chaos in the middle of a fault, and all that it has started."""
    command = [sys.executable, "-m", "chaos", "--minutes", "5", "--only", "full-disk", "--logs", str(folder)]
    with subprocess.Popen(
        command, cwd=ground.HOUSE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as process:
        try:
            assert process.stdout is not None
            assert any("full-disk" in line for line in iter(process.stdout.readline, ""))
            ours = psutil.Process(process.pid)
            yield ours, ours.children(recursive=True)
        finally:
            process.kill()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL], ids=str)
def test_nothing_is_left_behind(tmp_path: Path, number: signal.Signals) -> None:
    with at_work(tmp_path) as (ours, started):
        names = {Path(word).name for one in started for word in one.cmdline()[:2]}
        assert {"broker.py", "node.py", "sleep"} <= names
        spaces = {os.readlink(f"/proc/{one.pid}/ns/net") for one in started}
        assert len(spaces) == 5  # the broker's, the hub's and three nodes'
        ours.send_signal(number)
        wait_until(lambda: not any(map(lives, [ours, *started])), 30, "all its processes have ended")
    assert str(tmp_path) not in Path("/proc/mounts").read_text()
    assert spaces.isdisjoint(map(space, psutil.pids()))
    ground.sweep()
    assert ground.groups() == []


def lives(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def space(pid: int) -> str:
    try:
        return os.readlink(f"/proc/{pid}/ns/net")
    except OSError:
        return ""
