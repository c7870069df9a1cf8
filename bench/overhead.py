#!/usr/bin/env python3
"""What the cluster itself costs: echo jobs a second through a durable ledger, and the latency it adds when idle.

    python bench/overhead.py [--quick] [--keys]

1 broker, 2 nodes, the echo engine, real processes and sockets on this computer, SQLite with one synced commit a tick.
The latency is that of one job at a time, minus the same job given to the engine directly in this process.
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path[0] = str(Path(__file__).resolve().parent.parent)  # not bench/: its http.py would hide Python's own

from dolmetsch.bootstrap import in_venv

in_venv()

import argparse
import statistics
import time
from typing import Final

import psutil

from bench.cluster import Cluster
from bench.load import Load
from bench.report import finish
from dolmetsch.engine import EchoEngine

TEXT: Final = "Guten Morgen, wie geht es dir heute? Das ist ein Satz Nummer {}."


def throughput(cluster: Cluster, jobs: int, rounds: int) -> list[float]:
    """Jobs a second, in each round."""
    rates = []
    with Load(cluster.address, keys=cluster.keys) as load:
        load.run(load.jobs([TEXT.format(n) for n in range(2000)]))  # warm: connections, credit, code paths
        for number in range(rounds):
            texts = [TEXT.format(f"{number}.{n}") for n in range(jobs)]
            load.answers.clear()
            seconds = load.run(load.jobs(texts))
            if len(load.answers) != jobs or load.duplicates:
                raise SystemExit(f"{len(load.answers)} answers and {load.duplicates} duplicates for {jobs} jobs")
            rates.append(jobs / seconds)
    return rates


def idle_latency(cluster: Cluster, jobs: int) -> tuple[list[float], float]:
    """Milliseconds of each of ``jobs`` through an idle cluster, and the median of the engine by itself."""
    with Load(cluster.address, keys=cluster.keys) as load:
        load.run(load.jobs(["warm"]))
        latencies = [load.one(TEXT.format(f"idle {n}")) * 1000 for n in range(jobs)]
    engine = EchoEngine(["de→en"])
    direct = []
    for number in range(jobs):
        started = time.perf_counter()
        engine.submit(b"k", "de→en", [TEXT.format(number)])
        batch = engine.next_batch()
        assert batch is not None
        engine.run(batch)
        direct.append((time.perf_counter() - started) * 1000)
    return latencies, statistics.median(direct)


def main() -> None:
    """Run it and print it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="under 40 seconds")
    parser.add_argument("--keys", action="store_true", help="everything encrypted (CURVE), as beyond one computer")
    arguments = parser.parse_args()
    quick = arguments.quick
    with Cluster() as cluster:
        if arguments.keys:
            cluster.secure()
        broker = cluster.broker()
        cluster.wait_listening()
        for name in ("one", "two"):
            cluster.node(name, "--engine", "echo", "--max-workers", "1")
        cluster.wait_ready(2)
        rates = throughput(cluster, 20_000 if quick else 60_000, 3 if quick else 5)
        latencies, direct = idle_latency(cluster, 200 if quick else 1000)
        process = psutil.Process(broker.pid)
        rss_mib = process.memory_info().rss / 2**20
    median = statistics.median(rates)
    p50 = statistics.median(latencies) - direct
    p99 = statistics.quantiles(latencies, n=100)[98] - direct
    rows = [
        ("what", "figure", "target"),
        ("echo jobs/s, submitted to acked, median", f"{median:.0f}", "15000"),
        ("  of rounds", " ".join(f"{rate:.0f}" for rate in rates), ""),
        ("added latency, idle, p50", f"{p50:.2f} ms", "3 ms"),
        ("added latency, idle, p99", f"{p99:.2f} ms", ""),
        ("broker RSS", f"{rss_mib:.0f} MiB", ""),
    ]
    figures = {
        "jobs_per_s": round(median), "idle_added_ms_p50": round(p50, 3), "idle_added_ms_p99": round(p99, 3),
        "broker_rss_mib": round(rss_mib), "keys": arguments.keys, "quick": quick,
    }  # fmt: skip
    finish(f"overhead: 1 broker, 2 echo nodes, durable ledger, 1 gateway, keys: {arguments.keys}", rows, figures)


if __name__ == "__main__":
    main()
