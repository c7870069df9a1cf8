"""What the broker tells of itself: STATUS for who asks, TELEMETRY for who listens. Pure, and changes nothing."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Mapping
from typing import Final, Protocol, TypeVar

from dolmetsch.books import Books
from dolmetsch.chronicle import reports_of_dead
from dolmetsch.messages import BULK, INTERACTIVE, MAX_GATEWAYS, MAX_ROUTES, Status, Telemetry, text_bytes
from dolmetsch.reports import BrokerHealth, Counts, GatewayStatus, NodeReport, NodeStatus, Route

NODES_BYTES: Final = 6 * 2**20  # of a message: what else it can hold fits into the 2 MiB that are left
CHILD_BYTES: Final = 40  # of a child's record on the wire, at most about so many; a core's load has 9

Node = TypeVar("Node", NodeStatus, NodeReport)


class Cluster(Protocol):
    """What a view looks at."""

    books: Books
    draining: bool


class Views:
    """``incarnation`` is the broker's, which started at ``started``."""

    def __init__(self, cluster: Cluster, incarnation: str, started: float) -> None:
        self._cluster = cluster
        self._incarnation = incarnation
        self._started = started

    def status(self, now: float) -> Status:
        """The cluster at a glance."""
        books = self._cluster.books
        counts = self._counts()
        return Status(
            routes=offers(books.roster.routes()),
            nodes=_fitting((node.status(now) for node in books.roster.nodes.values()), _status_bytes),
            gateways=self._gateways(now),
            queued_interactive=counts.queued_interactive,
            queued_bulk=counts.queued_bulk,
            leased=counts.leased,
            undelivered=counts.undelivered,
            dead_letters=counts.dead_letters,
            accepted=counts.accepted,
            rejected=counts.rejected,
            done=counts.done,
            failed=counts.failed,
            cache_hits=counts.cache_hits,
            bad_frames=counts.bad_frames,
            median_ms=float(statistics.median(books.took_ms)) if books.took_ms else 0.0,
            uptime_s=now - self._started,
            draining=self._cluster.draining,
        )

    def telemetry(self, health: BrokerHealth, now: float) -> Telemetry:
        """All that is known, and a sample of the jobs that ended since this was called last."""
        books = self._cluster.books
        return Telemetry(
            broker=self._incarnation,
            up_s=now - self._started,
            draining=self._cluster.draining,
            health=health,
            counts=self._counts(),
            latency=books.chronicle.latency(),
            routes=offers(books.roster.routes()),
            nodes=_fitting((node.report(now) for node in books.roster.nodes.values()), _report_bytes),
            departed=books.chronicle.absent(now),
            gateways=self._gateways(now),
            jobs=books.chronicle.take(now),
            dead=reports_of_dead(books.dead.values(), now),
        )

    def _counts(self) -> Counts:
        books = self._cluster.books
        tally = books.tally
        return Counts(
            accepted=tally.accepted,
            rejected=tally.rejected,
            done=tally.done,
            failed=tally.failed,
            cache_hits=books.cache.hits,
            bad_frames=tally.bad_frames,
            requeued=tally.requeued,
            chars_done=tally.chars_done,
            queued_interactive=books.lanes.count(INTERACTIVE),
            queued_bulk=books.lanes.count(BULK),
            leased=books.leased,
            undelivered=sum(len(one.ready) + len(one.sent) for one in books.roster.gateways.values()),
            dead_letters=len(books.dead),
            held_bytes=books.bytes,
        )

    def _gateways(self, now: float) -> tuple[GatewayStatus, ...]:
        """Those that reported last, by name."""
        books = self._cluster.books
        unanswered = books.unanswered()
        latest = sorted(list(books.reports.items())[-MAX_GATEWAYS:])
        return tuple([
            GatewayStatus(
                name=name,
                state="silent" if books.roster.gateways[name].peer is None else "up",
                kind=report.kind,
                servers=report.servers,
                latency_ms=report.latency_ms,
                queued=report.queued,
                answered=report.answered,
                failed=report.failed,
                unanswered=unanswered[name],
                seen_s_ago=max(0.0, now - at),
            )
            for name, (report, at) in latest
        ])  # fmt: skip


def offers(models: Mapping[str, str]) -> tuple[Route, ...]:
    """The routes in ``models``, by name, so many as a message may hold."""
    return tuple([Route(route, model) for route, model in sorted(models.items())])[:MAX_ROUTES]


def _fitting(nodes: Iterable[Node], weigh: Callable[[Node], int]) -> tuple[Node, ...]:
    """So many of ``nodes``, from the first, that a message with them is no larger than it may be."""
    fitting: list[Node] = []
    room = NODES_BYTES
    for node in nodes:
        room -= weigh(node)
        if room < 0:
            break
        fitting.append(node)
    return tuple(fitting)


def _status_bytes(node: NodeStatus) -> int:
    return text_bytes((node.name,)) + text_bytes(node.routes)


def _report_bytes(node: NodeReport) -> int:
    about = node.about
    words = [node.name, node.incarnation, about.host, about.board, about.system, about.version]
    words += [text for one in node.routes for text in (one.route, one.model)]
    return text_bytes(words) + 200 + 9 * len(node.core_percent) + CHILD_BYTES * len(node.children)
