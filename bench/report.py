"""How a benchmark speaks: the machine, a table for people, and one last line of JSON for machines."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any


def machine() -> str:
    """Processor, cores, system, and the versions that matter."""
    model = platform.machine()
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith(("model name", "Model")):
            model = line.partition(":")[2].strip()
    libraries = ", ".join(f"{name} {version(name)}" for name in ("pyzmq", "msgpack", "ctranslate2"))
    cores = len(os.sched_getaffinity(0))
    return f"{model}, {cores} cores, Linux {platform.release()}, Python {platform.python_version()}, {libraries}"


def table(rows: Sequence[Sequence[str]]) -> str:
    """Rows with aligned columns; the first row is the head."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    return "\n".join([lines[0], "  ".join("-" * width for width in widths), *lines[1:]])


def finish(title: str, rows: Sequence[Sequence[str]], figures: dict[str, Any]) -> None:
    """Print all of it."""
    print(f"{title}\n{machine()}\n\n{table(rows)}\n")
    print(json.dumps(figures))
