"""The folder packages are installed in: one lock for changes, and only renames put things in or out.

A folder whose name begins with a dot is never a package. ``.new-*`` and ``.old-*`` are on their way in or
out; under the lock, those of others belong to an install that was killed, and go.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from dolmetsch.errors import PackageError

LOCK_LIMIT_S: Final = 60.0  # waiting for another install to end
LOCK_POLL_S: Final = 0.1
PART_KEEP_S: Final = 7 * 86400.0  # an interrupted download can be resumed for a week
DISK_RESERVE_BYTES: Final = 64 << 20  # left free whatever is written
DOWNLOADS: Final = ".downloads"


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold the lock of ``folder``, made if need be and cleaned of leftovers.

    Raises ``PackageError`` when another process keeps the lock, and for every ``OSError`` inside.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with (folder / ".lock").open("a") as lock:
            _wait_for(lock.fileno(), folder)
            _clean(folder)
            yield
    except OSError as error:
        reason = error.strerror or str(error)
        raise PackageError(f"{folder} cannot be changed ({reason}); DOLMETSCH_PACKAGES names another folder") from error


def temporary(folder: Path) -> tempfile.TemporaryDirectory[str]:
    """A folder on its way in, in the same file system, so that one rename puts what is in it in place."""
    return tempfile.TemporaryDirectory(prefix=".new-", dir=folder)


def put(ready: Path, folder: Path, name: str) -> Path:
    """Rename ``ready`` into ``folder`` under ``name``, or ``name-2`` and so on: nothing is ever replaced."""
    places = (folder / (name if count == 1 else f"{name}-{count}") for count in range(1, 1000))
    place = next(place for place in places if not place.exists())
    ready.rename(place)
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
    return place


def discard(path: Path) -> None:
    """Remove a package, renamed first: nobody finds half of one when this process is killed on the way."""
    doomed = Path(tempfile.mkdtemp(prefix=".old-", dir=path.parent))
    path.rename(doomed / path.name)
    shutil.rmtree(doomed, ignore_errors=True)


def require_space(folder: Path, needed_bytes: int) -> None:
    """Raises ``PackageError`` when the disk of ``folder`` has no room for ``needed_bytes`` and a reserve."""
    free = shutil.disk_usage(folder).free
    if needed_bytes + DISK_RESERVE_BYTES > free:
        needed = (needed_bytes + DISK_RESERVE_BYTES) >> 20
        raise PackageError(f"the disk of {folder} has {free >> 20} MiB free, {needed} MiB are needed")


def _wait_for(lock: int, folder: Path) -> None:
    deadline = time.monotonic() + LOCK_LIMIT_S
    while True:
        try:
            return fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)  # the kernel lets go when the holder dies
        except BlockingIOError:
            if time.monotonic() >= deadline:
                raise PackageError(
                    f"another install has been at work in {folder} for {LOCK_LIMIT_S:g} s; try again later"
                ) from None
            time.sleep(LOCK_POLL_S)


def _clean(folder: Path) -> None:
    for path in folder.iterdir():
        if path.name.startswith((".new-", ".old-")):
            shutil.rmtree(path, ignore_errors=True)
    for path in (folder / DOWNLOADS).glob("*"):
        if time.time() - path.stat().st_mtime > PART_KEEP_S:
            path.unlink()
