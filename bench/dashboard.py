#!/usr/bin/env python3
"""What the dashboard costs: 200 browsers that ask for the cluster once a second, and a day of 50 nodes on disk.

    python bench/dashboard.py [--quick] [--clients 200]

First with a real broker and an echo node, for what browsers cost the broker. Then with a made-up broker that tells of
50 nodes, for what they cost the dashboard; the browsers keep their connections and take gzip. The day is written
through the real history, ten seconds at a time, by a clock of its own. CPU is user and system time of the process, in
percent of one core; everything runs on this computer, the browsers too.
"""

# in_venv() comes before the imports that need it
from __future__ import annotations

import sys
from pathlib import Path

sys.path[0] = str(Path(__file__).resolve().parent.parent)  # not bench/: its http.py would hide Python's own

from dolmetsch.bootstrap import in_venv

in_venv()

import argparse
import asyncio
import contextlib
import random
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from typing import Final, NamedTuple

import psutil

from bench.cluster import Cluster, free_port
from bench.report import finish
from bench.telemetry import Publisher, Scene, node
from dashboard.charts import Sample
from dashboard.history import History
from dolmetsch.reports import ChildStatus, NodeReport

NODES: Final = 50
NAMES: Final = tuple([f"pi-{number}" for number in range(NODES)])
JOBS: Final = (tuple([3 if bucket == 5 else 0 for bucket in range(28)]), tuple([0] * 28))  # done in a second, by lane
START: Final = 1_800_000_000.0
DAY_S: Final = 86_400
HOUR_S: Final = 3600
WRITE_EVERY: Final = 10  # seconds, as the history's thread does
WARM_S: Final = 3.0
LIMIT_S: Final = 10.0
REQUEST: Final = b"GET /api/cluster HTTP/1.1\r\nHost: 127.0.0.1\r\nAccept-Encoding: gzip\r\n\r\n"


class Load(NamedTuple):
    """What a crowd of browsers saw."""

    latencies_ms: list[float]
    failures: int
    bytes: int


class Polled(NamedTuple):
    """A process without browsers, and with them: percent of a core."""

    alone: float
    with_them: float
    load: Load


async def _browser(port: int, until: float, load: list[float], failures: list[str], sizes: list[int]) -> None:
    await asyncio.sleep(random.random())
    try:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        with contextlib.closing(writer):
            while time.monotonic() < until:
                started = time.perf_counter()
                writer.write(REQUEST)
                head = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), LIMIT_S)
                length = int(head.lower().partition(b"content-length: ")[2].split(b"\r\n")[0])
                await asyncio.wait_for(reader.readexactly(length), LIMIT_S)
                if not head.startswith(b"HTTP/1.1 200"):
                    failures.append(head[:20].decode())
                load.append((time.perf_counter() - started) * 1000)
                sizes.append(len(head) + length)
                await asyncio.sleep(max(0.0, 1.0 - (time.perf_counter() - started)))
    except (OSError, TimeoutError, asyncio.IncompleteReadError) as error:
        failures.append(type(error).__name__)


def crowd(port: int, clients: int, seconds: float) -> Load:
    """So many browsers, which begin within the first second, for so long."""
    latencies: list[float] = []
    failures: list[str] = []
    sizes: list[int] = []

    async def run() -> None:
        until = time.monotonic() + seconds
        await asyncio.gather(*[_browser(port, until, latencies, failures, sizes) for _ in range(clients)])

    asyncio.run(run())
    return Load(latencies, len(failures), sum(sizes))


def cpu_percent(process: psutil.Process, seconds: float) -> float:
    """What the process takes of a core in the next ``seconds``."""
    before, started = _used_s(process), time.monotonic()
    time.sleep(seconds)
    return 100 * (_used_s(process) - before) / (time.monotonic() - started)


def _used_s(process: psutil.Process) -> float:
    times = process.cpu_times()
    return float(times.user + times.system)


def polled(process: psutil.Process, port: int, clients: int, seconds: float) -> Polled:
    """The process's CPU alone, and while ``clients`` browsers poll the dashboard at ``port``."""
    time.sleep(WARM_S)
    alone = cpu_percent(process, seconds)
    crowd(port, clients, 2.0)  # connections and code paths are warm
    before, started = _used_s(process), time.monotonic()
    load = crowd(port, clients, seconds)
    return Polled(alone, 100 * (_used_s(process) - before) / (time.monotonic() - started), load)


@contextlib.contextmanager
def dashboard(cluster: Cluster) -> Iterator[tuple[psutil.Process, int]]:
    """The real program, for the broker of ``cluster``; its process and port."""
    port = free_port()
    program = cluster.start(
        "dashboard", "-m", "dashboard", "--listen", f"127.0.0.1:{port}", "--broker", cluster.address
    )
    until = time.monotonic() + LIMIT_S
    while True:
        with contextlib.suppress(OSError), urllib.request.urlopen(f"http://127.0.0.1:{port}/healthz", timeout=1.0):
            break
        if time.monotonic() > until or program.poll() is not None:
            raise SystemExit(f"the dashboard does not answer:\n{cluster.log('dashboard')}")
        time.sleep(0.05)
    try:
        yield psutil.Process(program.pid), port
    finally:
        cluster.end("dashboard")


def with_a_real_broker(clients: int, seconds: float) -> Polled:
    """What the browsers cost the broker."""
    with Cluster() as cluster:
        broker = cluster.broker()
        cluster.node("one", "--engine", "echo", "--max-workers", "1")
        cluster.wait_ready(1, 1)
        with dashboard(cluster) as (_, port):
            return polled(psutil.Process(broker.pid), port, clients, seconds)


def with_fifty_nodes(clients: int, seconds: float) -> tuple[Polled, float]:
    """What the browsers cost the dashboard, and its memory in MiB."""
    with Cluster() as cluster:
        host, _, port = cluster.address.rpartition(":")
        scene = Scene(nodes=some_nodes(), jobs_a_turn=60)
        with Publisher(f"{host}:{int(port) + 1}", scene), dashboard(cluster) as (process, http):
            found = polled(process, http, clients, seconds)
            return found, process.memory_info().rss / 2**20


def some_nodes() -> tuple[NodeReport, ...]:
    """Fifty that are not alike, or gzip would make too little of them."""
    rng = random.Random(5)
    return tuple([
        node(
            name, cpu_percent=rng.uniform(0, 100),
            core_percent=tuple([rng.uniform(0, 100) for _ in range(4)]),
            ram_percent=rng.uniform(10, 90), ram_used_bytes=rng.randrange(2**33), temperature_c=rng.uniform(40, 85),
            chars_per_s=rng.uniform(0, 4000), jobs_done=rng.randrange(10**6), up_s=rng.uniform(0, 10**6),
            joined_s_ago=rng.uniform(0, 10**5), seen_s_ago=rng.random(), leased=rng.randrange(90),
            children=tuple([
                ChildStatus(rng.randrange(500, 9999), core, "busy", rng.randrange(2**27), rng.randrange(10**5), 0, 2)
                for core in (1, 2, 3)
            ]),
        )
        for name in NAMES
    ])  # fmt: skip


def a_day(step_s: float) -> tuple[float, float, float, float]:
    """A day of 50 nodes through the history: MiB of the file, GiB written a day, ms a sample, ms a write.

    All but the last hour, which is measured, goes by with a sample every ``step_s``. Written is what the process has
    handed to the kernel for the disk, as /proc counts it.
    """
    rng = random.Random(7)
    process = psutil.Process()
    with tempfile.TemporaryDirectory(prefix="dolmetsch-") as folder:
        history = History(Path(folder) / "history.sqlite3")
        history.open()
        at, end = START, START + DAY_S
        while at < end - HOUR_S:
            history.add(some_sample(rng, at))
            at += step_s
        history.write()
        written = process.io_counters().write_bytes
        adding = writing = 0.0
        for second in range(HOUR_S):
            sample = some_sample(rng, at + second)
            began = time.perf_counter()
            history.add(sample)
            adding += time.perf_counter() - began
            if second % WRITE_EVERY == WRITE_EVERY - 1:
                began = time.perf_counter()
                history.write()
                writing += time.perf_counter() - began
        written = process.io_counters().write_bytes - written
        history.close()
        size = history.size_bytes() / 2**20
    return size, written * DAY_S / HOUR_S / 2**30, 1000 * adding / HOUR_S, 1000 * writing / (HOUR_S / WRITE_EVERY)


def some_sample(rng: random.Random, at: float) -> Sample:
    """Fifty nodes at work."""
    values = {
        name: (rng.uniform(0, 100), rng.uniform(0, 100), rng.uniform(40, 85), rng.uniform(0, 4000)) for name in NAMES
    }
    return Sample(
        at=at, seconds=1.0, translations_per_s=rng.uniform(0, 90), failed_per_s=0.0, latency=JOBS,
        queued=rng.randrange(50), in_flight=rng.randrange(90), nodes_up=NODES, workers=3 * NODES, nodes=values,
    )  # fmt: skip


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="under 60 seconds")
    parser.add_argument("--clients", type=int, default=200, help="browsers (200)")
    arguments = parser.parse_args()
    seconds = 8.0 if arguments.quick else 20.0
    broker = with_a_real_broker(arguments.clients, seconds)
    fifty, rss_mib = with_fifty_nodes(arguments.clients, seconds)
    size_mib, written_gib, add_ms, write_ms = a_day(20.0 if arguments.quick else 1.0)
    load = fifty.load
    p50, p95 = (sorted(load.latencies_ms)[int(part * len(load.latencies_ms))] for part in (0.5, 0.95))
    per_s = len(load.latencies_ms) / seconds
    rows = [
        ("what", "figure", "target"),
        (
            f"dashboard, {NODES} nodes, {arguments.clients} browsers, CPU of one core",
            f"{fifty.with_them:.1f} %",
            "25 %",
        ),
        ("  nobody looks", f"{fifty.alone:.1f} %", ""),
        ("  answers/s", f"{per_s:.0f}", ""),
        ("  time of an answer, p50 and p95", f"{p50:.1f} and {p95:.1f} ms", ""),
        ("  size of an answer, gzip", f"{load.bytes / len(load.latencies_ms) / 1024:.1f} KiB", ""),
        ("  failed", str(load.failures + broker.load.failures), "0"),
        ("  its memory", f"{rss_mib:.0f} MiB", ""),
        ("broker, 1 echo node, nobody looks, CPU", f"{broker.alone:.1f} %", ""),
        (f"  {arguments.clients} browsers", f"{broker.with_them:.1f} %", "the same"),
        (f"24 h of {NODES} nodes on disk", f"{size_mib:.1f} MiB", "60 MiB"),
        ("  written to the disk a day", f"{written_gib:.2f} GiB", ""),
        ("  a sample, and a write every 10 s", f"{add_ms:.2f} and {write_ms:.1f} ms", ""),
    ]
    figures = {
        "dashboard_cpu_percent": round(fifty.with_them, 1), "dashboard_cpu_percent_alone": round(fifty.alone, 1),
        "answers_per_s": round(per_s), "p50_ms": round(p50, 1), "p95_ms": round(p95, 1),
        "failed": load.failures + broker.load.failures, "dashboard_rss_mib": round(rss_mib),
        "broker_cpu_percent": round(broker.with_them, 1), "broker_cpu_percent_alone": round(broker.alone, 1),
        "history_mib": round(size_mib, 1), "written_gib_a_day": round(written_gib, 2), "clients": arguments.clients,
        "quick": arguments.quick,
    }  # fmt: skip
    finish(f"dashboard: {arguments.clients} browsers once a second, {seconds:g} s", rows, figures)


if __name__ == "__main__":
    main()
