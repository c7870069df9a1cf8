"""The reply book: which of our replies belongs to which message, on disk, so that a reply lives as long as its message.

SQLite in WAL mode. No text is kept, only ids and digests. ``synchronous=NORMAL``: what is written outlives this process
at once, and a power cut at worst loses the last moments, as it loses the events of that time. One process at a time.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, NamedTuple

from dolmetsch.errors import LedgerError

SCHEMA_VERSION: Final = 1
MAX_ENTRIES: Final = 100_000  # some 200 bytes each
PURGE_EVERY: Final = 1_000  # new lines

WANTED: Final = "wanted"  # somebody wants the translation, and it is there or on its way
TOLD: Final = "told"  # a notice stands in its place; nothing is on its way
GONE: Final = "gone"  # nobody wants it any more: what is left of the reply is to be deleted

_SCHEMA: Final = """
CREATE TABLE reply (
    message INTEGER NOT NULL,   -- the message that was reacted to
    route TEXT NOT NULL,
    channel INTEGER NOT NULL,
    guild INTEGER,              -- NULL in direct messages
    flag TEXT NOT NULL,         -- the first reaction
    state TEXT NOT NULL,
    turn INTEGER NOT NULL,      -- counts how often it was asked for anew: makes a new job
    shown TEXT NOT NULL,        -- stamp of the text whose translation the reply shows; empty: none
    parts TEXT NOT NULL,        -- JSON list: ids of our messages, in order
    sign INTEGER NOT NULL,      -- 1: our hourglass stands on the message
    posting INTEGER NOT NULL,   -- 1: a post is on its way, or its answer was lost
    asked REAL NOT NULL,        -- Unix seconds
    changed REAL NOT NULL,
    PRIMARY KEY (message, route)
);
CREATE INDEX reply_changed ON reply (changed);
CREATE TABLE part (id INTEGER PRIMARY KEY, message INTEGER NOT NULL, route TEXT NOT NULL);
CREATE INDEX part_message ON part (message, route);
"""
_COLUMNS: Final = "message, route, channel, guild, flag, state, turn, shown, parts, sign, posting, asked"


class Key(NamedTuple):
    """One reply: a message may have one for each route."""

    message: int
    route: str


@dataclass(frozen=True, slots=True)
class Entry:
    """A line of the book; see the schema."""

    key: Key
    channel: int
    guild: int | None
    flag: str
    asked: float
    state: str = WANTED
    turn: int = 0
    shown: str = ""
    parts: tuple[int, ...] = ()
    sign: bool = False
    posting: bool = False

    @property
    def settled(self) -> bool:
        """Whether nothing is left to do."""
        if self.sign or self.posting or (self.state == WANTED and not self.shown):
            return False
        return self.state != GONE or not self.parts


class ReplyBook:
    """Raises ``LedgerError`` from every call when SQLite or the disk refuses; a second process is refused at once."""

    def __init__(self, path: Path, window_s: float) -> None:
        self._path = path
        self._window_s = window_s
        self._added = 0
        try:
            path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            path.touch(mode=0o600)
            self._db = sqlite3.connect(path, isolation_level=None, timeout=0.5)
        except (OSError, sqlite3.Error) as error:
            why = error.strerror if isinstance(error, OSError) else error
            raise LedgerError(f"cannot write {path} ({why}): set discord.state to another place") from error
        try:
            self._prepare()
        except sqlite3.Error as error:
            self._db.close()
            if "locked" in str(error):
                raise LedgerError(f"{path} is in use by another Discord gateway: stop it first") from error
            raise LedgerError(f"{path} is not a usable reply book ({error}): move it away") from error
        except LedgerError:
            self._db.close()
            raise

    def _prepare(self) -> None:
        self._db.execute("PRAGMA locking_mode = EXCLUSIVE")
        self._db.execute("PRAGMA journal_mode = WAL")
        self._db.execute("PRAGMA synchronous = NORMAL")
        (version,) = self._db.execute("PRAGMA user_version").fetchone()
        if version == 0:
            self._db.executescript(f"BEGIN IMMEDIATE; {_SCHEMA} PRAGMA user_version = {SCHEMA_VERSION}; COMMIT")
        elif version != SCHEMA_VERSION:
            raise LedgerError(f"{self._path} was made by a newer dolmetsch (version {version}): use that one")
        self._db.execute("BEGIN IMMEDIATE")  # takes the lock now, not at the first write
        self._db.execute("COMMIT")

    def get(self, key: Key) -> Entry | None:
        rows = self._read("message = ? AND route = ?", *key)
        return rows[0] if rows else None

    def of_message(self, message: int) -> list[Entry]:
        """All replies to a message."""
        return self._read("message = ?", message)

    def of_part(self, part: int) -> Entry | None:
        """The reply that one of our messages belongs to."""
        row = self._run("SELECT message, route FROM part WHERE id = ?", part).fetchone()
        return self.get(Key(*row)) if row else None

    def unsettled(self) -> list[Entry]:
        """What an earlier process left undone, the oldest first."""
        found = self._read("sign OR posting OR shown = '' OR state = ? ORDER BY asked", GONE)
        return [entry for entry in found if not entry.settled]

    def latest(self, since: float, most: int) -> list[Entry]:
        """Replies and notices that stand and changed after ``since`` (Unix seconds), the latest first."""
        return self._read("state != ? AND parts != '[]' AND changed >= ? ORDER BY changed DESC LIMIT ?",
                          GONE, since, most)  # fmt: skip

    def add(self, entry: Entry) -> None:
        """Write a new line. Lines older than the window go, from time to time."""
        self._run(
            f"INSERT INTO reply ({_COLUMNS}, changed) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",  # nosec  # constants
            *entry.key, entry.channel, entry.guild, entry.flag, entry.state, entry.turn, entry.shown,
            json.dumps(entry.parts), entry.sign, entry.posting, entry.asked, entry.asked,
        )  # fmt: skip
        self._added += 1
        if self._added % PURGE_EVERY == 1:
            self.purge(entry.asked)

    def change(self, key: Key, now: float, **values: Any) -> None:
        """Set these columns; the others may have been changed meanwhile. ``now`` is in Unix seconds."""
        parts = values.get("parts")
        if parts is not None:
            values["parts"] = json.dumps(parts)
        columns = ", ".join([f"{name} = ?" for name in (*values, "changed")])
        with self._transaction():
            change = f"UPDATE reply SET {columns} WHERE message = ? AND route = ?"  # nosec  # names in our own calls
            self._run(change, *values.values(), now, *key)
            if parts is not None:
                self._run("DELETE FROM part WHERE message = ? AND route = ?", *key)
            for part in parts or ():
                self._run("INSERT OR REPLACE INTO part VALUES (?, ?, ?)", part, *key)

    def forget(self, key: Key) -> None:
        with self._transaction():
            self._run("DELETE FROM part WHERE message = ? AND route = ?", *key)
            self._run("DELETE FROM reply WHERE message = ? AND route = ?", *key)

    def purge(self, now: float) -> None:
        """Forget what is older than the window, and the oldest beyond MAX_ENTRIES."""
        self._run("DELETE FROM reply WHERE changed < ?", now - self._window_s)
        self._run(
            "DELETE FROM reply WHERE changed <= (SELECT changed FROM reply ORDER BY changed DESC LIMIT 1 OFFSET ?)",
            MAX_ENTRIES,
        )
        self._run("DELETE FROM part WHERE NOT EXISTS"
                  " (SELECT 1 FROM reply WHERE reply.message = part.message AND reply.route = part.route)")  # fmt: skip

    def close(self) -> None:
        self._db.close()

    def _read(self, where: str, *values: Any) -> list[Entry]:
        rows = self._run(f"SELECT {_COLUMNS} FROM reply WHERE {where}", *values).fetchall()  # nosec  # constants
        return [_entry(*row) for row in rows]

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        """All of it or nothing; after an error the next one can begin."""
        self._run("BEGIN IMMEDIATE")
        try:
            yield
            self._run("COMMIT")
        except BaseException:
            if self._db.in_transaction:
                self._run("ROLLBACK")
            raise

    def _run(self, statement: str, *values: Any) -> sqlite3.Cursor:
        try:
            return self._db.execute(statement, values)
        except sqlite3.Error as error:
            raise LedgerError(f"{self._path} cannot be used: {error}") from error


def _entry(
    message: int, route: str, channel: int, guild: int | None, flag: str, state: str, turn: int, shown: str, parts: str,
    sign: int, posting: int, asked: float,
) -> Entry:  # fmt: skip
    return Entry(
        Key(message, route),
        channel,
        guild,
        flag,
        asked,
        state,
        turn,
        shown,
        tuple(json.loads(parts)),
        bool(sign),
        bool(posting),
    )
