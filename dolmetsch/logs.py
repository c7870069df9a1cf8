"""Log lines: one form for every program, on standard error, so that journald and a person can both read them."""

from __future__ import annotations

import logging
import sys
import traceback
from pathlib import Path
from typing import Final

TRACE_PLACES: Final = 8


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
    return logging.getLogger(program)


def _one_line(record: logging.LogRecord) -> bool:
    """Let no library print a traceback: it is long, and its last line may quote a text."""
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
