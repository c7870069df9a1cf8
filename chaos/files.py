"""Files through ``gateway_cli.py``, one after the other: each line must come out once, in its place, come what may."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

from chaos.journal import is_answer, text_of

NAME: Final = "file"
LINES: Final = 300
PAUSE_S: Final = 10.0  # between two files: the load is to be steady, not all that the cores can do
FIRST: Final = 10_000_000  # numbers of lines begin here, far above those of the load's jobs
COMPLAINT: Final = "gateway_cli.py: the broker at ", "gateway_cli.py: no broker answered"


class Files:
    """Which file is being translated, and what came of those before it."""

    def __init__(self, folder: Path, where: str, broker_away: Callable[[], bool]) -> None:
        self._folder, self._where, self._broker_away = folder, where, broker_away
        folder.mkdir()
        self.count = 0
        self.lines = 0  # that came out right
        self.faults: list[str] = []
        self.running = False  # whether one is begun and not finished
        self._next_at = 0.0

    def begin(self) -> tuple[str, ...] | None:
        """Write the next file; the command that translates it. None: it is not time yet."""
        if self.running or time.monotonic() < self._next_at:
            return None
        self.count += 1
        self.running = True
        source = self._path("in")
        source.write_text("".join(f"{text_of(number)}\n" for number in self._numbers()), encoding="utf-8")
        names = ("--file", str(source), "--out", str(self._path("out")))
        return ("gateway_cli.py", "--broker", self._where, *names)

    def on_end(self, status: int, words: str) -> str | None:
        """The gateway has ended; what is wrong with that."""
        if status == 1 and words.splitlines()[-1].startswith(COMPLAINT) and self._broker_away():
            return None  # it was started while there was no broker: run again, as a person would
        if status:
            return f"ended by itself with {status}: {words}"
        self.running = False
        self._next_at = time.monotonic() + PAUSE_S
        return self._check()

    def _check(self) -> str | None:
        lines = self._path("out").read_text(encoding="utf-8").splitlines()
        bad = [line for number, line in zip(self._numbers(), lines, strict=False) if not is_answer(number, line)]
        self.lines += len(lines) - len(bad)
        if len(lines) == LINES and not bad:
            return None
        self.faults.append(f"{self._path('out')}: {len(lines)} lines of {LINES}, wrong: {bad[:3]}")
        return self.faults[-1]

    def _numbers(self) -> range:
        first = FIRST + self.count * LINES
        return range(first, first + LINES)

    def _path(self, suffix: str) -> Path:
        return self._folder / f"{self.count}.{suffix}"
