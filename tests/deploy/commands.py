"""Commands of this computer and waits for something to be so, each with a deadline, and the error of both."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

LOOK_S: Final = 0.1


class HostError(Exception):
    """Raised when a host, or what makes hosts, does not do what it should; says what was seen."""


def run(*command: str | Path, timeout_s: float = 30.0, check: bool = True) -> subprocess.CompletedProcess[str]:
    """Run a command of this computer to its end. Raises ``HostError`` with what it said."""
    words = [str(word) for word in command]
    try:
        ended = subprocess.run(
            words, stdin=subprocess.DEVNULL, capture_output=True, text=True, errors="replace", timeout=timeout_s
        )
    except subprocess.TimeoutExpired as error:
        raise HostError(f"not within {timeout_s:g} s: {' '.join(words)}\n{tail(error.stdout)}") from None
    if check and ended.returncode != 0:
        said = tail(ended.stdout) + tail(ended.stderr)
        raise HostError(f"exit status {ended.returncode}: {' '.join(words)}\n{said}")
    return ended


def wait_for(true: Callable[[], bool], within_s: float, what: str) -> None:
    """Look again and again until ``true()``. Raises ``HostError``."""
    until = time.monotonic() + within_s
    while not true():
        if time.monotonic() > until:
            raise HostError(f"not within {within_s:g} s: {what}")
        time.sleep(LOOK_S)


def tail(text: str | bytes | None, most: int = 6000) -> str:
    if isinstance(text, bytes):
        text = text.decode(errors="replace")
    return (text or "")[-most:]
