"""The wire: messages to frames and back.

A message is three frames behind the ROUTER identity: ``PROTOCOL``, the kind, and a msgpack map. ``decode`` trusts
nothing: size first, then msgspec reads the map by the type of its kind, so that what has another form is never built.
Whatever is wrong raises ``RemoteError`` and nothing else.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import starmap
from typing import Annotated, Any, Final, NamedTuple, TypedDict

import msgspec
from msgspec import Meta

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
    Entry,
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

# ---- shapes ----

Column = Sequence[Any]


class Shape(NamedTuple):
    """What a field must be: a type that msgspec reads by, and what is left to do then.

    ``make`` takes a column, the values of one field of all jobs in a message, and returns it, checked or made ours:
    a broker under load reads thousands of jobs a second, and looking at a column at once runs in C. None: nothing is
    left to do.
    """

    type: Any
    make: Callable[[Column], Column] | None = None


def _bad(why: str) -> RemoteError:
    return RemoteError("bad_message", why)


def _integer(low: int, high: int) -> Shape:
    return Shape(Annotated[int, Meta(ge=low, le=high)])


def _number(low: float, high: float) -> Shape:
    return Shape(Annotated[float, Meta(ge=low, le=high)])


def _string(most: int) -> Shape:
    return Shape(Annotated[str, Meta(max_length=most)])


def _blob(most: int, least: int = 0) -> Shape:
    return Shape(Annotated[bytes, Meta(min_length=least, max_length=most)])


def _printable(column: Column) -> Column:
    if not all(map(str.isprintable, set(column))):
        raise _bad("a name must be printable")
    return column


def _many(item: Shape, most: int) -> Shape:
    """A list of at most ``most`` entries."""
    make = item.make

    def each(column: Column) -> Column:
        assert make is not None
        return [tuple(make(entries)) for entries in column]

    form = Annotated[tuple[item.type, ...], Meta(max_length=most)]  # type: ignore[name-defined]
    return Shape(form, None if make is None else each)


def _entry(kind: type[Entry], *places: Shape) -> Shape:
    """An array of fixed length, which becomes a ``kind``; none of its places needs to be made ours."""
    checks = [(place, shape.make) for place, shape in enumerate(places) if shape.make is not None]

    def make(column: Column) -> Column:
        for place, check in checks:
            check([entry[place] for entry in column])
        return list(starmap(kind, column))

    return Shape(tuple[tuple(shape.type for shape in places)], make)  # type: ignore[misc]


def _nested(kind: type[Entry], *places: Shape) -> Shape:
    """An entry with entries in it. Apart from ``_entry``, which need not put its places together again."""

    def make(column: Column) -> Column:
        columns = zip(*column, strict=True)
        made = [shape.make(values) if shape.make else values for shape, values in zip(places, columns, strict=False)]
        return list(starmap(kind, zip(*made, strict=True)))

    return Shape(tuple[tuple(shape.type for shape in places)], make)  # type: ignore[misc]


_boolean = Shape(bool)
_name = Shape(Annotated[str, Meta(min_length=1, max_length=MAX_NAME_CHARS)], _printable)
_job_id = _blob(JOB_ID_BYTES, JOB_ID_BYTES)
_texts = Shape(Annotated[tuple[str, ...], Meta(max_length=MAX_TEXTS)])
_texts_or_nil = Shape(_texts.type | None)

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

_spec = _entry(
    JobSpec, _job_id, _name, _texts, _lane, _tenant, _number(0, MAX_DEADLINE_S), _reply_to, _alternatives, _count,
)  # fmt: skip
_state = _entry(JobState, _job_id, _code)
_refusal = _entry(Refusal, _job_id, _code, _detail, _seconds)
_answer = _entry(Answer, _job_id, _texts_or_nil, _code, _detail, _model, _attempt, _boolean, _count, _reply_to)
_leased = _entry(LeasedJob, _job_id, _attempt, _name, _texts, _lane, _boolean, _alternatives)
_held = _entry(HeldLease, _job_id, _attempt)
_finished = _entry(Finished, _job_id, _attempt, _texts, _model, _count, _count)
_failure = _entry(Failure, _job_id, _attempt, _code, _detail, _boolean)
_child = _entry(ChildStatus, _count, _integer(-1, 1 << 16), _code, _count, _count, _count, _count)
_route = _entry(Route, _name, _model)
_node = _entry(
    NodeStatus, _name, _code, _many(_name, MAX_ROUTES), _count, _count, _count, _percent, _percent,
    _celsius, _boolean, _seconds, _count, _seconds,
)  # fmt: skip

_gateway = _entry(
    GatewayStatus, _name, _code, _name, _count, _latency, _count, _count, _count, _count, _seconds,
)  # fmt: skip

_about = _entry(About, _line, _line, _line, _line, _count, _count, _seconds)
_node_report = _nested(
    NodeReport, _name, _name, _code, _code, _about, _seconds, _seconds, _seconds, _many(_route, MAX_ROUTES), _count,
    _count, _count, _count, _count, _count, _seconds, _percent, _many(_percent, MAX_CORES), _percent, _count, _celsius,
    _boolean, _many(_child, MAX_CORES),
)  # fmt: skip
_departed = _entry(Departed, _name, _code, _line, _seconds)
_story = _many(_entry(StoryLine, _count, _line), MAX_STORY)
_job_report = _nested(
    JobReport, _job_id, _code, _name, _lane, _name, _count, _tenant, _model, _attempt, _boolean, _code, _detail,
    _seconds, _count, _count, _count, _count, _count, _count, _story,
)  # fmt: skip
_histogram = _entry(Histogram, _many(_count, len(LATENCY_MS) + 1), _count)
_waiting = _entry(Waiting, _name, _line, _code)
_health = _nested(
    BrokerHealth, _line, _line, _count, _percent, _count, _count, _count, _many(_waiting, MAX_WAITING)
)  # fmt: skip
_counts = _entry(Counts, *[_count] * len(Counts.__struct_fields__))

_ids = _many(_job_id, MAX_JOBS)
_leases = _many(_held, MAX_JOBS)
_routes = _many(_route, MAX_ROUTES)
_capacity = _integer(0, MAX_CAPACITY)

_SCHEMA: Final[dict[bytes, tuple[type[Any], dict[str, Shape]]]] = {
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
for _schema in _SCHEMA.values():  # a field without a shape would let anything through
    if tuple(_schema[1]) != _schema[0].__struct_fields__:
        raise LocalError(f"the schema of {_schema[0].__name__} does not match its fields")


class _Reader:
    """Reads the bodies of one kind of message."""

    def __init__(self, kind: type[Any], shapes: dict[str, Shape]) -> None:
        self._kind = kind
        self._count = len(shapes)
        self._makes = [(name, shape.make) for name, shape in shapes.items() if shape.make is not None]
        form: Any = TypedDict(kind.__name__, {name: shape.type for name, shape in shapes.items()})  # type: ignore[misc]
        self._decoder: msgspec.msgpack.Decoder[dict[str, Any]] = msgspec.msgpack.Decoder(form)

    def read(self, body: bytes) -> Message:
        """The message. Raises ``RemoteError``."""
        try:
            values = self._decoder.decode(body)
        except msgspec.ValidationError as error:
            raise _bad(f"{self._kind.__name__}: {error}") from error
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise _bad(f"{self._kind.__name__}: not msgpack: {type(error).__name__}") from error
        # msgspec passes over keys that it does not know, and takes the last of two that are the same.
        if not len(values) == self._count == _entries(body):
            raise _bad(f"{self._kind.__name__} needs exactly its fields, each once")
        for name, make in self._makes:
            values[name] = make((values[name],))[0]
        message: Message = self._kind(**values)
        return message


def _entries(body: bytes) -> int:
    """How many entries the msgpack map in ``body`` has; it is one."""
    if body[0] & 0xF0 == 0x80:
        return body[0] & 0x0F
    return int.from_bytes(body[1:3] if body[0] == 0xDE else body[1:5], "big")


_READERS: Final = {kind: _Reader(*schema) for kind, schema in _SCHEMA.items()}
_encode: Final = msgspec.msgpack.Encoder().encode


def encode(message: Message) -> list[bytes]:
    """The frames of ``message``, without the routing identity.

    Raises ``LocalError`` when the message cannot be put on the wire, which only a bug here can cause.
    """
    kind = type(message)
    try:
        body = _encode(message)
    except (ValueError, TypeError, OverflowError) as error:
        raise LocalError(f"cannot encode {kind.__name__}: {error}") from error
    if len(body) > MAX_MESSAGE_BYTES:
        raise LocalError(f"{kind.__name__} has {len(body)} bytes, more than {MAX_MESSAGE_BYTES}")
    return [PROTOCOL, _KINDS[kind], body]


def decode(frames: Sequence[bytes]) -> Message:
    """The message in ``frames`` (without the routing identity).

    Raises ``RemoteError``: ``wrong_version`` for another protocol, else ``bad_message``.
    """
    if len(frames) != 3:
        raise _bad(f"{len(frames)} frames where there should be 3")
    protocol, kind, body = frames
    if protocol != PROTOCOL:
        raise RemoteError("wrong_version", f"this side speaks protocol {PROTOCOL.decode()}: update the other one")
    if len(body) > MAX_MESSAGE_BYTES:
        raise _bad(f"{len(body)} bytes, more than {MAX_MESSAGE_BYTES}")
    reader = _READERS.get(kind)
    if reader is None:
        raise _bad("unknown kind of message")
    return reader.read(body)
