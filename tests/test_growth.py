"""How many children the pool has, and on which cores: it grows under a backlog and shrinks when it is idle."""

from __future__ import annotations

import pytest

from dolmetsch import pool as pool_module
from dolmetsch.pool import Load
from tests.pools import QUIET, Make, Rig, job, make

__all__ = ["make"]  # fixtures


def backlog(rig: Rig) -> None:
    """Queue far more than the children hold in hand, of work that does not end by itself."""
    rig.submit(*(job(f"{number}", "hang", chars=100) for number in range(100)))
    rig.turn()


def test_grows_under_backlog_one_at_a_time_on_the_least_busy_core(make: Make) -> None:
    rig = make(most=3, job_limit_s=3600.0, cores=(0, 2, 5)).ready(1)
    rig.load = Load(cpu=(0.0, 0.0, 60.0, 0.0, 0.0, 30.0), ram=10.0)
    backlog(rig)
    assert rig.pool.size == 1
    rig.ahead_s += pool_module.GROW_HOLD_S
    rig.turn()
    rig.ahead_s += pool_module.GROW_HOLD_S
    rig.turn()
    assert [child.core for child in rig.pool.children()] == [
        0,
        5,
    ]  # the third waits until the second is ready
    rig.ready(2)
    rig.turn()
    rig.ahead_s += pool_module.GROW_HOLD_S
    rig.ready(3)
    rig.ahead_s += 60
    rig.turn()
    assert [child.core for child in rig.pool.children()] == [0, 5, 2]


@pytest.mark.parametrize("load", [Load((0.0, 85.1, 85.1), 10.0), Load((0.0,) * 3, 85.1)])
def test_does_not_grow_without_cpu_or_ram(make: Make, load: Load) -> None:
    rig = make(most=3, job_limit_s=3600.0).ready(1)
    rig.load = load
    backlog(rig)
    for _ in range(5):
        rig.ahead_s += 1.0
        rig.turn()
    assert rig.pool.size == 1
    due = rig.pool.next_deadline()
    assert due is not None and due >= rig.pool._now  # nothing to spin on
    rig.load = QUIET
    rig.turn()
    assert rig.pool.size == 2


def grown(rig: Rig, count: int) -> None:
    rig.submit(*(job(f"{number}", "sleep:0.02", chars=100) for number in range(60)))

    def later() -> bool:
        rig.ahead_s += 0.2
        return rig.pool.ready == count

    rig.until(later)
    rig.until(lambda: rig.pool.in_flight == rig.pool.queued == 0)


def test_shrinks_after_idling_down_to_the_minimum(make: Make) -> None:
    rig = make(most=2, idle_s=300.0, job_limit_s=3600.0).ready(1)
    grown(rig, 2)
    rig.ahead_s += 200
    rig.turn()
    assert rig.pool.size == 2
    rig.ahead_s += 101
    rig.turn()
    assert rig.pool.size == 1 and rig.child("ending") is not None
    rig.until(lambda: rig.child("ending") is None)
    rig.ahead_s += 1000
    rig.turn()
    assert rig.pool.size == rig.pool.ready == 1


def test_idle_children_end_at_once_when_ram_is_short(make: Make) -> None:
    rig = make(most=2, idle_s=86400.0, job_limit_s=3600.0).ready(1)
    grown(rig, 2)
    rig.load = Load(QUIET.cpu, ram=86.0)
    rig.turn()
    assert rig.pool.size == 1


def test_more_children_than_cores_share_them(make: Make) -> None:
    rig = make(workers=5, cores=(0, 1)).ready(5)
    assert [child.core for child in rig.pool.children()] == [0, 1, 0, 1, 0]
