"""``python -m simulation``: run many seeds, or tell the story of one."""

from __future__ import annotations

import argparse
import contextlib
import multiprocessing
import os
import sys
import time
from collections.abc import Iterator
from typing import Final

from simulation.faults import FAULTS
from simulation.world import Verdict, simulate

AT_ONCE: Final = 20  # seeds handed to a process at a time
SHOWN: Final = 20  # failing seeds that are shown; the rest is counted


def _arguments(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m simulation", description="Runs the broker, nodes and gateways in simulated worlds."
    )
    parser.add_argument("--seeds", type=int, default=1000, metavar="N", help="so many worlds (default 1000)")
    parser.add_argument("--first", type=int, default=0, metavar="N", help="the first seed (default 0)")
    parser.add_argument("--jobs", type=int, default=min(2, os.cpu_count() or 1), metavar="N", help="processes")
    parser.add_argument("--seed", type=int, metavar="N", help="only this world")
    parser.add_argument("--story", action="store_true", help="with --seed: tell who did what when, in virtual seconds")
    parser.add_argument("--fault", choices=sorted(FAULTS), help="with a fault planted on purpose: it must be found")
    return parser.parse_args(argv)


def _planted(name: str | None) -> contextlib.AbstractContextManager[None]:
    return contextlib.nullcontext() if name is None else FAULTS[name].plant()


def _quiet(seed: int) -> Verdict:
    return simulate(seed)


def _verdicts(seeds: range, jobs: int) -> Iterator[Verdict]:
    if jobs <= 1:
        yield from map(_quiet, seeds)
        return
    with multiprocessing.get_context("fork").Pool(jobs) as pool:  # a fault that is planted is inherited
        yield from pool.imap_unordered(_quiet, seeds, chunksize=AT_ONCE)


def _one(seed: int, story: bool) -> int:
    verdict = simulate(seed, told=story)
    if story:
        print(verdict.story)
    if verdict.rule:
        print(f"seed {seed}, at {verdict.virtual_s:.3f} s: {verdict.rule}: {verdict.what}")
        return 1
    print(f"seed {seed}: all is well after {verdict.virtual_s:.1f} virtual seconds, digest {verdict.digest}")
    return 0


def _many(seeds: range, jobs: int, fault: str | None) -> int:
    started, bad, virtual_s, done = time.monotonic(), 0, 0.0, 0
    for done, verdict in enumerate(_verdicts(seeds, jobs), 1):
        virtual_s += verdict.virtual_s
        if verdict.rule:
            bad += 1
            if bad <= SHOWN:
                _complain(verdict, fault)
        if done % (AT_ONCE * 5) == 0 or done == len(seeds):
            rate = done / (time.monotonic() - started)
            line = f"{done} of {len(seeds)} worlds, {rate:.0f} a second, {virtual_s / 3600:.1f} h simulated, {bad} bad"
            end = "\r" if sys.stdout.isatty() and done < len(seeds) else "\n"
            if end == "\r" or done == len(seeds) or done % 1000 == 0:
                print(line, end=end, flush=True)
    return 1 if bad else 0


def _complain(verdict: Verdict, fault: str | None) -> None:
    planted = f" --fault {fault}" if fault else ""
    print(f"seed {verdict.seed}: {verdict.rule}: {verdict.what}")
    print(f"    python -m simulation --seed {verdict.seed} --story{planted}", flush=True)


def main(argv: list[str]) -> int:
    """Run what the arguments say; 1 when something was found."""
    arguments = _arguments(argv)
    with _planted(arguments.fault):
        if arguments.seed is not None:
            return _one(arguments.seed, arguments.story)
        return _many(range(arguments.first, arguments.first + arguments.seeds), arguments.jobs, arguments.fault)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
