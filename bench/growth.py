"""Whether programs grow: what they take, second by second, a line through it, and when their heartbeats come."""

from __future__ import annotations

import contextlib
import itertools
import statistics
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final, NamedTuple

import psutil
import zmq

from bench.cluster import Cluster
from dolmetsch.messages import Telemetry
from dolmetsch.transport import SubPort, telemetry_address
from dolmetsch.wire import decode

MIB: Final = 2**20
GROWTH_MIB: Final = 1.0  # is none; nor is twice the noise, where that is more


class Use(NamedTuple):
    """What a program takes."""

    pid: int
    rss: int
    fds: int
    threads: int


class Sample(NamedTuple):
    """A moment: how many jobs were done, what each program took, and the bytes of files."""

    jobs: int
    uses: dict[str, Use]
    ledger: int
    log: int  # the ledger's write-ahead log
    history: int


class Sampler(threading.Thread):
    """Looks at everything every ``every_s`` seconds, until ``stop``."""

    def __init__(self, cluster: Cluster, jobs: Callable[[], int], history: Path, every_s: float) -> None:
        super().__init__(name="sampler", daemon=True)
        self._cluster, self._jobs, self._history, self._every_s = cluster, jobs, history, every_s
        self._over = threading.Event()
        self.samples: list[Sample] = []

    def run(self) -> None:
        while not self._over.wait(self._every_s):
            self.look()

    def look(self) -> Sample:
        """Now."""
        uses: dict[str, Use] = {}
        for name, program in list(self._cluster.programs.items()):
            with contextlib.suppress(psutil.NoSuchProcess):
                process = psutil.Process(program.pid)
                uses[name] = _use(process)
                for child in process.children():
                    uses[f"{name}'s child"] = _use(child)
        sample = Sample(
            self._jobs(), uses, _size(self._cluster.ledger), _size(Path(f"{self._cluster.ledger}-wal")),
            _size(self._history) + _size(Path(f"{self._history}-wal")),
        )  # fmt: skip
        self.samples.append(sample)
        return sample

    def stop(self) -> None:
        """End."""
        self._over.set()
        self.join(10.0)


def _use(process: psutil.Process) -> Use:
    with process.oneshot():
        return Use(process.pid, process.memory_info().rss, process.num_fds(), process.num_threads())


def _size(path: Path) -> int:
    with contextlib.suppress(OSError):
        return path.stat().st_size
    return 0


class Heartbeats(threading.Thread):
    """Listens to the broker's telemetry, until ``stop``; ``watched`` is a node that sends nothing but heartbeats."""

    def __init__(self, address: str, watched: str) -> None:
        super().__init__(name="heartbeats", daemon=True)
        self._where, self._watched = telemetry_address(address), watched
        self._over = threading.Event()
        self._last: float | None = None
        self.jitter_ms: list[float] = []
        self.silence_s = 0.0  # the longest of any node that was there

    def run(self) -> None:
        context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        port = SubPort(context, self._where)
        while not self._over.is_set():
            port.socket.poll(200)
            for frames in port.receive(8):
                message = decode(frames)
                if isinstance(message, Telemetry):
                    self._take(message)
        port.close()
        context.term()

    def _take(self, message: Telemetry) -> None:
        for node in message.nodes:
            self.silence_s = max(self.silence_s, node.seen_s_ago)
            if node.name != self._watched:
                continue
            beat = message.up_s - node.seen_s_ago  # by the broker's clock
            if self._last is not None and (apart := beat - self._last) > 0.01:  # else it is the same one
                self.jitter_ms.append(1000 * abs(apart - max(1, round(apart))))
            self._last = beat

    def stop(self) -> None:
        """End."""
        self._over.set()
        self.join(10.0)


class Line(NamedTuple):
    """A program's memory over jobs, in MiB."""

    per_100k: float
    noise: float
    growth: float  # by the slope, over all of these jobs

    @property
    def flat(self) -> bool:
        """Whether it does not grow."""
        return self.growth <= max(GROWTH_MIB, 2 * self.noise)


def line_through(points: Sequence[tuple[int, int]]) -> Line:
    """Theil's and Sen's line through (jobs, bytes)."""
    scaled = [(jobs / 1e5, size / MIB) for jobs, size in points]
    slopes = [(y2 - y1) / (x2 - x1) for (x1, y1), (x2, y2) in itertools.combinations(scaled, 2) if x2 > x1]
    if not slopes:
        raise SystemExit("too few samples")
    slope = statistics.median(slopes)
    residues = [y - slope * x for x, y in scaled]
    middle = statistics.median(residues)
    noise = 1.4826 * statistics.median(abs(one - middle) for one in residues)
    return Line(slope, noise, slope * (scaled[-1][0] - scaled[0][0]))
