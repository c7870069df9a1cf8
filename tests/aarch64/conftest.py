"""Skips all of it, with one sentence, where nothing can be emulated; and lets a SIGTERM clean up as Ctrl-C does."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.aarch64.emulated import missing
from tests.conftest import sigterm_cleans_up


@pytest.fixture(scope="session", autouse=True)
def able() -> Iterator[None]:
    """See above."""
    lacking = missing()
    if lacking:
        pytest.skip(lacking)
    with sigterm_cleans_up():
        yield
