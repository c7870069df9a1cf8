#!/usr/bin/env python3
"""What this board does, as one table to share: translations a second, temperature, throttling, energy.

    python bench/pi.py [--quick] [--cores 1,2,3]

The engine alone, a child's engine on each core (see bench/engine_runner.py), over a quarter of the sentences that ship
with the project, again and again for a minute: the temperature needs the time. Energy is what the board reports: a
Pi 5's power controller (its rails, not the supply's losses), RAPL on a PC that lets this user read it; else it is
"not reported".
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
import re
import shutil
import statistics
import subprocess
import threading
import time
from dataclasses import dataclass, field
from typing import Any, Final

from bench.processes import DEFAULTS, Processes, Round, embedded, spec
from bench.report import finish
from bench.throughput import sentences
from dolmetsch.reports import About
from dolmetsch.stats import HostStats, Sampler, about_machine

NOT_REPORTED: Final = "not reported"
MEASURED_S: Final = 60.0
SHARE: Final = 4  # one sentence of so many: a round then takes under 20 s on the slowest board
SAMPLE_S: Final = 0.5
VCGENCMD_S: Final = 5.0
RAIL: Final = re.compile(r"^\s*(\w+)_([AV]) (?:current|volt)\(\d+\)=([\d.]+)[AV]\s*$")


def pmic_watts(text: str) -> float | None:
    """The sum over all rails of what ``vcgencmd pmic_read_adc`` printed; None when no rail has both values."""
    rails: dict[str, dict[str, float]] = {}
    for line in text.splitlines():
        if found := RAIL.match(line):
            rails.setdefault(found[1], {})[found[2]] = float(found[3])
    watts = [rail["A"] * rail["V"] for rail in rails.values() if len(rail) == 2]
    return sum(watts) if watts else None


def rapl_joules(sysfs: Path) -> float | None:
    """The counters of all processor packages, in joules; None where there are none or they may not be read."""
    try:
        found = [
            int((zone / "energy_uj").read_text())
            for zone in (sysfs / "class" / "powercap").glob("*-rapl:?")
            if (zone / "name").read_text().startswith("package")  # "psys" is all of them, and more
        ]
    except (OSError, ValueError):
        return None
    return sum(found) / 1e6 if found else None


@dataclass
class Meter:
    """Samples the board inside ``with``. ``joules``, of ``seconds``, is None where the board does not report power."""

    sysfs: Path = Path("/sys")
    samples: list[HostStats] = field(default_factory=list)
    watts: list[float] = field(default_factory=list)
    seconds: float = 0.0
    joules: float | None = None

    def __enter__(self) -> Meter:
        self._sampler = Sampler(self.sysfs)
        self._vcgencmd = shutil.which("vcgencmd")
        self._joules = rapl_joules(self.sysfs)
        self._started = time.monotonic()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.seconds = time.monotonic() - self._started
        joules = rapl_joules(self.sysfs)
        self._stop.set()
        self._thread.join()
        if self.watts:
            self.joules = statistics.mean(self.watts) * self.seconds
        elif joules is not None and self._joules is not None and joules > self._joules:  # counters wrap
            self.joules = joules - self._joules

    def _run(self) -> None:
        while True:
            self.samples.append(self._sampler.sample())
            if self._vcgencmd is not None:
                self._read_pmic(self._vcgencmd)
            if self._stop.wait(SAMPLE_S):
                return

    def _read_pmic(self, program: str) -> None:
        with contextlib.suppress(OSError, subprocess.SubprocessError):
            command = [program, "pmic_read_adc"]
            done = subprocess.run(command, capture_output=True, text=True, timeout=VCGENCMD_S, check=False)
            watts = pmic_watts(done.stdout)
            self.watts += [] if watts is None else [watts]


def measure(cores: list[int], texts: list[str], for_s: float) -> tuple[list[Round], Meter, float]:
    """The rounds, what the board said meanwhile, and the processes' MiB."""
    rounds: list[Round] = []
    with contextlib.closing(Processes(Path(sys.executable), spec("engine"), texts, cores, True)) as processes:
        with Meter() as meter:
            until = time.monotonic() + for_s
            while not rounds or time.monotonic() < until:
                rounds.append(processes.run())
        rss_mib = processes.rss_mib()
    return rounds, meter, rss_mib


def say(value: float | bool | None, words: str = "{}") -> str:
    """A figure for the table."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    return NOT_REPORTED if value is None else words.format(value)


def ever(values: list[bool | None]) -> bool | None:
    """Whether it was so at any time; None where the board does not tell."""
    told = [value for value in values if value is not None]
    return any(told) if told else None


def rows(
    about: About, cores: int, texts: list[str], rounds: list[Round], meter: Meter, rss_mib: float
) -> tuple[list[tuple[str, str]], dict[str, Any]]:
    """The table, and the same for machines."""
    first, last = meter.samples[0], meter.samples[-1]
    seconds, tokens = sum(one.seconds for one in rounds), sum(one.tokens for one in rounds)
    per_s = len(texts) * len(rounds) / seconds
    watts = None if meter.joules is None else meter.joules / meter.seconds
    per_joule = None if meter.joules is None else tokens / meter.joules
    throttled = ever([one.throttled for one in meter.samples])
    table = [
        ("what", "figure"),
        ("board", about.board or NOT_REPORTED),
        ("system", about.system),
        ("cores used, of", f"{cores}, {about.cores}"),
        ("clock at the end", say(last.cpu_mhz, "{:.0f} MHz")),
        ("temperature before", say(first.temperature_c, "{:.1f} °C")),
        ("temperature after", say(last.temperature_c, "{:.1f} °C")),
        ("throttled meanwhile", say(throttled)),
        ("supply too weak meanwhile", say(ever([one.under_voltage for one in meter.samples]))),
        ("translations/s", f"{per_s:.1f}"),
        ("source characters/s", f"{per_s * sum(map(len, texts)) / len(texts):.0f}"),
        ("target tokens/s", f"{tokens / seconds:.0f}"),
        ("power", say(watts, "{:.1f} W")),
        ("target tokens per joule", say(per_joule, "{:.1f}")),
        ("memory of the engines", f"{rss_mib:.0f} MiB"),
    ]
    figures = {
        "board": about.board, "cores": cores, "temperature_c": last.temperature_c, "throttled": throttled,
        "translations_per_s": round(per_s, 1), "tokens_per_s": round(tokens / seconds),
        "watts": None if watts is None else round(watts, 2),
        "tokens_per_joule": None if per_joule is None else round(per_joule, 2), "package": embedded().model_version,
    }  # fmt: skip
    return table, figures


def main() -> None:
    """Run it and print it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="one round over 100 sentences")
    parser.add_argument(
        "--cores", default=",".join(map(str, sorted(os.sched_getaffinity(0)))), help="for example 1,2,3"
    )
    arguments = parser.parse_args()
    cores = [int(core) for core in arguments.cores.split(",")]
    texts = sentences()[:100] if arguments.quick else sentences()[::SHARE]
    rounds, meter, rss_mib = measure(cores, texts, 0.0 if arguments.quick else MEASURED_S)
    table, figures = rows(about_machine(), len(cores), texts, rounds, meter, rss_mib)
    beam = f"beam {DEFAULTS.beam_size}, batch {DEFAULTS.batch_tokens} tokens, {DEFAULTS.compute_type}"
    title = f"this board: {len(texts)} sentences, rounds: {len(rounds)}, {beam}, package {embedded().model_version}"
    finish(title, table, {**figures, "quick": arguments.quick})


if __name__ == "__main__":
    main()
