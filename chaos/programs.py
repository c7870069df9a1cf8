"""The programs, each on its host, under somebody like systemd: what ends by itself is noted, and started again."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Final, Self

import psutil

from chaos.ground import HOUSE, WITH_PARENT, resume

RESTART_S: Final = 1.0  # as the units of deploy/ have it for the broker
END_S: Final = 30.0  # a node finishes what it holds for 20 s
TAIL: Final = 400  # characters of a log's end in a complaint
STARTING_S: Final = 60.0

OnEnd = Callable[[int, str], str | None]


def by_itself(status: int, words: str) -> str | None:
    """What is to be said of a program that ended though nobody had asked it to."""
    return f"ended by itself with {status}: {words}"


@dataclass
class Program:
    """One program. ``wanted``: whether it should run. ``on_end`` says what is wrong with an end, or None."""

    name: str
    within: Sequence[str]
    command: Sequence[str]
    environment: dict[str, str]
    log: Path
    on_end: OnEnd = by_itself
    wanted: bool = False
    start_at: float = 0.0
    process: subprocess.Popen[bytes] | None = field(default=None, repr=False)

    @property
    def pid(self) -> int:
        """Its process; 0 when there is none."""
        return 0 if self.process is None else self.process.pid


class Programs:
    """``add`` them, ``start`` them, and call ``tend`` again and again; on leaving all of them are ended."""

    def __init__(self, logs: Path) -> None:
        self._logs = logs
        self.all: dict[str, Program] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for name in self.all:
            self.kill(name)

    def add(
        self, name: str, command: Sequence[str], environment: dict[str, str], within: Sequence[str] = (),
        on_end: OnEnd = by_itself,
    ) -> None:  # fmt: skip
        """A program that can be started: Python's arguments, and what stands before it (``Ground.within``)."""
        self.all[name] = Program(name, within, command, environment, self._logs / f"{name}.log", on_end)

    def start(self, name: str) -> None:
        """Start it; from now on it should run."""
        one = self.all[name]
        one.wanted = True
        variables = [f"{key}={value}" for key, value in one.environment.items()]
        # The environment last, so that a preloaded library is in the program alone.
        command = [*one.within, *WITH_PARENT, "env", *variables, sys.executable, *one.command]
        with one.log.open("ab") as log:
            one.process = subprocess.Popen(command, cwd=HOUSE, stdin=subprocess.DEVNULL, stdout=log, stderr=log)

    def kill(self, name: str) -> None:
        """``kill -9``, and not started again until ``start``."""
        one = self.all[name]
        one.wanted = False
        if one.process is not None:
            one.process.kill()
            one.process.wait(END_S)
            one.process = None

    def end(self, name: str, within_s: float = END_S) -> int:
        """End it as a person would; its exit status. Raises ``TimeoutExpired``."""
        one = self.all[name]
        one.wanted = False
        if one.process is None:
            return 0
        resume(one.process.pid)
        one.process.send_signal(signal.SIGTERM)
        status = one.process.wait(within_s)
        one.process = None
        return status

    def signal(self, name: str, number: int) -> None:
        """Send a signal to the program alone, not to its children."""
        process = self.all[name].process
        if process is not None:
            process.send_signal(number)

    def children(self, name: str) -> list[int]:
        """The processes of its children, oldest first."""
        with contextlib.suppress(psutil.NoSuchProcess):
            return [child.pid for child in psutil.Process(self.all[name].pid).children()]
        return []

    def tend(self, now: float) -> list[str]:
        """Start what should run and does not; what is to be complained of."""
        complaints = []
        for one in self.all.values():
            if one.process is not None and (status := one.process.poll()) is not None:
                one.process, one.start_at = None, now + RESTART_S
                words = one.on_end(status, self.tail(one.name))
                complaints += [f"{one.name} {words}"] if words else []
            if one.process is None and one.wanted and now >= one.start_at:
                self.start(one.name)
        return complaints

    def tail(self, name: str) -> str:
        """The end of its log."""
        with contextlib.suppress(FileNotFoundError):
            return self.all[name].log.read_text(errors="replace")[-TAIL:].strip()
        return ""

    def wait_says(self, name: str, words: str) -> None:
        """Wait until its log has ``words``. Raises ``RuntimeError``."""
        until = time.monotonic() + STARTING_S
        log = self.all[name].log
        while not log.exists() or words not in log.read_text(errors="replace"):
            process = self.all[name].process
            if time.monotonic() > until or process is None or process.poll() is not None:
                raise RuntimeError(f"{name} does not start:\n{self.tail(name)}")
            time.sleep(0.05)

    def tracebacks(self) -> list[str]:
        """Programs whose logs have a traceback: they should say what is wrong in a line."""
        return [
            name
            for name, one in self.all.items()
            if one.log.exists() and "Traceback" in one.log.read_text(errors="replace")
        ]


def plain_environment(home: Path) -> dict[str, str]:
    """This process's environment without settings of dolmetsch, and another home."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("DOLMETSCH_", "XDG_"))}
    home.mkdir(parents=True, exist_ok=True)
    return {**kept, "HOME": str(home)}
