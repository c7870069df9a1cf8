"""Log lines: one form for every program, on standard error, so that journald and a person can both read them."""

from __future__ import annotations

import logging
import sys


def start(program: str, *, verbose: bool = False) -> logging.Logger:
    """Log to standard error as ``HH:MM:SS level program: text``; the program's logger."""
    logging.basicConfig(
        stream=sys.stderr,
        level=logging.DEBUG if verbose else logging.INFO,
        format=f"%(asctime)s %(levelname)s {program}: %(message)s",
        datefmt="%H:%M:%S",
        force=True,
    )
    for level, word in ((logging.WARNING, "warning"), (logging.INFO, "info"), (logging.ERROR, "error")):
        logging.addLevelName(level, word)
    return logging.getLogger(program)
