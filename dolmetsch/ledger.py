"""The ledger: every job that lives, on disk, so that an accepted job survives the broker.

SQLite in WAL mode, one transaction a tick, ``synchronous=FULL``: when ``commit`` returns, the tick is on the disk. Rows
are keyed by the job's number, so inserts append. What never changes of a job is one column: SQLite takes time for each,
whenever a row is written. Texts are gone once a job is done, the whole row once it is settled (``secure_delete``
overwrites them); ids of settled jobs are kept in blocks, the latest ``max_settled`` of them.
"""

from __future__ import annotations

import shutil
import sqlite3
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Final, NamedTuple, Protocol

import msgspec

from dolmetsch.effects import Op, Persist, Record, Recover
from dolmetsch.errors import LedgerError
from dolmetsch.jobs import Outcome

SCHEMA_VERSION: Final = 3
SPARE_BYTES: Final = 4 * 2**20  # free pages in the file that are worth giving back to the disk, ...
COPY_BYTES: Final = 4 * 2**20  # ... where no more than this is left: all of it is written anew, and the broker waits
BOOT_ID: Final = Path("/proc/sys/kernel/random/boot_id")
_JOBS: Final = """
CREATE TABLE job (
    seq INTEGER PRIMARY KEY,  -- order of arrival
    gateway TEXT NOT NULL,
    deadline REAL NOT NULL,   -- monotonic seconds of the boot in meta
    state TEXT NOT NULL,
    attempt INTEGER NOT NULL,
    failures INTEGER NOT NULL DEFAULT 0,
    spec BLOB NOT NULL,       -- msgpack, see _Spec
    texts BLOB,               -- msgpack list of UTF-8 texts; NULL once the job is done
    outcome BLOB              -- msgpack of texts, code, detail, model, cached, took_ms
)"""
_SCHEMA: Final = (
    _JOBS,
    "CREATE TABLE settled (block INTEGER PRIMARY KEY, job_ids BLOB NOT NULL, count INTEGER NOT NULL)",
    "CREATE TABLE meta (key TEXT PRIMARY KEY, value TEXT NOT NULL)",
)
_FOLD: Final = "PRAGMA wal_checkpoint(TRUNCATE)"
_INSERT: Final = "INSERT INTO job (seq, gateway, deadline, state, attempt, spec, texts) VALUES (?, ?, ?, ?, ?, ?, ?)"
_LEASE: Final = "UPDATE job SET state = 'leased', attempt = ? WHERE seq BETWEEN ? AND ?"
_QUEUE: Final = "UPDATE job SET state = 'queued', outcome = NULL, failures = ?, deadline = ? WHERE seq = ?"
_OWN: Final = "UPDATE job SET gateway = ? WHERE seq = ?"
_DONE: Final = "UPDATE job SET state = 'done', outcome = ?, texts = NULL WHERE seq = ?"
_DEAD: Final = "UPDATE job SET state = 'dead', outcome = ? WHERE seq = ?"
_REMOVE: Final = "DELETE FROM job WHERE seq BETWEEN ? AND ?"


class _Spec(NamedTuple):
    """What never changes of a job."""

    job_id: bytes
    tenant: str
    lane: int  # 0 interactive, 1 bulk
    route: str
    reply_to: bytes
    deadline_s: float  # from when the job came, for another boot
    alternatives: int


_pack: Final = msgspec.msgpack.Encoder().encode
_read_spec: Final = msgspec.msgpack.Decoder(_Spec).decode
_read_texts: Final = msgspec.msgpack.Decoder(tuple[bytes, ...]).decode
_read_outcome: Final = msgspec.msgpack.Decoder(Outcome).decode


class Ledger(Protocol):
    """Where accepted jobs are kept. ``load`` comes first, then any number of commits, then ``close``."""

    def load(self, now: float) -> Recover:
        """What was there, with deadlines in this process's monotonic seconds (``now`` is one)."""

    def commit(self, changes: Sequence[Persist]) -> None:
        """Make ``changes`` durable, all or none. Raises ``LedgerError`` when that cannot be done."""

    def tidy(self) -> None:
        """Called when the broker is idle: leave no deleted text behind. Raises ``LedgerError``."""

    def close(self) -> None:
        """Let go of it."""


class MemoryLedger:
    """A ledger that lasts as long as its object: for tests, and for brokers that may forget."""

    def __init__(self, max_settled: int = 50_000) -> None:
        self._rows: dict[int, dict[str, Any]] = {}
        self._settled: list[bytes] = []
        self._max_settled = max_settled

    def load(self, now: float) -> Recover:
        """See ``Ledger``."""
        return Recover(tuple(Record(**row) for _, row in sorted(self._rows.items())), tuple(self._settled))

    def commit(self, changes: Sequence[Persist]) -> None:
        """See ``Ledger``."""
        for change in changes:
            op, row = change.op, change.row
            if op is Op.INSERT:
                names = ("seq", "job_id", "gateway", "tenant", "lane", "route", "texts", "reply_to", "deadline")
                new = dict(zip(names, row, strict=False)) | {"alternatives": row[10]}
                self._rows[row[0]] = {**new, "state": "queued", "attempt": 0, "failures": 0, "outcome": None}
            elif op is Op.LEASE:
                self._rows[row[2]].update(state="leased", attempt=row[0])
            elif op is Op.QUEUE:
                self._rows[row[2]].update(state="queued", failures=row[0], deadline=row[1], outcome=None)
            elif op is Op.OWN:
                self._rows[row[1]].update(gateway=row[0])
            elif op is Op.FINISH:
                self._rows[row[2]].update(state=row[0], outcome=row[1])
                if row[0] == "done":
                    self._rows[row[2]]["texts"] = ()
            else:
                del self._rows[row[0]]
                self._settled.append(row[1])
        del self._settled[: -self._max_settled or len(self._settled)]

    def tidy(self) -> None:
        """See ``Ledger``."""

    def close(self) -> None:
        """See ``Ledger``."""


class SqliteLedger:
    """The ledger on disk. Raises ``LedgerError`` from every call when SQLite or the disk refuses."""

    def __init__(self, path: Path, max_settled: int = 50_000) -> None:
        self._path = path
        self._max_settled = max_settled
        self._db: sqlite3.Connection | None = None
        self._settled_count = 0

    def load(self, now: float) -> Recover:
        """Open the file, made if it is not there; see ``Ledger``."""
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            self._path.touch(mode=0o600)  # messages of people are in there
            self._db = self._open()
            return self._read(self._db, now)
        except msgspec.MsgspecError as error:
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
        ):
            db.execute(f"PRAGMA {pragma}").fetchone()
        db.execute("BEGIN EXCLUSIVE")
        version = db.execute("PRAGMA user_version").fetchone()[0]
        if version == 0:
            for statement in _SCHEMA:
                db.execute(statement)
        elif version < SCHEMA_VERSION:
            _take_over(db, version)
        if version < SCHEMA_VERSION:
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
        rows = db.execute(
            "SELECT seq, gateway, deadline, state, attempt, failures, spec, texts, outcome FROM job ORDER BY seq"
        )
        records = [_record(row, None if same_boot else now) for row in rows]
        if not same_boot:
            deadlines = [(record.deadline, record.seq) for record in records]
            db.executemany("UPDATE job SET deadline = ? WHERE seq = ?", deadlines)
            db.execute("INSERT OR REPLACE INTO meta VALUES ('boot', ?)", (boot,))
        settled: list[bytes] = []
        for (job_ids,) in db.execute("SELECT job_ids FROM settled ORDER BY block"):
            settled += [job_ids[start : start + 16] for start in range(0, len(job_ids), 16)]
        self._settled_count = len(settled)
        return Recover(records, settled)

    def commit(self, changes: Sequence[Persist]) -> None:
        """See ``Ledger``."""
        db = self._db
        if db is None:
            raise LedgerError(f"{self._path} is not open")
        try:
            db.execute("BEGIN")
            for statement, rows in _runs(changes):
                db.executemany(statement, rows)
            settled = [one.row[1] for one in changes if one.op is Op.REMOVE]
            if settled:
                self._remember(db, settled)
            db.execute("COMMIT")
        except sqlite3.Error as error:
            if db.in_transaction:
                db.execute("ROLLBACK")
            raise LedgerError(f"cannot write {self._path} ({error}): is the disk full?") from error

    def _remember(self, db: sqlite3.Connection, job_ids: list[bytes]) -> None:
        db.execute("INSERT INTO settled (job_ids, count) VALUES (?, ?)", (b"".join(job_ids), len(job_ids)))
        self._settled_count += len(job_ids)
        while self._settled_count > self._max_settled:
            block, count = db.execute("SELECT block, count FROM settled ORDER BY block LIMIT 1").fetchone()
            db.execute("DELETE FROM settled WHERE block = ?", (block,))
            self._settled_count -= count

    def tidy(self) -> None:
        """Fold the write-ahead log, where deleted texts still stand, into the file, and cut both; see ``Ledger``."""
        if self._db is None:
            return
        try:
            self._db.execute(_FOLD).fetchone()
            if self._shrink(self._db):
                self._db.execute(_FOLD).fetchone()
        except sqlite3.Error as error:
            raise LedgerError(f"cannot write {self._path} ({error}): is the disk full?") from error

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


Runs = list[tuple[str, list[tuple[Any, ...]]]]


def _runs(changes: Sequence[Persist]) -> Runs:
    """The statements and the parameters for each (for ``executemany``), each job's own in order."""
    if any([one.op is Op.QUEUE or one.op is Op.OWN for one in changes]):
        return _in_order(changes)
    # Without a job that comes back, a job's changes come as INSERT, LEASE, FINISH, REMOVE, whatever stands between.
    groups: dict[Op, list[tuple[Any, ...]]] = {Op.INSERT: [], Op.LEASE: [], Op.FINISH: [], Op.REMOVE: []}
    for change in changes:
        groups[change.op].append(change.row)
    # A job leased in the tick in which it came is written once.
    attempts = {seq: attempt for attempt, _, seq in groups[Op.LEASE]}
    inserts = [_insert(row, attempts.pop(row[0], 0)) for row in groups[Op.INSERT]]
    leases: list[tuple[int, int, int]] = []
    for attempt in set(attempts.values()):
        seqs = [seq for seq, one in attempts.items() if one == attempt]
        leases += [(attempt, *stretch) for stretch in _stretches(seqs)]
    ends: dict[str, list[tuple[Any, ...]]] = {"done": [], "dead": []}
    for state, outcome, seq in groups[Op.FINISH]:
        ends[state].append((_pack(outcome), seq))
    removes = _stretches([row[0] for row in groups[Op.REMOVE]])
    runs = [
        (_INSERT, inserts), (_LEASE, leases), (_DONE, ends["done"]), (_DEAD, ends["dead"]), (_REMOVE, removes),
    ]  # fmt: skip
    return [(statement, rows) for statement, rows in runs if rows]


def _in_order(changes: Sequence[Persist]) -> Runs:
    runs: Runs = []
    for change in changes:
        statement, row = _statement(change)
        if not runs or runs[-1][0] is not statement:
            runs.append((statement, []))
        runs[-1][1].append(row)
    return runs


def _statement(change: Persist) -> tuple[str, tuple[Any, ...]]:
    match change:
        case Persist(Op.INSERT, row):
            return _INSERT, _insert(row, 0)
        case Persist(Op.LEASE, (attempt, _, seq)):
            return _LEASE, (attempt, seq, seq)
        case Persist(Op.FINISH, (state, outcome, seq)):
            return _DONE if state == "done" else _DEAD, (_pack(outcome), seq)
        case Persist(Op.REMOVE, (seq, _)):
            return _REMOVE, (seq, seq)
        case Persist(op, row):
            return _QUEUE if op is Op.QUEUE else _OWN, row


def _stretches(numbers: list[int]) -> list[tuple[int, int]]:
    """(first, last) of each stretch of consecutive numbers: jobs come and go in order, so that there are few."""
    stretches: list[tuple[int, int]] = []
    for number in sorted(numbers):
        if stretches and stretches[-1][1] == number - 1:
            stretches[-1] = (stretches[-1][0], number)
        else:
            stretches.append((number, number))
    return stretches


def _insert(row: tuple[Any, ...], attempt: int) -> tuple[Any, ...]:
    seq, job_id, gateway, tenant, lane, route, texts, reply_to, deadline, now, alternatives = row
    spec = _pack((job_id, tenant, lane, route, reply_to, deadline - now, alternatives))
    # Packed as bytes: packing a str leaves its UTF-8 form cached inside it, which would double a queued job's memory.
    packed = _pack([text.encode() for text in texts])
    return (seq, gateway, deadline, "leased" if attempt else "queued", attempt, spec, packed)


def _record(row: tuple[Any, ...], since: float | None) -> Record:
    """A job from its row; with ``since``, its deadline starts anew then."""
    seq, gateway, deadline, state, attempt, failures, packed, texts, outcome = row
    spec = _read_spec(packed)
    return Record(
        seq=seq,
        job_id=spec.job_id,
        gateway=gateway,
        tenant=spec.tenant,
        lane=spec.lane,
        route=spec.route,
        texts=() if texts is None else tuple([text.decode() for text in _read_texts(texts)]),
        reply_to=spec.reply_to,
        deadline=deadline if since is None else since + spec.deadline_s,
        state=state,
        attempt=attempt,
        failures=failures,
        outcome=None if outcome is None else _read_outcome(outcome),
        alternatives=spec.alternatives,
    )


def _take_over(db: sqlite3.Connection, version: int) -> None:
    """Make a ledger of schema 1 or 2, where each part of a job has a column, one of the present schema."""
    if version == 1:
        db.execute("ALTER TABLE job ADD COLUMN alternatives INTEGER NOT NULL DEFAULT 0")
    db.execute("ALTER TABLE job RENAME TO before")
    db.execute(_JOBS)
    rows = db.execute(
        "SELECT seq, gateway, deadline, state, attempt, failures, texts, outcome,"
        " job_id, tenant, lane, route, reply_to, deadline_s, alternatives FROM before"
    ).fetchall()
    db.executemany(
        "INSERT INTO job (seq, gateway, deadline, state, attempt, failures, texts, outcome, spec)"
        " VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
        [(*row[:8], _pack(row[8:])) for row in rows],
    )
    db.execute("DROP TABLE before")
