#!/usr/bin/env python3
# ruff: noqa: E402 (in_venv() comes before the imports that need it)
"""Side by side: Celery, Dramatiq, ipyparallel and dolmetsch, with the same texts, the same count and two workers each.

    python bench/peers.py [--quick]

Each peer is installed into an environment of its own, from bench/peers/requirements-*.txt, in the cache folder, once.
Redis is Debian's (apt install redis-server), started here on a free port with its append-only file on. All of them run
at the same time and take turns: a round is a job for each text, submitted as fast as the peer's own client does it,
until every result is back at the caller. Between rounds they are left to clear up what they go on with once the results
are there (ipyparallel: a second's work). What a peer needs and is not here is said in its row.
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path[0] = str(Path(__file__).resolve().parent.parent)  # not bench/: its http.py would hide Python's own

from dolmetsch.bootstrap import in_venv

in_venv()

import argparse
import contextlib
import hashlib
import json
import os
import select
import shutil
import signal
import socket
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Final, Protocol

import psutil

from bench.cluster import Cluster, free_port
from bench.load import Load
from bench.report import finish
from dolmetsch.errors import DolmetschError

HERE: Final = Path(__file__).resolve().parent / "peers"
TEXT: Final = "Guten Morgen, wie geht es dir heute? Das ist ein Satz Nummer {}."
START_S: Final = 90.0
ROUND_S: Final = 300.0
END_S: Final = 15.0
QUIET_PERCENT: Final = 15.0  # of all cores: what they take while they wait for work ...
QUIET_S: Final = 30.0  # ... at the latest so long after a round
TARGET: Final = 10.0  # times as fast as the fastest peer
SETTINGS: Final = {
    "celery": "2 processes, acks_late, prefetch x 128, no events, groups of 1000",
    "dramatiq": "2 processes with 32 threads each (fastest of 1 to 64)",
    "ipyparallel": "2 engines, hwm 0, a task a text, nothing on disk",
    "dolmetsch": "2 nodes, ledger on disk with one sync a tick",
}


class PeerMissing(Exception):
    """Raised when a peer cannot be had here; the text says why."""


class Peer(Protocol):
    """Somebody to compare with."""

    def round(self, number: int, count: int) -> float:
        """Seconds for ``count`` jobs, from the first that is submitted to the last result."""


@dataclass
class Row:
    """What was seen of one peer."""

    rates: list[float] = field(default_factory=list)
    missing: str = ""

    @property
    def jobs_per_s(self) -> float:
        return statistics.median(self.rates) if self.rates else 0.0


def fastest(rows: dict[str, Row], but: str) -> float:
    """Jobs a second of the fastest of them, other than ``but``; 0.0 when there is none."""
    return max((row.jobs_per_s for name, row in rows.items() if name != but), default=0.0)


def last_line(text: str) -> str:
    """What a program said last."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1][:120] if lines else "no word"


# ---- setting up ----


def environment(name: str) -> Path:
    """The folder with a peer's programs, installed if they are not. Raises ``PeerMissing``."""
    requirements = HERE / f"requirements-{name}.txt"
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "dolmetsch-bench"
    digest = hashlib.sha256(requirements.read_bytes() + sys.version.encode()).hexdigest()[:12]
    folder = cache / f"{name}-{digest}"
    if not (folder / "complete").exists():
        print(f"installing {name} into {folder}", file=sys.stderr, flush=True)
        shutil.rmtree(folder, ignore_errors=True)
        for command in (
            [sys.executable, "-m", "venv", str(folder)],
            [str(folder / "bin" / "python"), "-m", "pip", "install", "--quiet", "-r", str(requirements)],
        ):
            done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=600)
            if done.returncode:
                raise PeerMissing(f"cannot be installed: {last_line(done.stderr)}")
        (folder / "complete").touch()
    return folder / "bin"


@contextlib.contextmanager
def process(command: Sequence[str], log: Path, **more: str) -> Iterator[subprocess.Popen[str]]:
    """A program in a group of its own, which is ended with it."""
    variables = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    with log.open("ab") as err:
        program = subprocess.Popen(
            command, cwd=HERE, env={**variables, "PYTHONDONTWRITEBYTECODE": "1", **more}, text=True,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=err, start_new_session=True,
        )  # fmt: skip
    try:
        yield program
    finally:
        assert program.stdin is not None and program.stdout is not None
        program.stdin.close()  # a driver ends by itself then, and what it has started with it
        program.send_signal(signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            program.wait(END_S)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(program.pid, signal.SIGKILL)
        program.wait(END_S)
        program.stdout.close()


@contextlib.contextmanager
def redis(folder: Path) -> Iterator[str]:
    """A Redis that keeps an append-only file; where it is. Raises ``PeerMissing``."""
    program = shutil.which("redis-server")
    if program is None:
        raise PeerMissing("needs redis-server: apt install redis-server")
    port = free_port()
    arguments = ["--port", str(port), "--bind", "127.0.0.1", "--appendonly", "yes", "--save", "", "--dir", str(folder)]
    with process([program, *arguments], folder / "redis.log"):
        until = time.monotonic() + START_S
        while time.monotonic() < until:
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1.0) as one:
                one.sendall(b"PING\r\n")
                if one.recv(16).startswith(b"+PONG"):
                    break
            time.sleep(0.05)
        else:
            raise PeerMissing(f"redis-server does not answer: {last_line((folder / 'redis.log').read_text())}")
        yield f"redis://127.0.0.1:{port}/0"


# ---- the peers ----


class Driven:
    """A peer whose rounds are run by a driver of ours in its own environment."""

    def __init__(self, driver: subprocess.Popen[str], log: Path) -> None:
        self._driver = driver
        self._log = log
        self._read(START_S)

    def round(self, number: int, count: int) -> float:
        """See ``Peer``."""
        assert self._driver.stdin is not None
        self._driver.stdin.write(f"{count}\n")
        self._driver.stdin.flush()
        found = self._read(ROUND_S)
        if found.get("answers") != count or found.get("right") is not True:
            raise PeerMissing(f"gave {found.get('answers')} answers to {count} jobs, or others than it should")
        return float(str(found["seconds"]))

    def _read(self, within_s: float) -> dict[str, object]:
        assert self._driver.stdout is not None
        ready, _, _ = select.select([self._driver.stdout], [], [], within_s)
        line = self._driver.stdout.readline() if ready else ""
        if not line:
            raise PeerMissing(f"does not work: {last_line(self._log.read_text(errors='replace'))}")
        found: dict[str, object] = json.loads(line)
        return found


class Ours:
    """A broker and two nodes, with the echo engine, as anybody would start them."""

    def __init__(self, cluster: Cluster, load: Load) -> None:
        self._cluster = cluster
        self._load = load

    def round(self, number: int, count: int) -> float:
        """See ``Peer``."""
        self._load.answers.clear()
        seconds = self._load.run(self._load.jobs([TEXT.format(f"{number}.{n}") for n in range(count)]), ROUND_S)
        if len(self._load.answers) != count or self._load.duplicates:
            raise PeerMissing(f"gave {len(self._load.answers)} answers to {count} jobs")
        return seconds


@contextlib.contextmanager
def ours(folder: Path) -> Iterator[Peer]:
    """dolmetsch."""
    with Cluster(folder) as cluster:
        cluster.broker()
        cluster.wait_listening()
        for name in ("one", "two"):
            cluster.node(name, "--engine", "echo", "--max-workers", "1")
        cluster.wait_ready(2)
        with Load(cluster.address) as load:
            yield Ours(cluster, load)


@contextlib.contextmanager
def with_redis(name: str, folder: Path, worker: Sequence[str]) -> Iterator[Peer]:
    """A peer with a Redis, its ``worker`` program, and a driver."""
    programs = environment(name)
    log = folder / f"{name}.log"
    with redis(folder) as where:
        command = [str(programs / worker[0]), *worker[1:]]
        with (
            process(command, folder / f"{name}-worker.log", PEER_REDIS=where),
            process([str(programs / "python"), f"{name}_peer.py"], log, PEER_REDIS=where) as driver,
        ):
            yield Driven(driver, log)


@contextlib.contextmanager
def ipyparallel(folder: Path) -> Iterator[Peer]:
    """Its client starts the controller and the engines."""
    programs = environment("ipyparallel")
    log = folder / "ipyparallel.log"
    command = [str(programs / "python"), "ipyparallel_peer.py"]
    more = {
        "PEER_FOLDER": str(folder / "profile"),
        "IPYTHONDIR": str(folder),
        "PATH": f"{programs}:{os.environ['PATH']}",
    }
    with process(command, log, **more) as driver:
        yield Driven(driver, log)


CELERY: Final = (
    "celery", "-A", "celery_peer", "worker", "--loglevel=ERROR", "--pool=prefork", "--concurrency=2",
    "--without-gossip", "--without-mingle", "--without-heartbeat",
)  # fmt: skip
DRAMATIQ: Final = ("dramatiq", "dramatiq_peer", "--processes", "2", "--threads", "32")
PEERS: Final[dict[str, Callable[[Path], contextlib.AbstractContextManager[Peer]]]] = {
    "dolmetsch": ours,
    "celery": lambda folder: with_redis("celery", folder, CELERY),
    "dramatiq": lambda folder: with_redis("dramatiq", folder, DRAMATIQ),
    "ipyparallel": ipyparallel,
}


def settle() -> None:
    """Wait until nobody here works any more, but not for longer than QUIET_S."""
    until = time.monotonic() + QUIET_S
    while psutil.cpu_percent(interval=1.0) > QUIET_PERCENT and time.monotonic() < until:
        pass


def compare(count: int, rounds: int) -> dict[str, Row]:
    """All peers, in turn, ``rounds`` times, after one round to warm up."""
    rows = {name: Row() for name in PEERS}
    peers: dict[str, Peer] = {}
    with contextlib.ExitStack() as stack:
        for name, make in PEERS.items():
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix=f"bench-{name}-")))
            try:
                peers[name] = stack.enter_context(make(folder))
            except (PeerMissing, DolmetschError, OSError, subprocess.SubprocessError) as error:
                rows[name].missing = str(error)
        for number in range(rounds + 1):
            for name, peer in list(peers.items()):
                settle()
                try:
                    seconds = peer.round(number, count if number else 500)
                except PeerMissing as error:
                    rows[name].missing = str(error)
                    del peers[name]
                    continue
                if number:
                    rows[name].rates.append(count / seconds)
    return rows


def main() -> None:
    """Run it and print it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="some three minutes, once the peers are installed")
    arguments = parser.parse_args()
    count, rounds = (3000, 3) if arguments.quick else (10_000, 5)
    rows = compare(count, rounds)
    own, other = rows["dolmetsch"].jobs_per_s, fastest(rows, "dolmetsch")
    table = [("who", "jobs/s", "rounds", "settings")]
    for name, row in rows.items():
        seen = " ".join(f"{rate:.0f}" for rate in row.rates)
        table.append((name, f"{row.jobs_per_s:.0f}" if row.rates else "-", row.missing or seen, SETTINGS[name]))
    if other:
        table.append(("ratio to the fastest peer", f"{own / other:.1f}", f"target {TARGET:g}", ""))
    figures = {
        "jobs_per_s": {name: round(row.jobs_per_s) for name, row in rows.items()},
        "missing": {name: row.missing for name, row in rows.items() if row.missing},
        "ratio": round(own / other, 1) if other else None, "count": count, "quick": arguments.quick,
    }  # fmt: skip
    finish(f"peers: {count} echo jobs a round, results back at the caller, 2 workers each", table, figures)


if __name__ == "__main__":
    main()
