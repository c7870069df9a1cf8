"""The members: nodes and gateways come, show that they are there, and go. Pure.

What they hold goes along with them: a node's heartbeat renews its leases, and when it is gone its jobs are queued
again. What nodes offer together are the routes; gateways are told when these change.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from typing import Final

from dolmetsch.books import Books
from dolmetsch.config import SchedulerConfig
from dolmetsch.jobs import State
from dolmetsch.messages import (
    MAX_ROUTES,
    Error,
    Goodbye,
    Heartbeat,
    HeldLease,
    Hello,
    Ping,
    Pong,
    Register,
    Revoke,
    Routes,
    Welcome,
    batches,
)
from dolmetsch.roster import MAX_PEERS, Gateway, Node, Roster
from dolmetsch.views import offers

GATEWAY_LOST_S: Final = 10.0  # a gateway pings every second; only sending to it depends on this
EVICTED: Final = 64  # replaced incarnations remembered, so that two nodes of one name do not fight for ever


class Members:
    """Who is here, and what they offer. ``incarnation`` is the broker's."""

    def __init__(self, books: Books, config: SchedulerConfig, incarnation: str) -> None:
        self._books = books
        self._config = config
        self._incarnation = incarnation
        self.models: dict[str, str] = {}  # routes on offer now
        self.known_routes: dict[str, None] = {}  # routes on offer at any time since the start
        self._edition = 0  # the number of ...
        self._published = self.models  # ... the latest routes that any gateway was told
        self._evicted: deque[tuple[str, str]] = deque(maxlen=EVICTED)

    @property
    def _roster(self) -> Roster:
        return self._books.roster

    # ---- gateways ----

    def hello(self, peer: bytes, message: Hello, now: float) -> None:
        """A gateway introduces itself."""
        if message.gateway not in self._roster.gateways and len(self._roster.gateways) >= MAX_PEERS:
            self._books.send(peer, Error(code="full", detail=f"there are {MAX_PEERS} gateways already"))
            return
        self._roster.connect(self._roster.gateway_named(message.gateway, now), peer, now)
        self._books.send(peer, self._welcome())

    def _welcome(self) -> Welcome:
        routes = self._routes()
        return Welcome(
            broker=self._incarnation, heartbeat_s=self._config.heartbeat_s, edition=routes.edition, routes=routes.routes
        )

    def _routes(self) -> Routes:
        return Routes(edition=self._present_edition(), routes=offers(self.models))

    def _present_edition(self) -> int:
        """The number of the routes on offer; a new one only when somebody asks and they are others than before."""
        if self.models is not self._published:
            self._edition += self.models != self._published
            self._published = self.models
        return self._edition

    def ping(self, gateway: Gateway, message: Ping, now: float) -> None:
        """It is there. One that only waits learns so of new routes, and, told to introduce itself, of a restart."""
        if gateway.peer is None:
            return
        if message.edition != self._present_edition():
            self._books.send(gateway.peer, self._routes())
        self._books.send(gateway.peer, Pong())

    # ---- nodes ----

    def register(self, peer: bytes, message: Register, now: float) -> None:
        """A node introduces itself, and shows what it still holds."""
        if (message.node, message.incarnation) in self._evicted:
            detail = f"another node has registered as {message.node}: give each node its own --name"
            self._books.send(peer, Error(code="name_taken", detail=detail))
            return
        before = self._roster.node_named(message.node)
        at_peer = self._roster.nodes.get(peer)
        if at_peer is not None and at_peer is not before:
            self._remove_node(at_peer, now, "its node changed its name")
        if before is None and len(self._roster.nodes) >= MAX_PEERS:
            self._books.send(peer, Error(code="full", detail=f"there are {MAX_PEERS} nodes already"))
            return
        if before is not None:
            same = before.incarnation == message.incarnation
            if not same:
                self._evicted.append((before.name, before.incarnation))
            kept = {(held.job_id, held.attempt) for held in message.held} if same else set()
            self._remove_node(before, now, "its node was restarted", keep=kept)
        node = Node(
            peer=peer, name=message.node, incarnation=message.incarnation, capacity=message.capacity, now=now,
            routes={one.route: one.model for one in message.routes}, engine=message.engine, about=message.about,
        )  # fmt: skip
        self._roster.add_node(node)
        self._books.chronicle.came(node.name)
        self._offers_changed()
        self._books.send(peer, self._welcome())
        self._present(node, message.held, now)

    def heartbeat(self, node: Node, message: Heartbeat, now: float) -> None:
        """It is there, and holds this."""
        self._roster.heard(node, message)
        self._books.send(node.peer, Pong())
        self._present(node, message.held, now)

    def _present(self, node: Node, held: Iterable[HeldLease], now: float) -> None:
        """Renew the leases in ``held``, take back those that were given up or orphaned, and revoke the rest."""
        revoked: list[HeldLease] = []
        until = now + self._config.lease_s
        for lease in held:
            job = self._books.jobs.get(lease.job_id)
            # One that was given up is shown again when RECEIVED was lost; leased anew, its failure would count twice.
            if job is None or job.attempt != lease.attempt or job.given_up == lease.attempt or job.outcome is not None:
                revoked.append(lease)
            elif lease.job_id in node.leases:
                job.lease_until = until
            elif job.state is State.QUEUED:
                self._books.lease(job, node, now, "shown to be still at")
                self._books.lanes.discard(job)
            elif job.id in self._books.orphans:
                self._books.adopt(job, node, now)
            else:
                revoked.append(lease)
        for part in batches(revoked):
            self._books.send(node.peer, Revoke(jobs=part))

    def goodbye(self, node: Node, message: Goodbye, now: float) -> None:
        """It leaves."""
        self._remove_node(node, now, "its node said goodbye", blame=False, how="left")

    def _remove_node(
        self,
        node: Node,
        now: float,
        why: str,
        *,
        blame: bool = True,
        keep: Iterable[tuple[bytes, int]] = (),
        how: str = "lost",
    ) -> None:
        self._roster.remove_node(node)
        self._books.chronicle.departed(node.name, how, why, now)
        kept = set(keep)
        for job in list(node.leases.values()):
            if (job.id, job.attempt) in kept:  # the node presents it again in a moment
                self._books.orphan(job, node, now)
            else:
                self._books.lose(job, now, why, blame=blame)
        self._offers_changed()

    def _offers_changed(self) -> None:
        self.models = self._roster.routes()
        for route in self.models:
            if len(self.known_routes) < MAX_ROUTES:
                self.known_routes[route] = None

    # ---- who is silent ----

    def peer_gone(self, peer: bytes, now: float) -> None:
        """The socket says that nobody is behind ``peer``."""
        gateway = self._roster.gateway_at(peer)
        if gateway is not None:
            self._roster.disconnect(gateway)
        node = self._roster.nodes.get(peer)
        if node is not None:
            self._remove_node(node, now, "its node's connection broke")

    def check(self, now: float) -> None:
        """Part with those that have been silent for too long."""
        for node in list(self._roster.nodes.values()):
            if now - node.last_seen >= self._config.lost_after_s:
                self._remove_node(node, now, f"{node.name} was lost")
        for gateway in self._roster.gateways.values():
            if gateway.peer is not None and now - gateway.last_seen >= GATEWAY_LOST_S:
                self._roster.disconnect(gateway)

    def forgive(self, late_s: float, now: float) -> None:
        """The broker did not look for so long (a stalled disk, a paused machine): that is not the silence of others."""
        for node in self._roster.nodes.values():
            node.last_seen = min(now, node.last_seen + late_s)
            for job in node.leases.values():
                job.lease_until = min(now + self._config.lease_s, job.lease_until + late_s)
        for job in self._books.orphans.values():
            job.lease_until = min(now + self._config.grace_s, job.lease_until + late_s)
        for gateway in self._roster.gateways.values():
            gateway.last_seen = min(now, gateway.last_seen + late_s)
