#!/usr/bin/env python3
"""The first bot's headline: 45 reactions at once, through a Discord on loopback, the real gateway, broker and node.

    python bench/reactions.py [--quick] [--count 45]

A round is COUNT messages by as many members, each reacted to at the same moment; its seconds are from the first
reaction to the last reply as Discord has it. Every sentence is another one, so the result cache never helps. Then
members react one at a time, for the idle latency. The Discord, which adds no delay of its own, runs in this process on
the same cores.
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path[0] = str(Path(__file__).resolve().parent.parent)  # not bench/: its http.py would hide Python's own

from dolmetsch.bootstrap import in_venv

in_venv()

import argparse
import asyncio
import os
import statistics
import time
from collections.abc import Iterator, Sequence
from typing import Final

from bench.cluster import Cluster
from bench.report import finish
from bench.stage import Stage
from bench.throughput import sentences
from dolmetsch.packages import EMBEDDED

FIRST_BOT: Final = "45 ok, 0 rejected, 5.70 s, 7.9/s on a rack server; 20 ok, 25 rejected, 3.9/s, p95 4.6 s on 2 cores"
LIMITS: Final = ("USER", "CHANNEL", "GUILD", "TOTAL")  # nobody is told to slow down here
ROUND_S: Final = 60.0
PAUSE_S: Final = 1.0  # between rounds: heartbeats and acks of the last one are over
IDLE_PAUSE_S: Final = 0.05


class Crowd:
    """Members who write a German sentence each and react to it."""

    def __init__(self, stage: Stage, texts: Iterator[str], count: int) -> None:
        self._server = stage.server
        self._channel = stage.server.add_channel("bench")
        self._members = [stage.server.add_user(f"member{number}") for number in range(count)]
        self._texts = texts

    async def react(self, count: int) -> tuple[float, list[float], int]:
        """So many reactions at once; the seconds to the last reply, those of each, and how many got no translation."""
        members = self._members[:count]
        messages = [self._server.say(self._channel, member, next(self._texts)) for member in members]
        await asyncio.sleep(0.2)  # the bot has seen the messages, as it would have
        before = len(self._server.by_bot(self._channel))
        started = time.monotonic()
        for message, member in zip(messages, members, strict=True):
            self._server.react(message, member, "🇩🇪")
        await self._server.until(lambda: len(self._server.by_bot(self._channel)) >= before + count, ROUND_S)
        replies = {one.reply_to: one for one in self._server.by_bot(self._channel)[before:]}
        found = [replies[message.id] for message in messages]
        seconds = [reply.created_at_monotonic - started for reply in found]
        return max(seconds), seconds, sum(not reply.content.startswith("🇩🇪➡️🇺🇸 ") for reply in found)


def percentile(values: Sequence[float], part: float) -> float:
    """The value that ``part`` (0 to 1) of ``values`` do not exceed."""
    return sorted(values)[min(len(values) - 1, int(part * len(values)))]


async def measure(cluster: Cluster, count: int, rounds: int, idle: int) -> None:
    """Run it and print it."""
    texts = iter(sentences())
    async with Stage(cluster, cluster.folder) as stage:
        await stage.start_bot(**{f"DOLMETSCH_DISCORD_{name}_LIMIT": "100000" for name in LIMITS})
        crowd = Crowd(stage, texts, count)
        await crowd.react(min(count, 10))
        ends: list[float] = []
        each: list[float] = []
        bad = 0
        for _ in range(rounds):
            await asyncio.sleep(PAUSE_S)
            end, seconds, rejected = await crowd.react(count)
            ends.append(end)
            each += seconds
            bad += rejected
        alone: list[float] = []
        for _ in range(idle):
            await asyncio.sleep(IDLE_PAUSE_S)
            alone += (await crowd.react(1))[1]
    seconds_median = statistics.median(ends)
    rate = count / seconds_median
    rows = [
        ("what", "figure", "target"),
        (f"{count} reactions at once, seconds to the last reply", f"{seconds_median:.3f}", ""),
        ("  rounds", " ".join(f"{one:.3f}" for one in ends), ""),
        ("translations/s", f"{rate:.0f}", "120"),
        ("reaction to reply, p50", f"{percentile(each, 0.5):.3f} s", ""),
        ("reaction to reply, p95", f"{percentile(each, 0.95):.3f} s", "0.5 s"),
        ("not translated", f"{bad} of {len(each)}", "0"),
        ("one at a time (idle), p50", f"{1000 * percentile(alone, 0.5):.0f} ms", "150 ms"),
        ("one at a time (idle), p95", f"{1000 * percentile(alone, 0.95):.0f} ms", ""),
        ("the bot this began as", FIRST_BOT, ""),
    ]
    figures = {
        "sent": len(each), "ok": len(each) - bad, "rejected": bad, "seconds": round(seconds_median, 3),
        "translations_per_s": round(rate, 1), "p50_s": round(percentile(each, 0.5), 3),
        "p95_s": round(percentile(each, 0.95), 3), "idle_p50_s": round(percentile(alone, 0.5), 4),
        "idle_p95_s": round(percentile(alone, 0.95), 4), "at_once": count, "rounds": rounds,
    }  # fmt: skip
    finish(f"reactions: {count} at once, {rounds} rounds, embedded package, 1 node", rows, figures)


def main() -> None:
    """Start the cluster, measure, end it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="under 40 seconds")
    parser.add_argument("--count", type=int, default=45, help="reactions at once (45)")
    arguments = parser.parse_args()
    rounds, idle = (3, 20) if arguments.quick else (9, 60)
    if not 1 <= arguments.count <= 180:
        parser.error("--count is from 1 to 180: there are 2 000 sentences")
    with Cluster() as cluster:
        cluster.broker()
        cores = str(len(os.sched_getaffinity(0)))
        cluster.node("node", "--packages", str(EMBEDDED), "--min-workers", cores, "--max-workers", cores)
        cluster.wait_ready(1, int(cores))
        asyncio.run(measure(cluster, arguments.count, rounds, idle))


if __name__ == "__main__":
    main()
