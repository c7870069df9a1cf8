"""Skips all of it, with one sentence, where nothing can be emulated; and lets a SIGTERM clean up as Ctrl-C does."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from types import FrameType
from typing import NoReturn

import pytest

from tests.aarch64.emulated import missing


@pytest.fixture(scope="session", autouse=True)
def able() -> Iterator[None]:
    """See above."""
    lacking = missing()
    if lacking:
        pytest.skip(lacking)

    def end(number: int, _: FrameType | None) -> NoReturn:
        raise KeyboardInterrupt(f"signal {number}")

    before = signal.signal(signal.SIGTERM, end)
    yield
    signal.signal(signal.SIGTERM, before)
