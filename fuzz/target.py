"""A target: one place where bytes of others come in, what may be sent there, and what must hold whatever it is."""

from __future__ import annotations

import functools
import importlib
import os
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

NAMES: Final = (
    "archive", "config", "detect", "discord", "flags", "html", "http", "segment", "wire", "worker",
)  # fmt: skip
MOST_S: Final = 2.0  # processor time of one input: far above what any takes, far below what a broker can stand still


class Slow(AssertionError):
    """Raised when one input took longer than its target allows."""


@dataclass(frozen=True, slots=True)
class Target:
    """``check(data)`` returns, or raises what is a defect. ``seeds`` are good inputs, ``tokens`` what they are made of.

    ``property`` says in words what ``check`` looks at.
    """

    name: str
    property: str
    seeds: Callable[[], list[bytes]]
    check: Callable[[bytes], None]
    tokens: tuple[bytes, ...]
    most_bytes: int

    def attempt(self, data: bytes) -> None:
        """Check ``data``, and that it does not take too long. Raises what ``check`` raises, or ``Slow``."""
        started = time.process_time()
        self.check(data)
        took_s = time.process_time() - started
        if took_s > MOST_S:
            raise Slow(f"{self.name}: {len(data)} bytes took {took_s:.1f} s")


def load(name: str) -> Target:
    """The target ``name``, one of NAMES. Its rooms are imported now: what is to be traced is traced from here on."""
    module = importlib.import_module(f"fuzz.targets.{name}")
    return Target(name, module.__doc__ or "", module.seeds, module.check, module.TOKENS, module.MOST_BYTES)


def temporary() -> tempfile.TemporaryDirectory[str]:
    """A folder in memory where there is one: nothing here must outlive a power cut, and every input syncs its files."""
    memory = Path("/dev/shm")
    chosen = os.environ.get("TMPDIR") or (memory if memory.is_dir() else None)
    return tempfile.TemporaryDirectory(prefix="dolmetsch-fuzz-", dir=chosen)


_scratch = functools.cache(temporary)


def scratch() -> Path:
    """A folder for what targets write; it goes with this process."""
    return Path(_scratch().name)
