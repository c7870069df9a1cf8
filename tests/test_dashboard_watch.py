"""The watch without a socket: attendance, problems, the job book, and snapshots by a clock of our own."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import msgspec
import pytest
from msgspec.structs import replace

from bench.telemetry import NO_COUNTS, Scene, dead, job, node
from dashboard import attendance, jobbook
from dashboard.attendance import Attendance
from dashboard.jobbook import JobBook
from dashboard.snapshot import Snapshot
from dashboard.watch import Watch
from dolmetsch import __version__
from dolmetsch.reports import NO_TEMPERATURE_C, ChildStatus, Departed, GatewayStatus, Waiting

WALL = 1_800_000_000.0
OLD = replace(node("pi-1").about, version="0.0.9, Python 3.11.2")


class Clock:
    """Tells a scene to a watch, second by second."""

    def __init__(self, scene: Scene) -> None:
        self.scene = scene
        self.now = 1000.0
        self.watch = Watch("tcp://pi-0:5570", self.now, self.wall)
        scene.started = 0.0

    @property
    def wall(self) -> float:
        return WALL + self.now

    def tell(self, seconds: int = 1) -> Snapshot:
        for _ in range(seconds):
            self.now += 1.0
            self.watch.take(replace(self.scene.telemetry(), up_s=self.now), self.now, self.wall)
        return self.look()

    def look(self, later_s: float = 0.0) -> Snapshot:
        self.now += later_s
        return self.watch.snapshot(self.now, self.wall)


def cluster(snapshot: Snapshot, mode: str = "open") -> dict[str, Any]:
    found = msgspec.json.decode(snapshot.cluster[mode].made().body)
    assert isinstance(found, dict)
    return found


def words(snapshot: Snapshot) -> list[str]:
    return [problem["text"] for problem in cluster(snapshot)["problems"]]


def states(snapshot: Snapshot) -> dict[str, str]:
    return {name: str(one["state"]) for name, one in snapshot.nodes.items()}


@pytest.fixture
def clock() -> Clock:
    return Clock(Scene(nodes=(node("pi-1"), node("pi-2"))))


# ---- silence ----


def test_before_the_first_word_the_page_is_grey_since_the_start() -> None:
    clock = Clock(Scene())
    seen = cluster(clock.look(0.5))
    assert (seen["alive"], seen["at"], seen["since"], seen["broker"]) == (False, None, WALL + 1000.0, None)
    assert seen["problems"] == [
        {"level": "error", "text": "no word from the broker at tcp://pi-0:5570: is it running?", "node": None}
    ]
    assert clock.look().unready == "no word from the broker"


def test_a_broker_that_falls_silent_is_grey_after_three_seconds_and_back_with_its_next_word(clock: Clock) -> None:
    assert cluster(clock.tell(5))["alive"]
    heard = clock.wall
    assert clock.look(2.9).alive
    seen = cluster(clock.look(0.2))
    assert (seen["alive"], seen["since"], seen["at"]) == (False, heard, heard)
    assert len(seen["nodes"]) == 2 and seen["totals"]["translations_per_s"] == 0.0, "what was known stays, rates do not"
    assert cluster(clock.look(3600))["since"] == heard
    back = cluster(clock.tell(2))
    assert back["alive"] and back["since"] is None and back["problems"] == []


def test_a_wall_clock_that_is_set_does_not_decide(clock: Clock) -> None:
    clock.tell()
    assert clock.watch.snapshot(clock.now, clock.wall + 86_400).alive
    assert clock.watch.snapshot(clock.now, clock.wall - 86_400).alive


def test_a_broker_that_is_not_understood_is_said_so() -> None:
    clock = Clock(Scene())
    clock.watch.refuse("unknown kind of message")
    assert words(clock.look()) == ["the broker is not understood (unknown kind of message): update it or the dashboard"]


# ---- numbers ----


def test_totals_rates_and_the_first_bots_stats(clock: Clock) -> None:
    clock.scene.jobs_a_turn = 30
    clock.scene.counts = replace(NO_COUNTS, queued_interactive=2, queued_bulk=5, leased=12)
    snapshot = clock.tell(30)
    totals = cluster(snapshot)["totals"]
    assert (totals["nodes_up"], totals["workers"], totals["servers"]) == (2, 6, 2)
    assert (totals["queued"], totals["queued_interactive"], totals["in_flight"]) == (7, 2, 12)
    assert (totals["translations_per_s"], totals["chars_per_s"], totals["done"]) == (30.0, 1260.0, 900)
    assert (totals["p50_ms"], totals["p95_ms"], totals["bulk_p95_ms"], totals["error_rate"]) == (17.5, 19.8, None, 0.0)
    stats = dict(snapshot.stats)
    assert stats.pop("timestamp") == "2027-01-15T08:17:10+00:00"
    assert stats == {
        "cpu_percent": 71.5, "ram_percent": 31.0, "queue_count": 7, "active_jobs": 12, "avg_response_time": 0.016,
        "server_count": 2,
    }  # fmt: skip


def test_what_a_board_does_not_have_is_null(clock: Clock) -> None:
    clock.scene.nodes = (node("pc", temperature_c=NO_TEMPERATURE_C),)
    clock.scene.gateways = (GatewayStatus("g", "up", "http", 0, -1.0, 0, 0, 0, 0, 0.1),)
    seen = cluster(clock.tell())
    assert seen["nodes"][0]["temperature_c"] is None and seen["gateways"][0]["latency_ms"] is None


def test_the_page_says_what_each_may_do(clock: Clock) -> None:
    snapshot = clock.tell()
    assert {mode: cluster(snapshot, mode)["actions"] for mode in snapshot.cluster} == {
        "open": "open", "token": "token", "off": "off",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({}, ""),
        ({"nodes": ()}, "no node is ready"),
        ({"nodes": (node("pi-1", state="draining"),)}, "no node is ready"),
        ({"nodes": (node("pi-1", workers=0),)}, "no node has a worker"),
        ({"nodes": (node("pi-1", routes=()),)}, "no node has a worker"),
        ({"draining": True}, "the broker is stopping"),
    ],
)
def test_readiness(clock: Clock, changes: dict[str, Any], why: str) -> None:
    for name, value in changes.items():
        setattr(clock.scene, name, value)
    assert clock.tell().unready == why


# ---- nodes ----


def test_a_node_that_vanishes_is_lost_until_it_comes_back(clock: Clock) -> None:
    clock.tell(10)
    clock.scene.nodes = (node("pi-1"),)
    snapshot = clock.tell()
    assert states(snapshot) == {"pi-1": "ready", "pi-2": "lost"}
    assert words(snapshot) == ["pi-2 is lost: not heard for 1 s"]
    assert snapshot.totals["nodes_lost"] == 1 and snapshot.totals["workers"] == 3
    assert words(clock.tell(600)) == ["pi-2 is lost: not heard for 10 min"]
    clock.scene.nodes = (node("pi-1"), node("pi-2", incarnation="new"))
    assert states(clock.tell()) == {"pi-1": "ready", "pi-2": "ready"}


def test_a_lost_node_is_forgotten_after_a_day_and_one_that_left_after_ten_minutes(clock: Clock) -> None:
    clock.tell(10)
    clock.scene.nodes = ()
    clock.scene.departed = (Departed("pi-1", "left", "its node said goodbye", 0.5), Departed("pi-2", "lost", "", 0.5))
    snapshot = clock.tell()
    assert states(snapshot) == {"pi-1": "left", "pi-2": "lost"}
    assert not [text for text in words(snapshot) if text.startswith("pi-1")], "it left because somebody wanted it"
    clock.scene.departed = ()
    clock.now += attendance.LEFT_S
    assert states(clock.tell()) == {"pi-2": "lost"}
    clock.now += attendance.LOST_S
    assert states(clock.tell()) == {}


def test_a_node_that_was_gone_before_we_listened_is_told_of_too() -> None:
    clock = Clock(Scene(departed=(Departed("pi-9", "lost", "its node's connection broke", 240.0),)))
    snapshot = clock.tell()
    assert states(snapshot) == {"pi-9": "lost"}
    assert "pi-9 is lost: not heard for 4 min (its node's connection broke)" in words(snapshot)


def test_after_the_brokers_restart_nodes_have_a_moment_to_come_back() -> None:
    here = Attendance()
    scene = Scene(nodes=(node("pi-1"),))
    here.take(scene.telemetry(), 0.0)
    scene.nodes = ()
    here.take(replace(scene.telemetry(), up_s=2.0), 3.0)
    assert [sight.state for sight in here.sights()] == ["ready"]
    here.take(replace(scene.telemetry(), up_s=attendance.GRACE_S), 7.0)
    assert [sight.state for sight in here.sights()] == ["lost"]


def test_no_more_names_are_remembered_than_there_may_be() -> None:
    here = Attendance()
    for number in range(2 * attendance.MAX_NODES):
        here.take(Scene(nodes=(node(f"pi-{number}"),)).telemetry(), float(number))
    here.take(Scene().telemetry(), 10_000.0)
    names = [sight.report.name for sight in here.sights()]
    assert len(names) == attendance.MAX_NODES and f"pi-{2 * attendance.MAX_NODES - 1}" in names


# ---- problems ----


def child(restarts: int) -> tuple[ChildStatus, ...]:
    return (ChildStatus(9, 1, "busy", 10**8, 1, restarts, 1),)


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"throttled": True, "temperature_c": 82.4}, "pi-kitchen is throttled: 82 °C"),
        (
            {"throttled": True, "temperature_c": NO_TEMPERATURE_C},
            "pi-kitchen is throttled: too hot, or its power supply is too weak",
        ),
        ({"temperature_c": 80.0}, "pi-kitchen is hot: 80 °C"),
        ({"ram_percent": 97.2}, "pi-kitchen has hardly any memory left: 97 % used"),
        ({"workers": 0}, "pi-kitchen has no worker"),
        ({"about": OLD}, f"pi-kitchen runs version 0.0.9, the broker {__version__}"),
    ],
)  # fmt: skip
def test_a_nodes_problem_in_words(clock: Clock, changes: dict[str, Any], text: str) -> None:
    clock.scene.nodes = (node("pi-1"), node("pi-kitchen", **changes))
    assert cluster(clock.tell())["problems"] == [{"level": "warning", "text": text, "node": "pi-kitchen"}]


def test_children_that_keep_dying_are_a_problem_for_a_minute(clock: Clock) -> None:
    clock.scene.nodes = (node("pi-1", children=child(40)),)
    assert words(clock.tell()) == [], "that was before"
    clock.scene.nodes = (node("pi-1", children=child(44)),)
    assert words(clock.tell()) == ["pi-1: workers died or were restarted 4 times in a minute"]
    assert words(clock.tell(61)) == []


def of_the_cluster() -> Iterator[Any]:
    yield {"draining": True}, "the broker is stopping: it takes no more jobs"
    yield {"disk_free_bytes": 600 * 2**20}, "the broker's disk is nearly full: 600 MiB are free"
    yield {"nodes": ()}, "no node is here, so nothing can be translated"
    yield {"nodes": (node("pi-1", state="draining"),)}, "every node drains, so nothing can be translated"
    yield {"dead": (dead(1),)}, "1 dead letter waits to be requeued or purged"
    silent = GatewayStatus("discord", "silent", "discord", 2, 48.5, 1, 20, 3, 4, 40.0)
    yield {"gateways": (silent,)}, "the gateway discord is silent: not heard for 40 s"
    yield {"gateways": (replace(silent, kind="cli"),)}, None
    slow = replace(silent, state="up", seen_s_ago=0.2, latency_ms=4200.0)
    yield {"gateways": (slow,)}, "the gateway discord is 4200 ms away from its service"
    yield {"jobs_a_turn": 0, "counts": replace(NO_COUNTS, queued_bulk=4)}, "4 jobs wait, and none was done for 40 s"
    yield (
        {"jobs_a_turn": 2, "counts": replace(NO_COUNTS, queued_interactive=400)},
        "people wait: 400 jobs queued, about 3 min of work",
    )

    stranger = Waiting("pi4", "192.0.2.4", "5e2f-90c1-7a44-0b3d")
    yield {"waiting": (stranger,)}, "a computer called pi4 at 192.0.2.4 waits to be let in"
    yield {"waiting": (stranger, replace(stranger, name="pi5"))}, "2 computers wait to be let in"
    told = {
        " ": "?",
        "x" * 128: f"\u2068{'x' * 39}…\u2069",
        "מחשב": "\u2068מחשב\u2069",
        "<b>pi4</b>": "<b>pi4</b>",  # the page puts it in as text
    }
    for name, words in told.items():
        yield {"waiting": (replace(stranger, name=name),)}, f"a computer called {words} at 192.0.2.4 waits to be let in"


@pytest.mark.parametrize(("changes", "text"), list(of_the_cluster()))
def test_a_problem_of_the_cluster_in_words(changes: dict[str, Any], text: str | None) -> None:
    clock = Clock(Scene(nodes=(node("pi-1"),)))
    for name, value in changes.items():
        setattr(clock.scene, name, value)
    found = [one for one in words(clock.tell(41)) if not one.startswith("pi-1 is lost")]
    assert found == ([text] if text else [])


def test_failures_and_bad_frames_are_said_for_a_minute(clock: Clock) -> None:
    clock.tell(30)
    counts = clock.scene.counts
    clock.scene.counts = replace(counts, failed=counts.failed + 60, bad_frames=2)
    found = cluster(clock.tell())["problems"]
    assert [(one["level"], one["text"]) for one in found] == [
        ("error", "40 % of the jobs of the last minute failed"),
        ("warning", "the broker did not understand 2 messages in a minute"),
    ]
    assert words(clock.tell(90)) == []


def test_errors_stand_before_warnings(clock: Clock) -> None:
    clock.scene.nodes = (node("a", throttled=True), node("b"))
    clock.tell(10)
    clock.scene.nodes = (node("a", throttled=True),)
    assert [one["level"] for one in cluster(clock.tell())["problems"]] == ["error", "warning"]


# ---- jobs ----


def jobs(snapshot: Snapshot, kind: str) -> list[dict[str, Any]]:
    found = msgspec.json.decode(snapshot.jobs[kind].made().body)
    assert found["kind"] == kind
    return list(found["jobs"])


def test_jobs_are_listed_newest_or_slowest_first_and_bounded(clock: Clock) -> None:
    snapshot = clock.tell(200)
    recent, slow = jobs(snapshot, "recent"), jobs(snapshot, "slow")
    assert len(recent) == len(slow) == jobbook.SHOWN
    assert recent[0]["ended_at"] > recent[-1]["ended_at"]
    assert recent[0]["total_ms"] == 24 == sum(recent[0]["stages"].values())
    assert recent[0]["story"][0] == {"at_ms": 2, "what": "leased to pi-1"}
    assert [one["total_ms"] for one in slow] == sorted([one["total_ms"] for one in slow], reverse=True)


def test_the_slowest_are_those_of_the_last_hour() -> None:
    book, scene = JobBook(), Scene(jobs_a_turn=0)
    book.take(replace(scene.telemetry(), jobs=(job(1, decode_ms=90_000),)), 0.0, WALL)
    book.take(replace(scene.telemetry(), jobs=(job(2),)), 60.0, WALL + 60)
    assert [one["total_ms"] for one in book.lists()["slow"]] == [90_009, 24]
    book.take(scene.telemetry(), jobbook.SLOW_S, WALL + jobbook.SLOW_S)
    assert [one["total_ms"] for one in book.lists()["slow"]] == [24]


def test_the_edition_changes_with_the_lists_and_only_then(clock: Clock) -> None:
    clock.scene.jobs_a_turn = 0
    first = clock.tell()
    second = clock.tell()
    assert cluster(first)["jobs_edition"] == cluster(second)["jobs_edition"]
    assert first.jobs["recent"] is second.jobs["recent"], "so that its ETag says so"
    clock.scene.dead = (dead(1, ended_s_ago=5.0), dead(2, ended_s_ago=1.0))
    third = clock.tell()
    assert cluster(third)["jobs_edition"] != cluster(second)["jobs_edition"]
    assert [one["id"][-1] for one in jobs(third, "dead")] == ["2", "1"]
    clock.scene.dead = (dead(1, ended_s_ago=6.01), dead(2, ended_s_ago=2.02))
    assert cluster(clock.tell())["jobs_edition"] == cluster(third)["jobs_edition"], "the same letters, a second later"
    clock.scene.dead = (dead(1, ended_s_ago=7.0), dead(2, ended_s_ago=0.1))
    assert cluster(clock.tell())["jobs_edition"] != cluster(third)["jobs_edition"], "it was sent round and died again"
