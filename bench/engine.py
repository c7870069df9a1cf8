#!/usr/bin/env python3
"""How fast texts are translated: CTranslate2 alone, argostranslate, our engine, our cluster; and the settings between.

    python bench/engine.py [--quick] [--only engines|settings] [--validation FILE] [--cores 0,1] [--svg FILE]

The texts: the 2 000 sentences that ship with the project, and 300 paragraphs, each of six of them (drawn with a fixed
seed, as no longer texts ship). The limit gets sentences, tokenised and sorted beforehand. argostranslate gets an
environment of its own in the cache folder, once, and is called as its users call it, a text at a time; its own splitter
downloads a model at run time, so it is given ours, beforehand and free of cost. "best": a process for each core, one
thread each, and our beam, batch and compute type. All take turns, round after round, each time in a fresh process. The
cluster takes turns with a limit of its own, on as many cores as it has children, always over all texts, as lines of a
file: a short run is all beginning and end, and no backlog. A ratio is the median of the rounds'.

FILE of --validation has lines "source TAB reference": with it, BLEU and chrF2 by sacrebleu for what differs in what it
says. The picture of --svg is the speed by the size of a batch.
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path[0] = str(Path(__file__).resolve().parent.parent)  # not bench/: its http.py would hide Python's own

from dolmetsch.bootstrap import in_venv

in_venv()

import argparse
import contextlib
import json
import os
import random
import statistics
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import psutil

from bench.cluster import Cluster
from bench.load import Load
from bench.peers import PeerMissing, environment
from bench.plot import svg
from bench.processes import DEFAULTS, Processes, embedded, spec
from bench.report import finish
from bench.throughput import round_trip, sentences
from dolmetsch.child import MALLOC
from dolmetsch.packages import EMBEDDED
from dolmetsch.segment import parse

PARAGRAPHS: Final = 300
IN_PARAGRAPH: Final = 6
QUICK_PART: Final = 5  # of the texts
BEAMS: Final = (1, 4)  # beside the default, as those that follow
BATCHES: Final = (64, 128, 256, 1024, 2048)
TYPES: Final = ("int8", "int8_float32", "float32")
PLAIN: Final = "as it is"  # the row of the defaults
LIMIT: Final = "CTranslate2 alone, threads"  # the row that the others are divided by
NEAR_LIMIT: Final = 0.95
TIMES_USUAL: Final = 40.0  # argostranslate at its defaults
TIMES_BEST: Final = 5.0
SLOW_PART: Final = 5  # argostranslate at its defaults takes one text after the other: a fifth of them tells its speed
SCORE_S: Final = 120.0
SCORE: Final = """
import json, sys
from sacrebleu.metrics import BLEU, CHRF
ours, theirs = json.load(sys.stdin)
print(json.dumps([metric.corpus_score(ours, [theirs]).score for metric in (BLEU(force=True), CHRF())]))
"""


def paragraphs(count: int) -> list[str]:
    """Long texts, always the same."""
    rng = random.Random(0)
    texts = sentences()
    return [" ".join(rng.sample(texts, IN_PARAGRAPH)) for _ in range(count)]


def pieces(texts: Sequence[str]) -> dict[str, list[str]]:
    """Each text and its sentences."""
    return {text: [segment.source for segment in parse(text, "de").segments] for text in texts}


def parts(texts: Sequence[str]) -> list[str]:
    """All sentences of ``texts``."""
    split = pieces(texts)
    return [part for text in texts for part in split[text]]


@dataclass
class Row:
    """One engine with its settings, on one set of texts."""

    name: str
    texts: list[str]  # what a translation is counted by
    spec: dict[str, Any]
    python: Path = Path(sys.executable)
    apart: bool = True
    given: list[str] | None = None  # in place of ``texts``
    seconds: list[float] = field(default_factory=list)
    beside: list[float] = field(default_factory=list)  # seconds of its own limit, where it took turns with that
    tokens: int = 0  # of all translations
    rss_mib: float = 0.0
    score: tuple[float, float] | None = None  # BLEU, chrF2

    @property
    def per_s(self) -> float:
        """Texts."""
        return len(self.texts) / statistics.median(self.seconds)

    def part_of(self, base: Row) -> float:
        """How many times as fast it is as the limit: its own, else ``base``, round by round."""
        part = sum(map(len, self.texts)) / sum(map(len, base.texts))
        limits = self.beside or [part * seconds for seconds in base.seconds]
        return statistics.median(limit / own for limit, own in zip(limits, self.seconds, strict=True))

    def round(self, cores: Sequence[int]) -> None:
        """A fresh process each time: where its memory happens to lie is chance."""
        asked = Processes(self.python, self.spec, self.given or self.texts, cores, self.apart)
        with contextlib.closing(asked) as processes:
            seconds, self.tokens = processes.run()
            self.seconds.append(seconds)
            self.rss_mib = processes.rss_mib()


# ---- what is compared ----


def engines(sets: Mapping[str, list[str]], argos: Path | None) -> list[Row]:
    """The limit, our engine, and argostranslate where ``argos``, its Python, is there."""
    rows = []
    best = {
        "ARGOS_INTRA_THREADS": "1", "ARGOS_BEAM_SIZE": str(DEFAULTS.beam_size), "ARGOS_COMPUTE_TYPE": "int8",
        "ARGOS_BATCH_SIZE": str(DEFAULTS.batch_tokens), "OMP_NUM_THREADS": "1",
    }  # fmt: skip
    for name, texts in sets.items():
        given = parts(texts)
        rows += [
            Row(f"{name}: {LIMIT}", texts, spec("limit"), apart=False, given=given),
            Row(f"{name}: CTranslate2 alone, processes", texts, spec("limit"), given=given),
            Row(f"{name}: our engine, processes", texts, spec("engine")),
        ]
        if argos is not None:
            usual, tuned = (spec("argos", split=pieces(texts), environment=more) for more in ({}, best))
            some = texts[: max(1, len(texts) // SLOW_PART)]
            rows.append(Row(f"{name}: argostranslate, defaults", some, usual, argos, apart=False))
            rows.append(Row(f"{name}: argostranslate, best", texts, tuned, argos))
    return rows


def settings(texts: list[str], cores: int) -> list[Row]:
    """CTranslate2 alone with one thing changed at a time, a process for each core."""

    def row(name: str, apart: bool = True, **changes: Any) -> Row:
        return Row(name, texts, spec("limit", **changes), apart=apart)

    return [
        row(PLAIN),
        row("the same again"),  # how far chance goes
        *(row(f"beam {beam}", beam_size=beam) for beam in BEAMS),
        *(row(f"batch of {batch} tokens", batch_tokens=batch) for batch in BATCHES),
        *(row(f"compute type {kind}", compute_type=kind) for kind in TYPES),
        row("not sorted", sorted=False),
        row("one process, a thread a core", apart=False),
        row(f"one process, intra_threads={cores}", apart=False, intra_threads=cores),
        row("MALLOC_* as children have it", environment=MALLOC),
        row("CT2_PACKED_GEMM=1", environment={"CT2_PACKED_GEMM": "1"}),
        row("CT2_USE_MKL=1", environment={"CT2_USE_MKL": "1"}),
        row("CT2_USE_MKL=0", environment={"CT2_USE_MKL": "0"}),
        row("CT2_FORCE_CPU_ISA=AVX2", environment={"CT2_FORCE_CPU_ISA": "AVX2"}),
        row("replace_unknowns", options={"replace_unknowns": True}),
        row("no shortlist", options={"use_vmap": False}),
    ]


def cluster_rows(name: str, texts: list[str], cores: Sequence[int], rounds: int) -> Iterator[Row]:
    """Our whole cluster, with one child, then with one on each core; the limit on the same cores takes turns with it.

    The RSS is that of all its programs.
    """
    for count in sorted({1, len(cores)}):
        chosen = cores[-count:]
        row = Row(f"{name}: our cluster, children: {count}", texts, {})
        alone = Processes(Path(sys.executable), spec("limit"), parts(texts), chosen, False)
        with contextlib.closing(alone), Cluster() as cluster:
            cluster.environment["DOLMETSCH_SCHEDULER_CACHE_BYTES"] = "0"
            broker = cluster.broker()
            workers = ("--min-workers", str(count), "--max-workers", str(count))
            node = cluster.node("node", "--cores", ",".join(map(str, chosen)), *workers, "--packages", str(EMBEDDED))
            cluster.wait_ready(1, count)
            with Load(cluster.address) as load:
                load.run(load.packs(texts))
                for _ in range(rounds):
                    seconds, row.tokens = alone.run()  # the same model and beam: as many tokens
                    row.beside.append(seconds)
                    row.seconds.append(round_trip(load, load.packs(texts), len(texts)))
            programs = [psutil.Process(broker.pid), psutil.Process(node.pid), *psutil.Process(node.pid).children()]
            row.rss_mib = sum(one.memory_info().rss for one in programs) / 2**20
        yield row


def read_pairs(path: str) -> list[list[str]]:
    """Sources with their references. Raises ``ArgumentTypeError``."""
    try:
        pairs = [line.split("\t") for line in Path(path).read_text(encoding="utf-8").splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        raise argparse.ArgumentTypeError(f"cannot read {path}: {error}") from error
    if not pairs or any(len(pair) != 2 for pair in pairs):
        raise argparse.ArgumentTypeError(f"{path}: each line is to be a source, a TAB and its reference")
    return pairs


def scores(rows: Sequence[Row], pairs: list[list[str]], argos: Path, cores: Sequence[int]) -> None:
    """BLEU and chrF2 of each row of our own that differs in what it says; ``argos`` has sacrebleu."""
    known: dict[tuple[Any, ...], tuple[float, float]] = {}
    for row in rows:
        if row.spec.get("kind") not in ("limit", "engine"):
            continue
        key = (*(row.spec[name] for name in ("kind", "beam_size", "compute_type")), str(row.spec.get("options")))
        if key not in known:
            asked = Processes(row.python, row.spec, [pair[0] for pair in pairs], cores, True)
            with contextlib.closing(asked) as processes:
                processes.run()
                said = json.dumps([processes.texts(), [pair[1] for pair in pairs]])
            command = [argos, "-c", SCORE]
            done = subprocess.run(command, input=said, capture_output=True, text=True, check=True, timeout=SCORE_S)
            bleu, chrf = json.loads(done.stdout)
            known[key] = (bleu, chrf)
        row.score = known[key]


# ---- what is printed ----


def table(rows: Sequence[Row], base: Row) -> list[tuple[str, ...]]:
    """What is printed of ``rows``; ``base`` is the limit of those that have none of their own."""
    scored = any(row.score for row in rows)
    head = ("what", "texts/s", "chars/s", "tokens out/s", "RSS MiB", f"to {base.name.split(': ')[-1]}")
    lines = [(*head, *(("BLEU", "chrF2") if scored else ()), "rounds, s")]
    for row in rows:
        chars = sum(map(len, row.texts)) / len(row.texts)
        marks = [f"{one:.1f}" for one in row.score] if row.score else ["", ""]
        lines.append(
            (
                row.name,
                f"{row.per_s:.1f}",
                f"{row.per_s * chars:.0f}",
                f"{row.per_s * row.tokens / len(row.texts):.0f}",
                f"{row.rss_mib:.0f}",
                f"{row.part_of(base):.3f}",
                *(marks if scored else ()),
                " ".join(f"{one:.2f}" for one in row.seconds),
            )
        )
    return lines


def ratios(rows: Sequence[Row], name: str) -> dict[str, float]:
    """The cluster with most children to the limit, and to argostranslate: each to its limit, the one by the other."""
    found = {row.name.removeprefix(f"{name}: "): row for row in rows if row.name.startswith(f"{name}: ")}
    base = found[LIMIT]
    ours = [row for key, row in found.items() if key.startswith("our cluster")]
    if not ours:
        return {}
    to_limit = ours[-1].part_of(base)
    others = {"times_usual": "argostranslate, defaults", "times_best": "argostranslate, best"}
    times = {key: to_limit / found[who].part_of(base) for key, who in others.items() if who in found}
    return {"to_limit": to_limit, **times}


def targets(found: Mapping[str, Mapping[str, float]]) -> list[tuple[str, ...]]:
    """What was wanted, and whether it is so, for each set of texts."""
    wanted = {
        "to_limit": ("our cluster to the limit", NEAR_LIMIT),
        "times_usual": ("our cluster to argostranslate, defaults", TIMES_USUAL),
        "times_best": ("our cluster to argostranslate, best", TIMES_BEST),
    }
    lines: list[tuple[str, ...]] = [("what", "ratio", "target", "met")]
    for name, values in found.items():
        for key, value in values.items():
            words, target = wanted[key]
            lines.append((f"{name}: {words}", f"{value:.2f}", f"{target:g}", "yes" if value >= target else "no"))
    return lines


def picture(rows: Sequence[Row]) -> str:
    """An SVG: the speed by the size of a batch, as a part of the default's."""
    base = next(row for row in rows if row.name == PLAIN)
    points = [(row.spec["batch_tokens"], row.part_of(base)) for row in rows if row.name.startswith("batch of")]
    line = sorted([*points, (DEFAULTS.batch_tokens, 1.0)])
    return svg(f"speed, {DEFAULTS.batch_tokens} tokens: 1", "tokens in a batch", {"CTranslate2 alone": line})


def argos_python() -> Path | None:
    """The Python of argostranslate's environment; None, and a word on stderr, when it cannot be had."""
    try:
        return environment("argos") / "python"
    except (PeerMissing, subprocess.TimeoutExpired) as missing:
        print(f"without argostranslate and scores, which need a network once: {missing}", file=sys.stderr)
        return None


def main() -> None:
    """Run it and print it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a fifth of the texts, 3 rounds: some five minutes")
    parser.add_argument("--only", choices=("engines", "settings"), help="one of the two parts")
    parser.add_argument("--validation", type=read_pairs, metavar="FILE", help="source TAB reference, a line each")
    parser.add_argument("--cores", default=",".join(map(str, sorted(os.sched_getaffinity(0)))), help="for example 0,1")
    parser.add_argument("--svg", type=Path, metavar="FILE", help="where to draw the speed by the size of a batch")
    arguments = parser.parse_args()
    cores = [int(core) for core in arguments.cores.split(",")]
    part, rounds = (QUICK_PART, 3) if arguments.quick else (1, 5)
    whole = {"sentences": sentences(), "paragraphs": paragraphs(PARAGRAPHS)}
    sets = {"sentences": whole["sentences"][::part], "paragraphs": whole["paragraphs"][: PARAGRAPHS // part]}
    argos = argos_python()
    compared = engines(sets, argos) if arguments.only != "settings" else []
    changed = settings(sets["sentences"], len(cores)) if arguments.only != "engines" else []
    began = time.monotonic()
    for _ in range(rounds):
        for row in [*compared, *changed]:
            row.round(cores)
    if compared:
        compared += [row for name, texts in whole.items() for row in cluster_rows(name, texts, cores, rounds)]
    if arguments.validation is not None and argos is not None:
        scores([*compared, *changed], arguments.validation, argos, cores)

    how = f"cores {arguments.cores}, package {embedded().model_version}"
    figures: dict[str, Any] = {"quick": arguments.quick, "package": embedded().model_version}
    if compared:
        found = {name: ratios(compared, name) for name in sets}
        figures |= {"ratios": found, "texts_per_s": {row.name: round(row.per_s, 1) for row in compared}}
        for name, texts in sets.items():
            rows = [row for row in compared if row.name.startswith(f"{name}: ")]
            title = f"engines: {len(texts)} {name} (the cluster {len(whole[name])}), {how}, {DEFAULTS}"
            finish(title, table(rows, rows[0]), figures)
        finish(f"engines, the targets: {how}", targets(found), figures)
    if changed:
        base = changed[0]
        figures |= {"settings": {row.name: round(row.part_of(base), 3) for row in changed}}
        figures["seconds"] = round(time.monotonic() - began)
        finish(f"settings: {len(base.texts)} sentences, {how}, {DEFAULTS}", table(changed, base), figures)
        if arguments.svg is not None:
            arguments.svg.write_text(picture(changed), encoding="utf-8")


if __name__ == "__main__":
    main()
