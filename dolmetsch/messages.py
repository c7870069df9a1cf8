"""The messages: one frozen struct each, and the limits they keep. Pure.

What a message holds many of are arrays on the wire, because a broker under load reads thousands of jobs a second.
``wire.py`` turns messages into frames and back; ``docs/protocol.md`` describes every message and field.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Final, TypeVar

from msgspec import Struct

from dolmetsch.reports import (
    NOTHING_KNOWN,
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
)

MAX_MESSAGE_BYTES: Final = 8 * 2**20  # no single frame may cost a broker more memory than this
BATCH_BYTES: Final = 512 * 2**10  # a sender starts the next message here, so that no peer waits long behind one
MAX_JOBS: Final = 256  # jobs in one message: a tick stays short
GIVEN_BACK: Final = "given_back"  # a node's code for a job that it did not try: no failure of the job
MAX_HELD: Final = 8192  # leases in one heartbeat: twice a node's largest credit
MAX_TEXTS: Final = 64  # texts in one job: a message, its embeds, a forwarded message
MAX_TEXT_CHARS: Final = 20_000  # five of Discord's longest messages
MAX_JOB_CHARS: Final = 50_000  # all texts of a job: about a minute of work for one Pi core
MAX_REPLY_TO_BYTES: Final = 1024
MAX_NAME_CHARS: Final = 128  # names of nodes, gateways, tenants, routes, models
MAX_DETAIL_CHARS: Final = 500
MAX_ROUTES: Final = 512
MAX_CORES: Final = 512
MAX_NODES: Final = 1024
MAX_GATEWAYS: Final = 256  # gateways in one STATUS: those that reported last
MAX_DEADLINE_S: Final = 86_400.0
MAX_ALTERNATIVES: Final = 4  # further translations of a text: each costs as much as the first
MAX_REPORTED: Final = 64  # jobs, dead letters, departed nodes in one TELEMETRY: a sample, not a log
MAX_STORY: Final = 32  # lines of a job's story
MAX_CAPACITY: Final = 4096  # credit of one node, in jobs
JOB_ID_BYTES: Final = 16
INTERACTIVE: Final = 0  # somebody is looking at the screen
BULK: Final = 1  # files, imports: served behind the interactive lane, but never starved
LANES: Final = ("interactive", "bulk")

DRAIN: Final = "drain"  # what an operator may ask of a node: lease it nothing more ...
RESUME: Final = "resume"  # ... take work again ...
RESTART: Final = "restart"  # ... start its children anew, one after the other
REQUEUE: Final = "requeue"  # what an operator may ask for dead letters: round again ...
PURGE: Final = "purge"  # ... or forget them
APPROVE: Final = "approve"  # what an operator may ask for a node that waits to be let in: take it ...
REFUSE: Final = "refuse"  # ... or turn it away
TOKEN_BYTES: Final = 16
MAX_WAITING: Final = 32  # nodes that wait to be let in


class JobSpec(Entry, frozen=True):
    """A job as a gateway submits it.

    With ``alternatives``, its result has the texts in their best translation, then in their second-best, and so on.
    ``waited_ms`` is how long the gateway has had the request.
    """

    job_id: bytes
    route: str
    texts: tuple[str, ...]
    lane: int
    tenant: str
    deadline_s: float
    reply_to: bytes
    alternatives: int = 0
    waited_ms: int = 0


class JobState(Entry, frozen=True):
    """Where an accepted job stands: queued, leased, done, dead or settled."""

    job_id: bytes
    state: str


class Refusal(Entry, frozen=True):
    """Why a job was not accepted; ``retry_after_s`` is 0.0 where trying again cannot help."""

    job_id: bytes
    code: str
    detail: str
    retry_after_s: float


class Answer(Entry, frozen=True):
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


class LeasedJob(Entry, frozen=True):
    """A job as a node receives it; (job_id, attempt) is the lease."""

    job_id: bytes
    attempt: int
    route: str
    texts: tuple[str, ...]
    lane: int
    suspect: bool
    alternatives: int = 0


class HeldLease(Entry, frozen=True):
    """A lease that a node still works on."""

    job_id: bytes
    attempt: int


class Finished(Entry, frozen=True):
    """A job that a node translated: it waited there for its first batch, and then was worked on."""

    job_id: bytes
    attempt: int
    texts: tuple[str, ...]
    model: str
    wait_ms: int = 0
    work_ms: int = 0


class Failure(Entry, frozen=True):
    """A job that a node gives back; ``retry`` False means that no node could do better."""

    job_id: bytes
    attempt: int
    code: str
    detail: str
    retry: bool


# ---- gateway to broker ----


class Hello(Struct, frozen=True, kw_only=True):
    """A gateway introduces itself, and does so again whenever the broker has not been heard for a while."""

    gateway: str
    incarnation: str


class Submit(Struct, frozen=True, kw_only=True):
    """Jobs to do."""

    jobs: tuple[JobSpec, ...]


class Ack(Struct, frozen=True, kw_only=True):
    """The gateway has these results safely: the broker may forget them."""

    jobs: tuple[bytes, ...]


class Cancel(Struct, frozen=True, kw_only=True):
    """Nobody waits for these jobs any more."""

    jobs: tuple[bytes, ...]


class Manage(Struct, frozen=True, kw_only=True):
    """An operator asks for ``action``. Answered with Managed.

    ``drain``, ``resume`` and ``restart`` are for the node named in ``node``; ``requeue`` and ``purge`` for the dead
    letters in ``jobs``, or all of them when that is empty; ``approve`` and ``refuse`` for the computer that waits to be
    let in and whose key has the fingerprint in ``node``.
    """

    action: str
    node: str = ""
    jobs: tuple[bytes, ...] = ()


class Ping(Struct, frozen=True, kw_only=True):
    """Are you there? Answered with Pong, and with Routes before it unless ``edition`` is the present one.

    ``edition`` is that of the routes which the gateway knows; 0 is the one without any route.
    """

    edition: int = 0


class Ask(Struct, frozen=True, kw_only=True):
    """How is the cluster? Answered with Status."""


class Report(Struct, frozen=True, kw_only=True):
    """How the gateway is: once a second, never answered. Counters count since the gateway started.

    ``latency_ms``, to the gateway's own service, is -1.0 where there is none. ``queued`` counts requests that have no
    answer yet.
    """

    kind: str
    servers: int
    latency_ms: float
    queued: int
    answered: int
    failed: int


# ---- broker to gateway ----


class Accepted(Struct, frozen=True, kw_only=True):
    """These jobs are on the broker's disk."""

    jobs: tuple[JobState, ...]


class Rejected(Struct, frozen=True, kw_only=True):
    """These jobs were refused; nothing of them is kept."""

    jobs: tuple[Refusal, ...]


class Result(Struct, frozen=True, kw_only=True):
    """These jobs have ended; sent again until acked."""

    jobs: tuple[Answer, ...]


class Routes(Struct, frozen=True, kw_only=True):
    """What nodes offer now; the number ``edition`` stands for this list until the broker ends."""

    edition: int
    routes: tuple[Route, ...]


class Status(Struct, frozen=True, kw_only=True):
    """The cluster at a glance. Counters count since the broker started."""

    routes: tuple[Route, ...]
    nodes: tuple[NodeStatus, ...]
    gateways: tuple[GatewayStatus, ...]
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


class Managed(Struct, frozen=True, kw_only=True):
    """What became of a Manage: how many nodes or dead letters it reached, or the ``problem`` in words."""

    action: str
    node: str
    count: int
    problem: str


# ---- broker to whoever listens ----


class Telemetry(Struct, frozen=True, kw_only=True):
    """The cluster as it is, published once a second. ``jobs`` is a sample of those that ended since the last one."""

    broker: str
    up_s: float
    draining: bool
    health: BrokerHealth
    counts: Counts
    latency: tuple[Histogram, ...]  # by lane
    routes: tuple[Route, ...]
    nodes: tuple[NodeReport, ...]
    departed: tuple[Departed, ...]
    gateways: tuple[GatewayStatus, ...]
    jobs: tuple[JobReport, ...]
    dead: tuple[JobReport, ...]  # the latest dead letters


# ---- node to broker ----


class Register(Struct, frozen=True, kw_only=True):
    """A node that can translate joins; ``held`` are leases from before the broker's restart or a network break."""

    node: str
    incarnation: str
    routes: tuple[Route, ...]
    capacity: int
    engine: str
    about: About = NOTHING_KNOWN
    held: tuple[HeldLease, ...]


class Heartbeat(Struct, frozen=True, kw_only=True):
    """Once a second: renews the leases it lists, and carries the node's health.

    ``temperature_c`` is NO_TEMPERATURE_C and ``throttled`` False where the board has no sensor.
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


class Done(Struct, frozen=True, kw_only=True):
    """Translated jobs; sent again until received."""

    jobs: tuple[Finished, ...]


class Failed(Struct, frozen=True, kw_only=True):
    """Jobs given back; sent again until received."""

    jobs: tuple[Failure, ...]


class Goodbye(Struct, frozen=True, kw_only=True):
    """The node leaves; whatever it was leased is queued again at once."""


# ---- broker to node ----


class Welcome(Struct, frozen=True, kw_only=True):
    """The broker knows the peer. ``broker`` is the broker's incarnation: another one means it was restarted."""

    broker: str
    heartbeat_s: float
    edition: int
    routes: tuple[Route, ...]


class Lease(Struct, frozen=True, kw_only=True):
    """Jobs for this node."""

    jobs: tuple[LeasedJob, ...]


class Received(Struct, frozen=True, kw_only=True):
    """These outcomes are on the broker's disk: the node may forget them."""

    jobs: tuple[HeldLease, ...]


class Revoke(Struct, frozen=True, kw_only=True):
    """Nobody needs these leases any more."""

    jobs: tuple[HeldLease, ...]


class Order(Struct, frozen=True, kw_only=True):
    """An operator's ``action`` for this node: drain, resume or restart."""

    action: str


# ---- at the door ----


class Knock(Struct, frozen=True, kw_only=True):
    """Let me in: ``token`` is an invitation's, or empty to wait for an operator's approval. Answered with Verdict."""

    name: str
    token: bytes


class Verdict(Struct, frozen=True, kw_only=True):
    """What became of a Knock: ``admitted``, ``pending`` (knock again, to hear more) or ``refused``, and why."""

    state: str
    detail: str


class Reregister(Struct, frozen=True, kw_only=True):
    """The broker does not know this peer: introduce yourself again."""


class Pong(Struct, frozen=True, kw_only=True):
    """I am here."""


class Error(Struct, frozen=True, kw_only=True):
    """What you sent was not understood."""

    code: str
    detail: str


Message = (
    Hello | Submit | Ack | Cancel | Manage | Ping | Ask | Report
    | Accepted | Rejected | Result | Routes | Status | Managed | Telemetry
    | Register | Heartbeat | Done | Failed | Goodbye
    | Welcome | Lease | Received | Revoke | Order | Reregister | Pong | Error
    | Knock | Verdict
)  # fmt: skip


Item = TypeVar("Item")


def batches(
    items: Sequence[Item], weigh: Callable[[Item], int] | None = None, most: int = MAX_JOBS
) -> Iterator[tuple[Item, ...]]:
    """``items`` in order, in parts that fit a message: ``most`` entries, ``BATCH_BYTES`` as ``weigh`` counts them."""
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


def text_bytes(texts: Sequence[str] | None) -> int:
    """An upper bound of what ``texts`` take on the wire: UTF-8 needs at most four bytes a character."""
    return 64 if texts is None else 64 + 5 * len(texts) + 4 * sum(map(len, texts))
