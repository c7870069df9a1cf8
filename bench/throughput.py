#!/usr/bin/env python3
"""How much of the silicon the cluster reaches: 2 000 real sentences, through it and by CTranslate2 alone, in turn.

    python bench/throughput.py [--quick] [--cores 0,1]

The limit is CTranslate2 by itself in one process: the same cores, package, shortlist, beam, batch size and compute
type, one thread a core, all sentences tokenised and sorted by length beforehand. The cluster does everything: gateway,
broker with its ledger on disk, node, one pinned child a core, segments, tokens, results. Its result cache is off. It
gets the sentences as gateway_cli.py sends the lines of a file, some to a job, and also each as a job of its own; the
limit runs before and after each, and the ratio is to the mean of these two: machines change their speed. After every
third round all are started anew: where in memory a process happens to lie makes it up to a twentieth faster or slower.
With fewer --cores than there are, gateway and broker keep to the others, as where nodes are other computers.
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path[0] = str(Path(__file__).resolve().parent.parent)  # not bench/: its http.py would hide Python's own

from dolmetsch.bootstrap import in_venv

in_venv()

import argparse
import contextlib
import os
import statistics
import time
from collections.abc import Iterator
from itertools import pairwise
from typing import Final, NamedTuple

import psutil

from bench.cluster import HOUSE, Cluster, leave
from bench.load import Load
from bench.report import finish
from dolmetsch.config import EngineConfig
from dolmetsch.messages import JobSpec
from dolmetsch.packages import EMBEDDED, Package, find_packages

LIVES: Final = 5  # 1 if it is to be quick
ROUNDS: Final = 3  # in each

SENTENCES: Final = HOUSE / "bench" / "sentences.de.txt"


def sentences() -> list[str]:
    """The 2 000 sentences that ship with the project."""
    lines = SENTENCES.read_text(encoding="utf-8").splitlines()
    return [line for line in lines if not line.startswith("#")]


class Limit:
    """CTranslate2 alone, with ideal batching."""

    def __init__(self, texts: list[str], cores: list[int], config: EngineConfig, package: Package) -> None:
        os.environ["OMP_NUM_THREADS"] = "1"
        mine = os.sched_getaffinity(0)
        os.sched_setaffinity(0, cores)
        import ctranslate2
        import sentencepiece

        tokenizer = sentencepiece.SentencePieceProcessor(model_file=str(package.tokenizer_path))
        self._tokens = sorted(tokenizer.encode(texts, out_type=str), key=len, reverse=True)
        self._config = config
        self._translator = ctranslate2.Translator(
            str(package.model_path), device="cpu", inter_threads=len(cores), intra_threads=1,
            compute_type=config.compute_type,
        )  # fmt: skip
        os.sched_setaffinity(0, mine)  # its threads keep their cores; the rest of us need not

    def run(self) -> float:
        """Sentences a second."""
        started = time.perf_counter()
        self._translator.translate_batch(
            self._tokens,
            beam_size=self._config.beam_size,
            max_batch_size=self._config.batch_tokens,
            batch_type="tokens",
            use_vmap=True,
        )
        return len(self._tokens) / (time.perf_counter() - started)


def child_rss_mib(node: int) -> float:
    """The largest child's resident memory, MiB."""
    return max(child.memory_info().rss for child in psutil.Process(node).children()) / 2**20


def rounds(what: str, figures: list[float], digits: int) -> tuple[str, str, str]:
    """A row of the table."""
    each = " ".join(f"{one:.{min(digits, 2)}f}" for one in figures)
    return what, f"{statistics.median(figures):.{digits}f}", each


def round_trip(load: Load, specs: Iterator[JobSpec], count: int) -> float:
    """Seconds to the answers of ``specs``, which hold ``count`` texts. Raises ``SystemExit`` unless all come, once."""
    load.answers.clear()
    seconds = load.until_answered(specs)
    load.run(iter(()))  # the last acks
    failed = [answer.code for answer in load.answers.values() if answer.texts is None]
    answered = sum(len(answer.texts or ()) for answer in load.answers.values())
    if answered != count or load.duplicates or failed:
        raise SystemExit(f"{answered} translations, {load.duplicates} duplicates, failed: {failed[:3]}")
    return seconds


class Life(NamedTuple):
    """Some rounds with the same processes: sentences a second."""

    limits: list[float]  # one more than both others together
    rates: list[float]  # as lines of a file
    singles: list[float]  # a job each
    rss_mib: float

    @property
    def ratios(self) -> tuple[list[float], list[float]]:
        """Of the rates and of the singles, to the limit around each."""
        around = [(before + after) / 2 for before, after in pairwise(self.limits)]
        halves = (self.rates, around[::2]), (self.singles, around[1::2])
        first, second = ([own / alone for own, alone in zip(*half, strict=True)] for half in halves)
        return first, second


def live(texts: list[str], cores: list[int], limit: Limit) -> Life:
    """Start a cluster, and let it and ``limit`` take turns."""
    mine = os.sched_getaffinity(0)
    with contextlib.ExitStack() as stack:
        stack.callback(os.sched_setaffinity, 0, mine)
        cluster = stack.enter_context(Cluster())
        cluster.environment["DOLMETSCH_SCHEDULER_CACHE_BYTES"] = "0"
        places = ",".join(map(str, cores))
        workers = ("--min-workers", str(len(cores)), "--max-workers", str(len(cores)))
        node = cluster.node("node", "--cores", places, *workers, "--packages", str(EMBEDDED))
        leave(cores)
        cluster.broker()
        cluster.wait_ready(1, len(cores))
        load = stack.enter_context(Load(cluster.address))
        load.run(load.jobs(texts))
        limit.run()
        limits, rates, singles = [limit.run()], [], []
        for _ in range(ROUNDS):
            rates.append(len(texts) / round_trip(load, load.packs(texts), len(texts)))
            limits.append(limit.run())
            singles.append(len(texts) / round_trip(load, load.jobs(texts), len(texts)))
            limits.append(limit.run())
        return Life(limits, rates, singles, child_rss_mib(node.pid))


def main() -> None:
    """Run it and print it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="under 40 seconds")
    parser.add_argument("--cores", default=",".join(map(str, sorted(os.sched_getaffinity(0)))), help="for example 0,1")
    arguments = parser.parse_args()
    cores = [int(core) for core in arguments.cores.split(",")]
    texts = sentences()
    config = EngineConfig()
    (package,) = (one for one in find_packages([EMBEDDED]) if one.route == "de→en")
    lives = [live(texts, cores, Limit(texts, cores, config, package)) for _ in range(1 if arguments.quick else LIVES)]
    limits = [one for life in lives for one in life.limits]
    rates = [one for life in lives for one in life.rates]
    singles = [one for life in lives for one in life.singles]
    ratios, single_ratios = ([one for life in lives for one in life.ratios[part]] for part in range(2))
    rss_mib = max(life.rss_mib for life in lives)
    ratio = statistics.median(ratios)
    single = statistics.median(single_ratios)
    settings = (
        f"beam {config.beam_size}, batch {config.batch_tokens} tokens, {config.compute_type}, cores {arguments.cores}"
    )
    rows = [
        ("what", "median", "rounds"),
        rounds("CTranslate2 alone, sentences/s", limits, 0),
        rounds("the cluster, as lines of a file, translations/s", rates, 0),
        rounds("ratio, target 0.90", ratios, 3),
        rounds("the cluster, a job each, translations/s", singles, 0),
        rounds("ratio", single_ratios, 3),
        ("RSS of a child, MiB", f"{rss_mib:.0f}", ""),
    ]
    figures = {
        "translations_per_s": round(statistics.median(rates), 1), "ratio_to_limit": round(ratio, 3),
        "single_ratio_to_limit": round(single, 3),
        "limit_per_s": round(statistics.median(limits), 1), "child_rss_mib": round(rss_mib),
        "package": package.model_version,
        "quick": arguments.quick,
    }  # fmt: skip
    finish(f"throughput: {len(texts)} sentences, {settings}, package {package.model_version}", rows, figures)


if __name__ == "__main__":
    main()
