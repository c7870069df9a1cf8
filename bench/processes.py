"""Processes that translate side by side, each on its cores, for bench/engine.py and bench/pi.py."""

from __future__ import annotations

import contextlib
import json
import os
import select
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple

import psutil

from dolmetsch.config import EngineConfig
from dolmetsch.packages import EMBEDDED, Package, find_packages

RUNNER: Final = Path(__file__).with_name("engine_runner.py")
DEFAULTS: Final = EngineConfig()
ANSWER_S: Final = 600.0  # one round on the slowest board, by the slowest engine
END_S: Final = 15.0


class Round(NamedTuple):
    """All texts once: the seconds of the slowest process, the tokens of all translations."""

    seconds: float
    tokens: int


def embedded() -> Package:
    """The package that ships with the project."""
    (package,) = (one for one in find_packages([EMBEDDED]) if one.route == "de→en")
    return package


def spec(kind: str, **changes: Any) -> dict[str, Any]:
    """What a runner is told: our defaults, with ``changes``."""
    settings = {name: getattr(DEFAULTS, name) for name in ("beam_size", "batch_tokens", "compute_type")}
    return {"kind": kind, "package": str(embedded().path), "sorted": True, "environment": {}, **settings, **changes}


def deal(texts: Sequence[str], count: int) -> list[list[str]]:
    """``texts`` in ``count`` shares, as cards are dealt."""
    return [list(texts[at::count]) for at in range(count)]


def gather(shares: Sequence[Sequence[str]]) -> list[str]:
    """What ``deal`` was given."""
    return [shares[at % len(shares)][at // len(shares)] for at in range(sum(map(len, shares)))]


class Processes:
    """A process for each of ``cores`` with a share of ``texts``, or one with all of them and a thread for each core.

    ``python``: of the environment in which the engine lives. Raises ``SystemExit`` when one ends or does not answer.
    """

    def __init__(
        self, python: Path, spec: dict[str, Any], texts: Sequence[str], cores: Sequence[int], apart: bool
    ) -> None:
        places = [[core] for core in cores] if apart else [list(cores)]
        self._kind = spec["kind"]
        environment = {**os.environ, **spec["environment"]}
        self._programs: list[subprocess.Popen[str]] = []
        try:
            for _ in places:
                self._programs.append(
                    subprocess.Popen(
                        [python, RUNNER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
                    )
                )
            for program, place, share in zip(self._programs, places, deal(texts, len(places)), strict=True):
                self._say(program, json.dumps({**spec, "cores": place, "texts": share}))
            for program in self._programs:
                self._hear(program)
        except BaseException:
            self.close()
            raise

    def run(self) -> Round:
        """Translate all texts."""
        rounds = self._all("go")
        return Round(max(one["seconds"] for one in rounds), sum(one["tokens"] for one in rounds))

    def texts(self) -> list[str]:
        """The translations of the last ``run``."""
        return gather(self._all("texts"))

    def rss_mib(self) -> float:
        """Resident memory of all of them."""
        return float(sum(psutil.Process(program.pid).memory_info().rss for program in self._programs) / 2**20)

    def close(self) -> None:
        """End them."""
        for program in self._programs:
            assert program.stdin is not None and program.stdout is not None
            with contextlib.suppress(BrokenPipeError):
                program.stdin.close()
        for program in self._programs:
            with contextlib.suppress(subprocess.TimeoutExpired):
                program.wait(END_S)
            program.kill()
            program.wait(END_S)
            assert program.stdout is not None
            program.stdout.close()

    def _all(self, what: str) -> list[Any]:
        for program in self._programs:
            self._say(program, what)
        return [json.loads(self._hear(program)) for program in self._programs]

    def _say(self, program: subprocess.Popen[str], line: str) -> None:
        assert program.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # it has ended, and its answer will be missed
            program.stdin.write(line + "\n")
            program.stdin.flush()

    def _hear(self, program: subprocess.Popen[str]) -> str:
        assert program.stdout is not None
        readable, _, _ = select.select([program.stdout], [], [], ANSWER_S)
        line = program.stdout.readline() if readable else ""
        if not line:
            why = f"has not answered for {ANSWER_S:g} s" if not readable else "has ended"
            raise SystemExit(f"a process that translates ({self._kind}) {why}")
        return line
