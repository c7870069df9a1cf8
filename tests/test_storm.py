"""A live broker in a storm: strangers do their worst, and no node misses a heartbeat, no job is lost or done twice."""

from __future__ import annotations

import threading
import time
from pathlib import Path
from typing import Self

import psutil
import pytest

from fuzz.storm import zmtp
from fuzz.storm.attacks import crowd
from fuzz.storm.storm import Weather, watched, weather
from tests.conftest import wait_until

SPARE = 40  # descriptors that a broker has left
MORE = 120  # connections that strangers make then: no more than wait in the listener's queue
LOOK_S = 0.05
STALL_S = 1.5  # half of what a node may be silent
OUT_S = 2.5  # how long they hold them: several heartbeats


class Stalls:
    """Times at which this whole machine stood still, as virtual ones do: then nobody could have kept a heartbeat."""

    def __enter__(self) -> Self:
        self.longest_s = 0.0
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join(10)

    def _look(self) -> None:
        before = time.monotonic()
        while not self._over.wait(LOOK_S):
            now = time.monotonic()
            self.longest_s = max(self.longest_s, now - before - LOOK_S)
            before = now

    def excuse(self, bad: bool) -> None:
        """Skip the rest where it went badly, and that says nothing."""
        if bad and self.longest_s > STALL_S:
            pytest.skip(f"this machine stood still for {self.longest_s:.1f} s meanwhile")


def test_a_storm_on_a_broker_without_keys(tmp_path: Path) -> None:
    with weather(tmp_path, keys=False) as made:
        stalls = Stalls()
        with stalls:
            report = watched(made, lambda: _all(made))
    stalls.excuse(bool(report.problems))
    assert not report.problems, str(report)
    assert report.attacks == 14 and report.seen.descriptors > 500, "a thousand connections were open at once"


def test_a_storm_on_a_broker_with_keys_that_runs_out_of_descriptors(tmp_path: Path) -> None:
    with weather(tmp_path, keys=True, size=0.2) as made:

        def attacks() -> None:
            _all(made)
            lines = made.cluster.log("broker").count("\n")
            _take_descriptors(made)
            assert made.cluster.log("broker").count("\n") <= lines + 2, made.cluster.log("broker")[-2000:]

        stalls = Stalls()
        with stalls:
            report = watched(made, attacks)
        log = made.cluster.log("broker")
    stalls.excuse(bool(report.problems))
    assert not report.problems, str(report)
    assert report.attacks == 21
    assert "is not on the allow-list (cluster)" in log and "pending, waits for approval" in log


def _take_descriptors(made: Weather) -> None:
    """Strangers take all that the broker has left; the nodes must not mind."""
    broker = made.broker
    limit, hard = broker.num_fds() + SPARE, broker.rlimit(psutil.RLIMIT_NOFILE)[1]
    broker.rlimit(psutil.RLIMIT_NOFILE, (limit, hard))
    with crowd(made.place.main, MORE, zmtp.greeting(b"CURVE")):
        wait_until(lambda: broker.num_fds() >= limit, 5, "it has none left")
        time.sleep(OUT_S)  # the state that is looked at, not a wait for something
    broker.rlimit(psutil.RLIMIT_NOFILE, (hard, hard))


def _all(made: Weather) -> None:
    for attack, port in made.plan():
        made.strike(attack, port)


def test_a_storm_that_takes_a_node_is_seen(tmp_path: Path) -> None:
    with weather(tmp_path, keys=False) as made:
        report = watched(made, lambda: made.cluster.kill("one"))
    assert any("one: lost" in problem for problem in report.problems), str(report)
