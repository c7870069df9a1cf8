"""Both ledgers keep the same contract; the one on disk keeps it across a kill."""

from __future__ import annotations

import resource
import sqlite3
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import msgpack
import pytest
import zmq
from msgspec.structs import astuple

from broker import TIDY_MOST_S, TIDY_S, Broker
from dolmetsch.config import Config
from dolmetsch.effects import Op, Persist, Record
from dolmetsch.errors import LedgerError
from dolmetsch.jobs import Outcome
from dolmetsch.ledger import SPARE_BYTES, Ledger, MemoryLedger, SqliteLedger
from dolmetsch.transport import RouterPort
from tests.scheduling import key

DONE = Outcome(("Hello",), "", "", "v1", False, 12)
DEAD = Outcome(None, "deadline", "too late", "", False, 12)
NOW = 500.0

Reopen = Callable[[], Ledger]


@pytest.fixture(params=["memory", "sqlite"])
def reopen(request: pytest.FixtureRequest, tmp_path: Path) -> Reopen:
    """Gives the ledger, and each time it is called again the same one as a new process would find it."""
    last: list[Ledger] = []

    def open_again() -> Ledger:
        if request.param == "sqlite":
            if last:
                last[-1].close()
            last.append(SqliteLedger(tmp_path / "new" / "ledger.sqlite3", max_settled=4))
        elif not last:
            last.append(MemoryLedger(max_settled=4))
        return last[-1]

    request.addfinalizer(lambda: last[-1].close() if last else None)
    return open_again


def insert(seq: int, text: str = "Grüß Gott 🍕") -> Persist:
    row = (seq, key(seq), "g", "t", 1, "de→en", (text, "zwei"), b"reply", NOW + 60, NOW, seq % 3)
    return Persist(Op.INSERT, row)


def record(seq: int, **changes: object) -> Record:
    fields: dict[str, object] = {
        "seq": seq, "job_id": key(seq), "gateway": "g", "tenant": "t", "lane": 1, "route": "de→en",
        "texts": ("Grüß Gott 🍕", "zwei"), "reply_to": b"reply", "deadline": NOW + 60, "state": "queued", "attempt": 0,
        "failures": 0, "outcome": None, "alternatives": seq % 3, "deadline_s": 60.0,
    }  # fmt: skip
    return Record(**{**fields, **changes})  # type: ignore[arg-type]


def test_what_was_committed_is_loaded(reopen: Reopen) -> None:
    ledger = reopen()
    assert ledger.load(NOW).records in ((), [])
    ledger.commit([insert(n) for n in range(1, 8)])
    ledger.commit(
        [
            Persist(Op.LEASE, (2, 3, "pi")),
            Persist(Op.LEASE, (3, 1, "pi")),
            Persist(Op.QUEUE, (3, 2, NOW + 99)),
            Persist(Op.FINISH, (4, "done", DONE)),
            Persist(Op.FINISH, (5, "dead", DEAD)),
            Persist(Op.OWN, (6, "other")),
            Persist(Op.REMOVE, (7, key(7))),
        ]
    )
    found = reopen().load(NOW)
    assert list(found.records) == [
        record(1),
        record(2, state="leased", attempt=3),
        record(3, attempt=1, failures=2, deadline=NOW + 99),
        record(4, state="done", texts=(), outcome=DONE),
        record(5, state="dead", outcome=DEAD),
        record(6, gateway="other"),
    ]
    assert list(found.settled) == [key(7)]


def test_a_whole_life_in_one_commit(reopen: Reopen) -> None:
    ledger = reopen()
    ledger.load(NOW)
    life = [
        insert(1),
        Persist(Op.LEASE, (1, 1, "pi")),
        insert(2),
        Persist(Op.FINISH, (1, "done", DONE)),
        Persist(Op.REMOVE, (1, key(1))),
    ]
    ledger.commit(life)
    found = reopen().load(NOW)
    assert [one.seq for one in found.records] == [2]
    assert list(found.settled) == [key(1)]


def test_settled_ids_are_bounded(reopen: Reopen) -> None:
    ledger = reopen()
    ledger.load(NOW)
    for number in range(1, 21):
        ledger.commit([insert(number), Persist(Op.REMOVE, (number, key(number)))])
    settled = list(reopen().load(NOW).settled)
    assert settled == [key(n) for n in range(17, 21)]


def test_an_empty_commit_is_nothing(reopen: Reopen) -> None:
    ledger = reopen()
    ledger.load(NOW)
    ledger.commit([])
    ledger.tidy()
    assert list(reopen().load(NOW).records) == []


def test_a_second_broker_is_kept_out(tmp_path: Path) -> None:
    first, second = (SqliteLedger(tmp_path / "l") for _ in range(2))
    first.load(NOW)
    with pytest.raises(LedgerError, match="in use by another broker"):
        second.load(NOW)
    first.close()
    second.load(NOW)
    second.close()


@pytest.mark.parametrize("content", [b"this is not a database, it is a text of some length" * 20])
def test_a_file_that_is_no_ledger(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "l"
    path.write_bytes(content)
    with pytest.raises(LedgerError, match="not a usable ledger"):
        SqliteLedger(path).load(NOW)
    assert path.read_bytes() == content


def test_a_row_that_is_none_of_ours(tmp_path: Path) -> None:
    ledger = SqliteLedger(tmp_path / "l")
    ledger.load(NOW)
    ledger.commit([insert(1)])
    assert ledger._db is not None
    ledger._db.execute("UPDATE turn SET changes = X'01'")
    ledger.close()
    with pytest.raises(LedgerError, match="not a usable ledger"):
        SqliteLedger(tmp_path / "l").load(NOW)


def test_a_ledger_from_the_future(tmp_path: Path) -> None:
    db = sqlite3.connect(tmp_path / "l")
    db.execute("PRAGMA user_version = 99")
    db.close()
    with pytest.raises(LedgerError, match="newer"):
        SqliteLedger(tmp_path / "l").load(NOW)


def test_a_place_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(LedgerError, match="cannot write"):
        SqliteLedger(tmp_path / "file" / "l").load(NOW)


def test_a_full_disk_is_an_error_and_nothing_half(tmp_path: Path) -> None:
    ledger = SqliteLedger(tmp_path / "l")
    ledger.load(NOW)
    assert ledger._db is not None
    pages = ledger._db.execute("PRAGMA page_count").fetchone()[0]
    ledger._db.execute(f"PRAGMA max_page_count = {pages + 20}")
    ledger.commit([insert(1)])
    with pytest.raises(LedgerError, match="cannot write"):
        ledger.commit([insert(n, "x" * 5000) for n in range(2, 100)])
    with pytest.raises(LedgerError, match="not open"):
        ledger.commit([insert(2)])
    again = SqliteLedger(tmp_path / "l")
    assert [one.seq for one in again.load(NOW).records] == [1]
    again.close()


def test_only_the_owner_may_read_it(tmp_path: Path) -> None:
    ledger = SqliteLedger(tmp_path / "l")
    ledger.load(NOW)
    assert stat.S_IMODE((tmp_path / "l").stat().st_mode) == 0o600
    ledger.close()


def test_deleted_texts_are_nowhere_in_the_files(tmp_path: Path) -> None:
    ledger = SqliteLedger(tmp_path / "l")
    ledger.load(NOW)
    ledger.commit([insert(n, f"geheimnis-{n} " * 50) for n in range(1, 60)])
    ledger.commit([Persist(Op.FINISH, (n, "done", DONE)) for n in range(1, 60)])
    ledger.commit([Persist(Op.REMOVE, (n, key(n))) for n in range(1, 60)])
    ledger.tidy()
    for path in tmp_path.iterdir():
        assert b"geheimnis" not in path.read_bytes(), path.name
    ledger.close()


def test_what_a_backlog_took_is_given_back_once_it_has_gone(tmp_path: Path) -> None:
    path = tmp_path / "l"
    ledger = SqliteLedger(path, max_settled=1000)
    ledger.load(NOW)
    count, text = 1 + SPARE_BYTES // 10_000, f"geheimnis {'x' * 10_000}"
    ledger.commit([insert(n, text) for n in range(1, count + 1)])
    ledger.tidy()
    full = ledger.disk()[0]
    assert full > SPARE_BYTES
    ledger.commit([Persist(Op.REMOVE, (n, key(n))) for n in range(1, count)])
    ledger.tidy()
    assert ledger.disk()[0] == sum(file.stat().st_size for file in tmp_path.iterdir()) < 200_000
    ledger.commit([Persist(Op.LEASE, (count, 1, "pi"))])
    ledger.close()
    again = SqliteLedger(path, max_settled=1000)
    found = again.load(NOW)
    assert list(found.records) == [record(count, texts=(text, "zwei"), state="leased", attempt=1)]
    assert list(found.settled) == [key(n) for n in range(1, count)]
    again.commit([Persist(Op.REMOVE, (count, key(count)))])
    again.tidy()
    assert all(b"geheimnis" not in file.read_bytes() for file in tmp_path.iterdir())
    again.close()


def test_a_file_with_much_in_it_is_not_written_anew_while_the_broker_waits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dolmetsch.ledger.SPARE_BYTES", 100_000)
    monkeypatch.setattr("dolmetsch.ledger.COPY_BYTES", 100_000)
    ledger = SqliteLedger(tmp_path / "l")
    ledger.load(NOW)
    for number in range(1, 41):
        ledger.commit([insert(number, "x" * 10_000)])
    ledger.tidy()
    full = ledger.disk()[0]
    ledger.commit([Persist(Op.REMOVE, (n, key(n))) for n in range(1, 21)])
    ledger.tidy()
    assert ledger.disk()[0] == full
    ledger.commit([Persist(Op.REMOVE, (n, key(n))) for n in range(21, 37)])
    ledger.tidy()
    assert ledger.disk()[0] < 100_000
    ledger.close()


def test_a_disk_that_is_full_when_the_log_is_folded_in_is_an_error_and_nothing_is_lost(tmp_path: Path) -> None:
    ledger = SqliteLedger(tmp_path / "l")
    ledger.load(NOW)
    ledger.commit([insert(n, "x" * 5000) for n in range(1, 100)])
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, before[1]))
    try:
        with pytest.raises(LedgerError, match="cannot write"):
            ledger.tidy()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    ledger.tidy()
    ledger.close()
    again = SqliteLedger(tmp_path / "l")
    assert len(again.load(NOW).records) == 99
    again.close()


def test_deadlines_start_anew_after_another_boot(tmp_path: Path) -> None:
    ledger = SqliteLedger(tmp_path / "l")
    ledger.load(NOW)
    ledger.commit([insert(1)])
    assert ledger._db is not None
    ledger._db.execute("UPDATE meta SET value = 'an earlier boot'")
    ledger.close()
    again = SqliteLedger(tmp_path / "l")
    assert [one.deadline for one in again.load(7.0).records] == [67.0]
    again.close()


def test_a_kill_leaves_all_that_was_committed_and_nothing_half(tmp_path: Path) -> None:
    program = (
        "import os, sys; from pathlib import Path\n"
        "from dolmetsch.ledger import SqliteLedger; from tests.test_ledger import insert\n"
        "ledger = SqliteLedger(Path(sys.argv[1])); ledger.load(500.0)\n"
        "for n in range(1, 51): ledger.commit([insert(2 * n - 1), insert(2 * n)])\n"
        "ledger._db.execute('BEGIN'); ledger._db.execute(\"DELETE FROM turn\")\n"
        "os.kill(os.getpid(), 9)\n"
    )
    house = Path(__file__).parent.parent
    path = tmp_path / "l"
    ended = subprocess.run([sys.executable, "-c", program, str(path)], cwd=house, timeout=30, check=False)
    assert ended.returncode == -9
    ledger = SqliteLedger(path)
    assert [one.seq for one in ledger.load(NOW).records] == list(range(1, 101))
    ledger.close()


@pytest.mark.parametrize("version", [1, 2])
def test_a_ledger_of_an_earlier_version_is_taken_over(tmp_path: Path, version: int) -> None:
    path = tmp_path / "ledger.sqlite3"
    db = sqlite3.connect(path)
    db.executescript(
        """
        CREATE TABLE job (
            seq INTEGER PRIMARY KEY, job_id BLOB NOT NULL, gateway TEXT NOT NULL, tenant TEXT NOT NULL,
            lane INTEGER NOT NULL, route TEXT NOT NULL, texts BLOB, reply_to BLOB NOT NULL, deadline REAL NOT NULL,
            deadline_s REAL NOT NULL, state TEXT NOT NULL DEFAULT 'queued', attempt INTEGER NOT NULL DEFAULT 0,
            failures INTEGER NOT NULL DEFAULT 0, node TEXT, outcome BLOB  -- as it was
        );
        CREATE TABLE settled (block INTEGER PRIMARY KEY, job_ids BLOB NOT NULL, count INTEGER NOT NULL);
        CREATE TABLE meta (key TEXT PRIMARY KEY, value TEXT NOT NULL);
        """
    )
    if version == 2:
        db.execute("ALTER TABLE job ADD COLUMN alternatives INTEGER NOT NULL DEFAULT 0")
    db.execute(f"PRAGMA user_version = {version}")
    texts = msgpack.packb([text.encode() for text in record(3).texts])
    db.execute(
        "INSERT INTO job (seq, job_id, gateway, tenant, lane, route, texts, reply_to, deadline, deadline_s)"
        " VALUES (3, ?, 'g', 't', 1, 'de→en', ?, ?, 0, 60)",
        (key(3), texts, b"reply"),
    )
    outcome = msgpack.packb(astuple(DONE))
    db.execute(
        "INSERT INTO job (seq, job_id, gateway, tenant, lane, route, reply_to, deadline, deadline_s, state, attempt,"
        " failures, outcome) VALUES (6, ?, 'g', 't', 1, 'de→en', ?, 0, 60, 'done', 3, 2, ?)",
        (key(6), b"reply", outcome),
    )
    db.commit()
    db.close()
    assert_taken_over(path)


def test_a_ledger_of_the_version_before_is_taken_over(tmp_path: Path) -> None:
    path = tmp_path / "ledger.sqlite3"
    db = sqlite3.connect(path)
    db.executescript(
        """
        CREATE TABLE job (
            seq INTEGER PRIMARY KEY, gateway TEXT NOT NULL, deadline REAL NOT NULL, state TEXT NOT NULL,
            attempt INTEGER NOT NULL, failures INTEGER NOT NULL DEFAULT 0, spec BLOB NOT NULL, texts BLOB, outcome BLOB
        );
        CREATE TABLE settled (block INTEGER PRIMARY KEY, job_ids BLOB NOT NULL, count INTEGER NOT NULL);
        CREATE TABLE meta (key TEXT PRIMARY KEY, value TEXT NOT NULL);
        PRAGMA user_version = 3;
        """
    )
    spec = [msgpack.packb([key(n), "t", 1, "de→en", b"reply", 60.0, 0]) for n in (3, 6)]
    texts = msgpack.packb([text.encode() for text in record(3).texts])
    outcome = msgpack.packb(astuple(DONE))
    statement = "INSERT INTO job VALUES (?, 'g', 0, ?, ?, ?, ?, ?, ?)"
    db.execute(statement, (3, "queued", 0, 0, spec[0], texts, None))
    db.execute(statement, (6, "done", 3, 2, spec[1], None, outcome))
    db.commit()
    db.close()
    assert_taken_over(path)


def assert_taken_over(path: Path) -> None:
    for _ in range(2):
        ledger = SqliteLedger(path)
        done = record(6, texts=(), state="done", attempt=3, failures=2, outcome=DONE)
        assert ledger.load(NOW).records == [record(3), done]
        ledger.close()


def test_a_steady_trickle_of_jobs_does_not_keep_deleted_texts_for_ever(tmp_path: Path) -> None:
    """Each commit put the wiping off for two seconds more."""
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    port = RouterPort(context)
    ledger = SqliteLedger(tmp_path / "ledger.sqlite3")
    try:
        ledger.load(0.0)
        broker = Broker(Config(), ledger, port, None, None)
        for second in range(200):
            broker._carry_out([insert(second), Persist(Op.REMOVE, (second, key(second)))], float(second))
            assert broker._tidy_at is not None and broker._tidy_at <= TIDY_MOST_S
    finally:
        ledger.close()
        port.close()
        context.term()


def test_what_is_left_to_wipe_is_wiped_soon_and_not_in_each_turn(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    port = RouterPort(context)
    ledger = SqliteLedger(tmp_path / "ledger.sqlite3")
    try:
        ledger.load(0.0)
        broker = Broker(Config(), ledger, port, None, None)
        monkeypatch.setattr(ledger, "tidy", lambda: False)
        for number in range(1, 100):
            broker._carry_out([insert(number)], float(number))
        broker._tidy(100.0)
        for number, now in ((100, 100.1), (101, 101.9)):
            broker._carry_out([insert(number)], now)
            assert broker._tidy_at == pytest.approx(100.0 + TIDY_S)
    finally:
        ledger.close()
        port.close()
        context.term()


def test_a_ledger_on_a_full_disk_is_not_called_broken(tmp_path: Path) -> None:
    """Who was told to move it away would have lost what was accepted."""
    program = (
        "import resource, signal, sys, pathlib\n"
        "from dolmetsch.ledger import SqliteLedger\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (8192, 8192))\n"
        "SqliteLedger(pathlib.Path(sys.argv[1])).load(0.0)\n"
    )
    command = [sys.executable, "-c", program, str(tmp_path / "ledger.sqlite3")]
    said = subprocess.run(command, capture_output=True, text=True, timeout=30).stderr
    assert "is the disk full?" in said and "move it away" not in said
