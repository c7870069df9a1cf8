#!/usr/bin/env python3
"""What a job costs the broker, by the number of nodes and by how much is queued.

    python bench/broker.py [--quick] [--nodes 10,1000] [--queued 0,10000] [--svg docs/images/broker-nodes.svg]

The broker is the real one, with its ledger on disk. The nodes are simulated (``bench/crowd.py``): real sessions over
real sockets, which echo at once. Each says that it does its share of 20 000 jobs/s, and so asks for a second of that
or 368 jobs, as real nodes do. One gateway keeps 8192 jobs on their way, and submits new ones for those that are
answered.

Behind nodes that echo at once no queue can stand. So what is queued needs a route whose only node has no credit: jobs
of the same kind, in memory, in their lane, among the timers and in the ledger, while the others pass.

Nodes, gateway and broker share this computer's cores, so jobs/s is what all of them reach together. The cost is the
broker's own: processor time of all its threads, from /proc, over the jobs answered meanwhile. What heartbeats and
telemetry cost is part of it, and is measured by itself before, without any job.
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path[0] = str(Path(__file__).resolve().parent.parent)  # not bench/: its http.py would hide Python's own

from dolmetsch.bootstrap import in_venv

in_venv()

import argparse
import itertools
import statistics
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Final, NamedTuple

import psutil
import zmq

from bench.cluster import Cluster
from bench.load import Load
from bench.plot import svg
from bench.report import finish
from dolmetsch.messages import BULK, JobSpec, Telemetry
from dolmetsch.transport import SubPort, telemetry_address
from dolmetsch.wire import decode

NODES: Final = (1, 2, 10, 100, 1000)
QUEUED: Final = (0, 10_000, 100_000)
PER_S: Final = 20_000  # jobs a second that all nodes together say they do
WINDOW: Final = 8192  # jobs on their way
ROUTE: Final = "de→en"
AWAY: Final = "en→de"  # the route of those that wait
PROCESSES: Final = 4  # that the nodes are spread over
SETTLE_S: Final = 2.0
TEXT: Final = "Guten Morgen, wie geht es dir heute? Das ist ein Satz Nummer {}."
LIMIT: Final = 1.3  # the cost of a job with the most nodes, over that with ten


class Span(NamedTuple):
    """A stretch of time, measured."""

    seconds: float
    jobs: int
    cpu_s: float  # of the broker

    @property
    def jobs_per_s(self) -> float:
        return self.jobs / self.seconds

    @property
    def cost_us(self) -> float:
        """Microseconds of the broker's processor time for a job."""
        return self.cpu_s / self.jobs * 1e6


@dataclass
class Cell:
    """Everything seen with so many nodes and so much queued."""

    spans: list[Span] = field(default_factory=list)
    waiting: list[int] = field(default_factory=list)  # jobs that were queued in fact
    rss_mib: list[float] = field(default_factory=list)

    @property
    def jobs_per_s(self) -> float:
        return statistics.median(span.jobs_per_s for span in self.spans)

    @property
    def cost_us(self) -> float:
        return statistics.median(span.cost_us for span in self.spans)

    @property
    def core_percent(self) -> float:
        """Of one core, the broker's."""
        return statistics.median(100 * span.cpu_s / span.seconds for span in self.spans)


Cells = dict[tuple[int, int], Cell]


def specs(route: str) -> Iterator[JobSpec]:
    """Jobs without end, each with a text of its own: none is answered from the cache."""
    run = uuid.uuid4().bytes[:8]
    for number in itertools.count():
        yield JobSpec(run + number.to_bytes(8, "big"), route, (TEXT.format(number),), BULK, "bench", 600.0, b"")


def share(nodes: int) -> list[tuple[int, int]]:
    """(first, count) for each process that simulates nodes."""
    processes = min(PROCESSES, nodes)
    edges = [nodes * part // processes for part in range(processes + 1)]
    return [(first, last - first) for first, last in itertools.pairwise(edges)]


def net_us(cell: Cell, idle_ms: float) -> float:
    """The cost of a job without that of heartbeats and telemetry, which is ``idle_ms`` a second."""
    return statistics.median((span.cpu_s - span.seconds * idle_ms / 1000) / span.jobs * 1e6 for span in cell.spans)


def ratio(costs: dict[tuple[int, int], float], few: int, many: int) -> dict[int, float]:
    """By what is queued: the cost of a job with ``many`` nodes over that with ``few``."""
    queued = [queued for nodes, queued in costs if nodes == many and (few, queued) in costs]
    return {one: costs[many, one] / costs[few, one] for one in queued}


def lines(cells: Cells) -> dict[str, list[tuple[int, float]]]:
    """For a picture: by what is queued, the cost with so many nodes."""
    found: dict[str, list[tuple[int, float]]] = {}
    for (nodes, queued), cell in sorted(cells.items()):
        found.setdefault(f"{queued} queued" if queued else "nothing queued", []).append((nodes, cell.cost_us))
    return found


class Stage:
    """A broker with so many nodes and one without credit, all up and idle."""

    def __init__(self, cluster: Cluster, nodes: int) -> None:
        self._cluster = cluster
        self._process = psutil.Process(cluster.broker().pid)
        cluster.wait_listening()
        per_s = str(PER_S // nodes)
        for number, (first, count) in enumerate(share(nodes)):
            self._crowd(f"crowd-{number}", ROUTE, str(first), str(count), per_s)
        self._crowd("away", AWAY, str(nodes), "1", "0")
        cluster.wait_ready(nodes + 1)

    def _crowd(self, name: str, *arguments: str) -> None:
        self._cluster.start(name, "-m", "bench.crowd", self._cluster.address, *arguments)

    def cpu_s(self) -> float:
        """Processor time of all the broker's threads so far."""
        times = self._process.cpu_times()
        return times.user + times.system

    def rss_mib(self) -> float:
        return self._process.memory_info().rss / 2**20

    def idle(self, seconds: float) -> float:
        """Milliseconds of processor time a second while nothing is done but heartbeats and telemetry."""
        before = self.cpu_s()
        started = time.monotonic()
        time.sleep(seconds)
        return 1000 * (self.cpu_s() - before) / (time.monotonic() - started)

    def queue(self, count: int) -> None:
        """So many more jobs wait from now on."""
        with Load(self._cluster.address) as load:
            load.post(specs(AWAY), count)

    def measure(self, load: Load, jobs: Iterator[JobSpec], seconds: float, cell: Cell) -> None:
        """Two stretches of ``seconds``."""
        load.keep_up(jobs, SETTLE_S)
        for _ in range(2):
            with Listener(self._cluster.address) as listener:
                before, started = self.cpu_s(), time.monotonic()
                answered = load.keep_up(jobs, seconds)
                cell.spans.append(Span(time.monotonic() - started, answered, self.cpu_s() - before))
                cell.waiting += listener.waiting()
        if load.duplicates:
            raise SystemExit(f"{load.duplicates} jobs were answered twice")
        cell.rss_mib.append(self.rss_mib())


class Listener:
    """What the broker tells of itself once a second."""

    def __init__(self, address: str) -> None:
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._port = SubPort(self._context, telemetry_address(address))

    def __enter__(self) -> Listener:
        return self

    def __exit__(self, *_: object) -> None:
        self._port.close()
        self._context.term()

    def waiting(self) -> list[int]:
        """How many jobs were queued, in each telling since this was made."""
        told = [decode(frames) for frames in self._port.receive(100)]
        return [
            one.counts.queued_interactive + one.counts.queued_bulk for one in told if isinstance(one, Telemetry)
        ]  # fmt: skip


def measure(nodes: int, queued: list[int], seconds: float, cells: Cells, idle: dict[int, list[float]]) -> None:
    """All depths with so many nodes, on a new cluster."""
    with Cluster() as cluster:
        stage = Stage(cluster, nodes)
        idle.setdefault(nodes, []).append(stage.idle(seconds))
        jobs, waiting = specs(ROUTE), 0
        with Load(cluster.address, window=WINDOW) as load:
            for depth in queued:
                load.run(iter(()))  # all are answered: the time that queueing takes is not theirs
                stage.queue(depth - waiting)
                waiting = depth
                stage.measure(load, jobs, seconds, cells.setdefault((nodes, depth), Cell()))
        cluster.kill("broker")  # thousands of jobs wait: nobody wants to drain them


def main() -> None:
    """Run it and print it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="about a minute")
    parser.add_argument("--rounds", type=int, default=1, help="each with clusters of its own")
    parser.add_argument("--nodes", default=",".join(map(str, NODES)))
    parser.add_argument("--queued", default=",".join(map(str, QUEUED)))
    parser.add_argument("--svg", type=Path, metavar="PATH", help="draw the cost against the number of nodes")
    arguments = parser.parse_args()
    nodes = [int(one) for one in arguments.nodes.split(",")]
    queued = sorted(int(one) for one in arguments.queued.split(","))
    if arguments.quick:
        nodes, queued = [one for one in nodes if one in (2, 10, 1000)], [one for one in queued if one < 100_000]
    cells: Cells = {}
    idle: dict[int, list[float]] = {}
    for _ in range(arguments.rounds):
        for count in nodes:
            measure(count, queued, 3.0, cells, idle)
    idle_ms = {count: statistics.median(found) for count, found in idle.items()}
    costs = {key: cell.cost_us for key, cell in cells.items()}
    nets = {key: net_us(cell, idle_ms[key[0]]) for key, cell in cells.items()}
    rows = [("nodes", "queued", "(seen)", "jobs/s", "broker us/job", "without beats", "core", "idle ms/s", "RSS MiB")]
    for key, cell in cells.items():
        seen = f"{statistics.median(cell.waiting):.0f}" if cell.waiting else "?"
        rows.append((
            str(key[0]), str(key[1]), seen, f"{cell.jobs_per_s:.0f}", f"{costs[key]:.1f}", f"{nets[key]:.1f}",
            f"{cell.core_percent:.0f} %", f"{idle_ms[key[0]]:.1f}", f"{max(cell.rss_mib):.0f}",
        ))  # fmt: skip
    most = max(nodes)
    ratios, net_ratios = ratio(costs, 10, most), ratio(nets, 10, most)
    for depth in ratios if most > 10 else ():
        row = (f"{most}:10", str(depth), "", "", f"x {ratios[depth]:.2f}", f"x {net_ratios[depth]:.2f}")
        rows.append((*row, "", "", f"limit {LIMIT}"))
    figures = {
        "cells": [
            {
                "nodes": key[0], "queued": key[1], "jobs_per_s": round(cell.jobs_per_s),
                "cost_us": round(costs[key], 1), "net_us": round(nets[key], 1),
                "idle_ms_per_s": round(idle_ms[key[0]], 1), "rss_mib": round(max(cell.rss_mib)),
            }
            for key, cell in cells.items()
        ],
        "ratios": {str(depth): round(found, 2) for depth, found in ratios.items()},
        "net_ratios": {str(depth): round(found, 2) for depth, found in net_ratios.items()},
        "quick": arguments.quick,
    }  # fmt: skip
    if arguments.svg is not None:
        arguments.svg.write_text(svg("processor time of the broker for a job, µs", "nodes", lines(cells)))
    finish("broker: cost of an echo job by nodes and by jobs queued, durable ledger, 1 gateway", rows, figures)


if __name__ == "__main__":
    main()
