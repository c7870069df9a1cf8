"""``python -m chaos``: so many minutes of faults on real processes, decided by a seed; 1 when anything was lost."""

from __future__ import annotations

import argparse
import random
import shutil
import signal
import statistics
import sys
import tempfile
import time
import traceback
from collections.abc import Sequence
from pathlib import Path
from types import FrameType
from typing import Any, Final, NoReturn

from bench.report import finish
from chaos import faults, ground
from chaos.director import Act, Director, Unwell
from chaos.plan import KINDS, Trouble, plan

SHOWN: Final = 30
INTERRUPTED: Final = 130


def _arguments(argv: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m chaos",
        description="Runs a broker, three nodes and two gateways for real, and makes things go wrong.",
        epilog="faults: " + "; ".join(f"{name}: {kind.what}" for name, kind in KINDS.items()),
    )
    parser.add_argument("--minutes", type=float, default=20.0, metavar="N", help="of faults (20); hours are welcome")
    parser.add_argument("--seed", type=int, metavar="N", help="decides which faults, when (default: drawn)")
    parser.add_argument("--only", action="append", choices=sorted(KINDS), help="only this fault, again and again")
    parser.add_argument("--without", action="append", choices=sorted(KINDS), default=[], help="all but this fault")
    parser.add_argument("--per-s", type=float, default=20.0, metavar="N", help="jobs a second (20), beside the files")
    parser.add_argument("--logs", type=Path, metavar="FOLDER", help="an empty folder for logs, to be kept")
    parser.add_argument("--plan", action="store_true", help="print the plan, and end")
    return parser.parse_args(argv)


def _kinds(arguments: argparse.Namespace) -> list[str]:
    lacking = faults.lacking()
    for name, why in lacking.items():
        print(f"without {name}: {why}")
    wanted = arguments.only or sorted(KINDS)
    return [name for name in wanted if name not in lacking and name not in arguments.without]


def _rows(acts: Sequence[Act]) -> tuple[list[tuple[str, ...]], dict[str, Any]]:
    """A table for people, and the same for machines."""
    rows: list[tuple[str, ...]] = [
        ("fault", "times", "recovered in: median", "longest", "longest wait of a job sent then")
    ]
    figures: dict[str, Any] = {}
    for name in KINDS:
        ours = [act for act in acts if act.trouble.fault == name and act.over_at is not None]
        if not ours:
            continue
        median = statistics.median(act.recovered_s for act in ours)
        longest = max(act.recovered_s for act in ours)
        wait = max(act.longest_s for act in ours)
        rows.append((name, str(len(ours)), f"{median:.1f} s", f"{longest:.1f} s", f"{wait:.1f} s"))
        figures[name] = {
            "times": len(ours),
            "median_s": round(median, 2),
            "longest_s": round(longest, 2),
            "job_s": round(wait, 2),
        }
    return rows, figures


def _report(director: Director, seed: int, minutes: float, findings: Sequence[str]) -> None:
    tally = director.tally
    rows, figures = _rows(director.acts)
    counts = {
        "jobs": len(tally.sent),
        "answered_once": len(tally.got) - len(set(tally.doubled)),
        "lines": director.line_count,
        "dead": director.dead_count,
        "lost": len(tally.waiting),
        "doubled": len(tally.doubled),
        "wrong": len(tally.wrong),
        "failed": len(tally.failed),
        "redelivered_after_kill": tally.again,
        "findings": len(findings),
    }
    if director.stalls_s:
        print(
            f"this computer itself stood still {len(director.stalls_s)} times, at most {max(director.stalls_s):.1f} s"
        )
    print(", ".join(f"{name.replace('_', ' ')}: {count}" for name, count in counts.items()))
    stalled_s = round(sum(director.stalls_s), 1)
    cable = "netem" if director.stage.ground.netem else "chaos/cable.py"
    title = f"chaos, seed {seed}, {minutes:g} minutes, bad links by {cable}"
    finish(title, rows, {"seed": seed, "minutes": minutes, **counts, "stalled_s": stalled_s, "faults": figures})


def _complain(seed: int, director: Director | None, findings: Sequence[str], folder: Path) -> None:
    print(f"\nseed {seed}: all is not well")
    for one in findings[:SHOWN]:
        print(f"  {one}")
    if len(findings) > SHOWN:
        print(f"  and {len(findings) - SHOWN} more")
    if director is not None:
        print("what had happened:")
        for act in director.acts:
            end = "not over" if act.over_at is None else f"recovered in {act.recovered_s:.1f} s"
            print(f"  {act.trouble}: {end}")
    print(f"logs: {folder}", flush=True)


def _play(folder: Path, seed: int, minutes: float, per_s: float, troubles: Sequence[Trouble]) -> bool:
    """Whether all was well."""
    director: Director | None = None
    findings: list[str] = []
    try:
        with Director(folder, per_s) as director:
            try:
                director.play(troubles, minutes * 60.0)
                director.drain()
            except Unwell as error:
                findings.append(str(error))
            except Exception as error:  # chaos itself does not know what to do: tell all that is known before the end
                traceback.print_exc()
                findings.append(f"{type(error).__name__}: {error}")
            findings += director.findings()
            if not findings:
                _report(director, seed, minutes, findings)
                return True
            _complain(seed, director, findings, folder)
            _report(director, seed, minutes, findings)
    except BaseException as error:
        print(f"seed {seed}: {type(error).__name__}: {error}; logs: {folder}", flush=True)
        raise
    return False


def _end(number: int, _: FrameType | None) -> NoReturn:
    raise SystemExit(128 + number)


def main(argv: Sequence[str]) -> int:
    """Run what the arguments say; 1 when something was found, 2 where there can be no chaos."""
    arguments = _arguments(argv)
    seed = random.SystemRandom().randrange(10**6) if arguments.seed is None else arguments.seed
    if why := ground.missing():
        print(f"chaos: {why}", file=sys.stderr)
        return 2
    if not arguments.plan:
        ground.enter([*argv, "--seed", str(seed)])
    troubles = plan(seed, arguments.minutes, _kinds(arguments))
    if arguments.plan:
        print("\n".join(map(str, troubles)))
        return 0
    signal.signal(signal.SIGTERM, _end)
    folder = Path(tempfile.mkdtemp(prefix="dolmetsch-chaos-")) if arguments.logs is None else arguments.logs.resolve()
    folder.mkdir(exist_ok=True)
    started = time.monotonic()
    print(f"seed {seed}, {arguments.minutes:g} minutes, {len(troubles)} faults, logs {folder}", flush=True)
    try:
        well = _play(folder, seed, arguments.minutes, arguments.per_s, troubles)
    except KeyboardInterrupt:
        print(f"interrupted after {time.monotonic() - started:.0f} s", file=sys.stderr)
        return INTERRUPTED
    if well and arguments.logs is None:
        shutil.rmtree(folder)
    return 0 if well else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
