"""How the pool hands out its jobs: what is urgent first, in windows, the last in smaller portions."""

from __future__ import annotations

import math

import pytest

from dolmetsch import handout
from dolmetsch import pool as pool_module
from dolmetsch.errors import LocalError
from tests.pools import Make, job, jobs, make

__all__ = ["make"]  # fixtures


def test_urgent_goes_first_and_on_top_of_a_full_window(make: Make) -> None:
    rig = make("--batch", "1").ready(1)
    rig.submit(*(job(f"bulk{number}", "sleep:0.01", chars=600) for number in range(12)))
    assert (rig.pool.in_flight, rig.pool.queued) == (4, 8)  # 2304 characters, and the job that crosses them
    rig.submit(job("urgent", urgent=True, chars=200))
    assert (rig.pool.in_flight, rig.pool.queued) == (5, 8)
    order = [one.key for one in rig.ended(13)]
    assert order.index(b"urgent") <= 2 and order.index(b"bulk11") == 12


def test_urgent_jobs_are_spread_though_one_child_has_more_other_work(make: Make) -> None:
    rig = make("--silent", workers=2).ready(2)
    rig.submit(job("bulk", "sleep:0.5", chars=500))
    rig.submit(*(job(f"person{number}", "sleep:0.1", urgent=True, chars=10) for number in range(6)))
    hands = [slot.child.urgent for slot in rig.pool._slots if slot.child]
    assert hands == [3, 3]
    assert len(rig.ended(7)) == 7


def test_windows_bound_the_hands_and_spread_the_work(make: Make) -> None:
    rig = make(workers=2).ready(2)
    full = handout.WINDOW_JOBS
    rig.submit(*jobs(5 * full, "sleep:0.01", chars=1))
    assert [child.in_flight for child in rig.pool.children()] == [full] * 2
    assert rig.pool.queued == 3 * full == rig.pool.queued_chars


def test_the_last_of_a_backlog_are_handed_out_in_smaller_portions(make: Make) -> None:
    rig = make(workers=2).ready(2)
    full = handout.WINDOW_JOBS
    rig.submit(*jobs(2 * full, "sleep:0.01", chars=1))
    assert [child.in_flight for child in rig.pool.children()] == [full * handout.FAIR_PART] * 2
    rig.pool.cancel([b"none"])  # a turn in which nothing changes hands out nothing more
    assert [child.in_flight for child in rig.pool.children()] == [full * handout.FAIR_PART] * 2
    rig = make(workers=2).ready(2)
    rig.submit(*jobs(full // 5, "sleep:0.01", chars=1))
    last = math.ceil(full * handout.LAST_BATCHES / handout.WINDOW_BATCHES)
    assert [child.in_flight for child in rig.pool.children()] == [last] * 2


def test_a_share_is_kept_for_a_child_that_may_yet_be_started(make: Make) -> None:
    rig = make(most=4).ready(1)
    full = handout.WINDOW_JOBS
    rig.submit(*jobs(4 * full, "hang", chars=1))
    assert [child.in_flight for child in rig.pool.children()] == [full * handout.FAIR_PART]
    rig = make(most=1).ready(1)
    rig.submit(*jobs(full, "hang", chars=1))
    assert [child.in_flight for child in rig.pool.children()] == [full], "there is nobody to share with"


def test_occupied_children_are_looked_at_by_ticks_alone(make: Make) -> None:
    rig = make(workers=2).ready(2)
    rig.submit(*jobs(40, "sleep:0.01", chars=20))
    assert rig.pool.fds() and not rig.pool.occupied  # how long that takes them is not known
    rig.ended(40)
    assert rig.pool.fds() and not rig.pool.occupied  # nothing to do
    rig.submit(*jobs(400, "sleep:0.010", chars=20))
    assert rig.pool.occupied and not rig.pool.fds()
    rig.ended(60)
    rig.submit(job("now", urgent=True))
    assert rig.pool.fds() and not rig.pool.occupied  # somebody waits for what they say
    rig.until(lambda: any(one.key == b"now" for one in rig.outcomes))
    assert rig.pool.occupied  # again: most of the others are still to be done
    assert len({one.key for one in rig.ended(441)}) == 441
    rig.submit(*jobs(2, "sleep:0.0100", chars=20))
    assert rig.pool.in_flight == 2 and rig.pool.fds()  # little is left: read at once, so that no child waits for work


def test_cancel_queued_and_in_hand(make: Make) -> None:
    rig = make("--batch", "1").ready(1)
    rig.submit(*(job(f"{number}", "sleep:0.05", chars=100) for number in range(8)))
    rig.pool.cancel([b"2", b"3", b"6", b"7", b"unknown"])
    assert sorted(one.key for one in rig.ended(4)) == [b"0", b"1", b"4", b"5"]
    rig.submit(job("2", "wieder"))  # a key may come back once it was cancelled
    rig.until(lambda: rig.pool.in_flight == 0)
    assert [one.key for one in rig.outcomes].count(b"2") == 1 and len(rig.outcomes) == 5
    assert rig.pool.queued_chars == 0


def test_too_many_and_twice_are_refused(make: Make) -> None:
    rig = make()
    with pytest.raises(LocalError, match="more than"):
        rig.pool.submit(jobs(pool_module.MAX_JOBS + 1), rig.now())
    with pytest.raises(LocalError, match="twice"):
        rig.submit(job("a"), job("a"))
