"""Who is here: the nodes and gateways that the broker knows, and what it has given to each. Pure.

Nothing here is looked for in all nodes while jobs come and go: what a job or a heartbeat needs is kept as nodes change,
so that it costs the same with a thousand nodes as with ten.
"""

from __future__ import annotations

import heapq
import itertools
import math
from collections import OrderedDict
from collections.abc import Mapping
from typing import Final, NamedTuple

from dolmetsch.errors import LocalError
from dolmetsch.jobs import Job
from dolmetsch.messages import BULK, INTERACTIVE, Heartbeat
from dolmetsch.reports import NO_TEMPERATURE_C, NOTHING_KNOWN, About, NodeReport, NodeStatus, Route

MAX_PEERS: Final = 1024  # nodes, and gateways, each: a LAN has tens
ASSUMED_CHARS_PER_S: Final = 1000.0  # a Pi core, roughly: until the first node has measured itself
NEWCOMER: Final = 1.1  # times as fast as the fastest
BANDS: Final = 8  # to each doubling of speed: nodes less than a tenth apart count as equally fast
MOMENT_S: Final = 0.01  # nobody notices whether a node has so much more work in hand than another
PEOPLES_PART: Final = 8  # bulk leaves an eighth of a node's credit to people: they do not wait until some of it is done
HOLD_S: Final = 30.0  # of its work; above that it is given no bulk: what a slow node holds the others cannot do
# Of its work that a node is given in one go while others may be idle; of bulk, for which nobody waits, about a batch.
PORTION_S: Final = {INTERACTIVE: 0.25, BULK: 1.0}
STALE: Final = 64  # places of a band that may be out of date, beside as many as it has nodes

OpenRoutes = tuple[set[str], set[str]]  # for a job of the INTERACTIVE lane, and of the BULK lane


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
        self.urgent_chars = 0  # of them, those of people
        self.bulk_leases = 0
        self.chars_per_s = ASSUMED_CHARS_PER_S
        self.engine = engine
        self.about = about
        self.joined = now
        self.last_seen = now
        self.draining = False
        self.jobs_done = 0
        self.heartbeat: Heartbeat | None = None
        self.band: Band | None = None
        self.places = [0, 0]  # for each lane the number of its latest place there; 0: none
        self.moved: tuple[dict[Node, None], dict[Node, None]] = ({}, {})  # the roster's: who needs another place

    @property
    def credit(self) -> int:
        """How many more jobs the node wants now."""
        return 0 if self.draining else self.capacity - len(self.leases)

    def room(self, lane: int) -> int:
        """How many more jobs of ``lane`` the node may be given now."""
        credit = self.credit
        if lane == INTERACTIVE:
            return credit
        if self.leased_chars - self.urgent_chars > HOLD_S * self.chars_per_s:
            return 0
        of_bulk = self.capacity - self.capacity // PEOPLES_PART - self.bulk_leases
        return of_bulk if of_bulk < credit else credit

    def has_time_for(self, job: Job) -> bool:
        """Whether ``job``, if of bulk, ends within ``HOLD_S`` here; what takes long may begin within half of that.

        Other nodes may have no room at the moment, and yet end a long job before a slow node would.
        """
        if job.lane == INTERACTIVE:
            return True
        most = HOLD_S * self.chars_per_s
        return self.leased_chars - self.urgent_chars + min(job.chars, most / 2) <= most

    def ahead(self, lane: int) -> int:
        """Characters that are done here before another job of ``lane``: people do not wait for bulk."""
        return self.urgent_chars if lane == INTERACTIVE else self.leased_chars

    def finish_s(self, job: Job) -> float:
        """Estimated seconds until ``job`` too would be done here."""
        return (self.ahead(job.lane) + job.chars) / self.chars_per_s

    def lend(self, job: Job) -> None:
        """Note that ``job`` is leased to this node."""
        self.leases[job.id] = job
        self._count(job, 1)

    def release(self, job: Job) -> None:
        """Note that ``job`` is no longer leased to this node."""
        if self.leases.pop(job.id, None) is not None:
            self._count(job, -1)

    def _count(self, job: Job, sign: int) -> None:
        self.leased_chars += sign * job.chars
        self.moved[BULK][self] = None
        if job.lane == INTERACTIVE:
            self.urgent_chars += sign * job.chars
            self.moved[INTERACTIVE][self] = None
            return
        self.bulk_leases += sign
        if 0 <= self.capacity - len(self.leases) <= 1:  # there was room for people before, or is now; it may be both
            self.moved[INTERACTIVE][self] = None

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
        self.repeats = 0  # times that results were sent again since it acked any
        self.repeat_at = now  # the earliest next time

    def again(self, job_id: bytes) -> None:
        """Have the result of ``job_id`` sent once more, if it was sent."""
        job, _ = self.sent.pop(job_id, (None, 0.0))
        if job is not None:
            self.ready[job_id] = job


class _Place(NamedTuple):
    """Where a node stands among those as fast; out of date once the node has another number."""

    ahead: int
    number: int
    node: Node


class Band:
    """Nodes with the same routes and about the same speed: the one with the least in hand ends any job first."""

    def __init__(self, key: tuple[frozenset[str], int]) -> None:
        self.key = key
        self.routes = key[0]
        self.nodes = 0
        self._places: tuple[list[_Place], ...] = ([], [])  # for each lane a heap of those with room for it

    def add(self, node: Node, lane: int) -> None:
        """``node``, with its latest number, takes its place."""
        places = self._places[lane]
        if len(places) > STALE + 2 * self.nodes:
            places[:] = [place for place in places if place.node.places[lane] == place.number]
            heapq.heapify(places)
        heapq.heappush(places, _Place(node.ahead(lane), node.places[lane], node))

    def first(self, lane: int, but: str | None = None) -> Node | None:
        """The node with the least before a job of ``lane``; rather not the one called ``but``."""
        places = self._places[lane]
        while places and places[0].node.places[lane] != places[0].number:
            heapq.heappop(places)
        if not places or places[0].node.name != but:
            return places[0].node if places else None
        unwanted = heapq.heappop(places)
        second = self.first(lane)
        heapq.heappush(places, unwanted)
        return second or unwanted.node


class Portion:
    """What ``node`` is given in one go: ``jobs``, or what takes it ``MOMENT_S``, but not more than ``PORTION_S``."""

    def __init__(self, node: Node, jobs: int, first: Job) -> None:
        self.node = node
        self._jobs = jobs - 1  # those that it still takes
        self._chars = first.chars
        self._least = MOMENT_S * node.chars_per_s
        self._most = PORTION_S[first.lane] * node.chars_per_s

    def takes(self, job: Job) -> bool:
        """Whether ``job`` is of this portion too; it is counted then. A long one has its node chosen for itself."""
        room = (self._most if self._jobs > 0 else self._least) - self._chars
        if job.chars > room or self.node.room(job.lane) <= 0:
            return False
        if job.route not in self.node.routes or (job.attempt and job.node == self.node.name):
            return False
        self._jobs -= 1
        self._chars += job.chars
        return True


class Roster:
    """Nodes by routing identity, gateways by name."""

    def __init__(self) -> None:
        self.nodes: dict[bytes, Node] = {}
        self._nodes_by_name: dict[str, Node] = {}
        self._kinds: dict[tuple[tuple[str, str], ...], int] = {}  # routes and models -> nodes that offer just these
        self._bands: dict[tuple[frozenset[str], int], Band] = {}
        self._moved: tuple[dict[Node, None], dict[Node, None]] = ({}, {})
        self._numbers = itertools.count(1)
        self._fastest: Node | None = None  # of those that have measured themselves
        self.gateways: dict[str, Gateway] = {}
        self._gateway_peers: dict[bytes, Gateway] = {}

    # ---- nodes ----

    def node_named(self, name: str | None) -> Node | None:
        """The node called ``name``."""
        return None if name is None else self._nodes_by_name.get(name)

    def add_node(self, node: Node) -> None:
        """A node has registered."""
        node.chars_per_s = self.newcomers_rate()
        node.moved = self._moved
        self.nodes[node.peer] = node
        self._nodes_by_name[node.name] = node
        kind = _kind(node)
        self._kinds[kind] = self._kinds.pop(kind, 0) + 1  # the latest at the end
        self._join_band(node)

    def remove_node(self, node: Node) -> None:
        """A node has left or was lost."""
        del self.nodes[node.peer]
        del self._nodes_by_name[node.name]
        kind = _kind(node)
        self._kinds[kind] -= 1
        if not self._kinds[kind]:
            del self._kinds[kind]
        self._leave_band(node)
        for moved in self._moved:
            moved.pop(node, None)
        node.moved = ({}, {})
        if node is self._fastest:
            self._fastest = self._find_fastest()

    def routes(self) -> dict[str, str]:
        """Every route that some node offers, with a model that serves it."""
        return {route: model for kind in self._kinds for route, model in kind}

    def heard(self, node: Node, beat: Heartbeat) -> None:
        """How ``node`` is now."""
        before = node.chars_per_s
        node.heartbeat = beat
        if node is self._fastest and beat.chars_per_s < before:
            self._fastest = self._find_fastest()
        elif beat.chars_per_s > (0.0 if self._fastest is None else self._fastest.chars_per_s):
            self._fastest = node
        node.chars_per_s = beat.chars_per_s or self.newcomers_rate()
        if node.chars_per_s != before:
            self._leave_band(node)
            self._join_band(node)
        if (node.capacity, node.draining) != (beat.capacity, beat.draining):
            node.capacity, node.draining = beat.capacity, beat.draining
            self._move(node)

    def newcomers_rate(self) -> float:
        """Characters a second of a node that has not measured itself: a little more than the fastest that has.

        Of idle nodes the fastest gets the next job, and one that never gets any can never show what it does.
        """
        fastest = self._fastest
        measured = 0.0 if fastest is None or fastest.heartbeat is None else fastest.heartbeat.chars_per_s
        return max(ASSUMED_CHARS_PER_S, NEWCOMER * measured)

    def _find_fastest(self) -> Node | None:
        measured = [node for node in self.nodes.values() if node.heartbeat is not None and node.heartbeat.chars_per_s]
        return max(measured, key=lambda node: node.heartbeat.chars_per_s if node.heartbeat else 0.0, default=None)

    # ---- the next job's node ----

    def open_routes(self) -> OpenRoutes:
        """The routes that nodes with room for another job offer, by lane."""
        self._take_places()
        return self._open(INTERACTIVE), self._open(BULK)

    def _open(self, lane: int) -> set[str]:
        return set[str]().union(*[band.routes for band in self._bands.values() if band.first(lane) is not None])

    def earliest(self, job: Job) -> Node:
        """Of the nodes with room that know the route, the one with the earliest estimated finish.

        A job that came back rather goes to another node than the one it came from. Raises ``LocalError`` when the
        route is not among ``open_routes`` of the job's lane.
        """
        self._take_places()
        came_from = job.node if job.attempt else None
        able = [band.first(job.lane, came_from) for band in self._bands.values() if job.route in band.routes]
        found = [node for node in able if node is not None]
        if came_from is not None:
            found = [node for node in found if node.name != came_from] or found
        if not found:
            raise LocalError(f"no node has room for {job.route}\n{job.tell()}")
        return min(found, key=lambda node: node.finish_s(job))

    def _take_places(self) -> None:
        """Each node that was given or rid of something since the last call, or has changed, takes its new place."""
        for lane, moved in enumerate(self._moved):
            for node in moved:
                node.places[lane] = next(self._numbers)
                if node.band is not None and node.room(lane) > 0:
                    node.band.add(node, lane)
            moved.clear()

    def _move(self, node: Node) -> None:
        for moved in self._moved:
            moved[node] = None

    def _join_band(self, node: Node) -> None:
        key = (frozenset(node.routes), math.floor(BANDS * math.log2(node.chars_per_s)))
        node.band = self._bands.get(key)
        if node.band is None:
            node.band = self._bands[key] = Band(key)
        node.band.nodes += 1
        self._move(node)

    def _leave_band(self, node: Node) -> None:
        node.places = [0, 0]
        if node.band is not None:
            node.band.nodes -= 1
            if not node.band.nodes:
                del self._bands[node.band.key]

    # ---- gateways ----

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
        gateway.repeats = 0
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


def _kind(node: Node) -> tuple[tuple[str, str], ...]:
    return tuple(sorted(node.routes.items()))
