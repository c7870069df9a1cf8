"""The front step: lets ``python node.py`` work without activating anything, leave no core file, and end on Ctrl-C.

Only the standard library here, and nothing newer than an old Python can parse.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import resource
import sys
from pathlib import Path
from types import TracebackType


def in_venv() -> None:
    """Go on in the ``.venv`` beside the programs when this Python lacks the requirements; say so when there is none."""
    leave_no_core()
    if sys.excepthook is sys.__excepthook__:
        sys.excepthook = said
    if importlib.util.find_spec("zmq") is not None and importlib.util.find_spec("msgspec") is not None:
        return
    venv = Path(__file__).resolve().parent.parent / ".venv"
    python = venv / "bin" / "python"
    if python.exists() and Path(sys.prefix) != venv:
        os.execv(str(python), [str(python), *sys.orig_argv[1:]])
    sys.exit("dolmetsch's requirements are not installed: run `make env` in its folder first")


def said(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """What Python says of an error, but nothing of Ctrl-C: a Pi takes seconds to import all that a gateway needs."""
    if not issubclass(kind, KeyboardInterrupt):  # its exit status stays that of a program ended by SIGINT
        sys.__excepthook__(kind, error, trace)


def leave_no_core() -> None:
    """A core file would hold keys and texts. Children inherit this.

    A limit of 1 byte, as 0 is for files alone: where cores go to a program, such as systemd-coredump, Linux starts it
    at any limit but 1, and what it keeps has the environment. Not PR_SET_DUMPABLE: with it a node that runs under
    systemd's ProtectProc could not see its own children.
    """
    hard = resource.getrlimit(resource.RLIMIT_CORE)[1]
    with contextlib.suppress(OSError, ValueError):  # a service may be forbidden to; its unit says the same
        resource.setrlimit(resource.RLIMIT_CORE, (min(hard, 1) if hard != resource.RLIM_INFINITY else 1, hard))
