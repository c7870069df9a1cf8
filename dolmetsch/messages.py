"""The wire: one frozen dataclass per message, the limits, and ``encode``/``decode`` between them and frames.

A message is three frames behind the ROUTER identity: ``PROTOCOL``, the kind, and a msgpack map. Lists of jobs
inside it are arrays of fixed length (the named tuples below), because a broker under load reads thousands a second.
``decode`` trusts nothing: size first, then msgpack with every limit set, then each field's exact type and range.
Whatever is wrong raises ``RemoteError`` and nothing else. ``docs/protocol.md`` describes every message and field.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, fields
from typing import Any, Final, NamedTuple, TypeVar

import msgpack

from dolmetsch.errors import LocalError, RemoteError

PROTOCOL: Final = b"dolm1"

MAX_MESSAGE_BYTES: Final = 8 * 2**20  # no single frame may cost a broker more memory than this
BATCH_BYTES: Final = 512 * 2**10  # a sender starts the next message here, so that no peer waits long behind one
MAX_JOBS: Final = 256  # jobs in one message: a tick stays short
MAX_HELD: Final = 8192  # leases in one heartbeat: eight times a node's largest credit
MAX_TEXTS: Final = 64  # texts in one job: a message, its embeds, a forwarded message
MAX_TEXT_CHARS: Final = 20_000  # five of Discord's longest messages
MAX_JOB_CHARS: Final = 50_000  # all texts of a job: about a minute of work for one Pi core
MAX_REPLY_TO_BYTES: Final = 1024
MAX_NAME_CHARS: Final = 128  # names of nodes, gateways, tenants, routes, models
MAX_DETAIL_CHARS: Final = 500
MAX_ROUTES: Final = 512
MAX_CORES: Final = 512
MAX_NODES: Final = 1024
MAX_DEADLINE_S: Final = 86_400.0
MAX_CAPACITY: Final = 1024  # credit of one node, in jobs
JOB_ID_BYTES: Final = 16

INTERACTIVE: Final = 0  # somebody is looking at the screen
BULK: Final = 1  # files, imports: served behind the interactive lane, but never starved
LANES: Final = ("interactive", "bulk")


class JobSpec(NamedTuple):
    """A job as a gateway submits it."""

    job_id: bytes
    route: str
    texts: tuple[str, ...]
    lane: int
    tenant: str
    deadline_s: float
    reply_to: bytes


class JobState(NamedTuple):
    """Where an accepted job stands: queued, leased, done, dead or settled."""

    job_id: bytes
    state: str


class Refusal(NamedTuple):
    """Why a job was not accepted; ``retry_after_s`` is 0.0 where trying again cannot help."""

    job_id: bytes
    code: str
    detail: str
    retry_after_s: float


class Answer(NamedTuple):
    """How a job ended; ``texts`` is None when it failed, and ``code`` and ``detail`` then say why."""

    job_id: bytes
    texts: tuple[str, ...] | None
    code: str
    detail: str
    model: str
    attempts: int
    cached: bool
    took_ms: int
    reply_to: bytes


class LeasedJob(NamedTuple):
    """A job as a node receives it; (job_id, attempt) is the lease."""

    job_id: bytes
    attempt: int
    route: str
    texts: tuple[str, ...]
    lane: int
    suspect: bool


class HeldLease(NamedTuple):
    """A lease that a node still works on."""

    job_id: bytes
    attempt: int


class Finished(NamedTuple):
    """A job that a node translated."""

    job_id: bytes
    attempt: int
    texts: tuple[str, ...]
    model: str


class Failure(NamedTuple):
    """A job that a node gives back; ``retry`` False means that no node could do better."""

    job_id: bytes
    attempt: int
    code: str
    detail: str
    retry: bool


class ChildStatus(NamedTuple):
    """One worker process of a node."""

    pid: int
    core: int
    state: str
    rss_bytes: int
    jobs_done: int
    restarts: int
    in_flight: int


class Route(NamedTuple):
    """A language route and the model that serves it."""

    route: str
    model: str


class NodeStatus(NamedTuple):
    """One node in a STATUS answer."""

    name: str
    state: str
    routes: tuple[str, ...]
    leased: int
    capacity: int
    workers: int
    cpu_percent: float
    ram_percent: float
    temperature_c: float
    throttled: bool
    chars_per_s: float
    jobs_done: int
    seen_s_ago: float


# ---- gateway to broker ----


@dataclass(frozen=True, slots=True, kw_only=True)
class Hello:
    """A gateway introduces itself, and does so again whenever the broker has not been heard for a while."""

    gateway: str
    incarnation: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Submit:
    """Jobs to do."""

    jobs: tuple[JobSpec, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Ack:
    """The gateway has these results safely: the broker may forget them."""

    jobs: tuple[bytes, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Cancel:
    """Nobody waits for these jobs any more."""

    jobs: tuple[bytes, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Ping:
    """Are you there? Answered with Pong."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Ask:
    """How is the cluster? Answered with Status."""


# ---- broker to gateway ----


@dataclass(frozen=True, slots=True, kw_only=True)
class Accepted:
    """These jobs are on the broker's disk."""

    jobs: tuple[JobState, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Rejected:
    """These jobs were refused; nothing of them is kept."""

    jobs: tuple[Refusal, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """These jobs have ended; sent again until acked."""

    jobs: tuple[Answer, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Status:
    """The cluster at a glance. Counters count since the broker started."""

    routes: tuple[Route, ...]
    nodes: tuple[NodeStatus, ...]
    queued_interactive: int
    queued_bulk: int
    leased: int
    undelivered: int
    dead_letters: int
    accepted: int
    rejected: int
    done: int
    failed: int
    cache_hits: int
    bad_frames: int
    median_ms: float
    uptime_s: float
    draining: bool


# ---- node to broker ----


@dataclass(frozen=True, slots=True, kw_only=True)
class Register:
    """A node that can translate joins; ``held`` are leases from before the broker's restart or a network break."""

    node: str
    incarnation: str
    routes: tuple[Route, ...]
    capacity: int
    engine: str
    held: tuple[HeldLease, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Heartbeat:
    """Once a second: renews the leases it lists, and carries the node's health.

    ``temperature_c`` is -300.0 and ``throttled`` False where the board has no sensor.
    """

    held: tuple[HeldLease, ...]
    capacity: int
    draining: bool
    workers: int
    queued: int
    in_flight: int
    chars_per_s: float
    cpu_percent: float
    core_percent: tuple[float, ...]
    ram_percent: float
    ram_used_bytes: int
    temperature_c: float
    throttled: bool
    children: tuple[ChildStatus, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Done:
    """Translated jobs; sent again until received."""

    jobs: tuple[Finished, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Failed:
    """Jobs given back; sent again until received."""

    jobs: tuple[Failure, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Goodbye:
    """The node leaves; whatever it was leased is queued again at once."""


# ---- broker to node ----


@dataclass(frozen=True, slots=True, kw_only=True)
class Welcome:
    """The broker knows the peer. ``broker`` is the broker's incarnation: another one means it was restarted."""

    broker: str
    heartbeat_s: float
    routes: tuple[Route, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Lease:
    """Jobs for this node."""

    jobs: tuple[LeasedJob, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Received:
    """These outcomes are on the broker's disk: the node may forget them."""

    jobs: tuple[HeldLease, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Revoke:
    """Nobody needs these leases any more."""

    jobs: tuple[HeldLease, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Reregister:
    """The broker does not know this peer: introduce yourself again."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Pong:
    """I am here."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Error:
    """What you sent was not understood."""

    code: str
    detail: str


Message = (
    Hello | Submit | Ack | Cancel | Ping | Ask
    | Accepted | Rejected | Result | Status
    | Register | Heartbeat | Done | Failed | Goodbye
    | Welcome | Lease | Received | Revoke | Reregister | Pong | Error
)  # fmt: skip


# ---- checks: each takes a decoded value and returns it, typed, or raises RemoteError ----

Check = Callable[[Any, str], Any]


def _bad(what: str, why: str) -> RemoteError:
    return RemoteError("bad_message", f"{what}: {why}")


def _integer(low: int, high: int) -> Check:
    def check(value: Any, what: str) -> int:
        if type(value) is not int or not low <= value <= high:
            raise _bad(what, f"must be an integer from {low} to {high}")
        return value

    return check


def _number(low: float, high: float) -> Check:
    def check(value: Any, what: str) -> float:
        if type(value) not in (float, int) or not math.isfinite(value) or not low <= value <= high:
            raise _bad(what, f"must be a number from {low:g} to {high:g}")
        return float(value)

    return check


def _string(most: int) -> Check:
    def check(value: Any, what: str) -> str:
        if type(value) is not str or len(value) > most:
            raise _bad(what, f"must be a string of at most {most} characters")
        return value

    return check


def _name(value: Any, what: str) -> str:
    if type(value) is not str or not 0 < len(value) <= MAX_NAME_CHARS or not value.isprintable():
        raise _bad(what, f"must be 1 to {MAX_NAME_CHARS} printable characters")
    return value


def _boolean(value: Any, what: str) -> bool:
    if type(value) is not bool:
        raise _bad(what, "must be true or false")
    return value


def _blob(most: int) -> Check:
    def check(value: Any, what: str) -> bytes:
        if type(value) is not bytes or len(value) > most:
            raise _bad(what, f"must be at most {most} bytes")
        return value

    return check


def _job_id(value: Any, what: str) -> bytes:
    if type(value) is not bytes or len(value) != JOB_ID_BYTES:
        raise _bad(what, f"a job id is {JOB_ID_BYTES} bytes")
    return value


def _texts(value: Any, what: str) -> tuple[str, ...]:
    if type(value) is not tuple or len(value) > MAX_TEXTS:
        raise _bad(what, f"must be a list of at most {MAX_TEXTS} texts")
    for text in value:
        if type(text) is not str:
            raise _bad(what, "every text must be a string")
    return value


def _texts_or_nil(value: Any, what: str) -> tuple[str, ...] | None:
    return None if value is None else _texts(value, what)


def _many(item: Check, most: int) -> Check:
    def check(value: Any, what: str) -> tuple[Any, ...]:
        if type(value) is not tuple or len(value) > most:
            raise _bad(what, f"must be a list of at most {most} entries")
        return tuple([item(entry, what) for entry in value])

    return check


def _record(kind: Callable[[Iterable[Any]], Any], *checks: Check) -> Check:
    """An array of fixed length, one check a place."""
    length = len(checks)

    def check(value: Any, what: str) -> Any:
        if type(value) is not tuple or len(value) != length:
            raise _bad(what, f"every entry must be a list of {length} values")
        return kind([one(part, what) for one, part in zip(checks, value, strict=True)])

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

_spec = _record(
    JobSpec._make, _job_id, _name, _texts, _lane, _tenant, _number(0, MAX_DEADLINE_S), _reply_to
)
_state = _record(JobState._make, _job_id, _code)
_refusal = _record(Refusal._make, _job_id, _code, _detail, _seconds)
_answer = _record(
    Answer._make, _job_id, _texts_or_nil, _code, _detail, _model, _attempt, _boolean, _count, _reply_to
)
_leased = _record(LeasedJob._make, _job_id, _attempt, _name, _texts, _lane, _boolean)
_held = _record(HeldLease._make, _job_id, _attempt)
_finished = _record(Finished._make, _job_id, _attempt, _texts, _model)
_failure = _record(Failure._make, _job_id, _attempt, _code, _detail, _boolean)
_child = _record(ChildStatus._make, _count, _integer(-1, 1 << 16), _code, _count, _count, _count, _count)
_route = _record(Route._make, _name, _model)
_node = _record(
    NodeStatus._make, _name, _code, _many(_name, MAX_ROUTES), _count, _count, _count, _percent, _percent,
    _number(-300, 1000), _boolean, _seconds, _count, _seconds,
)  # fmt: skip

_ids = _many(_job_id, MAX_JOBS)
_leases = _many(_held, MAX_JOBS)
_routes = _many(_route, MAX_ROUTES)
_capacity = _integer(0, MAX_CAPACITY)

_SCHEMA: Final[dict[bytes, tuple[type[Any], dict[str, Check]]]] = {
    b"HELLO": (Hello, {"gateway": _name, "incarnation": _name}),
    b"SUBMIT": (Submit, {"jobs": _many(_spec, MAX_JOBS)}),
    b"ACK": (Ack, {"jobs": _ids}),
    b"CANCEL": (Cancel, {"jobs": _ids}),
    b"PING": (Ping, {}),
    b"ASK": (Ask, {}),
    b"ACCEPTED": (Accepted, {"jobs": _many(_state, MAX_JOBS)}),
    b"REJECTED": (Rejected, {"jobs": _many(_refusal, MAX_JOBS)}),
    b"RESULT": (Result, {"jobs": _many(_answer, MAX_JOBS)}),
    b"STATUS": (
        Status,
        {
            "routes": _routes, "nodes": _many(_node, MAX_NODES), "queued_interactive": _count,
            "queued_bulk": _count, "leased": _count, "undelivered": _count, "dead_letters": _count,
            "accepted": _count, "rejected": _count, "done": _count, "failed": _count, "cache_hits": _count,
            "bad_frames": _count, "median_ms": _seconds, "uptime_s": _seconds, "draining": _boolean,
        },
    ),
    b"REGISTER": (
        Register,
        {
            "node": _name, "incarnation": _name, "routes": _routes, "capacity": _capacity, "engine": _code,
            "held": _many(_held, MAX_HELD),
        },
    ),
    b"HEARTBEAT": (
        Heartbeat,
        {
            "held": _many(_held, MAX_HELD), "capacity": _capacity, "draining": _boolean, "workers": _count,
            "queued": _count, "in_flight": _count, "chars_per_s": _seconds, "cpu_percent": _percent,
            "core_percent": _many(_percent, MAX_CORES), "ram_percent": _percent, "ram_used_bytes": _count,
            "temperature_c": _number(-300, 1000), "throttled": _boolean,
            "children": _many(_child, MAX_CORES),
        },
    ),
    b"DONE": (Done, {"jobs": _many(_finished, MAX_JOBS)}),
    b"FAILED": (Failed, {"jobs": _many(_failure, MAX_JOBS)}),
    b"GOODBYE": (Goodbye, {}),
    b"WELCOME": (Welcome, {"broker": _name, "heartbeat_s": _number(0.01, 60), "routes": _routes}),
    b"LEASE": (Lease, {"jobs": _many(_leased, MAX_JOBS)}),
    b"RECEIVED": (Received, {"jobs": _leases}),
    b"REVOKE": (Revoke, {"jobs": _leases}),
    b"REREGISTER": (Reregister, {}),
    b"PONG": (Pong, {}),
    b"ERROR": (Error, {"code": _code, "detail": _detail}),
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
        values = {name: check(body[name], name) for name, check in checks.items()}
    except KeyError as error:
        raise _bad(kind.__name__, f"the field {error.args[0]} is missing") from error
    message: Message = kind(**values)
    return message


Item = TypeVar("Item")


def batches(
    items: Sequence[Item], weigh: Callable[[Item], int] | None = None, most: int = MAX_JOBS
) -> Iterator[tuple[Item, ...]]:
    """``items`` in order, cut so that each part fits one message: ``most`` entries, ``BATCH_BYTES`` as ``weigh`` counts."""
    if weigh is None:
        for start in range(0, len(items), most):
            yield tuple(items[start : start + most])
        return
    part: list[Item] = []
    size = 0
    for item in items:
        weight = weigh(item)
        if part and (len(part) == most or size + weight > BATCH_BYTES):
            yield tuple(part)
            part, size = [], 0
        part.append(item)
        size += weight
    if part:
        yield tuple(part)


def text_bytes(texts: Iterable[str] | None) -> int:
    """An upper bound of what ``texts`` take on the wire: UTF-8 needs at most four bytes a character."""
    return 64 if texts is None else 64 + sum([4 * len(text) + 5 for text in texts])
