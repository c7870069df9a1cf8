"""Who is here: the nodes and gateways that the broker knows, and what it has given to each. Pure."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from typing import Final

from dolmetsch.jobs import Job
from dolmetsch.messages import Heartbeat
from dolmetsch.reports import NO_TEMPERATURE_C, NOTHING_KNOWN, About, NodeReport, NodeStatus, Route

MAX_PEERS: Final = 1024  # nodes, and gateways, each: a LAN has tens
ASSUMED_CHARS_PER_S: Final = 1000.0  # a Pi core, roughly: until the first node has measured itself
NEWCOMER: Final = 1.1  # times as fast as the fastest


class Node:
    """A registered node. Credit is never counted up or down: it is capacity minus leases, so it cannot leak."""

    def __init__(
        self, *, peer: bytes, name: str, incarnation: str, routes: Mapping[str, str], capacity: int, now: float,
        engine: str = "", about: About = NOTHING_KNOWN,
    ) -> None:  # fmt: skip
        self.peer = peer
        self.name = name
        self.incarnation = incarnation
        self.routes = dict(routes)
        self.capacity = capacity
        self.leases: dict[bytes, Job] = {}
        self.leased_chars = 0
        self.chars_per_s = ASSUMED_CHARS_PER_S
        self.engine = engine
        self.about = about
        self.joined = now
        self.last_seen = now
        self.draining = False
        self.jobs_done = 0
        self.heartbeat: Heartbeat | None = None

    @property
    def credit(self) -> int:
        """How many more jobs the node wants now."""
        return 0 if self.draining else self.capacity - len(self.leases)

    def finish_s(self, chars: int) -> float:
        """Estimated seconds until ``chars`` more characters would be done here."""
        return (self.leased_chars + chars) / self.chars_per_s

    def lend(self, job: Job) -> None:
        """Note that ``job`` is leased to this node."""
        self.leases[job.id] = job
        self.leased_chars += job.chars

    def release(self, job: Job) -> None:
        """Note that ``job`` is no longer leased to this node."""
        if self.leases.pop(job.id, None) is not None:
            self.leased_chars -= job.chars

    @property
    def state(self) -> str:
        """In a word."""
        return "draining" if self.draining else "ready"

    def report(self, now: float) -> NodeReport:
        """What TELEMETRY says of this node."""
        beat = self.heartbeat
        return NodeReport(
            name=self.name,
            incarnation=self.incarnation,
            state=self.state,
            engine=self.engine,
            about=self.about,
            up_s=self.about.up_s + now - self.joined,
            joined_s_ago=now - self.joined,
            seen_s_ago=max(0.0, now - self.last_seen),
            routes=tuple([Route(route, model) for route, model in sorted(self.routes.items())]),
            capacity=self.capacity,
            leased=len(self.leases),
            jobs_done=self.jobs_done,
            workers=beat.workers if beat else 0,
            queued=beat.queued if beat else 0,
            in_flight=beat.in_flight if beat else 0,
            chars_per_s=beat.chars_per_s if beat else 0.0,
            cpu_percent=beat.cpu_percent if beat else 0.0,
            core_percent=beat.core_percent if beat else (),
            ram_percent=beat.ram_percent if beat else 0.0,
            ram_used_bytes=beat.ram_used_bytes if beat else 0,
            temperature_c=beat.temperature_c if beat else NO_TEMPERATURE_C,
            throttled=beat.throttled if beat else False,
            children=beat.children if beat else (),
        )

    def status(self, now: float) -> NodeStatus:
        """What STATUS says of this node."""
        beat = self.heartbeat
        return NodeStatus(
            name=self.name,
            state=self.state,
            routes=tuple(sorted(self.routes)),
            leased=len(self.leases),
            capacity=self.capacity,
            workers=beat.workers if beat else 0,
            cpu_percent=beat.cpu_percent if beat else 0.0,
            ram_percent=beat.ram_percent if beat else 0.0,
            temperature_c=beat.temperature_c if beat else NO_TEMPERATURE_C,
            throttled=beat.throttled if beat else False,
            chars_per_s=self.chars_per_s,
            jobs_done=self.jobs_done,
            seen_s_ago=max(0.0, now - self.last_seen),
        )


class Gateway:
    """A gateway by its name, which outlives its process: results wait here for its next incarnation."""

    def __init__(self, name: str, now: float) -> None:
        self.name = name
        self.peer: bytes | None = None  # None: not connected now
        self.last_seen = now
        self.jobs = 0  # live jobs it owns
        self.ready: OrderedDict[bytes, Job] = OrderedDict()  # ended, to be sent
        self.sent: OrderedDict[bytes, tuple[Job, float]] = OrderedDict()  # sent when, oldest first; not acked yet

    def again(self, job_id: bytes) -> None:
        """Have the result of ``job_id`` sent once more, if it was sent."""
        job, _ = self.sent.pop(job_id, (None, 0.0))
        if job is not None:
            self.ready[job_id] = job


class Roster:
    """Nodes by routing identity, gateways by name."""

    def __init__(self) -> None:
        self.nodes: dict[bytes, Node] = {}
        self._nodes_by_name: dict[str, Node] = {}
        self.gateways: dict[str, Gateway] = {}
        self._gateway_peers: dict[bytes, Gateway] = {}

    def node_named(self, name: str | None) -> Node | None:
        """The node called ``name``."""
        return None if name is None else self._nodes_by_name.get(name)

    def add_node(self, node: Node) -> None:
        """A node has registered."""
        node.chars_per_s = self.newcomers_rate()
        self.nodes[node.peer] = node
        self._nodes_by_name[node.name] = node

    def newcomers_rate(self) -> float:
        """Characters a second of a node that has not measured itself: a little more than the fastest that has.

        Of idle nodes the fastest gets the next job, and one that never gets any can never show what it does.
        """
        measured = [one.heartbeat.chars_per_s for one in self.nodes.values() if one.heartbeat is not None]
        return max(ASSUMED_CHARS_PER_S, NEWCOMER * max(measured, default=0.0))

    def remove_node(self, node: Node) -> None:
        """A node has left or was lost."""
        del self.nodes[node.peer]
        del self._nodes_by_name[node.name]

    def gateway_at(self, peer: bytes) -> Gateway | None:
        """The gateway behind the routing identity ``peer``."""
        return self._gateway_peers.get(peer)

    def gateway_named(self, name: str, now: float) -> Gateway:
        """The gateway called ``name``, made known if it was not."""
        gateway = self.gateways.get(name)
        if gateway is None:
            gateway = self.gateways[name] = Gateway(name, now)
        return gateway

    def connect(self, gateway: Gateway, peer: bytes, now: float) -> None:
        """``gateway`` now speaks from ``peer``; the latest process of a name gets its results."""
        self.disconnect(gateway)
        for job_id in list(gateway.sent):  # the process before may have lost them
            gateway.again(job_id)
        gateway.peer = peer
        gateway.last_seen = now
        self._gateway_peers[peer] = gateway

    def disconnect(self, gateway: Gateway) -> None:
        """Nobody is behind ``gateway`` now."""
        if gateway.peer is not None:
            self._gateway_peers.pop(gateway.peer, None)
        gateway.peer = None

    def forget_idle(self) -> None:
        """Drop gateways that are gone and own nothing, so that one-shot commands leave no trace."""
        for name in [name for name, one in self.gateways.items() if one.peer is None and not one.jobs]:
            del self.gateways[name]

    def routes(self) -> dict[str, str]:
        """Every route that some node offers, with a model that serves it."""
        return {route: model for node in self.nodes.values() for route, model in node.routes.items()}
