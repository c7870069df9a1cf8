"""How a target is run: a fixed number of mutants, one input again, or hours with atheris looking at what is reached."""

from __future__ import annotations

import contextlib
import hashlib
import importlib
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from fuzz.mutate import mutants
from fuzz.target import Target, load, temporary

KEPT: Final = Path(".fuzz")  # what was found, and the corpus of each target; git does not see it
RSS_LIMIT_MB: Final = 2048
INPUT_LIMIT_S: Final = 20  # of one input under a tracer
GRACE_S: Final = 120.0  # beyond the time asked for: imports, the last input, the report


def keep(name: str, data: bytes, folder: Path) -> Path:
    """Write an input that broke ``name`` where ``python -m fuzz NAME --replay FILE`` finds it; the file."""
    place = _home(name, folder) / f"crash-{hashlib.sha1(data).hexdigest()}"
    place.write_bytes(data)
    return place


def _home(name: str, folder: Path) -> Path:
    home = folder / name
    (home / "corpus").mkdir(parents=True, exist_ok=True)
    (folder / ".gitignore").write_text("*\n")
    return home


@contextlib.contextmanager
def kept(name: str, data: bytes, folder: Path) -> Iterator[None]:
    """Whatever is raised inside goes on, with the input kept and a note on how to see it again."""
    try:
        yield
    except Exception as error:
        error.add_note(f"again: python -m fuzz {name} --replay {keep(name, data, folder)}")
        raise


def plain(target: Target, count: int, number: int = 0, folder: Path = KEPT) -> int:
    """Try ``count`` mutants; how many. Raises what the first bad one raises; that input is kept in ``folder``."""
    tried = 0
    for data in mutants(target.seeds(), target.tokens, target.most_bytes, count, number):
        with kept(target.name, data, folder):
            target.attempt(data)
        tried += 1
    return tried


def guided(name: str, seconds: int, folder: Path = KEPT) -> int:
    """Let atheris look for a bad input for so long; 0 when it found none. Its report goes to standard error.

    In a process of its own: libFuzzer ends without cleaning up.
    """
    home = _home(name, folder)
    with temporary() as place:
        for number, seed in enumerate(load(name).seeds()):
            (home / "corpus" / f"seed-{number}").write_bytes(seed)
        words = Path(place) / "words"
        words.write_text("".join(f'"{_escaped(token)}"\n' for token in load(name).tokens))
        arguments = [
            str(home / "corpus"), f"-max_total_time={seconds}", f"-artifact_prefix={home}/", f"-dict={words}",
            f"-max_len={load(name).most_bytes}", f"-timeout={INPUT_LIMIT_S}", f"-rss_limit_mb={RSS_LIMIT_MB}",
            "-print_final_stats=1", "-verbosity=0",
        ]  # fmt: skip
        ended = subprocess.run(
            [sys.executable, "-c", f"from fuzz.run import trace; trace({name!r})", *arguments],
            env=os.environ | {"TMPDIR": place},
            timeout=seconds + GRACE_S,
            check=False,
        )
    return ended.returncode


def _escaped(token: bytes) -> str:
    return "".join(f"\\x{byte:02x}" for byte in token)


def trace(name: str) -> None:
    """The process of ``guided``; does not return."""
    atheris: Any = importlib.import_module("atheris")  # only this needs it
    with atheris.instrument_imports(include=["dolmetsch"], enable_loader_override=False):
        target = load(name)
    atheris.Setup(sys.argv, target.attempt)
    atheris.Fuzz()
