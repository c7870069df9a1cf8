"""What the load writes down, and what that says: which jobs were sent, answered, answered twice, answered wrongly.

The journal is a file of JSON lines: ``{"start": pid}`` for each process of the gateway, ``{"sent": number}``,
``{"got": number, "text": ..., "attempts": n}``, ``{"failed": number, "why": ...}``, each with ``at``, monotonic seconds
that all processes of a computer share. A line that has no end yet is not there yet.
"""

from __future__ import annotations

import json
from bisect import bisect_left
from pathlib import Path
from typing import Any

from bench.throughput import sentences

TEXTS = sentences()


def text_of(number: int) -> str:
    """The text of a job, unlike any other's: inline code is no model's work, so that it tells whose answer one is."""
    return f"{TEXTS[number % len(TEXTS)]} `{number}`"


def is_answer(number: int, text: str) -> bool:
    """Whether ``text`` can be the translation of ``text_of(number)``: its number and no other, and words."""
    rest = text.replace(f"`{number}`", "", 1)
    return rest != text and "`" not in rest and bool(rest.strip())


class Tally:
    """The journal so far. ``read`` takes what is new; nothing else changes it."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._read_bytes = 0
        self._starts = 0
        self._got_in: dict[int, int] = {}  # number -> which of the gateway's processes got it last
        self.sent: list[float] = []  # when each was sent; numbers count from 0
        self.got: dict[int, float] = {}  # number -> when it was answered first
        self.waiting: dict[int, float] = {}  # number -> when it was sent
        self.again = 0  # answers that came once more after a kill, as their ack may have been lost with the process
        self.doubled: list[int] = []
        self.wrong: list[tuple[int, str]] = []
        self.failed: list[tuple[int, str]] = []
        self.texts: dict[int, str] = {}

    def read(self) -> None:
        """Take the lines that were added since."""
        if not self._path.exists():
            return
        with self._path.open("rb") as file:
            file.seek(self._read_bytes)
            for line in file:
                if not line.endswith(b"\n"):
                    break
                self._read_bytes += len(line)
                self._take(json.loads(line))

    def _take(self, entry: dict[str, Any]) -> None:
        match entry:
            case {"start": _}:
                self._starts += 1
            case {"sent": int(number), "at": float(at)}:
                self.sent.append(at)
                self.waiting[number] = at
            case {"got": int(number), "at": float(at), "text": str(text)}:
                self._answered(number, at, text)
            case {"failed": int(number), "why": str(why)}:
                self.failed.append((number, why))
                self.waiting.pop(number, None)

    def _answered(self, number: int, at: float, text: str) -> None:
        before = self._got_in.get(number)
        self._got_in[number] = self._starts
        if before is not None:
            self.again += 1
            if before == self._starts or text != self.texts[number]:
                self.doubled.append(number)
            return
        self.got[number] = at
        self.texts[number] = text
        self.waiting.pop(number, None)
        if not is_answer(number, text):
            self.wrong.append((number, text))

    def all_before(self, at: float) -> bool:
        """Whether everything that was sent before ``at`` has ended, and something that was sent since then too."""
        if any(sent < at for sent in self.waiting.values()):
            return False
        return any(number in self.got for number in range(bisect_left(self.sent, at), len(self.sent)))

    def longest_s(self, since: float, until: float) -> float:
        """The longest that a job took which was sent in that time."""
        numbers = range(bisect_left(self.sent, since), bisect_left(self.sent, until))
        return max((self.got[one] - self.sent[one] for one in numbers if one in self.got), default=0.0)
