"""One storm: a cluster, the attacks one after the other, the lookout's verdict."""

from __future__ import annotations

import contextlib
import random
import resource
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

import psutil

from bench.cluster import Cluster
from dolmetsch.transport import telemetry_address
from fuzz.storm.attacks import (
    STRANGERS,
    Attack,
    Place,
    one_after_the_other,
    random_frames,
    slow_reader,
    subscriptions,
    unknown_keys,
)
from fuzz.storm.lookout import Lookout, Seen, Trickle

NODES: Final = ("one", "two")
DESCRIPTORS: Final = 4096  # of this process: a thousand connections and then some
LOST_S: Final = 3.0  # scheduler.lost_after_s: a node that is silent for so long is given up
GAP_S: Final = 3.0  # between two TELEMETRYs, one a second: who waits longer takes the broker for dead
RSS_GROWTH: Final = 64 * 2**20
LOG_LINES: Final = 60  # of the broker in a minute, however many strangers: logs.STRANGERS for peers, and for keys
AFTER: Final = 4  # TELEMETRYs, one a second, that are heard after the last attack: a node is lost after three
SETTLE_S: Final = 10.0  # after the storm: until the connections that were closed are gone


@dataclass(frozen=True, slots=True)
class Report:
    """What was seen, and all that was wrong."""

    seconds: float
    attacks: int
    answered: int
    slowest_s: float
    seen: Seen
    grown_bytes: int
    left_descriptors: int
    problems: tuple[str, ...]

    def __str__(self) -> str:
        return (
            f"{self.attacks} attacks in {self.seconds:.0f} s;"
            f" {self.answered} jobs answered once each, the slowest in {self.slowest_s:.2f} s;"
            f" nodes silent for at most {self.seen.silent_s:.1f} s, telemetry for {self.seen.longest_gap_s:.1f} s;"
            f" broker +{self.grown_bytes / 2**20:.0f} MiB, at most {self.seen.descriptors} descriptors,"
            f" {self.left_descriptors:+d} at the end" + "".join(f"\nWRONG: {one}" for one in self.problems)
        )


@dataclass
class Weather:
    """A cluster in a storm. Make one with ``weather``."""

    cluster: Cluster
    place: Place
    broker: psutil.Process
    attacks: int = 0

    @property
    def over(self) -> bool:
        """Whether the broker has ended."""
        return self.cluster.programs["broker"].poll() is not None

    def strike(self, attack: Attack, port: int) -> None:
        """One attack. Raises ``AssertionError`` when the broker did not even answer."""
        self.attacks += 1
        attack(self.place, port)

    def plan(self) -> Iterator[tuple[Attack, int]]:
        """Every attack, at each port where it belongs."""
        place = self.place
        ports = [port for port in (place.main, place.door, place.telemetry) if port]
        yield from ((attack, port) for attack in STRANGERS for port in ports)
        yield one_after_the_other, place.main
        if place.keys is not None:
            yield from ((unknown_keys, port) for port in (place.main, place.door))
        yield from ((attack, place.main) for attack in (random_frames, slow_reader))
        yield subscriptions, place.telemetry


@contextlib.contextmanager
def many_descriptors() -> Iterator[None]:
    """This process may have DESCRIPTORS open, as far as the system lets it."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = DESCRIPTORS if hard == resource.RLIM_INFINITY else min(DESCRIPTORS, hard)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, wanted), hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@contextlib.contextmanager
def weather(folder: Path | None = None, *, keys: bool, size: float = 1.0, number: int = 0) -> Iterator[Weather]:
    """A broker and two echo nodes, ready; everything is ended after."""
    with Cluster(folder) as cluster, many_descriptors():
        if keys:
            cluster.secure()
        process = cluster.broker()
        cluster.wait_listening()
        for name in NODES:
            cluster.node(name, "--engine", "echo", "--max-workers", "1")
        cluster.wait_ready(len(NODES), len(NODES))
        port = int(cluster.address.rpartition(":")[2])
        place = Place(
            cluster.address, port, port + 1, port + 2 if keys else 0, cluster.keys, size, random.Random(number)
        )
        yield Weather(cluster, place, psutil.Process(process.pid))


def watched(made: Weather, attacks: Callable[[], None]) -> Report:
    """Let ``attacks`` happen while a trickle flows and the lookout looks; the verdict on it."""
    cluster, broker = made.cluster, made.broker
    trickle = Trickle(cluster.address, cluster.keys)
    started = time.monotonic()
    lookout = Lookout(telemetry_address(cluster.address), cluster.keys, broker)
    trickle.start()
    lookout.start()
    _until(lambda: lookout.seen.heard >= 2 and trickle.answered >= 3, SETTLE_S)
    descriptors, rss = broker.num_fds(), broker.memory_info().rss
    try:
        attacks()
        heard, answered = lookout.seen.heard + AFTER, trickle.answered + AFTER
        _until(lambda: made.over or (lookout.seen.heard >= heard and trickle.answered >= answered), SETTLE_S)
        _until(lambda: made.over or broker.num_fds() <= descriptors + 2, SETTLE_S)
        left = 0 if made.over else broker.num_fds() - descriptors
    finally:
        trickle.end()
        lookout.end()
    seen = lookout.seen
    report = Report(
        time.monotonic() - started, made.attacks, trickle.answered, trickle.slowest_s, seen, seen.rss_bytes - rss, left,
        (),
    )  # fmt: skip
    return replace(report, problems=tuple(_problems(made, report, trickle)))


def _problems(made: Weather, report: Report, trickle: Trickle) -> Iterator[str]:
    """Everything that may not be."""
    cluster, seen = made.cluster, report.seen
    if trickle.problem or trickle.is_alive():
        yield f"the trickle: {trickle.problem or 'it does not end'}"
    if made.over:
        yield f"the broker ended: {cluster.log('broker')[-500:]}"
        return
    if seen.departed:
        yield f"nodes left: {sorted(seen.departed)}"
    if {name: len(found) for name, found in seen.incarnations.items()} != dict.fromkeys(NODES, 1):
        yield f"not the same nodes all the time: {seen.incarnations}"
    if seen.silent_s >= LOST_S or seen.longest_gap_s >= GAP_S:
        yield f"a silence of {max(seen.silent_s, seen.longest_gap_s):.1f} s"
    for name in NODES:
        if "does not answer" in cluster.log(name):
            yield f"{name} took the broker for dead"
    if report.grown_bytes > RSS_GROWTH:
        yield f"the broker grew by {report.grown_bytes >> 20} MiB"
    if report.left_descriptors > 2:
        yield f"{report.left_descriptors} descriptors are left open"
    log = cluster.log("broker")
    lines = log.count("\n")
    if "Traceback" in log or lines > LOG_LINES * (1 + report.seconds / 60):
        yield f"the broker's log: {lines} lines, ending {log[-300:]}"


def _until(true: Callable[[], bool], within_s: float) -> None:
    """Wait for ``true()``, at most so long: what is still wrong then is seen in the report."""
    until = time.monotonic() + within_s
    while not true() and time.monotonic() < until:
        time.sleep(0.02)


def storm(seconds: float, *, keys: bool, size: float = 1.0) -> Report:
    """All attacks, again and again, for so long; the report on them."""
    number = random.randrange(2**32)
    print(f"storm {number}: {seconds:g} s, keys: {keys}", flush=True)
    with weather(keys=keys, size=size, number=number) as made:

        def attacks() -> None:
            until = time.monotonic() + seconds
            while time.monotonic() < until and not made.over:
                for attack, port in made.plan():
                    made.strike(attack, port)

        return watched(made, attacks)
