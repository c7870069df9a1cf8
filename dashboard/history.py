"""The history: the charts in memory, and a file from which they come back after a restart.

SQLite in WAL mode, ``synchronous=NORMAL``: what is written outlives this process at once, and a power cut at worst
loses the last moments. Rows are keyed by their place in a ring, so the file does not grow beyond a day. A thread writes
every ten seconds, for a disk may take its time and SD cards wear out; nobody who asks waits for it. One process at a
time.
"""

from __future__ import annotations

import logging
import os
import sqlite3
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

from dashboard.charts import CLUSTER, NODE, UNKNOWN, Charts, Row, Sample
from dashboard.pages import Page, encode_json
from dolmetsch import logs
from dolmetsch.errors import LedgerError

SCHEMA_VERSION: Final = 1
APPLICATION_ID: Final = 0x646F6C68  # "dolh", in the file's header: nobody else's file is ever touched
MAGIC: Final = b"SQLite format 3\0"
HEADER_BYTES: Final = 100  # of SQLite's database file format, section 1.3
BROKEN: Final = ".broken"  # a corrupt file is renamed to this; the one before goes
WRITE_S: Final = 10.0
CLOSE_S: Final = 5.0
CHECKPOINT_PAGES: Final = 256  # a write-ahead log of a megabyte
REBUILD_S: Final = {"5m": 1.0, "1h": 10.0, "24h": 30.0}  # how old the answer to all who ask may be

_SCHEMA: Final = f"""
CREATE TABLE node (number INTEGER PRIMARY KEY, name TEXT NOT NULL);
CREATE TABLE cluster_slot (
    span INTEGER NOT NULL,      -- 0: 5 minutes, 1: an hour, 2: a day
    place INTEGER NOT NULL,     -- in the ring: slot % size
    slot INTEGER NOT NULL,      -- Unix time / step
    samples INTEGER NOT NULL,
    {", ".join([f"{name} REAL" for name in CLUSTER])},
    PRIMARY KEY (span, place)
) WITHOUT ROWID;
CREATE TABLE node_slot (
    span INTEGER NOT NULL,
    place INTEGER NOT NULL,
    node INTEGER NOT NULL,
    slot INTEGER NOT NULL,
    samples INTEGER NOT NULL,
    {", ".join([f"{name} REAL" for name in NODE])},
    PRIMARY KEY (span, place, node)
) WITHOUT ROWID;
PRAGMA application_id = {APPLICATION_ID};
PRAGMA user_version = {SCHEMA_VERSION};
"""
_CLUSTER_INTO: Final = f"INSERT OR REPLACE INTO cluster_slot VALUES (?, ?, ?, ?{', ?' * len(CLUSTER)})"
_NODE_INTO: Final = f"INSERT OR REPLACE INTO node_slot VALUES (?, ?, ?, ?, ?{', ?' * len(NODE)})"

log = logging.getLogger("history")


class Corrupt(Exception):
    """Raised when the file is a history of ours that cannot be read any more."""


class Store:
    """The file. Raises ``LedgerError`` for what an owner can put right; ``Corrupt`` stays inside this room."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._names: dict[str, int] = {}
        self._db: sqlite3.Connection | None = None

    def load(self) -> tuple[Mapping[str, int], list[Row]]:
        """Open the file, made if it is not there: the numbers of nodes, and rows, those of the cluster first.

        A corrupt file is moved aside for a new one.
        """
        try:
            return self._load()
        except Corrupt as error:
            log.warning("the history was corrupt (%s): moved aside to %s, beginning anew", error, self._move_aside())
            return self._load()

    def _load(self) -> tuple[Mapping[str, int], list[Row]]:
        self.close()
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            self.path.touch(mode=0o600)
            self._judge_header()
            db = self._db = sqlite3.connect(self.path, isolation_level=None, timeout=0.5, check_same_thread=False)
            self._prepare(db)
            self._names = dict(db.execute("SELECT name, number FROM node"))
            return self._names, _read(db)
        except sqlite3.Error as error:
            self.close()
            if "locked" in str(error):
                raise LedgerError(
                    f"{self.path} is in use by another dashboard: stop it, or give --history another place"
                ) from error
            if isinstance(error, sqlite3.OperationalError) and "malformed" not in str(error):
                raise LedgerError(f"cannot write {self.path} ({error}): give --history another place") from error
            raise Corrupt(str(error)) from error
        except OSError as error:
            raise LedgerError(f"cannot write {self.path} ({error.strerror}): give --history another place") from error
        except (LedgerError, Corrupt):
            self.close()
            raise

    def _judge_header(self) -> None:
        """Whether the file is ours, before SQLite may touch it: what is somebody else's is left as it is.

        Zeros are what a power cut may leave. A database of one page is empty, or was begun a moment ago.
        """
        with self.path.open("rb") as file:
            head = file.read(HEADER_BYTES)
        if not head:
            return
        if not head.strip(b"\0"):
            raise Corrupt("its header is gone")
        pages, version, application = (int.from_bytes(head[at : at + 4]) for at in (28, 60, 68))
        if not head.startswith(MAGIC) or (application != APPLICATION_ID and pages > 1):
            raise self._foreign()
        if application == APPLICATION_ID and version > SCHEMA_VERSION:
            raise self._newer(version)

    def _foreign(self) -> LedgerError:
        return LedgerError(f"{self.path} is no history of a dashboard: give --history another place")

    def _newer(self, version: int) -> LedgerError:
        return LedgerError(
            f"{self.path} was made by a newer dolmetsch (version {version}): use that one, or give --history"
        )

    def _prepare(self, db: sqlite3.Connection) -> None:
        for pragma in (
            "locking_mode = EXCLUSIVE",
            "journal_mode = WAL",
            "synchronous = NORMAL",
            f"wal_autocheckpoint = {CHECKPOINT_PAGES}",
        ):
            db.execute(f"PRAGMA {pragma}").fetchone()
        db.execute("BEGIN EXCLUSIVE")  # takes the lock now, not at the first write
        (version,) = db.execute("PRAGMA user_version").fetchone()
        (application,) = db.execute("PRAGMA application_id").fetchone()
        (tables,) = db.execute("SELECT count(*) FROM sqlite_master").fetchone()
        db.execute("COMMIT")
        if not (version or application or tables):
            db.executescript(f"BEGIN; {_SCHEMA} COMMIT")
        elif application != APPLICATION_ID:
            raise self._foreign()
        elif version != SCHEMA_VERSION:
            raise self._newer(version)
        (verdict,) = db.execute("PRAGMA quick_check(1)").fetchone()
        if verdict != "ok":
            raise Corrupt(verdict.splitlines()[0])

    def _move_aside(self) -> str:
        self.close()
        aside = self.path.with_name(self.path.name + BROKEN)
        try:
            os.replace(self.path, aside)
            for end in ("-wal", "-shm"):
                self.path.with_name(self.path.name + end).unlink(missing_ok=True)
        except OSError as error:
            raise LedgerError(f"{self.path} is corrupt and cannot be moved ({error.strerror}): remove it") from error
        return aside.name

    def write(self, numbers: Mapping[str, int], rows: Sequence[Row]) -> None:
        """Write ``rows``, all or none. Raises ``LedgerError`` or ``Corrupt``."""
        if self._db is None:
            raise LedgerError(f"{self.path} is not open")
        try:
            self._write(self._db, numbers, rows)
        except sqlite3.Error as error:
            if self._db.in_transaction:
                self._db.execute("ROLLBACK")
            if isinstance(error, sqlite3.OperationalError) and "malformed" not in str(error):
                raise LedgerError(f"{self.path} ({error}): is the disk full?") from error
            if isinstance(error, sqlite3.DatabaseError):
                raise Corrupt(str(error)) from error
            raise LedgerError(f"{self.path} ({error})") from error

    def _write(self, db: sqlite3.Connection, numbers: Mapping[str, int], rows: Sequence[Row]) -> None:
        cluster = [row for row in rows if row.node is None]
        db.execute("BEGIN")
        for name, number in numbers.items():
            if self._names.get(name) != number:  # a new one, perhaps under the number of one that was forgotten
                db.execute("DELETE FROM node_slot WHERE node = ?", (number,))
                db.execute("INSERT OR REPLACE INTO node VALUES (?, ?)", (number, name))
        db.executemany(_CLUSTER_INTO, [(row.span, row.place, row.slot, row.samples, *row.values) for row in cluster])
        db.executemany(_NODE_INTO, [(*row[:5], *row.values) for row in rows if row.node is not None])
        old = [(row.span, row.place, row.slot) for row in cluster]
        db.executemany("DELETE FROM node_slot WHERE span = ? AND place = ? AND slot != ?", old)
        db.execute("COMMIT")
        self._names = dict(numbers)

    def size_bytes(self) -> int:
        """What the file and its log take."""
        paths = (self.path, self.path.with_name(self.path.name + "-wal"))
        return sum([path.stat().st_size for path in paths if path.exists()])

    def close(self) -> None:
        """Close the file; its log is folded into it."""
        if self._db is not None:
            self._db.close()
            self._db = None


def _read(db: sqlite3.Connection) -> list[Row]:
    rows = [
        Row(span, place, None, slot, samples, _values(values))
        for span, place, slot, samples, *values in db.execute("SELECT * FROM cluster_slot")
    ]
    rows += [
        Row(span, place, node, slot, samples, _values(values))
        for span, place, node, slot, samples, *values in db.execute("SELECT * FROM node_slot")
    ]
    return rows


def _values(values: Sequence[float | None]) -> tuple[float, ...]:
    return tuple([UNKNOWN if value is None else float(value) for value in values])


class History:
    """Charts that any thread may ask, and the thread that writes them down."""

    def __init__(self, path: Path) -> None:
        self._store = Store(path)
        self._charts = Charts()
        self._lock = threading.Lock()
        self._pages: dict[str, tuple[float, Page]] = {}
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="history", daemon=True)
        self.problem = ""  # why it is not written, in words

    def open(self) -> None:
        """Take over what the file has. Raises ``LedgerError``."""
        self._charts.restore(*self._store.load())

    def start(self) -> None:
        """Write from now on."""
        self._thread.start()

    def close(self) -> None:
        """Write what is not written yet, and close the file."""
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join(CLOSE_S)
        if not self._thread.is_alive():  # a disk that hangs is not waited for
            self.write()
            self._store.close()

    def add(self, sample: Sample) -> None:
        """Take a sample."""
        with self._lock:
            self._charts.add(sample)

    def knows(self, node: str) -> bool:
        """Whether there may be something of ``node``."""
        with self._lock:
            return self._charts.knows(node)

    def page(self, span: str, now: float, node: str | None = None) -> Page:
        """The chart of ``span`` up to ``now`` (Unix seconds): of all nodes, made once for all who ask, or of one."""
        if node is not None:
            return Page(lambda: self._answer(span, now, node))
        with self._lock:
            made_at, page = self._pages.get(span, (0.0, None))
            if page is None or not 0 <= now - made_at < REBUILD_S[span]:
                page = Page(lambda: self._answer(span, now, None))
                self._pages[span] = (now, page)
        return page

    def _answer(self, span: str, now: float, node: str | None) -> bytes:
        with self._lock:
            answer = self._charts.answer(span, now, node)
        return encode_json(answer)

    def size_bytes(self) -> int:
        """What it takes on disk."""
        return self._store.size_bytes()

    def write(self) -> None:
        """Write what has changed. What cannot be written is kept, and tried again next time."""
        with self._lock:
            rows, numbers = self._charts.take_changed(), self._charts.numbers
        if not rows:
            return
        try:
            self._store.write(numbers, rows)
        except (LedgerError, Corrupt) as error:
            with self._lock:
                self._charts.give_back(rows)
            self._failed(error)
        else:
            if self.problem:
                log.info("the history is written again")
            self.problem = ""

    def _failed(self, error: LedgerError | Corrupt) -> None:
        if not self.problem:
            log.warning("cannot write the history: %s", error)
        self.problem = str(error).replace(str(self._store.path), self._store.path.name)
        if isinstance(error, Corrupt):
            try:
                self._store.load()  # moves it aside: what is in memory goes into the new one
            except LedgerError as again:
                log.error("%s", again)
            with self._lock:
                self._charts.change_all()

    def _run(self) -> None:
        due = time.monotonic() + WRITE_S
        while not self._stop.wait(max(0.0, due - time.monotonic())):
            due = time.monotonic() + WRITE_S
            try:
                self.write()
            except Exception as error:  # the next one may go well, and charts are shown without it
                log.error("cannot write the history: %s", logs.trace(error))
