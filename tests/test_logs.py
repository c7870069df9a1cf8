"""Log lines: one form, no traceback, no library's message that may quote a text."""

from __future__ import annotations

import logging
import subprocess
import sys

import pytest

from dolmetsch.logs import STRANGERS, STRANGERS_S, Sparing

PROGRAM = """
import logging
from dolmetsch import logs
log = logs.start("program")
try:
    raise ValueError("Guten Morgen")
except ValueError:
    logging.getLogger("library").exception("try %d failed", 3)
log.warning("%d of %d", 1, 2)
"""


def test_a_librarys_traceback_becomes_a_line_without_its_message() -> None:
    said = subprocess.run(
        [sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=True, timeout=30
    ).stderr
    first, second = said.splitlines()
    assert first[8:] == " error program: try 3 failed: ValueError at <string>:6"
    assert second[8:] == " warning program: 1 of 2"


def test_strangers_do_not_fill_the_log(caplog: pytest.LogCaptureFixture) -> None:
    """Ten thousand connections that send nonsense wrote as many lines."""
    sparing = Sparing(logging.getLogger("t"))
    for number in range(1000):
        sparing.warning(f"line {number}", number / 1000)
    assert len(caplog.messages) == STRANGERS + 1
    assert "left out" in caplog.messages[-1]
    caplog.clear()
    sparing.warning("later", STRANGERS_S + 1)
    assert caplog.messages == [f"{1000 - STRANGERS} such lines were left out", "later"]


def test_a_line_that_cannot_be_written_is_no_traceback() -> None:
    program = "from dolmetsch import logs\nlogs.start('t').info('%s %s', 'Guten Morgen')"
    said = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=30
    ).stderr
    assert said == ""
