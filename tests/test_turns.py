"""The log and what counts of it: whatever happens, the file says what a ledger that keeps each job by itself says."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from dolmetsch.effects import Op, Persist, Record
from dolmetsch.ledger import MemoryLedger, SqliteLedger
from dolmetsch.turns import Turns, pack, unpack
from tests.scheduling import key
from tests.test_ledger import DEAD, DONE, NOW, insert

SECRET = "geheimnis"
steps = st.lists(
    st.tuples(
        st.sampled_from(["come", "come", "lease", "lease", "queue", "own", "done", "done", "dead", "remove", "remove"]),
        st.integers(0, 7),  # which of the jobs that can do so
        st.sampled_from(["", "", "commit", "commit", "tidy", "restart", "reboot"]),  # what follows
    ),
    max_size=60,
)


@dataclass
class Lives:
    """Makes changes that are possible."""

    seq: int = 0
    states: dict[int, str] = field(default_factory=dict)
    attempts: dict[int, int] = field(default_factory=dict)

    def change(self, what: str, which: int) -> Iterator[Persist]:
        """One, if any job can do that now."""
        if what == "come":
            self.seq += 1
            self.states[self.seq], self.attempts[self.seq] = "queued", 0
            yield insert(self.seq, f"{SECRET} {self.seq}")
            return
        before = {"lease": "queued", "queue": "leased dead", "done": "leased queued", "dead": "leased queued"}
        able = [seq for seq, state in self.states.items() if state in before.get(what, state)]
        if able:
            yield self._of(what, able[which % len(able)])

    def _of(self, what: str, seq: int) -> Persist:
        if what == "lease":
            self.states[seq] = "leased"
            self.attempts[seq] += 1
            return Persist(Op.LEASE, (seq, self.attempts[seq], "pi"))
        if what == "queue":
            self.states[seq] = "queued"
            return Persist(Op.QUEUE, (seq, self.attempts[seq] // 2, NOW + seq))
        if what == "own":
            return Persist(Op.OWN, (seq, f"gateway {self.attempts[seq]}"))
        if what == "remove":
            del self.states[seq]
            return Persist(Op.REMOVE, (seq, key(seq)))
        self.states[seq] = what
        return Persist(Op.FINISH, (seq, what, DONE if what == "done" else DEAD))


class Pair:
    """A ledger on disk and its model."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "l"
        self.model = MemoryLedger()
        self.model_deadlines: dict[int, float] = {}
        self.pending: list[Persist] = []
        self.disk = SqliteLedger(self.path)
        self.disk.load(NOW)

    def commit(self) -> None:
        self.disk.commit(self.pending)
        self.model.commit(self.pending)
        for one in self.pending:
            if one.op is Op.QUEUE:
                self.model_deadlines.pop(one.row[0], None)
        self.pending = []

    def restart(self, *, rebooted: bool = False) -> None:
        if rebooted:
            self.sql("UPDATE meta SET value = 'another boot'")
        self.disk.close()
        self.disk = SqliteLedger(self.path)
        found = self.disk.load(7.0)
        if rebooted:
            self.model_deadlines = {one.seq: 67.0 for one in found.records}
        assert list(found.records) == self.expected()
        assert list(found.settled) == list(self.model.load(0.0).settled)

    def expected(self) -> list[Record]:
        changed = self.model_deadlines
        return [
            msgspec.structs.replace(one, deadline=changed.get(one.seq, one.deadline))
            for one in self.model.load(0.0).records
        ]

    def tidy(self) -> None:
        assert self.disk.tidy()
        there, jobs = self.path.read_bytes(), self.expected()
        assert there.count(SECRET.encode()) == sum(SECRET in "".join(one.texts) for one in jobs)
        assert there.count(b"Hello") == sum(one.outcome == DONE for one in jobs)
        assert self.rows("gone") == 0

    def sql(self, statement: str) -> Any:
        assert self.disk._db is not None
        return self.disk._db.execute(statement).fetchone()

    def rows(self, table: str) -> int:
        (count,) = self.sql(f"SELECT count(*) FROM {table}")
        assert isinstance(count, int)
        return count


@settings(max_examples=150, deadline=None)
@given(steps)
@example([("come", 0, ""), ("come", 0, "commit"), ("remove", 0, "restart"), ("own", 0, "tidy")])
@example([("come", 0, ""), ("own", 0, ""), ("own", 0, "restart")])
@example([("come", 0, ""), ("own", 0, ""), ("come", 0, "")])
def test_the_log_says_what_a_row_for_each_job_would(todo: list[tuple[str, int, str]]) -> None:
    lives = Lives()
    with tempfile.TemporaryDirectory() as folder:
        pair = Pair(Path(folder))
        for what, which, then in todo:
            pair.pending += lives.change(what, which)
            if then:
                pair.commit()
            if then == "tidy":
                pair.tidy()
            elif then in ("restart", "reboot"):
                pair.restart(rebooted=then == "reboot")
        pair.commit()
        pair.restart()
        pair.pending = [Persist(Op.REMOVE, (seq, key(seq))) for seq in lives.states]
        pair.commit()
        assert pair.rows("turn") == pair.rows("gone") == 0
        turns = pair.disk._turns
        assert not (turns._counting or turns._came or turns._first or turns._done or turns.soiled)
        assert not any(turns._at.values())
        pair.tidy()
        pair.disk.close()


def test_a_turn_ends_with_its_last_job() -> None:
    turns = Turns()
    first = turns.write([insert(1), insert(2), Persist(Op.LEASE, (1, 1, "pi"))])
    assert (first.gone, first.over) == ({}, [])
    second = turns.write([Persist(Op.FINISH, (1, "done", DONE))])
    assert list(turns.soiled) == [first.number]
    third = turns.write([Persist(Op.REMOVE, (1, key(1)))])
    assert (third.entries, third.gone, third.settled) == ([], {first.number: [1]}, [key(1)])
    assert sorted(third.over) == [second.number, third.number]
    last = turns.write([Persist(Op.REMOVE, (2, key(2)))])
    assert sorted(last.over) == [first.number, last.number]
    assert not turns.soiled


def test_a_job_that_goes_back_and_forth_for_ever_keeps_two_turns() -> None:
    turns = Turns()
    turns.write([insert(1)])
    over: list[int] = []
    for attempt in range(1, 101):
        over += turns.write([Persist(Op.LEASE, (1, attempt, "pi"))]).over
        over += turns.write([Persist(Op.QUEUE, (1, 0, NOW))]).over
    assert over == [*range(2, 200)]


def test_what_is_done_is_wiped_a_part_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A broker that wrote everything anew at once would keep others waiting."""
    monkeypatch.setattr("dolmetsch.ledger.TIDIED_BYTES", 1000)
    ledger = SqliteLedger(tmp_path / "l")
    ledger.load(NOW)
    for number in range(1, 40, 2):
        ledger.commit([insert(number, SECRET * 50), insert(number + 1, "anders")])
    ledger.commit([Persist(Op.FINISH, (number, "done", DONE)) for number in range(1, 40, 2)])
    times = 1
    while not ledger.tidy():
        times += 1
    assert 5 < times < 20
    assert SECRET.encode() not in (tmp_path / "l").read_bytes()
    ledger.close()


def test_what_was_left_at_one_time_comes_first_at_the_next(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The oldest came first each time, soiled again meanwhile, and the others never."""
    monkeypatch.setattr("dolmetsch.ledger.TIDIED_BYTES", 0)
    ledger = SqliteLedger(tmp_path / "l")
    ledger.load(NOW)
    for number in (1, 4):
        ledger.commit([insert(number, SECRET), insert(number + 1, SECRET), insert(number + 2, "anders")])
    ledger.commit([Persist(Op.FINISH, (number, "done", DONE)) for number in (1, 4)])
    assert not ledger.tidy()
    ledger.commit([Persist(Op.FINISH, (2, "done", DONE))])
    assert not ledger.tidy() and list(ledger._turns.soiled) == [1]
    assert ledger.tidy()
    ledger.close()


def test_what_is_no_log_is_refused() -> None:
    entries = [(Op.INSERT, [insert(1).row]), (Op.LEASE, [(1, 1, "pi")])]
    assert unpack(pack(entries)) == entries
    for packed in (b"", b"\x01", b"\x91\x92\xa4nope\x90", b"\x91\x92\xa5lease\x91\x91\x01"):
        with pytest.raises(msgspec.MsgspecError):
            unpack(packed)
