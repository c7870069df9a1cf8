"""The front step: lets ``python node.py`` work without activating anything.

Only the standard library here, and nothing newer than an old Python can parse.
"""

from __future__ import annotations

import importlib.util
import os
import sys
from pathlib import Path


def in_venv() -> None:
    """Go on in the ``.venv`` beside the programs when this Python lacks the requirements; say so when there is none."""
    if importlib.util.find_spec("zmq") is not None and importlib.util.find_spec("msgspec") is not None:
        return
    venv = Path(__file__).resolve().parent.parent / ".venv"
    python = venv / "bin" / "python"
    if python.exists() and Path(sys.prefix) != venv:
        os.execv(str(python), [str(python), *sys.orig_argv[1:]])
    sys.exit("dolmetsch's requirements are not installed: run `make env` in its folder first")
