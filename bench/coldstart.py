#!/usr/bin/env python3
"""How long a child takes from its start to its first translation, with the embedded package.

    python bench/coldstart.py [--quick]

A child is started as a node starts it, and given one sentence when it is ready. The files are in the page cache, as
they are wherever a child is started again. "Opening the model" is done once more here, by itself: it bounds what other
ways to load weights could save. What the imports take: python -X importtime -m dolmetsch.worker --help.
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path[0] = str(Path(__file__).resolve().parent.parent)  # not bench/: its http.py would hide Python's own

from dolmetsch.bootstrap import in_venv

in_venv()

import argparse
import select
import statistics
import time
from typing import Final

from bench.processes import embedded
from bench.report import finish
from dolmetsch.child import WORKER, Child, PoolJob, PoolOutcome, spawn, worker_command
from dolmetsch.config import EngineConfig
from dolmetsch.decoder import Decoder
from dolmetsch.packages import EMBEDDED

TEXT: Final = "Guten Morgen, wie geht es dir heute?"
TARGET_S: Final = 1.0
LIMIT_S: Final = 60.0


def start() -> tuple[float, float, float]:
    """Seconds until a child is ready, and until its first translation; its memory then, MiB."""
    started = time.monotonic()
    child = spawn(worker_command(WORKER, EngineConfig(), "argos", (), (EMBEDDED,)), -1, started)
    try:
        while child.ready_at is None:
            _read(child, started)
        job = PoolJob(b"1", "de→en", (TEXT,), len(TEXT), True, False)
        child.hold(job, time.monotonic())
        child.give([job])
        while not (outcomes := _read(child, started)):
            pass
        if outcomes[0].texts is None:
            raise SystemExit(f"no translation: {outcomes[0].code}")
        return child.ready_at - started, time.monotonic() - started, child.rss_bytes() / 2**20
    finally:
        child.kill()
        child.process.wait()


def opening() -> float:
    """Seconds to open the model and the tokenizer, in a process that has imported all it needs."""
    started = time.monotonic()
    Decoder(EngineConfig()).warm(embedded())
    return time.monotonic() - started


def _read(child: Child, started: float) -> list[PoolOutcome]:
    outcomes: list[PoolOutcome] = []
    if not select.select([child.sock], [], [], max(0.0, started + LIMIT_S - time.monotonic()))[0]:
        raise SystemExit(f"a child said nothing within {LIMIT_S:g} s")
    child.receive(time.monotonic(), outcomes)
    if child.eof_at is not None:
        raise SystemExit("a child ended")
    return outcomes


def main() -> None:
    """Run it and print it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="5 starts instead of 20")
    arguments = parser.parse_args()
    count = 5 if arguments.quick else 20
    seen = [start() for _ in range(count)]
    opening()
    opened = [opening() for _ in range(count)]
    ready, first, rss = (list(values) for values in zip(*seen, strict=True))
    rows = [
        ("from exec", "median", "longest", "target"),
        ("until ready, s", f"{statistics.median(ready):.3f}", f"{max(ready):.3f}", ""),
        ("opening the model, s", f"{statistics.median(opened):.3f}", f"{max(opened):.3f}", ""),
        ("until the first translation, s", f"{statistics.median(first):.3f}", f"{max(first):.3f}", f"{TARGET_S:g}"),
        ("RSS then, MiB", f"{statistics.median(rss):.0f}", f"{max(rss):.0f}", ""),
    ]
    figures = {
        "ready_s": round(statistics.median(ready), 3), "opening_s": round(statistics.median(opened), 3),
        "first_s": round(statistics.median(first), 3), "first_longest_s": round(max(first), 3),
        "package": embedded().model_version, "quick": arguments.quick,
    }  # fmt: skip
    finish(f"cold start: {count} children, package {embedded().model_version}, {EngineConfig()}", rows, figures)


if __name__ == "__main__":
    main()
