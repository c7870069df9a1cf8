"""Log lines: one form for every program, on standard error, so that journald and a person can both read them.

And nothing else of what a program holds: a crash is a line without the error's message, and leaves no core file.
"""

from __future__ import annotations

import logging
import math
import re
import sys
import threading
import traceback
from pathlib import Path
from typing import Final

from dolmetsch.bootstrap import leave_no_core, said

TRACE_PLACES: Final = 8
STRANGERS: Final = 20  # lines that strangers may cause ...
STRANGERS_S: Final = 60.0  # ... in so many seconds: a log may lie on an SD card


def start(program: str, *, verbose: bool = False) -> logging.Logger:
    """Log to standard error as ``HH:MM:SS level program: text``; the program's logger."""
    logging.basicConfig(
        stream=sys.stderr,
        level=logging.DEBUG if verbose else logging.INFO,
        format=f"%(asctime)s %(levelname)s {program}: %(message)s",
        datefmt="%H:%M:%S",
        force=True,
    )
    for handler in logging.getLogger().handlers:
        handler.addFilter(_one_line)
    for level, word in ((logging.WARNING, "warning"), (logging.INFO, "info"), (logging.ERROR, "error")):
        logging.addLevelName(level, word)
    logging.raiseExceptions = False  # a line that cannot be written would become a traceback, with its arguments
    discreet()
    return logging.getLogger(program)


def discreet() -> None:
    """From now on a crash is one line, unless somebody else sees to it already, as pytest does, and leaves no core."""
    leave_no_core()
    if sys.excepthook in (sys.__excepthook__, said):
        sys.excepthook = lambda kind, error, trace: _crashed("ended by", error)
    if threading.excepthook is threading.__excepthook__:
        threading.excepthook = lambda args: _crashed("a thread ended by", args.exc_value)
    if sys.unraisablehook is sys.__unraisablehook__:
        sys.unraisablehook = lambda args: _crashed("went on after", args.exc_value)


def _crashed(what: str, error: BaseException | None) -> None:
    if not isinstance(error, SystemExit):
        logging.error("%s %s", what, "an error" if error is None else trace(error))


def _one_line(record: logging.LogRecord) -> bool:
    """Let no library print a traceback: it is long, and its last line may quote a text."""
    if record.name == "asyncio":  # it shows what a callback was called with, and what a task ended with
        record.msg, record.args = re.split(r"[\n(<]", record.getMessage(), maxsplit=1)[0].strip(), ()
    if record.exc_info and record.exc_info[1] is not None:
        record.msg = f"{record.getMessage()}: {trace(record.exc_info[1])}"
        record.args, record.exc_info, record.exc_text = (), None, None
    return True


def trace(error: BaseException) -> str:
    """``error`` in one line: its type and the last places it passed, innermost first ("KeyError at a.py:7, b.py:9").

    Its message is left out: where texts are handled, a library's message may quote one, and texts never get into logs.
    """
    places = [f"{Path(frame.f_code.co_filename).name}:{line}" for frame, line in traceback.walk_tb(error.__traceback__)]
    return f"{type(error).__name__} at {', '.join(places[: -TRACE_PLACES - 1 : -1])}"


class Sparing:
    """Warnings that strangers can cause: so many in a minute, then a word that some are left out, and how many."""

    def __init__(self, log: logging.Logger) -> None:
        self._log = log
        self._until = -math.inf
        self._count = 0

    def warning(self, text: str, now: float) -> None:
        """Log ``text`` at ``now``, in seconds of any clock that does not go back."""
        if now >= self._until:
            if self._count > STRANGERS:
                self._log.warning("%d such lines were left out", self._count - STRANGERS)
            self._until = now + STRANGERS_S
            self._count = 0
        self._count += 1
        if self._count <= STRANGERS:
            self._log.warning("%s", text)
        elif self._count == STRANGERS + 1:
            self._log.warning("more of the same: such lines are left out for up to %g s", STRANGERS_S)
