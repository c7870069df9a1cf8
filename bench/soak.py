#!/usr/bin/env python3
"""Endurance: a week's coming and going in minutes. Does anything grow that should not?

    python bench/soak.py [--quick] [--jobs 1000000]

One broker with its ledger, two echo nodes and a third that an operator has drained, the dashboard and the HTTP gateway:
real processes and sockets on this computer. First a backlog: nodes are drained, jobs are queued, some until they are
dead letters, and all of it goes again. Then a million jobs at the pace that all of it allows: clients connect, submit
texts of all sizes and leave, one in four without a goodbye, so that an heir of its name gets its results; node two is
ended, killed and started, given new children, drained and resumed; dead letters are made and purged; browsers poll the
dashboard, and others ask the HTTP gateway and hang up at any moment. Then silence.

Growth is the slope of a program's memory over jobs (Theil and Sen: the median of the slopes between all pairs) in the
second half of the million, beside its noise: 1.48 times the median distance from that line. A heartbeat's jitter is the
distance of two heartbeats of the drained node, by the broker's own clock in its telemetry, from whole seconds.
"""

# ruff: noqa: E402  # in_venv() comes before the imports that need it
from __future__ import annotations

import sys
from pathlib import Path

sys.path[0] = str(Path(__file__).resolve().parent.parent)  # not bench/: its http.py would hide Python's own

from dolmetsch.bootstrap import in_venv

in_venv()

import argparse
import asyncio
import contextlib
import itertools
import random
import statistics
import threading
import time
import urllib.request
import uuid
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Final

from bench.cluster import Cluster, free_port
from bench.growth import GROWTH_MIB, MIB, Heartbeats, Line, Sample, Sampler, line_through
from bench.load import Load
from bench.report import finish
from bench.visitors import visitors
from dolmetsch.client import Client
from dolmetsch.messages import BULK, DRAIN, PURGE, RESTART, RESUME, JobSpec
from dolmetsch.outbox import Outbox, Tick

ROUTE: Final = "de→en"
NODES: Final = ("one", "two")
HISTORY: Final = "history.sqlite3"
WATCHED: Final = "watched"  # the drained node: nothing but heartbeats comes from it
READY_S: Final = 30.0
ORDER_S: Final = 20.0
CLIENT_JOBS: Final = (2_000, 5_000, 10_000, 20_000)  # that one client has before it leaves
DEADLINE_S: Final = 600.0
LATE_S: Final = 0.2  # the deadline of what is to become a dead letter
SILENCE_S: Final = 4.0
ROUNDS: Final = 10

# Targets.
FDS_MORE: Final = 2  # a library may open a few once
LEDGER_MIB: Final = 6.0  # in silence: 4 of free pages may stay, and the ids of 50 000 settled jobs take 0.8
JITTER_MS: Final = 250.0


# ---- clients ----


class Caller(Load):
    """A load under a gateway's name of its own, which an heir may take over."""

    def __init__(self, address: str, name: str) -> None:
        super().__init__(address, window=4096)
        self.name = name

    def __enter__(self) -> Caller:
        super().__enter__()
        self._outbox = Outbox(
            gateway=self.name, incarnation=uuid.uuid4().hex, rng=random.Random(0), now=time.monotonic()
        )
        return self

    def expect(self, count: int) -> None:
        """``count`` answers are to come for what was posted."""
        self._on_its_way += count
        self.run(iter(()))

    def inherit(self, others: Caller, count: int) -> None:
        """Get what is left of the ``count`` jobs of ``others``, which had the same name."""
        self.answers.update(others.answers)
        until = time.monotonic() + READY_S
        while len(self.answers) < count and time.monotonic() < until:
            self._handle(Tick())
            self._poller.poll(10)
            self._read()
        self._on_its_way = self.duplicates = 0  # what is told again to another process is no second answer
        self.run(iter(()))

    def vanish(self) -> None:
        """Leave as a process does that is killed."""
        self._port.socket.close(0)


@dataclass
class Score:
    """What was asked for, and what came of it."""

    jobs: int = 0  # answered
    clients: int = 0
    vanished: int = 0
    dead: int = 0
    lost: int = 0
    double: int = 0
    numbers: Iterator[int] = field(default_factory=itertools.count)
    rng: random.Random = field(default_factory=lambda: random.Random(8))

    def specs(self, count: int, deadline_s: float = DEADLINE_S) -> Iterator[JobSpec]:
        """``count`` jobs: chat lines, paragraphs, now and then a page."""
        for number in itertools.islice(self.numbers, count):
            size = self.rng.choice((20, 40, 60, 80, 150, 300)) if self.rng.random() < 0.97 else 2000
            text = f"{number} " + "Wörter " * (size // 7)
            yield JobSpec(uuid.uuid4().bytes, ROUTE, (text,), BULK, f"t{number % 5}", deadline_s, b"")

    def count(self, load: Load, wanted: int) -> None:
        """Add up what ``load`` was answered, of ``wanted`` jobs."""
        self.jobs += len(load.answers)
        self.lost += wanted - len(load.answers)
        self.double += load.duplicates


def come_and_go(address: str, score: Score, jobs: int) -> None:
    """Clients, one after the other, until ``jobs`` more are answered."""
    until = score.jobs + jobs
    while (left := until - score.jobs) > 0:
        score.clients += 1
        count = min(left, score.rng.choice(CLIENT_JOBS))
        if score.clients % 4:
            with Caller(address, f"soak-{score.clients}") as load:
                load.run(score.specs(count))
                score.count(load, count)
        else:
            leave_and_inherit(address, score, min(count, 2_000))


def leave_and_inherit(address: str, score: Score, count: int) -> None:
    """One that is gone before its answers are, and an heir that gets them all."""
    name = f"soak-{score.clients}"
    with Caller(address, name) as load:
        load.post(score.specs(count), count)
        load.vanish()
    score.vanished += 1
    with Caller(address, name) as heir:
        heir.inherit(load, count)
        score.count(heir, count)


# ---- orders ----


def order(cluster: Cluster, *orders: tuple[str, str]) -> list[int]:
    """Have an operator give each of ``orders``, (action, node), and wait until nodes are as they should be."""

    async def give() -> list[int]:
        async with Client(cluster.address, gateway="operator") as client:
            counts = [(await client.manage(action, node=node)).count for action, node in orders]
            states = {node: "draining" if action == DRAIN else "ready" for action, node in orders if node}
            until = time.monotonic() + ORDER_S
            while time.monotonic() < until:
                found = {node.name: node.state for node in (await client.status()).nodes}
                if states.items() <= found.items():
                    return counts
                await asyncio.sleep(0.02)
            raise SystemExit(f"not within {ORDER_S:g} s: {states}")

    return asyncio.run(give())


def dead_letters(cluster: Cluster, score: Score, dead: int, others: int = 0) -> None:
    """Queue ``dead`` jobs until they are dead letters, and ``others`` behind them; then all of it goes."""
    order(cluster, *[(DRAIN, node) for node in NODES])
    with Caller(cluster.address, "soak-late") as load:
        load.post(score.specs(dead, LATE_S), dead)
        load.expect(dead)
        load.post(score.specs(others), others)
        order(cluster, *[(RESUME, node) for node in NODES])
        load.expect(others)
        score.count(load, dead + others)
        found = sum(one.texts is None for one in load.answers.values())
    (purged,) = order(cluster, (PURGE, ""))
    if (found, purged) != (dead, dead):
        raise SystemExit(f"{dead} jobs were to be dead letters, {found} were, and {purged} were purged")
    score.dead += dead


class Unrest(threading.Thread):
    """Node two comes and goes, until ``stop``."""

    def __init__(self, cluster: Cluster) -> None:
        super().__init__(name="unrest", daemon=True)
        self._cluster = cluster
        self._over = threading.Event()
        self.count = 0
        self.error: BaseException | None = None

    def run(self) -> None:
        steps: Sequence[Callable[[], object]] = (
            lambda: self._anew(self._cluster.end), lambda: order(self._cluster, (RESTART, "two")),
            lambda: self._anew(self._cluster.kill), lambda: order(self._cluster, (DRAIN, "two")),
            lambda: order(self._cluster, (RESUME, "two")),
        )  # fmt: skip
        try:
            for step in itertools.cycle(steps):
                step()
                self.count += 1
                if self.count % len(steps) == 0 and self._over.is_set():
                    return
                self._over.wait(0.5)
        except BaseException as error:  # told by ``stop``
            self.error = error

    def _anew(self, end: Callable[[str], object]) -> None:
        end("two")
        start_node(self._cluster, "two")
        order(self._cluster, (RESUME, "two"))  # waits until it is there

    def stop(self) -> None:
        """End with node two at work. Raises what went wrong."""
        self._over.set()
        self.join(3 * ORDER_S)
        if self.error is not None:
            raise self.error


# ---- the week ----


def start_node(cluster: Cluster, name: str) -> None:
    cluster.node(name, "--engine", "echo", "--max-workers", "1")


def start(cluster: Cluster) -> dict[str, int]:
    """All programs, ready; the ports of those that speak HTTP."""
    for name in ("PER_MINUTE", "CHARS_PER_MINUTE"):
        cluster.environment[f"DOLMETSCH_HTTP_{name}"] = "0"
    cluster.broker()
    cluster.wait_listening()
    for name in (*NODES, WATCHED):
        start_node(cluster, name)
    ports = {"dashboard": free_port(), "http": free_port()}
    where = {name: f"127.0.0.1:{port}" for name, port in ports.items()}
    to = ("--broker", cluster.address)
    history = str(cluster.folder / HISTORY)
    cluster.start("dashboard", "-m", "dashboard", *to, "--listen", where["dashboard"], "--history", history)
    cluster.start("http", "gateway_http.py", *to, "--listen", where["http"])
    cluster.wait_ready(3, 3)
    order(cluster, (DRAIN, WATCHED))
    for url in (f"http://{where['dashboard']}/healthz", f"http://{where['http']}/health"):
        until = time.monotonic() + READY_S
        while True:
            with contextlib.suppress(OSError), urllib.request.urlopen(url, timeout=5.0):
                break
            if time.monotonic() > until:
                raise SystemExit(f"{url} does not answer")
            time.sleep(0.05)
    return ports


def silence(sampler: Sampler, seconds: float) -> Sample:
    """Nobody wants anything; how all of it is then."""
    time.sleep(seconds)
    return sampler.look()


@dataclass
class Week:
    """All that was seen."""

    score: Score
    samples: list[Sample]
    first: Sample  # once all had run for a while
    emptied: Sample  # in the silence after the backlog
    last: Sample  # in the silence at the end
    churn: list[Sample]
    beats: Heartbeats
    seen: dict[str, int]
    changes: int
    backlog: int
    rate: float
    log_bytes: int

    def lines(self) -> dict[str, Line]:
        """Of each program that ran from the beginning to the end."""
        half = [one for one in self.churn if one.jobs >= (self.churn[0].jobs + self.churn[-1].jobs) / 2]
        stayed = [name for name, use in self.first.uses.items() if self.last.uses[name].pid == use.pid]
        return {name: line_through([(one.jobs, one.uses[name].rss) for one in half]) for name in stayed}


def live(cluster: Cluster, jobs: int, backlog: int, *, quick: bool) -> Week:
    """The week."""
    score, ports = Score(), start(cluster)
    sampler, beats = (
        Sampler(cluster, lambda: score.jobs, cluster.folder / HISTORY, 0.25 if quick else 1.0),
        Heartbeats(cluster.address, WATCHED),
    )
    sampler.start()
    beats.start()
    dead_letters(cluster, score, backlog // 100, backlog)
    emptied = silence(sampler, SILENCE_S)
    first, done, started = emptied, score.jobs, time.monotonic()
    with visitors(ports) as seen:
        unrest = Unrest(cluster)
        unrest.start()
        came = len(sampler.samples)
        for _ in range(ROUNDS):
            come_and_go(cluster.address, score, (jobs - done) // ROUNDS)
            if first is emptied:
                first = sampler.look()
        seconds = time.monotonic() - started
        churn = [one for one in sampler.samples[came:] if {"one", "broker"} <= one.uses.keys()]
        unrest.stop()
        dead_letters(cluster, score, 100)
    last = silence(sampler, SILENCE_S)
    sampler.stop()
    beats.stop()
    logs = sum(path.stat().st_size for path in cluster.folder.glob("*.log"))
    return Week(
        score, sampler.samples, first, emptied, last, churn, beats, seen, unrest.count, backlog,
        (jobs - done) / seconds, logs,
    )  # fmt: skip


def table(week: Week, *, quick: bool) -> list[tuple[str, str, str, str]]:
    """What is to be said of it: what, figure, target and verdict."""
    rows = [("what", "figure", "target", "verdict")]

    def row(what: str, figure: str, target: str = "", well: bool = True) -> None:
        rows.append((what, figure, target, "" if not target else "yes" if well else "NO"))

    lines = week.lines()
    for name, line in lines.items():
        size = week.last.uses[name].rss / MIB
        figure = f"{line.per_100k:+.3f} MiB per 100 000 jobs; {line.growth:+.2f} of {size:.0f} MiB"
        target = f"{max(GROWTH_MIB, 2 * line.noise):.1f} MiB (noise {line.noise:.2f})"
        row(f"growth of {name}", figure, "" if quick else target, line.flat)
    for name in lines:
        uses = [one.uses[name] for one in week.samples if name in one.uses]
        first, last, most = week.first.uses[name].fds, week.last.uses[name].fds, max(use.fds for use in uses)
        figure = f"{first} first, {last} last, {most} at most; threads {max(use.threads for use in uses)}"
        row(f"descriptors of {name}", figure, f"last {first + FDS_MORE}", last <= first + FDS_MORE)
    most, log = max(one.ledger for one in week.samples), max(one.log for one in week.samples)
    row(f"ledger, {week.backlog} jobs queued", f"{most / MIB:.1f} MiB, and its log at most {log / MIB:.1f} MiB")
    for what, sample in (("  once they are gone", week.emptied), ("  at the end", week.last)):
        size = (sample.ledger + sample.log) / MIB
        row(what, f"{size:.2f} MiB, its log {sample.log} bytes", f"{LEDGER_MIB:g} MiB", size <= LEDGER_MIB)
    row("the dashboard's history", f"{week.last.history / MIB:.2f} MiB")
    cuts = statistics.quantiles(week.beats.jitter_ms, n=100)
    jitter = f"{cuts[49]:.0f} and {cuts[98]:.0f} ms, of {len(week.beats.jitter_ms)} heartbeats"
    row("heartbeat jitter, p50 and p99", jitter, f"p99 {JITTER_MS:g} ms", cuts[98] <= JITTER_MS)
    row("longest silence of a node, those that were killed too", f"{week.beats.silence_s:.2f} s")
    score, seen = week.score, week.seen
    row("jobs a second, while all comes and goes", f"{week.rate:.0f}")
    row("jobs answered; lost, answered twice", f"{score.jobs}; {score.lost}, {score.double}", "0, 0",
        (score.lost, score.double) == (0, 0))  # fmt: skip
    row("clients; without a goodbye", f"{score.clients}; {score.vanished}")
    row("dead letters made and purged; changes to node two", f"{score.dead}; {week.changes}")
    asked = f"{seen['answered']}, {seen['hung_up']} of {seen['asked']}"
    row("HTTP requests answered, hung up", asked, "all", seen["answered"] + seen["hung_up"] == seen["asked"])
    row("looks at the dashboard; in vain", f"{seen['polls']}; {seen['blind']}", "0 in vain", not seen["blind"])
    row("written to all logs", f"{week.log_bytes / 1024:.0f} KiB")
    return rows


def main() -> None:
    """Live through it and tell."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="under 40 seconds: too few jobs to see slow growth")
    parser.add_argument("--jobs", type=int, default=0, metavar="N", help="in all (1 000 000, quick: 100 000)")
    arguments = parser.parse_args()
    quick = arguments.quick
    backlog = 20_000 if quick else 100_000
    jobs = max(arguments.jobs or (100_000 if quick else 1_000_000), 2 * backlog)
    with Cluster() as cluster:
        week = live(cluster, jobs, backlog, quick=quick)
    rows, lines = table(week, quick=quick), week.lines()
    cuts = statistics.quantiles(week.beats.jitter_ms, n=100)
    figures = {
        "jobs": week.score.jobs, "lost": week.score.lost, "double": week.score.double, "jobs_per_s": round(week.rate),
        "growth_mib_per_100k": {name: round(line.per_100k, 3) for name, line in lines.items()},
        "noise_mib": {name: round(line.noise, 3) for name, line in lines.items()},
        "fds": {name: [week.first.uses[name].fds, week.last.uses[name].fds] for name in lines},
        "ledger_mib_most": round(max(one.ledger for one in week.samples) / MIB, 1),
        "ledger_mib_emptied": round(week.emptied.ledger / MIB, 2),
        "ledger_mib_end": round(week.last.ledger / MIB, 2),
        "heartbeat_jitter_ms_p50": round(cuts[49], 1), "heartbeat_jitter_ms_p99": round(cuts[98], 1),
        "well": not any(row[-1] == "NO" for row in rows), "quick": quick,
    }  # fmt: skip
    finish("soak: 1 broker, 3 echo nodes, dashboard, HTTP gateway, clients that come and go", rows, figures)
    sys.exit(0 if figures["well"] else 1)


if __name__ == "__main__":
    main()
