"""The comparison of policies: decided by its seed, loses nothing, and does not flatter."""

from __future__ import annotations

import random
import xml.etree.ElementTree as ElementTree
from dataclasses import replace

import pytest

from bench.policy.chooser import OURS, POLICIES, ChoosingScheduler, scheduler
from bench.policy.demand import LOADS, ROUTE, Demand, arrivals, batch
from bench.policy.figures import fair_shares, fairness, jain, least_makespan, percentile
from bench.policy.fleet import PI_4, Fleet, equal, mixed
from bench.policy.plot import chart
from bench.policy.program import Task
from bench.policy.run import Figures, Run, simulate
from dolmetsch.jobs import Job
from dolmetsch.messages import BULK, JobSpec
from dolmetsch.roster import Node, Roster

BUSY = LOADS[2]
JOBS = 1500


def world(size: int = 4, seed: int = 1, jobs: int = JOBS) -> tuple[Fleet, Demand]:
    """Mixed Pis with troubles, at 95 % of their capacity."""
    return Task(size, BUSY, True, jobs, seed).world()


def timeless(figures: Figures) -> Figures:
    """Without what the real clock says."""
    return replace(figures, scheduler_s=0.0, real_s=0.0)


@pytest.mark.parametrize("policy", POLICIES)
def test_a_seed_decides_everything(policy: str) -> None:
    first, second = (timeless(simulate(scheduler(policy, 7), *world())) for _ in range(2))
    assert first == second
    assert timeless(simulate(scheduler(policy, 7), *world(seed=2))) != first


@pytest.mark.parametrize("policy", POLICIES)
def test_every_job_ends_once_though_nodes_crash_and_stall(policy: str) -> None:
    fleet, demand = world(jobs=4000)
    core = scheduler(policy, 7)
    run = Run(core, fleet, demand)
    record = run.run()
    troubles = {spell.kind for board in fleet.boards for spell in board.spells if spell.at < record.makespan_s - 20}
    assert troubles >= {"crashed", "unreachable"} and any(node.life for node in run.nodes.values())
    assert record.answers == len(demand.specs) and record.again == 0
    assert all(ended > at for ended, at in zip(record.ended, demand.times, strict=True))
    core.books.validate()
    assert core.books.tally.accepted == core.books.tally.done == len(demand.specs)


def test_slow_nodes_are_not_left_with_what_the_fast_ones_could_have_done() -> None:
    """Each held as many jobs as the others: four Pis took 1.87 times the least possible."""
    fleet, demand = Task(4, None, False, 9000, 1).world()
    least_s = least_makespan(fleet, [len(spec.texts[0]) for spec in demand.specs])
    assert simulate(scheduler(OURS, 1), fleet, demand).makespan_s < 1.2 * least_s


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("size", [4, 40])
def test_the_least_makespan_is_never_beaten(policy: str, size: int) -> None:
    for seed in range(3):
        fleet, demand = Task(size, None, False, 600, seed).world()
        figures = simulate(scheduler(policy, seed), fleet, demand)
        assert figures.makespan_s >= least_makespan(fleet, [len(spec.texts[0]) for spec in demand.specs])


def test_with_equal_nodes_and_equal_jobs_policies_agree() -> None:
    specs = [JobSpec(number.to_bytes(16), ROUTE, ("x" * 100,), BULK, "one", 1e5, b"") for number in range(3200)]
    demand = Demand([0.0] * len(specs), specs)
    found = {policy: simulate(scheduler(policy, 1), equal(4), demand).makespan_s for policy in POLICIES}
    least = least_makespan(equal(4), [100] * len(specs))
    assert all(least <= makespan_s <= 1.2 * least for makespan_s in found.values()), found


def test_earliest_finish_beats_random_on_mixed_nodes() -> None:
    for seed in range(3):
        ours, others = (timeless(simulate(scheduler(policy, seed), *world(seed=seed))) for policy in (OURS, "random"))
        assert ours.p95_s < 0.7 * others.p95_s
        assert ours.makespan_s < others.makespan_s


@pytest.mark.parametrize("seed", range(3))
def test_a_long_job_does_not_land_on_a_slow_node_because_it_stood_next(seed: int) -> None:
    """Nodes are given several jobs at a time, and a batch waited 38 s for the one of 16 000 characters on a Pi 3."""
    fleet, demand = Task(400, None, False, 2500, seed).world()
    least_s = least_makespan(fleet, [len(spec.texts[0]) for spec in demand.specs])
    assert simulate(scheduler(OURS, 1), fleet, demand).makespan_s <= 1.5 * least_s


def test_another_choice_changes_nothing_else() -> None:
    """The roster that chooses, given the scheduler's own rule, decides as the scheduler itself."""

    def choose(able: list[Node], job: Job) -> Node:
        node = Roster.earliest(core.books.roster, job)
        assert node in able
        return node

    core = ChoosingScheduler(choose)
    assert timeless(simulate(core, *world())) == timeless(simulate(scheduler(OURS, 1), *world()))


def test_load_is_a_share_of_capacity() -> None:
    fleet = equal(10)
    demand = arrivals(BUSY, fleet.capacity(1.0), 40_000, random.Random(3))
    chars = sum(len(spec.texts[0]) for spec in demand.specs)
    assert chars / demand.span_s == pytest.approx(BUSY.share * fleet.full_chars_per_s, rel=0.05)
    assert [spec.job_id for spec in demand.specs] == [number.to_bytes(16) for number in range(40_000)]


def test_troubles_cost_capacity() -> None:
    fleet = mixed(40, random.Random(1), 1000.0)
    assert 0.8 * fleet.full_chars_per_s < fleet.capacity(1000.0) < fleet.full_chars_per_s
    assert mixed(40, random.Random(1), 1000.0, troubles=False).capacity(1000.0) == fleet.full_chars_per_s


def test_a_lone_job_takes_as_long_as_its_characters() -> None:
    fleet = equal(1)
    figures = simulate(scheduler(OURS, 1), fleet, batch(1, random.Random(1)))
    chars = len(batch(1, random.Random(1)).specs[0].texts[0])
    assert figures.makespan_s == pytest.approx((chars + 40) / PI_4.chars_per_s, abs=0.01)


def test_figures() -> None:
    assert percentile([1.0, 2.0, 3.0, 4.0], 50) == 2.0 and percentile([1.0, 2.0, 3.0, 4.0], 99) == 4.0
    assert percentile([], 50) != percentile([], 50)
    assert jain([1, 1, 1, 1]) == 1.0 and jain([1, 0, 0, 0]) == 0.25
    assert fair_shares({"a": 1.0, "b": 10.0, "c": 10.0}, 9.0) == {"a": 1.0, "b": 4.0, "c": 4.0}
    assert fairness({"a": 1.0, "b": 4.0, "c": 4.0}, {"a": 1.0, "b": 10.0, "c": 10.0}) == 1.0
    assert fairness({"a": 0.5, "b": 8.5}, {"a": 1.0, "b": 10.0}) < 0.9


def test_a_chart_is_svg_with_a_mark_for_each_value() -> None:
    panels = {"4 Pis": {"ours": [0.1, 2.0], "others": [1.0, 30.0]}}
    root = ElementTree.fromstring(chart("a < b", "s", ["x", "y"], panels, low=0.1, high=40.0))
    marks = [one for one in root.iter() if one.get("stroke") == "#ffffff"]
    assert root.tag.endswith("svg") and len(marks) == 4 + 2
