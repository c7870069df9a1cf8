"""What is told of nodes, gateways, jobs and the broker: the records inside STATUS, TELEMETRY and heartbeats. Pure.

They are arrays on the wire; ``messages.py`` has the messages around them.
"""

from __future__ import annotations

from typing import Final

from msgspec import Struct

NO_LATENCY_MS: Final = -1.0  # of a gateway that has no service of its own, or has not measured it
NO_TEMPERATURE_C: Final = -300.0  # of a board without a sensor


class Entry(Struct, frozen=True, array_like=True, gc=False):
    """One of many in a message: an array, without names. A named tuple takes five times as long to make."""


class Route(Entry, frozen=True):
    """A language route and the model that serves it."""

    route: str
    model: str


class ChildStatus(Entry, frozen=True):
    """One worker process of a node."""

    pid: int
    core: int
    state: str
    rss_bytes: int
    jobs_done: int
    restarts: int
    in_flight: int


class NodeStatus(Entry, frozen=True):
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


class GatewayStatus(Entry, frozen=True):
    """One gateway in a STATUS answer: what it reported ``seen_s_ago`` seconds ago, and how many answers it is owed."""

    name: str
    state: str
    kind: str
    servers: int
    latency_ms: float
    queued: int
    answered: int
    failed: int
    unanswered: int
    seen_s_ago: float


class About(Entry, frozen=True):
    """What a node's machine is; ``up_s`` is how long it has been up when the node registers."""

    host: str
    board: str
    system: str
    version: str
    cores: int
    ram_bytes: int
    up_s: float


NOTHING_KNOWN: Final = About("", "", "", "", 0, 0, 0.0)


class NodeReport(Entry, frozen=True):
    """One node in TELEMETRY: all that is known of it. ``up_s`` is its machine's."""

    name: str
    incarnation: str
    state: str
    engine: str
    about: About
    up_s: float
    joined_s_ago: float
    seen_s_ago: float
    routes: tuple[Route, ...]
    capacity: int
    leased: int
    jobs_done: int
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


class Departed(Entry, frozen=True):
    """A node that is no more: ``left`` of its own will, or ``lost``."""

    name: str
    how: str
    why: str
    gone_s_ago: float


class StoryLine(Entry, frozen=True):
    """What happened to a job, ``at_ms`` after it was queued."""

    at_ms: int
    what: str


class JobReport(Entry, frozen=True):
    """A job that has ended, without its texts: where its time went, and its story.

    ``gateway_ms`` it waited at the gateway, ``queue_ms`` in the broker, ``batch_ms`` at the node for its first batch;
    ``decode_ms`` it was worked on; ``wire_ms`` is what is left of its time between lease and result; ``reply_ms`` is
    from the result to the gateway's ack.
    """

    job_id: bytes
    state: str
    gateway: str
    lane: int
    route: str
    chars: int
    node: str
    model: str
    attempts: int
    cached: bool
    code: str
    detail: str
    ended_s_ago: float
    gateway_ms: int
    queue_ms: int
    wire_ms: int
    batch_ms: int
    decode_ms: int
    reply_ms: int
    story: tuple[StoryLine, ...]


class Histogram(Entry, frozen=True):
    """How long jobs of one lane took, accepted to done, since the broker started.

    ``counts`` has one number for each of ``LATENCY_MS`` (at most so long), and one for those that took longer.
    """

    counts: tuple[int, ...]
    sum_ms: int


LATENCY_MS: Final = (
    5, 7, 10, 15, 20, 30, 50, 70, 100, 150, 200, 300, 500, 700, 1_000, 1_500, 2_000, 3_000, 5_000, 7_000, 10_000,
    15_000, 20_000, 30_000, 60_000, 300_000, 1_800_000,
)  # fmt: skip
"""Upper bounds, steps of about 1.5: a percentile read from them is right to a fifth."""


class Waiting(Entry, frozen=True):
    """A computer that asks to be let in as a node: its name for itself, where it is, and its key's fingerprint."""

    name: str
    address: str
    fingerprint: str


class BrokerHealth(Entry, frozen=True):
    """The broker's process and its disk, and who waits at its door."""

    host: str
    version: str
    pid: int
    cpu_percent: float
    rss_bytes: int
    ledger_bytes: int
    disk_free_bytes: int
    waiting: tuple[Waiting, ...] = ()


class Counts(Entry, frozen=True):
    """What happened since the broker started, and what it holds now."""

    accepted: int
    rejected: int
    done: int
    failed: int
    cache_hits: int
    bad_frames: int
    requeued: int
    chars_done: int
    queued_interactive: int
    queued_bulk: int
    leased: int
    undelivered: int
    dead_letters: int
    held_bytes: int
