"""What sits in chaos's nodes and their children: one thing that eats memory at a signal, one that a poisoned job wakes.

Python runs this file at its start because the nodes' PYTHONPATH names its folder, so that the product needs no hook.
A text with ``POISON`` in it crashes the process while it is translated, as a fault in a C++ library would: the kernel
kills it. At SIGUSR1 the process eats memory until it is killed, or gets no more; what it ate it keeps.
"""

from __future__ import annotations

import contextlib
import importlib.abc
import importlib.machinery
import os
import select
import signal
import sys
import time
import types
from collections.abc import Sequence
from typing import Any

POISON = "`poison`"  # inline code: no part of a model's work, so that it is there whatever the text is
BITES_BYTES = (4 * 2**20, 2**19)  # so that nothing is left for what it has to do
MOST_BYTES = 1 << 30  # of each size: the computer has other things to do
ENGINE = "dolmetsch.engine"

eaten: list[bytes] = []


def eat(number: int, frame: types.FrameType | None) -> None:
    """Eat, and feel no shame: each byte is written to, so that it takes memory indeed."""
    for size in BITES_BYTES:
        with contextlib.suppress(MemoryError):
            for _ in range(MOST_BYTES // size):
                eaten.append(b"x" * size)


class Finder(importlib.abc.MetaPathFinder):
    """Finds ``dolmetsch.engine`` as ever, and makes its engines sensitive to poison once it is loaded."""

    def find_spec(
        self, name: str, path: Sequence[str] | None, target: types.ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if name != ENGINE:
            return None
        sys.meta_path.remove(self)
        spec = importlib.machinery.PathFinder.find_spec(name, path, target)
        if spec is not None and spec.loader is not None:
            load = spec.loader.exec_module

            def exec_module(module: types.ModuleType) -> None:
                load(module)
                sensitive(module.ArgosEngine)

            spec.loader.exec_module = exec_module  # type: ignore[method-assign]
        return spec


def sensitive(engine: Any) -> None:
    """Its batches with a poisoned job in them kill the process."""
    submit, run = engine.submit, engine.run
    poisoned: set[bytes] = set()

    def submitting(self: Any, key: bytes, route: str, texts: Sequence[str], **options: Any) -> None:
        if any(POISON in text for text in texts):
            poisoned.add(key)
        submit(self, key, route, texts, **options)

    def running(self: Any, batch: Any) -> Any:
        if poisoned.intersection(batch.keys):
            os.kill(os.getpid(), signal.SIGSEGV)
        return run(self, batch)

    engine.submit, engine.run = submitting, running


def sleep(seconds: float) -> None:
    """``time.sleep`` beside libfaketime, which refuses what Python's own asks for (clock_nanosleep until a time)."""
    select.select([], [], [], seconds)


if "faketime" in os.environ.get("LD_PRELOAD", ""):
    time.sleep = sleep  # type: ignore[assignment]
if "dolmetsch.worker" in sys.orig_argv:
    signal.signal(signal.SIGUSR1, eat)
    sys.meta_path.insert(0, Finder())
