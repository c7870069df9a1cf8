"""Who may ask for how much: API keys on disk, and the last minute of every caller in memory.

A key is 256 random bits. Only its SHA-256 digest is kept, so whoever reads the file learns no key. ``gateway_http.py
keys`` writes the file while the gateway reads it, each request anew: a key is valid, or no longer, from one request to
the next.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
import sqlite3
import threading
import time
from collections import OrderedDict, deque
from pathlib import Path
from typing import Any, Final, NamedTuple

from dolmetsch.errors import InputError, LedgerError

SCHEMA_VERSION: Final = 1
MAX_NAME_CHARS: Final = 64
MAX_KEY_CHARS: Final = 256  # what is longer is no key of ours, and not worth a digest
MAX_CALLERS: Final = 10_000  # some 10 KB each at worst
WINDOW_S: Final = 60
_BUSY_S: Final = 2.0  # another process writes for milliseconds

_SCHEMA: Final = """
CREATE TABLE key (
    name TEXT PRIMARY KEY,
    digest BLOB NOT NULL UNIQUE,        -- SHA-256 of the key
    per_minute INTEGER NOT NULL,        -- requests; 0: no limit
    chars_per_minute INTEGER NOT NULL,  -- 0: no limit
    added REAL NOT NULL                 -- Unix seconds
);
"""


class Allowance(NamedTuple):
    """What a caller may ask for in a minute; 0 is no limit."""

    requests: int
    chars: int


class Holder(NamedTuple):
    """Whom a key was given to."""

    name: str
    allowance: Allowance
    added: float


class Keys:
    """Raises ``LedgerError`` from every call when SQLite or the disk refuses. Threads may share it."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lock = threading.Lock()
        try:
            path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            path.touch(mode=0o600)
            self._db = sqlite3.connect(path, isolation_level=None, timeout=_BUSY_S, check_same_thread=False)
        except (OSError, sqlite3.Error) as error:
            why = error.strerror if isinstance(error, OSError) else error
            raise LedgerError(f"cannot write {path} ({why}): set http.keys to another place") from error
        try:
            self._prepare()
        except sqlite3.Error as error:
            self._db.close()
            raise LedgerError(f"{path} does not keep API keys ({error}): move it away") from error
        except LedgerError:
            self._db.close()
            raise

    def _prepare(self) -> None:
        self._db.execute("PRAGMA journal_mode = WAL")
        self._db.execute("BEGIN IMMEDIATE")  # two programs may start at once
        (version,) = self._db.execute("PRAGMA user_version").fetchone()
        if version == 0:
            self._db.execute(_SCHEMA)
            self._db.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")
        self._db.execute("COMMIT")
        if version not in (0, SCHEMA_VERSION):
            raise LedgerError(f"{self._path} was made by a newer dolmetsch (version {version}): use that one")

    def add(self, name: str, allowance: Allowance) -> str:
        """A new key for ``name``: this is the only time it can be seen. Raises ``InputError`` for a name that is not
        new or no name."""
        if not (name.isprintable() and name.strip() == name and 0 < len(name) <= MAX_NAME_CHARS):
            raise InputError(f"a name has 1 to {MAX_NAME_CHARS} printable characters")
        key = secrets.token_urlsafe(32)
        row = (name, _digest(key), *allowance, time.time())
        if not self._run("INSERT OR IGNORE INTO key VALUES (?, ?, ?, ?, ?) RETURNING name", *row):
            raise InputError(f"there is a key for {name} already: remove it first")
        return key

    def remove(self, name: str) -> None:
        """The key is valid no longer. Raises ``InputError`` when there is none."""
        if not self._run("DELETE FROM key WHERE name = ? RETURNING name", name):
            raise InputError(f"there is no key for {name}")

    def find(self, key: str) -> Holder | None:
        """Who has this key."""
        if len(key) > MAX_KEY_CHARS:
            return None
        digest = _digest(key)
        rows = self._run("SELECT digest, name, per_minute, chars_per_minute, added FROM key WHERE digest = ?", digest)
        for found, *row in rows:
            if hmac.compare_digest(found, digest):
                return _holder(*row)
        return None

    def all(self) -> list[Holder]:
        """By name."""
        rows = self._run("SELECT name, per_minute, chars_per_minute, added FROM key ORDER BY name")
        return [_holder(*row) for row in rows]

    def count(self) -> int:
        ((count,),) = self._run("SELECT count(*) FROM key")
        return int(count)

    def close(self) -> None:
        self._db.close()

    def _run(self, statement: str, *values: Any) -> list[tuple[Any, ...]]:
        try:
            with self._lock:
                return self._db.execute(statement, values).fetchall()
        except sqlite3.Error as error:
            raise LedgerError(f"{self._path} cannot be used: {error}") from error


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode(errors="replace")).digest()


def _holder(name: str, requests: int, chars: int, added: float) -> Holder:
    return Holder(name, Allowance(requests, chars), added)


class Windows:
    """What each caller asked for in the last minute: a moving window in steps of a second.

    The ``limits`` package counts by the wall clock, which jumps on a Pi, and never forgets a caller's name.
    """

    def __init__(self, most: int = MAX_CALLERS) -> None:
        self._most = most
        self._lock = threading.Lock()
        self._windows: OrderedDict[str, _Window] = OrderedDict()  # who asked last is last

    def take(self, caller: str, allowance: Allowance, chars: int, now: float) -> float:
        """Count a request, and return 0.0; or count nothing, and return the seconds after which to try again."""
        with self._lock:
            window = self._windows.setdefault(caller, _Window())
            self._windows.move_to_end(caller)
            self._forget(now)
            return window.take(allowance, chars, now)

    def full(self, caller: str, allowance: Allowance, now: float) -> bool:
        """Whether one more request would be too many; counts nothing."""
        with self._lock:
            window = self._windows.get(caller)
            return window is not None and window.wait_s(allowance, 0, now) > 0

    def _forget(self, now: float) -> None:
        """Drop who has been away for a minute, a few at a time, and whoever is too many."""
        for _ in range(2):
            caller, window = next(iter(self._windows.items()))
            if len(self._windows) > self._most or (len(self._windows) > 1 and window.idle(now)):
                del self._windows[caller]


class _Window:
    __slots__ = ("_chars", "_requests", "_steps")

    def __init__(self) -> None:
        self._steps: deque[list[int]] = deque()  # [second, requests, characters]; at most WINDOW_S + 1 of them
        self._requests = 0
        self._chars = 0

    def idle(self, now: float) -> bool:
        return not self._steps or self._over(self._steps[-1], now)

    def wait_s(self, allowance: Allowance, chars: int, now: float) -> float:
        while self._steps and self._over(self._steps[0], now):
            _, requests, gone = self._steps.popleft()
            self._requests -= requests
            self._chars -= gone
        # More characters than a whole minute's worth may come into an empty window, or they never could.
        room = allowance.chars - min(chars, allowance.chars) if allowance.chars else None
        return max(
            self._wait_s(1, allowance.requests - 1 if allowance.requests else None, now), self._wait_s(2, room, now)
        )

    def take(self, allowance: Allowance, chars: int, now: float) -> float:
        wait_s = self.wait_s(allowance, chars, now)
        if wait_s == 0.0:
            self._requests += 1
            self._chars += chars
            if not self._steps or self._steps[-1][0] != int(now):
                self._steps.append([int(now), 0, 0])
            self._steps[-1][1] += 1
            self._steps[-1][2] += chars
        return wait_s

    def _wait_s(self, what: int, room: int | None, now: float) -> float:
        """How long until no more than ``room`` of it is counted."""
        counted = self._requests if what == 1 else self._chars
        if room is None or counted <= room:
            return 0.0
        for step in self._steps:
            counted -= step[what]
            if counted <= room:
                return max(0.001, step[0] + WINDOW_S + 1 - now)
        return 0.0  # not reached: without any step nothing is counted

    @staticmethod
    def _over(step: list[int], now: float) -> bool:
        return now >= step[0] + WINDOW_S + 1
