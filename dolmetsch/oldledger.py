"""Ledgers as earlier versions wrote them, with a row for each job."""

from __future__ import annotations

import sqlite3
from typing import Any, Final, NamedTuple

import msgspec

from dolmetsch.effects import Record
from dolmetsch.jobs import Outcome

_JOBS: Final = {  # by schema: what never changes of a job had columns of its own, and then one for all of it
    1: "SELECT seq, gateway, deadline, state, attempt, failures, texts, outcome,"
    " job_id, tenant, lane, route, reply_to, deadline_s, 0 FROM job ORDER BY seq",
    2: "SELECT seq, gateway, deadline, state, attempt, failures, texts, outcome,"
    " job_id, tenant, lane, route, reply_to, deadline_s, alternatives FROM job ORDER BY seq",
    3: "SELECT seq, gateway, deadline, state, attempt, failures, texts, outcome, spec FROM job ORDER BY seq",
}


class _Spec(NamedTuple):
    job_id: bytes
    tenant: str
    lane: int
    route: str
    reply_to: bytes
    deadline_s: float
    alternatives: int


_read_spec: Final = msgspec.msgpack.Decoder(_Spec).decode
_read_texts: Final = msgspec.msgpack.Decoder(tuple[bytes, ...]).decode
_read_outcome: Final = msgspec.msgpack.Decoder(Outcome).decode


def take(db: sqlite3.Connection, version: int) -> list[Record]:
    """The jobs of a ledger of schema 1, 2 or 3, which has none any more. Raises ``msgspec.MsgspecError``."""
    rows = db.execute(_JOBS[version]).fetchall()
    db.execute("DROP TABLE job")
    return [_record(row[:8], _read_spec(row[8]) if version == 3 else _Spec(*row[8:])) for row in rows]


def _record(row: tuple[Any, ...], spec: _Spec) -> Record:
    seq, gateway, deadline, state, attempt, failures, texts, outcome = row
    return Record(
        seq=seq,
        job_id=spec.job_id,
        gateway=gateway,
        tenant=spec.tenant,
        lane=spec.lane,
        route=spec.route,
        texts=() if texts is None else tuple([text.decode() for text in _read_texts(texts)]),
        reply_to=spec.reply_to,
        deadline=deadline,
        state=state,
        attempt=attempt,
        failures=failures,
        outcome=None if outcome is None else _read_outcome(outcome),
        alternatives=spec.alternatives,
        deadline_s=spec.deadline_s,
    )
