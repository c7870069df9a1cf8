"""The pool with real child processes, real sockets, real SIGKILL: children that start, hang, die and are replaced."""

from __future__ import annotations

import os
import random
import select
import signal
import sys
from collections import Counter
from importlib.util import find_spec
from pathlib import Path

import msgspec
import psutil
import pytest
from msgspec.structs import replace

from dolmetsch import pool as pool_module
from dolmetsch.child import BACKOFF_MAX_S, Slot
from dolmetsch.config import EngineConfig, PoolConfig
from dolmetsch.errors import LocalError
from dolmetsch.pool import Pool, PoolOutcome
from tests.pools import ENGINE, LIMIT_S, QUIET, Make, Rig, job, jobs, make

__all__ = ["make"]  # fixtures


def test_translates_and_reports(make: Make) -> None:
    rig = make().ready(1)
    assert rig.pool.chars_per_s == 0.0 and rig.pool.routes == {"de→en": "fake-1"}
    rig.submit(job("a", "guten Tag"), job("b", "refuse"))
    assert {one.key: replace(one, wait_s=0.0, work_s=0.0) for one in rig.ended(2)} == {
        b"a": PoolOutcome(b"a", ("GUTEN TAG",), "fake-1", "", "", False),
        b"b": PoolOutcome(b"b", None, "", "no_route", "no such route", False),
    }
    (child,) = rig.pool.children()
    assert (child.state, child.core, child.jobs_done, child.restarts, child.in_flight) == ("idle", 0, 2, 0, 0)
    assert child.rss_bytes > 1_000_000 and child.stalled_s == 0.0
    rate = rig.pool.chars_per_s
    assert rate > 0 and rig.pool.jobs_per_s > 0
    rig.ahead_s += 3600
    rig.turn()
    assert rig.pool.chars_per_s == rate  # an idle node keeps its last rate


def test_every_job_comes_out_once_under_random_kills(make: Make) -> None:
    rig = make(workers=3).ready(3)
    names = [f"{number}" for number in range(600)]
    rig.submit(*(job(name, "sleep:0.0005", chars=20) for name in names))
    chance = random.Random(1)
    for threshold in (20, 150, 300, 450):
        rig.until(lambda at=threshold: len(rig.outcomes) >= at and rig.pool.ready > 0)  # type: ignore[misc]
        victim = chance.choice([child.pid for child in rig.pool.children() if child.state in ("busy", "idle")])
        os.kill(victim, signal.SIGKILL)
    rig.ended(600)
    rig.until(lambda: rig.pool.ready == 3)
    assert Counter(one.key.decode() for one in rig.outcomes) == Counter(names)
    failed = [one for one in rig.outcomes if one.texts is None]
    assert len(failed) <= 4 * 4  # a batch of four for each kill
    assert all(one.code == "child_crashed" and one.retry and "SIGKILL" in one.detail for one in failed)
    assert sum(child.restarts for child in rig.pool.children()) == 4
    assert rig.pool.queued == rig.pool.in_flight == rig.pool.queued_chars == 0


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("crash", "SIGKILL"),
        ("exit:5", "exit status 5"),
        ("garble", "not the protocol"),
        (
            "mangle",
            "not [key, texts, model, code, detail]",
        ),  # the broker would refuse what became of it, again and again
    ],
)
def test_only_the_batch_that_was_begun_is_blamed(make: Make, text: str, words: str) -> None:
    rig = make("--batch", "1").ready(1)
    rig.submit(job("bad", text), *jobs(3))
    rig.ended(4)
    bad, *good = sorted(rig.outcomes, key=lambda one: one.key)
    assert (bad.key, bad.texts, bad.code, bad.retry) == (b"bad", None, "child_crashed", True)
    assert words in bad.detail and words in rig.pool.last_death
    assert [one.texts for one in good] == [("HALLO",)] * 3


def test_a_stuck_child_is_killed_and_the_rest_done_in_order(make: Make) -> None:
    rig = make("--batch", "1", job_limit_s=10.0).ready(1)
    rig.submit(job("bad", "hang"), *jobs(5))
    rig.until(lambda: rig.pool.in_flight == 6 and rig.pool.next_deadline() is not None)
    (stuck,) = rig.pool.children()
    rig.turn()
    assert stuck.state == "busy" and not rig.outcomes
    begun = rig.pool._slots[0].child
    rig.until(lambda: begun is not None and begun.batch == (b"bad",))
    rig.ahead_s += 10.1
    rig.ended(6)
    assert rig.outcomes[0].key == b"bad" and rig.outcomes[0].code == "child_timeout" and rig.outcomes[0].retry
    assert "10 s" in rig.outcomes[0].detail
    assert [one.key for one in rig.outcomes[1:]] == [each.key for each in jobs(5)]
    assert not psutil.pid_exists(stuck.pid)


def test_urgent_work_does_not_hide_that_other_work_is_stuck(make: Make) -> None:
    """A child works on both lanes at a time; a batch that hangs is missed however many others go by."""
    rig = make("--hung-bulk", job_limit_s=10.0).ready(1)
    rig.submit(job("bulk"))
    child = rig.pool._slots[0].child
    assert child is not None
    rig.until(lambda: child.batch == (b"bulk",))
    for number in range(3):
        rig.ahead_s += 3
        rig.submit(job(f"person{number}", urgent=True))
        assert [(one.key, one.code) for one in rig.ended(number + 1)[number:]] == [(b"person%d" % number, "")]
    rig.ahead_s += 2
    assert [(one.key, one.code) for one in rig.ended(4)[3:]] == [(b"bulk", "child_timeout")]


def test_answers_not_read_yet_count_as_progress(make: Make) -> None:
    """When the loop itself was late, a child that has answered meanwhile is not killed."""
    rig = make(job_limit_s=10.0).ready(1)
    rig.submit(job("a"))
    (fd,) = rig.pool.fds()
    assert select.select([fd], [], [], LIMIT_S)[0]
    rig.ahead_s += 60
    rig.outcomes += rig.pool.tick(rig.now(), QUIET)
    assert rig.pool.children()[0].restarts == 0 and rig.pool.ready == 1
    assert [one.code for one in rig.ended(1)] == [""]


def test_nobody_is_blamed_when_no_batch_had_begun(make: Make) -> None:
    rig = make("--silent", "--batch", "1").ready(1)
    rig.submit(job("a", "crash"), job("b"))
    rig.until(lambda: rig.pool.children()[0].restarts >= 2)
    assert not rig.outcomes and rig.pool.queued + rig.pool.in_flight == 2
    rig.pool.cancel([b"a"])
    assert [one.key for one in rig.ended(1)] == [b"b"]


def test_what_waits_is_given_back_while_no_child_is_near(make: Make) -> None:
    """Others were idle while up to 30 seconds of back-off held the jobs."""
    rig = make("--batch", "1").ready(1)
    for number in range(8):
        if rig.pool.away:
            break
        rig.submit(job(f"crash {number}", "crash"))
        rig.ended(number + 1)
        rig.until(lambda: rig.pool.away or rig.pool.ready == 1)
    assert rig.pool.away and not rig.pool.ready
    before = len(rig.outcomes)
    rig.submit(*jobs(3))
    rig.ended(before + 3)
    assert {(one.texts, one.code, one.retry) for one in rig.outcomes[before:]} == {(None, "given_back", True)}
    assert rig.pool.queued == rig.pool.queued_chars == 0
    rig.ahead_s += 30
    rig.until(lambda: rig.pool.ready == 1)
    rig.submit(*jobs(2))
    rig.ended(before + 5)
    assert not rig.pool.away and rig.outcomes[-1].texts == ("HALLO",)


def test_backoff_doubles_with_jitter_to_a_limit() -> None:
    slot, now, chance = Slot(0, 0.0), 100.0, random.Random(3)
    delays = []
    for _ in range(40):
        slot.back_off(now, chance)
        delays.append(slot.restart_at - now)
    assert 0.25 <= delays[0] <= 0.3125 and 0.5 <= delays[1] <= 0.625 and 1.0 <= delays[2] <= 1.25
    assert max(delays) == BACKOFF_MAX_S == delays[-1]
    assert len(set(delays[:6])) == 6 and delays[:8] == sorted(delays[:8])


def test_a_restart_waits_and_a_long_life_makes_it_quick_again(make: Make) -> None:
    rig = make(job_limit_s=1000.0).ready(1)
    for life_s, failures in ((0.0, 1), (0.0, 2), (60.0, 1)):
        rig.ahead_s += life_s
        rig.turn()
        os.kill(rig.pool.children()[0].pid, signal.SIGKILL)
        rig.until(lambda: rig.child("waiting") is not None)
        assert rig.pool.ready == 0 and rig.pool._slots[0].failures == failures
        due = rig.pool.next_deadline()
        assert due is not None and due > rig.now() - LIMIT_S
        rig.ready(1)
    assert rig.pool.children()[0].restarts == 3


def test_broken_children_break_the_pool(make: Make) -> None:
    rig = make("--start", "broken")
    rig.until(lambda: rig.pool.broken is not None)
    assert rig.pool.broken == "no package for de→en"
    rig.ahead_s += 600
    rig.turn()
    assert rig.child("waiting") is not None and not rig.pool.fds()


def test_children_that_never_start_break_the_pool(make: Make) -> None:
    rig = make("--start", "exit")

    def later() -> bool:
        rig.ahead_s += 0.3
        return rig.pool.broken is not None

    rig.until(later)
    assert rig.pool.broken is not None and "exit status 1" in rig.pool.broken


def test_a_child_that_never_gets_ready_is_killed(make: Make) -> None:
    rig = make("--start", "mute")
    rig.until(lambda: rig.child("starting") is not None)
    rig.ahead_s += pool_module.START_LIMIT_S
    rig.until(lambda: rig.child("waiting") is not None)
    assert "no progress for 60 s" in rig.pool.last_death


def test_a_command_that_cannot_be_run_is_no_exception(tmp_path: Path) -> None:
    pool = Pool(PoolConfig(), ENGINE, cores=[0], command=[str(tmp_path / "missing")])
    now = 0.0
    pool.start(now)
    while pool.broken is None:
        assert now < 60 and pool.next_deadline() is not None
        now = pool.next_deadline() or now
        pool.tick(now, QUIET)
    assert "could be started" in pool.broken and not pool.fds()
    pool.close(now, 0.0)


def test_at_rest_is_one_with_every_child_ready_and_no_job(make: Make) -> None:
    rig = make(workers=2)
    assert not rig.pool.at_rest, "its children are starting"
    rig.ready(2)
    assert rig.pool.at_rest
    rig.submit(job("a", "sleep:0.02"))
    assert not rig.pool.at_rest
    rig.ended(1)
    assert rig.pool.at_rest
    pid = rig.pool.children()[0].pid
    assert pid is not None
    os.kill(pid, signal.SIGKILL)
    rig.until(lambda: rig.pool.ready < 2)
    assert not rig.pool.at_rest, "one is to be replaced"
    rig.ready(2)
    rig.until(lambda: rig.pool.at_rest)


def test_close_kills_what_does_not_end(make: Make) -> None:
    rig = make("--batch", "1").ready(1)
    rig.submit(job("bad", "hang"))
    (child,) = rig.pool.children()
    rig.until(lambda: rig.pool._slots[0].child is not None and bool(rig.pool._slots[0].child.batch))
    rig.pool.close(rig.now(), 0.1)
    assert not psutil.pid_exists(child.pid) and rig.pool.size == 0


def test_the_constructor_does_nothing() -> None:
    pool = Pool(PoolConfig(), ENGINE, cores=[0, 1])
    assert (pool.size, pool.ready, pool.queued, pool.in_flight, pool.max_workers) == (0, 0, 0, 0, 2)
    assert pool.next_deadline() is None and pool.tick(0.0, QUIET) == []
    with pytest.raises(LocalError):
        Pool(PoolConfig(), ENGINE, cores=[])


def test_the_command_line_carries_the_configuration() -> None:
    pool = Pool(PoolConfig(), ENGINE, routes=["de→en", "en→de"], packages=[Path("models")], cores=[0])
    command = list(pool._command)
    assert command[:5] == [sys.executable, "-m", "dolmetsch.worker", "--engine", "argos"]
    assert msgspec.json.decode(command[6], type=EngineConfig) == ENGINE
    assert command[7:] == ["--routes", "de→en,en→de", "--packages", "models"]


@pytest.mark.skipif(find_spec("dolmetsch.worker") is None, reason="this checkout has no worker")
def test_the_real_worker_on_its_own_core() -> None:
    cores = sorted(os.sched_getaffinity(0))[:2]
    settings = PoolConfig(min_workers=len(cores), max_workers=len(cores))
    rig = Rig(Pool(settings, EngineConfig(), engine_kind="echo", routes=["de→en"], cores=cores))
    rig.pool.start(rig.now())
    try:
        rig.ready(len(cores))
        assert set(rig.pool.routes) == {"de→en"}
        for child in rig.pool.children():
            assert psutil.Process(child.pid).cpu_affinity() == [child.core]
        names = [f"job {number}".encode() for number in range(500)]
        rig.submit(*(job(name.decode(), f"Satz {name.decode()}") for name in names))
        assert {one.key: one.texts is not None for one in rig.ended(500)} == dict.fromkeys(names, True)
        assert len(rig.outcomes) == 500 and rig.pool.last_death == ""
    finally:
        rig.pool.close(rig.now(), 5.0)
    assert [pid for pid in rig.pids if psutil.pid_exists(pid)] == []


def test_children_are_renewed_one_after_the_other_and_no_job_is_lost(make: Make) -> None:
    rig = make("--batch", "1", workers=3).ready(3)
    before = {child.pid for child in rig.pool.children()}
    rig.submit(*jobs(40, "sleep:0.01", chars=100))
    rig.pool.renew()
    fewest = 3

    def renewed() -> bool:
        nonlocal fewest
        fewest = min(fewest, rig.pool.ready)
        return rig.pool.ready == 3 and not before & {child.pid for child in rig.pool.children()}

    rig.until(renewed)
    assert fewest == 2, "the others went on"
    ended = rig.ended(40)
    assert len({one.key for one in ended}) == 40 and all(one.texts for one in ended)
    assert rig.pool.last_death == "" and sum(child.jobs_done for child in rig.pool.children()) == 40


def test_outcomes_say_where_the_time_went(make: Make) -> None:
    rig = make("--batch", "1").ready(1)
    rig.submit(*(replace(job(str(number), "sleep:0.05"), at=rig.now()) for number in range(3)))
    first, _, last = rig.ended(3)
    assert 0.04 < first.work_s < 5 and first.wait_s < last.wait_s - 0.05
