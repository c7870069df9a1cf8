"""Every size, load and policy in turn, in two processes; then tables, pictures and a line of JSON."""

from __future__ import annotations

import argparse
import gc
import itertools
import random
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from bench.policy.chooser import OURS, POLICIES, scheduler
from bench.policy.demand import LOADS, Demand, Load, arrivals, batch
from bench.policy.figures import least_makespan
from bench.policy.fleet import Fleet, mixed
from bench.policy.plot import chart
from bench.policy.run import Figures, simulate
from bench.report import finish, table

IMAGES: Final = Path(__file__).resolve().parent.parent.parent / "docs" / "images"
PROCESSES: Final = 2
JOBS: Final = {4: 7_000, 40: 14_000, 400: 18_000}  # of each load, for each policy: a million in all
BATCH_JOBS: Final = {4: 3_000, 40: 6_000, 400: 10_000}
CALM, TROUBLES = "all well", "troubles"
QUICK: Final = 0.25
SPELLS: Final = 20.0  # troubles go on so many times as long as jobs come: the worst policy is not done much sooner


@dataclass(frozen=True, slots=True)
class Task:
    """One fleet and one demand, for every policy: so they are compared on the same jobs and the same troubles.

    ``load``: None is a closed batch.
    """

    size: int
    load: Load | None
    troubles: bool
    jobs: int
    seed: int

    @property
    def name(self) -> str:
        """What is asked of the cluster."""
        return self.load.name if self.load else f"batch, {TROUBLES if self.troubles else CALM}"

    def world(self) -> tuple[Fleet, Demand]:
        """Decided by the task alone."""
        rng = random.Random(f"{self.seed} {self.size} {self.name} {self.jobs}")
        full = mixed(self.size, random.Random(0), 1.0).full_chars_per_s
        if self.load is None:
            demand = batch(self.jobs, rng)
            span_s = sum(len(spec.texts[0]) for spec in demand.specs) / full
            return mixed(self.size, rng, SPELLS * span_s, troubles=self.troubles), demand
        span_s = self.load.span_s(self.jobs, full)
        fleet = mixed(self.size, rng, SPELLS * span_s, troubles=self.troubles)
        return fleet, arrivals(self.load, fleet.capacity(span_s), self.jobs, rng)


@dataclass(frozen=True, slots=True)
class Row:
    """What came out for one policy."""

    task: Task
    policy: str
    figures: Figures
    least_s: float
    arrived_s: float
    cpu_s: float


def perform(task: Task) -> list[Row]:
    """Run ``task`` with each policy."""
    gc.set_threshold(50_000, 20, 100)  # as the broker does
    fleet, demand = task.world()
    least_s = least_makespan(fleet, [len(spec.texts[0]) for spec in demand.specs])
    rows = []
    for policy in POLICIES:
        started = time.process_time()
        figures = simulate(scheduler(policy, task.seed), fleet, demand)
        rows.append(Row(task, policy, figures, least_s, demand.span_s, time.process_time() - started))
    return rows


def tasks(times: float, seed: int) -> list[Task]:
    """All there is to do, the long ones first."""
    found = [
        Task(size, load, True, max(200, round(jobs * times)), seed)
        for (size, jobs), load in itertools.product(JOBS.items(), LOADS)
    ]
    found += [
        Task(size, None, troubles, max(200, round(jobs * times)), seed)
        for (size, jobs), troubles in itertools.product(BATCH_JOBS.items(), (False, True))
    ]
    return sorted(found, key=lambda task: -task.jobs)


def _loads(rows: Sequence[Row]) -> Sequence[tuple[str, ...]]:
    head = ("Pis", "load", "policy", "p50 s", "p95 s", "p99 s", "p95 s, quiet", "used", "Jain", "scheduler us/job")
    return [head] + [
        (
            str(row.task.size), f"{row.task.name}, {row.arrived_s:.0f} s", row.policy, f"{one.p50_s:.2f}",
            f"{one.p95_s:.2f}", f"{one.p99_s:.2f}", f"{one.quiet_p95_s:.2f}", f"{one.used:.0%}", f"{one.fairness:.3f}",
            f"{one.scheduler_s / one.jobs * 1e6:.0f}",
        )
        for row in rows
        if row.task.load is not None
        for one in (row.figures,)
    ]  # fmt: skip


def _batches(rows: Sequence[Row]) -> Sequence[tuple[str, ...]]:
    head = ("Pis", "batch", "policy", "makespan s", "least s", "ratio")
    return [head] + [
        (
            str(row.task.size), f"{row.task.jobs} jobs, {TROUBLES if row.task.troubles else CALM}", row.policy,
            f"{row.figures.makespan_s:.1f}", f"{row.least_s:.1f}", f"{row.figures.makespan_s / row.least_s:.2f}",
        )
        for row in rows
        if row.task.load is None
    ]  # fmt: skip


def _draw(rows: Sequence[Row], folder: Path) -> None:
    """Write the pictures."""
    found = {(row.task.size, row.task.name, row.policy): row for row in rows}
    sizes = {size: f"{size} Pis" for size in JOBS}
    loads = [load.name for load in LOADS]
    latencies = {
        name: {policy: [found[size, load, policy].figures.p95_s for load in loads] for policy in POLICIES}
        for size, name in sizes.items()
    }
    least = 0.9 * min(value for panel in latencies.values() for values in panel.values() for value in values)
    most = 1.1 * max(value for panel in latencies.values() for values in panel.values() for value in values)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "policy-latency.svg").write_text(
        chart("Interactive jobs: latency that 95 % stay below", "s", loads, latencies, low=least, high=most)
    )
    kinds = [f"batch, {CALM}", f"batch, {TROUBLES}"]
    ratios = {
        name: {
            policy: [(row := found[size, kind, policy]).figures.makespan_s / row.least_s for kind in kinds]
            for policy in POLICIES
        }
        for size, name in sizes.items()
    }
    most = 1.1 * max(value for panel in ratios.values() for values in panel.values() for value in values)
    (folder / "policy-makespan.svg").write_text(
        chart("A closed batch: makespan over the least possible", "times", kinds, ratios, low=1.0, high=most)
    )


def _figures(rows: Sequence[Row], real_s: float, times: float, seed: int) -> dict[str, Any]:
    jobs = sum(row.figures.jobs for row in rows)
    return {
        "jobs": jobs, "real_s": round(real_s, 1), "processes": PROCESSES, "jobs_per_s": round(jobs / real_s),
        "jobs_per_cpu_s": round(jobs / sum(row.cpu_s for row in rows)),
        "scheduler_us_per_job": {
            str(size): round(
                1e6 * sum(row.figures.scheduler_s for row in ours) / sum(row.figures.jobs for row in ours), 1
            )
            for size in JOBS
            for ours in ([row for row in rows if row.policy == OURS and row.task.size == size],)
        },
        "times": times, "seed": seed,
        "runs": [
            {
                "pis": row.task.size, "load": row.task.name, "policy": row.policy, "jobs": one.jobs,
                **({"makespan_s": round(one.makespan_s, 2), "least_s": round(row.least_s, 2)}
                   if row.task.load is None else
                   {"p50_s": round(one.p50_s, 3), "p95_s": round(one.p95_s, 3), "p99_s": round(one.p99_s, 3),
                    "quiet_p95_s": round(one.quiet_p95_s, 3), "used": round(one.used, 3),
                    "jain": round(one.fairness, 3)}),
            }
            for row in rows
            for one in (row.figures,)
        ],
    }  # fmt: skip


def main(description: str, argv: Sequence[str] | None = None) -> None:
    """Run it, print it, and draw it where asked."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a quarter of the jobs: under 40 seconds")
    parser.add_argument("--times", type=float, default=1.0, help="so many times as many jobs (default 1: a million)")
    parser.add_argument("--seed", type=int, default=1, help="decides everything (default 1)")
    parser.add_argument("--plots", action="store_true", help="write docs/images/policy-*.svg")
    arguments = parser.parse_args(argv)
    times = arguments.times * (QUICK if arguments.quick else 1.0)
    started = time.perf_counter()
    with ProcessPoolExecutor(PROCESSES) as pool:
        found = list(itertools.chain.from_iterable(pool.map(perform, tasks(times, arguments.seed))))
    real_s = time.perf_counter() - started
    order = {name: number for number, name in enumerate(load.name for load in LOADS)}
    rows = sorted(found, key=lambda row: (row.task.size, order.get(row.task.name, len(order)), row.task.troubles))
    if arguments.plots:
        _draw(rows, IMAGES)
    figures = _figures(rows, real_s, times, arguments.seed)
    title = (
        f"policy: {figures['jobs']} simulated jobs in {real_s:.1f} s by {PROCESSES} processes; "
        f"{figures['jobs_per_cpu_s']} jobs a second of one process\n\n{table(_batches(rows))}\n"
    )
    finish(title, _loads(rows), figures)
