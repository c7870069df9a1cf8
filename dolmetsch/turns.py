"""The ledger's log, and which of its entries still count. Pure.

The log is made of *turns*: the changes that were committed together, in order. Read from the beginning it gives every
live job. An entry counts until another of its kind takes its place, or its job is settled; a turn in which nothing
counts any more is deleted. Jobs that come together mostly end together, so that a turn is written once, and once
deleted, whatever the number of its jobs. That is why the log, and not a row for each job, is what is kept.

Into an older turn only one thing is ever written: which of its jobs are settled (``gone``), or they would come back.
Other entries that no longer count do no harm until the turn is tidied: what took their place is read after them.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections import Counter
from collections.abc import Callable, Sequence, Set
from itertools import groupby
from operator import attrgetter
from typing import Any, Final, NamedTuple

import msgspec
from msgspec.structs import replace

from dolmetsch.effects import Op, Persist, Record
from dolmetsch.jobs import Outcome, State

Row = tuple[Any, ...]  # as in Persist
Runs = list[tuple[Op, list[Row]]]  # changes in order, those of one kind together

_TEXTS: Final = 6  # where they stand in an INSERT
_ROWS: Final[dict[Op, Any]] = {
    Op.INSERT: tuple[int, bytes, str, str, int, str, tuple[bytes, ...], bytes, float, float, int],
    Op.LEASE: tuple[int, int, str],
    Op.QUEUE: tuple[int, int, float],
    Op.OWN: tuple[int, str],
    Op.FINISH: tuple[int, str, Outcome],
}
_CHANGES: Final = tuple(op for op in _ROWS if op is not Op.INSERT)
_ORDER: Final = (*_ROWS, Op.REMOVE)  # in which the changes of a job come, unless it comes back
_readers: Final = {op: msgspec.msgpack.Decoder(list[row]).decode for op, row in _ROWS.items()}  # type: ignore[valid-type]
_read: Final = msgspec.msgpack.Decoder(list[tuple[Op, msgspec.Raw]]).decode
_pack: Final = msgspec.msgpack.Encoder().encode
_op: Final = attrgetter("op")


class Turn(NamedTuple):
    """What one commit writes. ``entries`` are none where nothing of them counts any more."""

    number: int
    entries: Runs
    gone: dict[int, list[int]]  # by turn, the jobs of it that are settled
    over: list[int]  # turns in which nothing counts any more
    settled: list[bytes]  # ids


class Turns:
    """Where in the log the entries of each live job stand, and how many of a turn's entries count."""

    def __init__(self) -> None:
        self.latest = 0  # the number of a turn
        # Turns with texts of jobs that are done, or anything of those that are settled; those that wait longest first.
        self.soiled: dict[int, None] = {}
        self._came: list[int] = []  # turns in which jobs came that live, ...
        self._first: list[int] = []  # ... and the first job of each: there may be 100 000 that wait
        self._at: dict[Op, dict[int, int]] = {op: {} for op in _CHANGES}  # by kind and job: the turn of its entry
        self._counting: dict[int, int] = {}  # by turn
        self._done: set[int] = set()

    def write(self, changes: Sequence[Persist]) -> Turn:
        """The next turn."""
        self.latest += 1
        entries: Runs = []
        settled: list[bytes] = []
        gone: dict[int, list[int]] = {}
        replaced: list[int] = []
        for op, rows in _runs(changes):
            if op is Op.REMOVE:
                settled += [row[1] for row in rows]
                self._settle([row[0] for row in rows], gone, replaced)
            else:
                entries.append((op, rows))
                self._note(op, rows, self.latest, replaced)
        over = self._count(self.latest, entries, replaced)
        for number in over:
            self.soiled.pop(number, None)
            gone.pop(number, None)
        return Turn(self.latest, [] if self.latest in over else entries, gone, over, settled)

    def read(self, number: int, entries: Runs, gone: Set[int], jobs: Jobs) -> None:
        """Take over a turn, each after those before it, and make of ``jobs`` what stands in there."""
        self.latest = number
        counting: Runs = []
        replaced: list[int] = []
        for op, rows in entries:
            known = [row for row in rows if (row[0] not in gone if op is Op.INSERT else row[0] in jobs)]
            if len(known) < len(rows):
                self.soiled[number] = None
            self._note(op, known, number, replaced)
            counting.append((op, known))
            for row in known:
                jobs.take(op, row)
        self._count(number, counting, replaced)

    def tidied(self, number: int, entries: Runs, gone: Set[int]) -> Runs:
        """What counts in a turn, without the texts of jobs that are done."""
        kept: Runs = []
        for op, rows in entries:
            if op is Op.INSERT:
                here = [_with_texts(row, ()) if row[0] in self._done else row for row in rows if row[0] not in gone]
            else:
                here = [row for row in rows if self._at[op].get(row[0]) == number]
            kept.append((op, here))
        return kept

    def _note(self, op: Op, rows: list[Row], number: int, replaced: list[int]) -> None:
        seqs = [row[0] for row in rows]
        if op is Op.INSERT:
            if seqs and self._came[-1:] != [number]:
                self._came.append(number)
                self._first.append(seqs[0])
            return
        turns = self._at[op]
        placed = dict.fromkeys(seqs, number)
        replaced += [turns[seq] for seq in placed if seq in turns] + [number] * (len(seqs) - len(placed))
        turns.update(placed)
        if op is Op.FINISH:
            done = [row[0] for row in rows if row[1] == State.DONE]
            self._done.update(done)
            self.soiled.update(dict.fromkeys(map(self._home, done)))

    def _home(self, seq: int) -> int:
        """The turn in which a job came: their numbers grow along with those of the turns."""
        return self._came[bisect_right(self._first, seq) - 1]

    def _settle(self, seqs: list[int], gone: dict[int, list[int]], replaced: list[int]) -> None:
        left: list[int] = []
        for seq in seqs:
            home = self._home(seq)
            left.append(home)
            gone.setdefault(home, []).append(seq)
        for turns in self._at.values():
            if turns:
                left += [turns.pop(seq) for seq in seqs if seq in turns]
        self._done.difference_update(seqs)
        self.soiled.update(dict.fromkeys(left))
        replaced += left

    def _count(self, number: int, entries: Runs, replaced: list[int]) -> list[int]:
        """Count a turn's entries, and of the turns in ``replaced`` one less each; those in which nothing counts now."""
        self._counting[number] = sum([len(rows) for _, rows in entries])
        turns = {number: 0, **Counter(replaced)} if replaced else {number: 0}
        for turn, count in turns.items():
            self._counting[turn] -= count
        over = [turn for turn in turns if not self._counting[turn]]
        for turn in over:
            del self._counting[turn]
            place = bisect_left(self._came, turn)
            if self._came[place : place + 1] == [turn]:
                del self._came[place], self._first[place]
        return over


def _runs(changes: Sequence[Persist]) -> Runs:
    groups: dict[Op, list[Row]] = {op: [] for op in _ORDER}
    for change in changes:
        groups[change.op].append(change.row)
    if groups[Op.QUEUE] or groups[Op.OWN]:  # a job that comes back may have any of these twice
        return [(op, [one.row for one in some]) for op, some in groupby(changes, key=_op)]
    return [(op, rows) for op, rows in groups.items() if rows]


def pack(entries: Runs) -> bytes:
    """A turn's entries as they stand in the file."""
    # Packed as bytes: packing a str leaves its UTF-8 form cached inside it, which would double a queued job's memory.
    return _pack([(op, _recoded(rows, str.encode) if op is Op.INSERT else rows) for op, rows in entries])


def unpack(packed: bytes) -> Runs:
    """Entries from a file. Raises ``msgspec.MsgspecError``."""
    entries: Runs = [(op, _readers[op](rows)) for op, rows in _read(packed)]
    return [(op, _recoded(rows, bytes.decode) if op is Op.INSERT else rows) for op, rows in entries]


def _recoded(rows: list[Row], code: Callable[[Any], Any]) -> list[Row]:
    return [_with_texts(row, tuple(map(code, row[_TEXTS]))) for row in rows]


def _with_texts(row: Row, texts: tuple[Any, ...]) -> Row:
    return (*row[:_TEXTS], texts, *row[_TEXTS + 1 :])


class Jobs:
    """The live jobs, as the changes make them one after the other."""

    def __init__(self) -> None:
        self._records: dict[int, Record] = {}

    def take(self, op: Op, row: Row) -> None:
        """Take one change."""
        seq = row[0]
        if op is Op.INSERT:
            seq, job_id, gateway, tenant, lane, route, texts, reply_to, deadline, born, alternatives = row
            self._records[seq] = Record(
                seq, job_id, gateway, tenant, lane, route, texts, reply_to, deadline, state=State.QUEUED, attempt=0,
                failures=0, outcome=None, alternatives=alternatives, deadline_s=deadline - born,
            )  # fmt: skip
        elif op is Op.REMOVE:
            del self._records[seq]
        else:
            self._records[seq] = replace(self._records[seq], **_changed(op, row))

    def __contains__(self, seq: int) -> bool:
        return seq in self._records

    def all(self) -> list[Record]:
        """In the order in which they came."""
        return [record for _, record in sorted(self._records.items())]


def _changed(op: Op, row: Row) -> dict[str, Any]:
    match op:
        case Op.LEASE:
            return {"state": "leased", "attempt": row[1]}
        case Op.QUEUE:
            return {"state": "queued", "failures": row[1], "deadline": row[2], "outcome": None}
        case Op.OWN:
            return {"gateway": row[1]}
        case _:
            ended = {"state": row[1], "outcome": row[2]}
            return {**ended, "texts": ()} if row[1] == State.DONE else ended


def changes_to(record: Record) -> list[Persist]:
    """The changes that make a job what ``record`` says."""
    one = record
    row = (
        one.seq, one.job_id, one.gateway, one.tenant, one.lane, one.route, one.texts, one.reply_to, one.deadline,
        one.deadline - one.deadline_s, one.alternatives,
    )  # fmt: skip
    changes = [Persist(Op.INSERT, row)]
    lease = Persist(Op.LEASE, (one.seq, one.attempt, ""))
    if one.attempt:
        changes.append(lease)
    if one.failures or (one.attempt and one.state == State.QUEUED):
        changes.append(Persist(Op.QUEUE, (one.seq, one.failures, one.deadline)))
        if one.state == State.LEASED:
            changes.append(lease)
    if one.outcome is not None:
        changes.append(Persist(Op.FINISH, (one.seq, one.state, one.outcome)))
    return changes
