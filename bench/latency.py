#!/usr/bin/env python3
"""How long people wait: an idle cluster by stage, and then interactive jobs while bulk work fills the cluster.

    python bench/latency.py [--quick] [--only idle|load] [--json FILE]

Idle: reactions in a Discord of our own on loopback, one at a time, through the real bot; the stages are what the broker
tells of each job. Load: interactive jobs come at random (Poisson) at a twentieth of the cluster's capacity, alone, then
with bulk jobs that make it 50, 80 and 120 % of capacity in all, then with more bulk jobs than can be done. A job's time
counts from the moment at which it was to come. Everything shares this computer's cores, the load too.
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path[0] = str(Path(__file__).resolve().parent.parent)  # not bench/: its http.py would hide Python's own

from dolmetsch.bootstrap import in_venv

in_venv()

import argparse
import asyncio
import contextlib
import json
import math
import multiprocessing
import os
import random
import time
from collections.abc import Iterator, Sequence
from itertools import cycle, takewhile
from multiprocessing.connection import Connection
from typing import Final, NamedTuple

import zmq

from bench.cluster import Cluster
from bench.load import Load
from bench.reactions import LIMITS, Crowd, percentile
from bench.report import finish
from bench.stage import Stage
from bench.throughput import sentences
from dolmetsch.messages import INTERACTIVE, JobSpec, Telemetry
from dolmetsch.outbox import Deliver, Effect, Post, Tick
from dolmetsch.packages import EMBEDDED
from dolmetsch.reports import JobReport
from dolmetsch.transport import SubPort, telemetry_address
from dolmetsch.wire import decode

INTERACTIVE_PART: Final = 0.05  # of capacity
LOADS: Final = (0.5, 0.8, 1.2)  # of capacity, both lanes
TARGET: Final = 2.0  # times the idle p95
SETTLE_S: Final = 1.0  # bulk comes before people do
END_S: Final = 60.0  # for the answers to what was sent
WINDOW: Final = 1024  # jobs that a file run has on their way (``lines.WINDOW``)
BULK_S: Final = 300.0  # the longest that bulk comes
IDLE_PAUSE_S: Final = 0.1  # between two reactions: the telemetry of a second has room for each job
STAGES: Final = {
    "gateway_ms": "bot: from the reaction to the job",
    "queue_ms": "broker: from the job to its lease",
    "wire_ms": "the wire to the node and back, and the disk",
    "batch_ms": "node: until its batch begins",
    "decode_ms": "child: sentences, tokens, decoding",
    "reply_ms": "bot: reply and ack, which is held back for 50 ms",
}


class Row(NamedTuple):
    """A load: jobs a second of both lanes, and how long each interactive one took, in ms."""

    name: str
    people_per_s: float
    bulk_per_s: float
    ms: list[float]

    @property
    def p95(self) -> float:
        return percentile(self.ms, 0.95)


# ---- load ----


class Stream(Load):
    """Jobs that come when they are due, whatever happens to those before them. ``took_s``: of each that has ended."""

    def play(self, due: Iterator[float], texts: Iterator[str], within_s: float) -> None:
        """Send one of ``texts`` at each of ``due`` (monotonic seconds, ascending), and wait for the last answer."""
        self.took_s: list[float] = []
        self._due: dict[bytes, float] = {}
        until = time.monotonic() + within_s
        following = next(due, None)
        while following is not None or self._due:
            if time.monotonic() > until:
                raise SystemExit(f"{len(self._due)} jobs are still on their way after {within_s:g} s")
            specs: list[JobSpec] = []
            while following is not None and following <= time.monotonic():
                specs += self.jobs([next(texts)])
                self._due[specs[-1].job_id] = following
                following = next(due, None)
            if specs:
                self._handle(Post(tuple(specs)))
            self._handle(Tick())
            next_at = min(self._outbox.next_deadline(), until if following is None else following)
            self._poller.poll(max(0, math.ceil((next_at - time.monotonic()) * 1000)))
            self._read()

    def _carry_out(self, effect: Effect, safe: list[bytes]) -> None:
        if isinstance(effect, Deliver):
            if effect.answer.texts is None:
                raise SystemExit(f"a job failed: {effect.answer.code}")
            self.took_s.append(time.monotonic() - self._due.pop(effect.answer.job_id))
        super()._carry_out(effect, safe)


def poisson(per_s: float, for_s: float, rng: random.Random) -> Iterator[float]:
    """Moments (monotonic seconds) at which jobs come, from now on."""
    at = started = time.monotonic()
    while (at := at + rng.expovariate(per_s)) < started + for_s:
        yield at


def _bulk(address: str, per_s: float | None, pipe: Connection) -> None:
    """In a process of its own: bulk jobs, so many a second (None: always more than can be done), until told to end."""
    texts = cycle(sentences())
    rates: list[float] = []
    with Load(address, window=WINDOW) if per_s is None else Stream(address) as load:
        pipe.send(None)
        started = time.monotonic()

        def going() -> bool:
            if not rates and pipe.poll():
                rates.append(len(load.answers) / (time.monotonic() - started))
            return not rates

        if isinstance(load, Stream):
            load.play(takewhile(lambda _: going(), poisson(per_s or 0.0, BULK_S, random.Random(2))), texts, BULK_S)
        else:
            specs = (spec for text in texts for spec in load.jobs((text,)))
            load.until_answered(takewhile(lambda _: going(), specs), BULK_S)
        pipe.send(rates[0])


@contextlib.contextmanager
def bulk(address: str, per_s: float | None) -> Iterator[list[float]]:
    """Bulk jobs come inside; after, all have been done, and what was given holds how many were done in a second."""
    rates: list[float] = []
    here, there = multiprocessing.Pipe()
    process = multiprocessing.get_context("spawn").Process(target=_bulk, args=(address, per_s, there), daemon=True)
    process.start()
    try:
        here.recv()
        time.sleep(SETTLE_S)
        yield rates
        here.send(None)
        rates.append(here.recv())
        process.join(END_S)
    finally:
        process.kill()


def people(address: str, per_s: float, for_s: float, seed: int) -> list[float]:
    """Interactive jobs, so many a second; how long each took, in ms."""
    texts = sentences()
    random.Random(seed).shuffle(texts)
    load = Stream(address, lane=INTERACTIVE)
    with load:
        load.play(poisson(per_s, for_s, random.Random(seed)), cycle(texts), for_s + END_S)
    return [1000 * seconds for seconds in load.took_s]


def under_load(cluster: Cluster, for_s: float, rounds: int) -> tuple[float, list[Row]]:
    """The capacity in jobs a second, and a row for each load, of all rounds."""
    with Load(cluster.address) as load:
        load.run(load.jobs(sentences()))
        capacity = len(sentences()) / load.until_answered(load.jobs(sentences()))
    per_s = INTERACTIVE_PART * capacity
    found: dict[str, Row] = {}

    def add(name: str, bulk_per_s: float, ms: list[float]) -> None:
        row = found.setdefault(name, Row(name, per_s, bulk_per_s, []))
        row.ms.extend(ms)

    for number in range(rounds):
        add("no bulk", 0.0, people(cluster.address, per_s, for_s, number))
        for part in LOADS:
            wanted = (part - INTERACTIVE_PART) * capacity
            with bulk(cluster.address, wanted) as rates:
                ms = people(cluster.address, per_s, for_s, number)
            add(f"{part:.0%} of capacity", rates[0], ms)
        with bulk(cluster.address, None) as rates:
            ms = people(cluster.address, per_s, for_s, number)
        add("all the bulk there is", rates[0], ms)
    return capacity, list(found.values())


# ---- idle ----


async def idle(cluster: Cluster, count: int) -> tuple[list[float], list[JobReport]]:
    """Reactions one at a time: ms to each reply, and what the broker tells of those jobs."""
    texts = iter(sentences())
    reports: dict[bytes, JobReport] = {}
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    port = SubPort(context, telemetry_address(cluster.address))
    try:
        async with Stage(cluster, cluster.folder) as stage:
            await stage.start_bot(ready=True, **{f"DOLMETSCH_DISCORD_{name}_LIMIT": "100000" for name in LIMITS})
            crowd = Crowd(stage, texts, 1)
            for _ in range(10):
                await crowd.react(1)
            await asyncio.sleep(2 * SETTLE_S)
            for _ in port.receive(100):
                pass  # of those ten
            ms: list[float] = []
            for _ in range(count):
                await asyncio.sleep(IDLE_PAUSE_S)
                ms += [1000 * seconds for seconds in (await crowd.react(1))[1]]
                _collect(port, reports)
            until = time.monotonic() + END_S
            while len(reports) < count and time.monotonic() < until:
                await asyncio.sleep(IDLE_PAUSE_S)
                _collect(port, reports)
    finally:
        port.close()
        context.term()
    return ms, list(reports.values())


def _collect(port: SubPort, reports: dict[bytes, JobReport]) -> None:
    for frames in port.receive(100):
        message = decode(frames)
        if isinstance(message, Telemetry):
            reports |= {report.job_id: report for report in message.jobs}


# ---- what is printed ----


def idle_rows(ms: Sequence[float], reports: Sequence[JobReport]) -> list[tuple[str, ...]]:
    """The idle cluster, stage by stage, in ms."""
    rows: list[tuple[str, ...]] = [("idle, ms", "p50", "p95", "p99", "mean")]
    stages = [(words, [float(getattr(report, name)) for report in reports]) for name, words in STAGES.items()]
    for words, values in [("reaction to reply", list(ms)), *stages]:
        parts = [f"{percentile(values, part):.0f}" for part in (0.5, 0.95, 0.99)]
        rows.append((words, *parts, f"{sum(values) / len(values):.1f}"))
    return rows


def load_rows(rows: Sequence[Row]) -> list[tuple[str, ...]]:
    """Each load beside the idle one, the first."""
    head = ("load", "people/s", "bulk/s", "jobs", "p50 ms", "p95 ms", "p99 ms", f"p95 to idle, target {TARGET:g}")
    return [
        head,
        *(
            (
                row.name, f"{row.people_per_s:.0f}", f"{row.bulk_per_s:.0f}", str(len(row.ms)),
                *(f"{percentile(row.ms, part):.1f}" for part in (0.5, 0.95, 0.99)), f"{row.p95 / rows[0].p95:.2f}",
            )
            for row in rows
        ),
    ]  # fmt: skip


def main() -> None:
    """Start the cluster, measure, end it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="about a minute")
    parser.add_argument("--only", choices=("idle", "load"), help="one of the two parts")
    parser.add_argument("--json", type=Path, metavar="FILE", help="every time measured, for a plot")
    arguments = parser.parse_args()
    figures: dict[str, object] = {"quick": arguments.quick}
    times: dict[str, list[float]] = {}
    with Cluster() as cluster:
        cluster.environment["DOLMETSCH_SCHEDULER_CACHE_BYTES"] = "0"
        cluster.broker()
        cores = str(len(os.sched_getaffinity(0)))
        cluster.node("node", "--packages", str(EMBEDDED), "--min-workers", cores, "--max-workers", cores)
        cluster.wait_ready(1, int(cores))
        if arguments.only != "load":
            ms, reports = asyncio.run(idle(cluster, 50 if arguments.quick else 300))
            figures |= {f"reaction_p{part}_ms": round(percentile(ms, part / 100), 1) for part in (50, 95, 99)}
            times["reaction"] = ms
            finish(f"latency: {len(ms)} reactions, one at a time", idle_rows(ms, reports), figures)
        if arguments.only != "idle":
            capacity, rows = under_load(cluster, 6.0 if arguments.quick else 15.0, 1 if arguments.quick else 3)
            figures |= {
                "capacity_per_s": round(capacity),
                "worst_p95_ratio": round(max(r.p95 for r in rows) / rows[0].p95, 2),
            }
            times |= {row.name: row.ms for row in rows}
            finish(f"latency under load: capacity {capacity:.0f} jobs/s", load_rows(rows), figures)
    if arguments.json is not None:
        arguments.json.write_text(json.dumps(times))


if __name__ == "__main__":
    main()
