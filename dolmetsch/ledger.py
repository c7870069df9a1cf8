"""The ledger: every job that lives, on disk, so that an accepted job survives the broker.

SQLite in WAL mode, one transaction a turn, ``synchronous=FULL``: when ``commit`` returns, the turn is on the disk. What
it keeps is a log (``turns.py``). ``tidy`` wipes texts of jobs that are done, and all that is left of settled ones but
their ids; of these the latest ``max_settled`` are kept, in blocks.
"""

from __future__ import annotations

import shutil
import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from itertools import chain
from pathlib import Path
from typing import Final, Protocol

import msgspec
from msgspec.structs import replace

from dolmetsch import oldledger
from dolmetsch.effects import Op, Persist, Record, Recover
from dolmetsch.errors import LedgerError
from dolmetsch.turns import Jobs, Turn, Turns, changes_to, pack, unpack

SCHEMA_VERSION: Final = 4
SPARE_BYTES: Final = 4 * 2**20  # free pages in the file that are worth giving back to the disk, ...
COPY_BYTES: Final = 4 * 2**20  # ... where no more than this is left: all of it is written anew, and the broker waits
TIDIED_BYTES: Final = 4 * 2**20  # of turns that are written anew at a time
TURN_JOBS: Final = 1000  # in a turn, when all is written anew
BOOT_ID: Final = Path("/proc/sys/kernel/random/boot_id")
_SCHEMA: Final = (
    "CREATE TABLE turn (number INTEGER PRIMARY KEY, changes BLOB NOT NULL)",  # msgpack, see turns.pack
    "CREATE TABLE gone ("  # jobs of a turn that are settled, msgpack list of numbers
    " turn INTEGER NOT NULL, since INTEGER NOT NULL, jobs BLOB NOT NULL, PRIMARY KEY (turn, since)) WITHOUT ROWID",
    "CREATE TABLE IF NOT EXISTS settled (block INTEGER PRIMARY KEY, job_ids BLOB NOT NULL, count INTEGER NOT NULL)",
    "CREATE TABLE IF NOT EXISTS meta (key TEXT PRIMARY KEY, value TEXT NOT NULL)",
)
_GONE: Final = "SELECT jobs FROM gone WHERE turn = ?"
_FOLD: Final = "PRAGMA wal_checkpoint(TRUNCATE)"
_pack_jobs: Final = msgspec.msgpack.Encoder().encode
_read_jobs: Final = msgspec.msgpack.Decoder(list[int]).decode


class Ledger(Protocol):
    """Where accepted jobs are kept. ``load`` comes first, then any number of commits, then ``close``."""

    def load(self, now: float) -> Recover:
        """What was there, with deadlines in this process's monotonic seconds (``now`` is one)."""

    def commit(self, changes: Sequence[Persist]) -> None:
        """Make ``changes`` durable, all or none. Raises ``LedgerError`` when that cannot be done."""

    def tidy(self) -> bool:
        """Called when the broker is idle: leave no deleted text behind. False: call it again, there is more.

        Raises ``LedgerError``.
        """

    def close(self) -> None:
        """Let go of it."""


class MemoryLedger:
    """A ledger that lasts as long as its object: for tests, and for brokers that may forget."""

    def __init__(self, max_settled: int = 50_000) -> None:
        self._jobs = Jobs()
        self._settled: list[bytes] = []
        self._max_settled = max_settled

    def load(self, now: float) -> Recover:
        """See ``Ledger``."""
        return Recover(self._jobs.all(), tuple(self._settled))

    def commit(self, changes: Sequence[Persist]) -> None:
        """See ``Ledger``."""
        for change in changes:
            self._jobs.take(change.op, change.row)
            if change.op is Op.REMOVE:
                self._settled.append(change.row[1])
        del self._settled[: -self._max_settled or len(self._settled)]

    def tidy(self) -> bool:
        """See ``Ledger``."""
        return True

    def close(self) -> None:
        """See ``Ledger``."""


class SqliteLedger:
    """The ledger on disk. Raises ``LedgerError`` from every call when SQLite or the disk refuses."""

    def __init__(self, path: Path, max_settled: int = 50_000) -> None:
        self._path = path
        self._max_settled = max_settled
        self._db: sqlite3.Connection | None = None
        self._turns = Turns()
        self._settled_count = 0

    def load(self, now: float) -> Recover:
        """Open the file, made if it is not there; see ``Ledger``."""
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            self._path.touch(mode=0o600)  # messages of people are in there
            self._db = self._open()
            with _transaction(self._db):
                return self._read(self._db, now)
        except (msgspec.MsgspecError, ValueError, LookupError) as error:
            raise LedgerError(f"{self._path} is not a usable ledger: move it away, or give --ledger") from error
        except sqlite3.DatabaseError as error:
            if "locked" in str(error):
                raise LedgerError(f"{self._path} is in use by another broker: stop it, or give --ledger") from error
            if getattr(error, "sqlite_errorname", "").startswith(("SQLITE_FULL", "SQLITE_IOERR")):  # all is still there
                raise LedgerError(f"cannot write {self._path} ({error}): is the disk full?") from error
            raise LedgerError(
                f"{self._path} is not a usable ledger ({error}): move it away, or give --ledger"
            ) from error
        except OSError as error:
            raise LedgerError(f"cannot write {self._path} ({error.strerror}): give --ledger another place") from error

    def _open(self) -> sqlite3.Connection:
        db = sqlite3.connect(self._path, isolation_level=None, timeout=0.5)
        try:
            self._prepare(db)
        except BaseException:
            db.close()
            raise
        return db

    def _prepare(self, db: sqlite3.Connection) -> None:
        for pragma in (
            "locking_mode = EXCLUSIVE",  # one broker a ledger, and no shared-memory file
            "journal_mode = WAL",
            "synchronous = FULL",
            "secure_delete = ON",
            "temp_store = MEMORY",
            "cache_size = -512",  # KiB: pages are written and seldom read again
        ):
            db.execute(f"PRAGMA {pragma}").fetchone()
        db.execute("BEGIN EXCLUSIVE")
        version = db.execute("PRAGMA user_version").fetchone()[0]
        if version < SCHEMA_VERSION:
            records = oldledger.take(db, version) if version else []
            for statement in _SCHEMA:
                db.execute(statement)
            _write_anew(db, records)
            db.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")
        db.execute("COMMIT")
        if version > SCHEMA_VERSION:
            raise LedgerError(f"{self._path} comes from a newer dolmetsch: update this one, or give --ledger")

    def _read(self, db: sqlite3.Connection, now: float) -> Recover:
        boot = BOOT_ID.read_text().strip() if BOOT_ID.exists() else ""
        row = db.execute("SELECT value FROM meta WHERE key = 'boot'").fetchone()
        # Monotonic time goes on between processes of one boot. After another boot it means nothing, and a Pi has no
        # clock battery to ask: then every deadline starts anew.
        same_boot = bool(boot) and row is not None and row[0] == boot
        self._turns, records = _read_turns(db)
        if not same_boot:
            records = [replace(one, deadline=now + one.deadline_s) for one in records]
            self._turns = _write_anew(db, records)
            db.execute("INSERT OR REPLACE INTO meta VALUES ('boot', ?)", (boot,))
        settled: list[bytes] = []
        for (job_ids,) in db.execute("SELECT job_ids FROM settled ORDER BY block"):
            settled += [job_ids[start : start + 16] for start in range(0, len(job_ids), 16)]
        self._settled_count = len(settled)
        return Recover(records, settled)

    def commit(self, changes: Sequence[Persist]) -> None:
        """See ``Ledger``. After an error only ``load`` helps: what stands in the file is to be read again."""
        if self._db is None:
            raise LedgerError(f"{self._path} is not open")
        try:
            with _transaction(self._db):
                turn = self._turns.write(changes)
                _write(self._db, turn)
                if turn.settled:
                    self._remember(self._db, turn.settled)
        except sqlite3.Error as error:
            self.close()
            raise self._unwritable(error) from error

    def _unwritable(self, error: sqlite3.Error) -> LedgerError:
        return LedgerError(f"cannot write {self._path} ({error}): is the disk full?")

    def _remember(self, db: sqlite3.Connection, job_ids: list[bytes]) -> None:
        db.execute("INSERT INTO settled (job_ids, count) VALUES (?, ?)", (b"".join(job_ids), len(job_ids)))
        self._settled_count += len(job_ids)
        while self._settled_count > self._max_settled:
            block, count = db.execute("SELECT block, count FROM settled ORDER BY block LIMIT 1").fetchone()
            db.execute("DELETE FROM settled WHERE block = ?", (block,))
            self._settled_count -= count

    def tidy(self) -> bool:
        """Wipe texts from turns that others keep, then the write-ahead log, and cut the file; see ``Ledger``."""
        if self._db is None:
            return True
        try:
            with _transaction(self._db):
                left = self._wipe(self._db)
            self._db.execute(_FOLD).fetchone()
            if self._shrink(self._db):
                self._db.execute(_FOLD).fetchone()
        except sqlite3.Error as error:
            raise self._unwritable(error) from error
        self._turns.soiled = left
        return not left

    def _wipe(self, db: sqlite3.Connection) -> dict[int, None]:
        """Write soiled turns anew; those for which there is no time now."""
        left, size = dict(self._turns.soiled), 0
        for number in self._turns.soiled:
            if size > TIDIED_BYTES:
                break
            (changes,) = db.execute("SELECT changes FROM turn WHERE number = ?", (number,)).fetchone()
            size += len(changes)
            gone = {job for (packed,) in db.execute(_GONE, (number,)) for job in _read_jobs(packed)}
            kept = pack(self._turns.tidied(number, unpack(changes), gone))
            db.execute("UPDATE turn SET changes = ? WHERE number = ?", (kept, number))
            db.execute("DELETE FROM gone WHERE turn = ?", (number,))
            del left[number]
        return left

    def _shrink(self, db: sqlite3.Connection) -> bool:
        """Give back what a backlog took and has left, once it is wiped in its place; whether there was enough of it."""
        size, pages, free = (
            db.execute(f"PRAGMA {name}").fetchone()[0] for name in ("page_size", "page_count", "freelist_count")
        )
        if free * size < SPARE_BYTES or (pages - free) * size > COPY_BYTES:
            return False
        with suppress(sqlite3.OperationalError):  # no room for the copy: the file stays as it is
            db.execute("VACUUM")
        return True

    def disk(self) -> tuple[int, int]:
        """Bytes that the ledger takes, and bytes free where it is; 0 where the system does not say."""
        used = 0
        with suppress(OSError):
            for path in (self._path, self._path.with_name(self._path.name + "-wal")):
                used += path.stat().st_size
        with suppress(OSError):
            return used, shutil.disk_usage(self._path.parent).free
        return used, 0

    def close(self) -> None:
        """See ``Ledger``."""
        if self._db is not None:
            self._db.close()
            self._db = None


@contextmanager
def _transaction(db: sqlite3.Connection) -> Iterator[None]:
    db.execute("BEGIN")
    try:
        yield
        db.execute("COMMIT")
    except BaseException:
        if db.in_transaction:
            db.execute("ROLLBACK")
        raise


def _write(db: sqlite3.Connection, turn: Turn) -> None:
    if turn.entries:
        db.execute("INSERT INTO turn VALUES (?, ?)", (turn.number, pack(turn.entries)))
    if turn.gone:
        gone = [(number, turn.number, _pack_jobs(jobs)) for number, jobs in turn.gone.items()]
        db.executemany("INSERT INTO gone VALUES (?, ?, ?)", gone)
    if turn.over:
        over = [(number,) for number in turn.over]
        db.executemany("DELETE FROM turn WHERE number = ?", over)
        db.executemany("DELETE FROM gone WHERE turn = ?", over)


def _read_turns(db: sqlite3.Connection) -> tuple[Turns, list[Record]]:
    """All that stands in the file."""
    gone: dict[int, set[int]] = {}
    latest = 0
    for number, since, packed in db.execute("SELECT turn, since, jobs FROM gone"):
        gone.setdefault(number, set()).update(_read_jobs(packed))
        latest = max(latest, since)
    turns, jobs = Turns(), Jobs()
    for number, changes in db.execute("SELECT number, changes FROM turn ORDER BY number"):
        turns.read(number, unpack(changes), gone.get(number, set()), jobs)
    turns.latest = max(turns.latest, latest)
    return turns, jobs.all()


def _write_anew(db: sqlite3.Connection, records: Sequence[Record]) -> Turns:
    """Nothing but ``records``."""
    db.execute("DELETE FROM turn")
    db.execute("DELETE FROM gone")
    turns = Turns()
    for start in range(0, len(records), TURN_JOBS):
        some = records[start : start + TURN_JOBS]
        _write(db, turns.write([*chain.from_iterable(map(changes_to, some))]))
    return turns
