"""A pool for a test: real child processes, real sockets; only the clock can be moved forward."""

from __future__ import annotations

import os
import random
import select
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import psutil
import pytest

from dolmetsch.config import EngineConfig, PoolConfig
from dolmetsch.pool import ChildInfo, Load, Pool, PoolJob, PoolOutcome

FAKE = (sys.executable, str(Path(__file__).with_name("fake_child.py")))
QUIET = Load(cpu=(0.0,) * 8, ram=10.0)
LIMIT_S = 20.0  # of waiting for a condition: far above what any takes

ENGINE = EngineConfig(beam_size=2, batch_tokens=32)  # a window of 2304 characters


class Rig:
    """A pool, the loop that drives it, a clock that can jump, and everything that came out."""

    def __init__(self, pool: Pool) -> None:
        self.pool = pool
        self.load = QUIET
        self.ahead_s = 0.0
        self.outcomes: list[PoolOutcome] = []
        self.pids: set[int] = set()

    def now(self) -> float:
        return time.monotonic() + self.ahead_s

    def turn(self) -> None:
        poller = select.poll()
        for fd, writes in self.pool.fds().items():
            poller.register(fd, select.POLLIN | (select.POLLOUT if writes else 0))
        for fd, events in poller.poll(10):
            if events & select.POLLOUT:
                self.pool.on_writable(fd, self.now())
            if events & ~select.POLLOUT:
                self.outcomes += self.pool.on_readable(fd, self.now())
        self.outcomes += self.pool.tick(self.now(), self.load)
        self.pids |= {child.pid for child in self.pool.children() if child.pid}

    def until(self, condition: Callable[[], bool]) -> None:
        end = time.monotonic() + LIMIT_S
        while not condition():
            assert time.monotonic() < end, (self.pool.children(), self.pool.queued, self.pool.last_death)
            self.turn()

    def ready(self, count: int) -> Rig:
        self.until(lambda: self.pool.ready == count)
        return self

    def submit(self, *jobs: PoolJob) -> None:
        self.pool.submit(jobs, self.now())

    def ended(self, count: int) -> list[PoolOutcome]:
        self.until(lambda: len(self.outcomes) >= count)
        return self.outcomes

    def child(self, state: str) -> ChildInfo | None:
        return next((child for child in self.pool.children() if child.state == state), None)


Make = Callable[..., Rig]


@pytest.fixture
def make() -> Iterator[Make]:
    """Build started pools; afterwards no child and no descriptor may be left."""
    before = sorted(os.listdir("/proc/self/fd"))
    rigs: list[Rig] = []

    def build(
        *flags: str,
        workers: int = 1,
        most: int | None = None,
        cores: Sequence[int] = (0, 1, 2),
        **config: float,
    ) -> Rig:
        settings = PoolConfig(min_workers=workers, max_workers=most or workers, **config)  # type: ignore[arg-type]
        rig = Rig(
            Pool(
                settings,
                ENGINE,
                engine_kind="echo",
                cores=cores,
                rng=random.Random(7),
                command=(*FAKE, *flags),
            )
        )
        rigs.append(rig)
        rig.pool.start(rig.now())
        return rig

    yield build
    for rig in rigs:
        rig.pool.close(rig.now(), 0.3)
        assert not rig.pool.fds() and not rig.pool.children()
        assert [pid for pid in rig.pids if psutil.pid_exists(pid)] == []  # a zombie still exists
    assert sorted(os.listdir("/proc/self/fd")) == before


def job(name: str, text: str = "hallo", *, urgent: bool = False, chars: int | None = None) -> PoolJob:
    return PoolJob(name.encode(), "de→en", (text,), len(text) if chars is None else chars, urgent, False)


def jobs(count: int, text: str = "hallo", **how: int) -> list[PoolJob]:
    return [job(f"{text}-{number}", text, **how) for number in range(count)]  # type: ignore[arg-type]
