"""The wire: messages to frames and back.

A message is three frames behind the ROUTER identity: ``PROTOCOL``, the kind, and a msgpack map. ``decode`` trusts
nothing: size first, then msgpack with every limit set, then each field's exact type and range. Whatever is wrong raises
``RemoteError`` and nothing else.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import fields
from functools import partial
from itertools import chain
from typing import Any, Final

import msgpack

from dolmetsch.errors import LocalError, RemoteError
from dolmetsch.messages import (
    BULK,
    INTERACTIVE,
    JOB_ID_BYTES,
    LANES,
    MAX_ALTERNATIVES,
    MAX_CAPACITY,
    MAX_CORES,
    MAX_DEADLINE_S,
    MAX_DETAIL_CHARS,
    MAX_GATEWAYS,
    MAX_HELD,
    MAX_JOBS,
    MAX_MESSAGE_BYTES,
    MAX_NAME_CHARS,
    MAX_NODES,
    MAX_REPLY_TO_BYTES,
    MAX_REPORTED,
    MAX_ROUTES,
    MAX_STORY,
    MAX_TEXTS,
    MAX_WAITING,
    TOKEN_BYTES,
    Accepted,
    Ack,
    Answer,
    Ask,
    Cancel,
    Done,
    Error,
    Failed,
    Failure,
    Finished,
    Goodbye,
    Heartbeat,
    HeldLease,
    Hello,
    JobSpec,
    JobState,
    Knock,
    Lease,
    LeasedJob,
    Manage,
    Managed,
    Message,
    Order,
    Ping,
    Pong,
    Received,
    Refusal,
    Register,
    Rejected,
    Report,
    Reregister,
    Result,
    Revoke,
    Routes,
    Status,
    Submit,
    Telemetry,
    Verdict,
    Welcome,
)
from dolmetsch.reports import (
    LATENCY_MS,
    NO_LATENCY_MS,
    NO_TEMPERATURE_C,
    About,
    BrokerHealth,
    ChildStatus,
    Counts,
    Departed,
    GatewayStatus,
    Histogram,
    JobReport,
    NodeReport,
    NodeStatus,
    Route,
    StoryLine,
    Waiting,
)

PROTOCOL: Final = b"dolm1"

# ---- checks ----
#
# A check takes a column: the values of one field, of all jobs in a message. Looking at a column at once (its types, its
# extremes) runs in C, and a broker under load reads thousands of jobs a second. It returns the column, typed.

Column = Sequence[Any]
Check = Callable[[Column, str], Column]


def _bad(what: str, why: str) -> RemoteError:
    return RemoteError("bad_message", f"{what}: {why}")


def _only(column: Column, kind: type) -> bool:
    return all(found is kind for found in set(map(type, column)))


def _integer(low: int, high: int) -> Check:
    def check(column: Column, what: str) -> Column:
        if not _only(column, int) or not low <= min(column, default=low) <= max(column, default=high) <= high:
            raise _bad(what, f"must be an integer from {low} to {high}")
        return column

    return check


def _number(low: float, high: float) -> Check:
    def check(column: Column, what: str) -> Column:
        good = set(map(type, column)) <= {float, int} and all(map(math.isfinite, column))
        if not good or not low <= min(column, default=low) <= max(column, default=high) <= high:
            raise _bad(what, f"must be a number from {low:g} to {high:g}")
        return column

    return check


def _string(most: int) -> Check:
    def check(column: Column, what: str) -> Column:
        if not _only(column, str) or max(map(len, column), default=0) > most:
            raise _bad(what, f"must be a string of at most {most} characters")
        return column

    return check


def _name(column: Column, what: str) -> Column:
    if (
        not _only(column, str)
        or not min(map(len, column), default=1) > 0
        or max(map(len, column), default=0) > MAX_NAME_CHARS
        or not all(map(str.isprintable, set(column)))
    ):
        raise _bad(what, f"must be 1 to {MAX_NAME_CHARS} printable characters")
    return column


def _boolean(column: Column, what: str) -> Column:
    if not _only(column, bool):
        raise _bad(what, "must be true or false")
    return column


def _blob(most: int) -> Check:
    def check(column: Column, what: str) -> Column:
        if not _only(column, bytes) or max(map(len, column), default=0) > most:
            raise _bad(what, f"must be at most {most} bytes")
        return column

    return check


def _job_id(column: Column, what: str) -> Column:
    if not _only(column, bytes) or set(map(len, column)) - {JOB_ID_BYTES}:
        raise _bad(what, f"a job id is {JOB_ID_BYTES} bytes")
    return column


def _texts(column: Column, what: str) -> Column:
    if not _only(column, tuple) or max(map(len, column), default=0) > MAX_TEXTS:
        raise _bad(what, f"must be a list of at most {MAX_TEXTS} texts")
    if not _only(tuple(chain.from_iterable(column)), str):
        raise _bad(what, "every text must be a string")
    return column


def _texts_or_nil(column: Column, what: str) -> Column:
    _texts([texts for texts in column if texts is not None], what)
    return column


def _many(item: Check, most: int) -> Check:
    """A list of at most ``most`` entries."""

    def check(column: Column, what: str) -> Column:
        if not _only(column, tuple) or max(map(len, column), default=0) > most:
            raise _bad(what, f"must be a list of at most {most} entries")
        return [tuple(item(entries, what)) for entries in column]

    return check


def _record(kind: type[tuple[Any, ...]], *checks: Check) -> Check:
    """An array of fixed length, one check a place, which becomes the named tuple ``kind``."""
    make = partial(tuple.__new__, kind)
    length = len(checks)

    def check(column: Column, what: str) -> Column:
        if not _only(column, tuple) or set(map(len, column)) - {length}:
            raise _bad(what, f"every entry must be a list of {length} values")
        for one, values in zip(checks, zip(*column, strict=True), strict=False):
            one(values, what)
        return list(map(make, column))

    return check


def _nested(kind: type[tuple[Any, ...]], *checks: Check) -> Check:
    """A record with records in it. Apart from ``_record``, which need not put its entries together again."""

    def check(column: Column, what: str) -> Column:
        if not _only(column, tuple) or set(map(len, column)) - {len(checks)}:
            raise _bad(what, f"every entry must be a list of {len(checks)} values")
        columns = [one(values, what) for one, values in zip(checks, zip(*column, strict=True), strict=False)]
        return [kind(*entry) for entry in zip(*columns, strict=True)]

    return check


_count = _integer(0, 2**53)
_attempt = _integer(0, 1_000_000)
_percent = _number(0, 100_000)  # psutil may report a little over 100; only absurd values are refused
_detail = _string(MAX_DETAIL_CHARS)
_code = _string(64)
_lane = _integer(INTERACTIVE, BULK)
_tenant = _string(MAX_NAME_CHARS)
_model = _string(MAX_NAME_CHARS * 2)
_reply_to = _blob(MAX_REPLY_TO_BYTES)
_seconds = _number(0, 1e9)
_latency = _number(NO_LATENCY_MS, 1e9)

_alternatives = _integer(0, MAX_ALTERNATIVES)
_celsius = _number(NO_TEMPERATURE_C, 1000)
_line = _string(MAX_DETAIL_CHARS)

_spec = _record(
    JobSpec, _job_id, _name, _texts, _lane, _tenant, _number(0, MAX_DEADLINE_S), _reply_to, _alternatives, _count,
)  # fmt: skip
_state = _record(JobState, _job_id, _code)
_refusal = _record(Refusal, _job_id, _code, _detail, _seconds)
_answer = _record(Answer, _job_id, _texts_or_nil, _code, _detail, _model, _attempt, _boolean, _count, _reply_to)
_leased = _record(LeasedJob, _job_id, _attempt, _name, _texts, _lane, _boolean, _alternatives)
_held = _record(HeldLease, _job_id, _attempt)
_finished = _record(Finished, _job_id, _attempt, _texts, _model, _count, _count)
_failure = _record(Failure, _job_id, _attempt, _code, _detail, _boolean)
_child = _record(ChildStatus, _count, _integer(-1, 1 << 16), _code, _count, _count, _count, _count)
_route = _record(Route, _name, _model)
_node = _record(
    NodeStatus, _name, _code, _many(_name, MAX_ROUTES), _count, _count, _count, _percent, _percent,
    _celsius, _boolean, _seconds, _count, _seconds,
)  # fmt: skip

_gateway = _record(
    GatewayStatus, _name, _code, _name, _count, _latency, _count, _count, _count, _count, _seconds,
)  # fmt: skip

_about = _record(About, _line, _line, _line, _line, _count, _count, _seconds)
_node_report = _nested(
    NodeReport, _name, _name, _code, _code, _about, _seconds, _seconds, _seconds, _many(_route, MAX_ROUTES), _count,
    _count, _count, _count, _count, _count, _seconds, _percent, _many(_percent, MAX_CORES), _percent, _count, _celsius,
    _boolean, _many(_child, MAX_CORES),
)  # fmt: skip
_departed = _record(Departed, _name, _code, _line, _seconds)
_story = _many(_record(StoryLine, _count, _line), MAX_STORY)
_job_report = _nested(
    JobReport, _job_id, _code, _name, _lane, _name, _count, _tenant, _model, _attempt, _boolean, _code, _detail,
    _seconds, _count, _count, _count, _count, _count, _count, _story,
)  # fmt: skip
_histogram = _record(Histogram, _many(_count, len(LATENCY_MS) + 1), _count)
_waiting = _record(Waiting, _name, _line, _code)
_health = _nested(
    BrokerHealth, _line, _line, _count, _percent, _count, _count, _count, _many(_waiting, MAX_WAITING)
)  # fmt: skip
_counts = _record(Counts, *[_count] * len(Counts._fields))

_ids = _many(_job_id, MAX_JOBS)
_leases = _many(_held, MAX_JOBS)
_routes = _many(_route, MAX_ROUTES)
_capacity = _integer(0, MAX_CAPACITY)

_SCHEMA: Final[dict[bytes, tuple[type[Any], dict[str, Check]]]] = {
    b"HELLO": (Hello, {"gateway": _name, "incarnation": _name}),
    b"SUBMIT": (Submit, {"jobs": _many(_spec, MAX_JOBS)}),
    b"ACK": (Ack, {"jobs": _ids}),
    b"CANCEL": (Cancel, {"jobs": _ids}),
    b"MANAGE": (Manage, {"action": _code, "node": _tenant, "jobs": _ids}),
    b"PING": (Ping, {"edition": _count}),
    b"ASK": (Ask, {}),
    b"REPORT": (
        Report,
        {
            "kind": _name, "servers": _count, "latency_ms": _latency, "queued": _count, "answered": _count,
            "failed": _count,
        },
    ),
    b"ACCEPTED": (Accepted, {"jobs": _many(_state, MAX_JOBS)}),
    b"REJECTED": (Rejected, {"jobs": _many(_refusal, MAX_JOBS)}),
    b"RESULT": (Result, {"jobs": _many(_answer, MAX_JOBS)}),
    b"ROUTES": (Routes, {"edition": _count, "routes": _routes}),
    b"STATUS": (
        Status,
        {
            "routes": _routes, "nodes": _many(_node, MAX_NODES), "gateways": _many(_gateway, MAX_GATEWAYS),
            "queued_interactive": _count, "queued_bulk": _count, "leased": _count, "undelivered": _count,
            "dead_letters": _count, "accepted": _count, "rejected": _count, "done": _count, "failed": _count,
            "cache_hits": _count, "bad_frames": _count, "median_ms": _seconds, "uptime_s": _seconds,
            "draining": _boolean,
        },
    ),
    b"MANAGED": (Managed, {"action": _code, "node": _tenant, "count": _count, "problem": _detail}),
    b"TELEMETRY": (
        Telemetry,
        {
            "broker": _name, "up_s": _seconds, "draining": _boolean, "health": _health, "counts": _counts,
            "latency": _many(_histogram, len(LANES)), "routes": _routes, "nodes": _many(_node_report, MAX_NODES),
            "departed": _many(_departed, MAX_REPORTED), "gateways": _many(_gateway, MAX_GATEWAYS),
            "jobs": _many(_job_report, MAX_REPORTED), "dead": _many(_job_report, MAX_REPORTED),
        },
    ),
    b"REGISTER": (
        Register,
        {
            "node": _name, "incarnation": _name, "routes": _routes, "capacity": _capacity, "engine": _code,
            "about": _about, "held": _many(_held, MAX_HELD),
        },
    ),
    b"HEARTBEAT": (
        Heartbeat,
        {
            "held": _many(_held, MAX_HELD), "capacity": _capacity, "draining": _boolean, "workers": _count,
            "queued": _count, "in_flight": _count, "chars_per_s": _seconds, "cpu_percent": _percent,
            "core_percent": _many(_percent, MAX_CORES), "ram_percent": _percent, "ram_used_bytes": _count,
            "temperature_c": _celsius, "throttled": _boolean,
            "children": _many(_child, MAX_CORES),
        },
    ),
    b"DONE": (Done, {"jobs": _many(_finished, MAX_JOBS)}),
    b"FAILED": (Failed, {"jobs": _many(_failure, MAX_JOBS)}),
    b"GOODBYE": (Goodbye, {}),
    b"WELCOME": (
        Welcome, {"broker": _name, "heartbeat_s": _number(0.01, 60), "edition": _count, "routes": _routes},
    ),
    b"LEASE": (Lease, {"jobs": _many(_leased, MAX_JOBS)}),
    b"RECEIVED": (Received, {"jobs": _leases}),
    b"REVOKE": (Revoke, {"jobs": _leases}),
    b"ORDER": (Order, {"action": _code}),
    b"REREGISTER": (Reregister, {}),
    b"PONG": (Pong, {}),
    b"ERROR": (Error, {"code": _code, "detail": _detail}),
    b"KNOCK": (Knock, {"name": _name, "token": _blob(TOKEN_BYTES)}),
    b"VERDICT": (Verdict, {"state": _code, "detail": _detail}),
}  # fmt: skip
_KINDS: Final = {schema[0]: kind for kind, schema in _SCHEMA.items()}
_FIELDS: Final = {schema[0]: tuple(field.name for field in fields(schema[0])) for schema in _SCHEMA.values()}
for _schema in _SCHEMA.values():  # a field without a check would let anything through
    if tuple(_schema[1]) != _FIELDS[_schema[0]]:
        raise LocalError(f"the schema of {_schema[0].__name__} does not match its fields")


def encode(message: Message) -> list[bytes]:
    """The frames of ``message``, without the routing identity.

    Raises ``LocalError`` when the message cannot be put on the wire, which only a bug here can cause.
    """
    kind = type(message)
    try:
        body = msgpack.packb({name: getattr(message, name) for name in _FIELDS[kind]})
    except (ValueError, TypeError, OverflowError, KeyError) as error:
        raise LocalError(f"cannot encode {kind.__name__}: {error}") from error
    if len(body) > MAX_MESSAGE_BYTES:
        raise LocalError(f"{kind.__name__} has {len(body)} bytes, more than {MAX_MESSAGE_BYTES}")
    return [PROTOCOL, _KINDS[kind], body]


def decode(frames: Sequence[bytes]) -> Message:
    """The message in ``frames`` (without the routing identity).

    Raises ``RemoteError``: ``wrong_version`` for another protocol, else ``bad_message``.
    """
    if len(frames) != 3:
        raise RemoteError("bad_message", f"{len(frames)} frames where there should be 3")
    protocol, kind, body = frames
    if protocol != PROTOCOL:
        raise RemoteError("wrong_version", f"this side speaks protocol {PROTOCOL.decode()}: update the other one")
    if len(body) > MAX_MESSAGE_BYTES:
        raise RemoteError("bad_message", f"{len(body)} bytes, more than {MAX_MESSAGE_BYTES}")
    schema = _SCHEMA.get(kind)
    if schema is None:
        raise RemoteError("bad_message", "unknown kind of message")
    return _build(*schema, _unpack(body))


def _unpack(body: bytes) -> dict[str, Any]:
    try:
        value = msgpack.unpackb(
            body, raw=False, use_list=False, strict_map_key=True, object_pairs_hook=_pairs, ext_hook=_no_ext,
            max_ext_len=0, max_map_len=64, max_array_len=MAX_HELD,
        )  # fmt: skip
    except RemoteError:
        raise
    except Exception as error:  # msgpack documents no closed set: UnicodeDecodeError, StackError, ExtraData, ...
        raise RemoteError("bad_message", f"not msgpack: {type(error).__name__}") from error
    if type(value) is not dict:
        raise RemoteError("bad_message", "the body must be a map")
    return value


def _pairs(pairs: Iterable[tuple[Any, Any]]) -> dict[Any, Any]:
    listed = list(pairs)
    mapping = dict(listed)
    if len(mapping) != len(listed):
        raise RemoteError("bad_message", "a key stands twice")
    return mapping


def _no_ext(code: int, data: bytes) -> Any:
    raise RemoteError("bad_message", "extension types are not allowed")


def _build(kind: type[Any], checks: dict[str, Check], body: dict[str, Any]) -> Message:
    if len(body) != len(checks):
        raise _bad(kind.__name__, f"needs exactly the fields {', '.join(checks) or '(none)'}")
    try:
        values = {name: check((body[name],), name)[0] for name, check in checks.items()}
    except KeyError as error:
        raise _bad(kind.__name__, f"the field {error.args[0]} is missing") from error
    message: Message = kind(**values)
    return message
