"""The network as ROUTER and DEALER sockets show it: TCP connections that are slow, break, or die on one side only.

A message is lost only with its connection. A DEALER keeps what it has not handed to a connection, and connects again by
itself under the same identity; a ROUTER that still believes in the old connection of that identity is deaf to the new
one. A send to an identity that the ROUTER does not know fails, which is all that it ever says about a peer.
"""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Sequence
from typing import Final, NamedTuple, Protocol

from simulation.timeline import Timeline

RETRY_S: Final = (0.1, 0.6)  # a DEALER tries to connect again after so long
NOTICE_S: Final = (4.0, 8.0)  # the broker's ZMTP heartbeat finds a dead connection after so long; a peer's has none
Frames = Sequence[bytes]


class Delays(NamedTuple):
    """How long a message takes: at least ``least_s``, mostly up to ``usual_s`` more, rarely up to ``rare_s`` more."""

    least_s: float
    usual_s: float
    rare_s: float


class Listener(Protocol):
    """The broker's end of the network."""

    alive: bool

    def arrived(self, peer: bytes, frames: Frames) -> None:
        """A message came from ``peer``."""


class Caller(Protocol):
    """A node's or a gateway's end of it."""

    link: Link

    def arrived(self, wire: Wire, frames: Frames) -> None:
        """A message came over ``wire``."""


class Link:
    """The way between one host and the broker's: in each direction open, or shut until some time."""

    def __init__(self) -> None:
        self.shut_until = {True: 0.0, False: 0.0}  # True: towards the broker
        self.fuse = 0  # the connection is cut when so many more messages are under way; 0: it is not
        self.disturbed_at = 0.0  # when a connection last began or ended
        self.seen_by = (True, True)  # who sees that at once: the peer, the broker

    def is_open(self, now: float) -> bool:
        """Whether messages get through both ways."""
        return now >= max(self.shut_until.values())


class Connection:
    """One TCP connection: what is under way in it, and which side still believes in it."""

    def __init__(self, wire: Wire, *, deaf: bool) -> None:
        self.wire = wire
        self.deaf = deaf  # the ROUTER does not read it: its identity is taken
        self.peer_open = True
        self.broker_open = not deaf
        self.pipes: dict[bool, deque[tuple[float, Frames | None]]] = {True: deque(), False: deque()}  # None: the end

    @property
    def sound(self) -> bool:
        """Whether both sides believe in it and read it."""
        return self.peer_open and self.broker_open


class Wire:
    """A DEALER socket: one identity, one connection after another."""

    def __init__(self, owner: Caller, identity: bytes) -> None:
        self.owner = owner
        self.identity = identity
        self.connection: Connection | None = None
        self.waiting: list[Frames] = []  # not handed to a connection yet
        self.closed = False


class Network:
    """Every connection to the one broker."""

    def __init__(self, timeline: Timeline, rng: random.Random, delays: Delays) -> None:
        self._timeline = timeline
        self._rng = rng
        self._delays = delays
        self._router: dict[bytes, Connection] = {}
        self._deaf: list[Connection] = []
        self._listener: Listener | None = None
        self.identities: set[bytes] = set()
        self.reused: bytes | None = None  # an identity that a second socket took: no program may do that

    def listen(self, listener: Listener) -> None:
        """``listener`` is the broker from now on."""
        self._listener = listener

    def delay_s(self) -> float:
        """How long the next message takes."""
        delays, rng = self._delays, self._rng
        return delays.least_s + rng.random() * (delays.rare_s if rng.random() < 0.03 else delays.usual_s)

    # ---- sockets ----

    def dial(self, owner: Caller, identity: bytes) -> Wire:
        """A new DEALER socket, which begins to connect."""
        if identity in self.identities:
            self.reused = identity
        self.identities.add(identity)
        wire = Wire(owner, identity)
        self._timeline.after(2 * self.delay_s(), self._connect, wire)
        return wire

    def _connect(self, wire: Wire) -> None:
        if wire.closed or wire.connection is not None:
            return
        listener = self._listener
        if listener is None or not listener.alive or not wire.owner.link.is_open(self._timeline.now):
            self._timeline.after(self._rng.uniform(*RETRY_S), self._connect, wire)
            return
        wire.owner.link.disturbed_at = self._timeline.now
        wire.connection = Connection(wire, deaf=wire.identity in self._router)
        if wire.connection.deaf:
            self._deaf.append(wire.connection)
        else:
            self._router[wire.identity] = wire.connection
        waiting, wire.waiting = wire.waiting, []
        for frames in waiting:
            self._put(wire.connection, True, frames)

    def hang_up(self, wire: Wire) -> None:
        """Close a DEALER socket: what waits in it is dropped; what is under way arrives, and then the end."""
        wire.closed = True
        wire.waiting = []
        if wire.connection is not None:
            self._put(wire.connection, True, None)
            wire.connection.peer_open = False
            wire.connection = None

    # ---- messages ----

    def to_broker(self, wire: Wire, frames: Frames) -> None:
        """The DEALER sends."""
        if wire.connection is None:
            wire.waiting.append(frames)
        else:
            self._put(wire.connection, True, frames)

    def to_peer(self, peer: bytes, frames: Frames) -> bool:
        """The ROUTER sends; False: it knows nobody of that identity."""
        connection = self._router.get(peer)
        if connection is None:
            return False
        self._put(connection, False, frames)
        return True

    def knows(self, peer: bytes) -> bool:
        """Whether the ROUTER believes that ``peer`` is there."""
        return peer in self._router

    def _put(self, connection: Connection, to_broker: bool, frames: Frames | None) -> None:
        pipe = connection.pipes[to_broker]
        ready_at = self._timeline.now + self.delay_s()
        if pipe:
            ready_at = max(ready_at, pipe[-1][0])
        pipe.append((ready_at, frames))
        if len(pipe) == 1:
            self._timeline.at(ready_at, self._pump, connection, to_broker)
        link = connection.wire.owner.link
        if link.fuse and frames is not None:
            link.fuse -= 1
            if not link.fuse:
                self._timeline.after(0.0, self.cut, connection.wire, *link.seen_by)

    def _pump(self, connection: Connection, to_broker: bool) -> None:
        pipe = connection.pipes[to_broker]
        now = self._timeline.now
        shut_until = connection.wire.owner.link.shut_until[to_broker]
        if now < shut_until:
            self._timeline.at(shut_until, self._pump, connection, to_broker)
            return
        while pipe and pipe[0][0] <= now:
            _, frames = pipe.popleft()
            self._arrive(connection, to_broker, frames)
        if pipe:
            self._timeline.at(pipe[0][0], self._pump, connection, to_broker)

    def _arrive(self, connection: Connection, to_broker: bool, frames: Frames | None) -> None:
        if to_broker and connection.broker_open:
            if frames is None:
                self._broker_loses(connection)
            elif self._listener is not None:
                self._listener.arrived(connection.wire.identity, frames)
        elif not to_broker and connection.peer_open:
            if frames is None:
                self._peer_loses(connection)
            else:
                connection.wire.owner.arrived(connection.wire, frames)

    # ---- what goes wrong ----

    def _broker_loses(self, connection: Connection) -> None:
        if connection.broker_open:
            connection.broker_open = False
            del self._router[connection.wire.identity]
            connection.pipes[False].clear()

    def _peer_loses(self, connection: Connection) -> None:
        if connection.peer_open:
            connection.peer_open = False
            connection.pipes[True].clear()
            connection.wire.connection = None
            self._timeline.after(self._rng.uniform(*RETRY_S), self._connect, connection.wire)

    def cut(self, wire: Wire, peer_sees: bool, broker_sees: bool) -> None:
        """The connection is dead, and what is under way in it lost.

        The broker, if it does not see that now, does so later; a peer has to tell by silence.
        """
        connection = wire.connection
        if connection is None:
            return
        wire.owner.link.disturbed_at = self._timeline.now
        for pipe in connection.pipes.values():
            pipe.clear()
        self._timeline.after(0.0 if broker_sees else self._rng.uniform(*NOTICE_S), self._broker_loses, connection)
        if peer_sees:
            self._timeline.after(0.0, self._peer_loses, connection)

    def shut(self, link: Link, wire: Wire | None, for_s: float, directions: Sequence[bool]) -> None:
        """Let nothing through in ``directions`` for so long: heartbeats or the answers to them, whichever it is.

        So a connection that is silent too long dies at the broker's end.
        """
        until = self._timeline.now + for_s
        for to_broker in directions:
            link.shut_until[to_broker] = max(until, link.shut_until[to_broker])
        notice_s = self._rng.uniform(*NOTICE_S)
        if wire is not None and wire.connection is not None and notice_s < for_s:
            self._timeline.after(notice_s, self._give_up, wire.connection)

    def _give_up(self, connection: Connection) -> None:
        """The broker hears nothing, and closes, and says so, which the peer may not hear for now."""
        if connection.sound:
            self._broker_loses(connection)
            self._put(connection, False, None)

    def broker_died(self, *, power_lost: bool) -> None:
        """Every connection ends; without power nobody says so, and peers notice by themselves."""
        for connection in (*self._router.values(), *self._deaf):
            connection.pipes[True].clear()
            if power_lost:
                connection.pipes[False].clear()
                self._timeline.after(self._rng.uniform(0.1, NOTICE_S[1]), self._peer_loses, connection)
            else:
                self._put(connection, False, None)
            connection.broker_open = False
        self._router.clear()
        self._deaf.clear()

    def peer_lost_power(self, wire: Wire) -> None:
        """A host went dark: its socket is gone, and the broker's side notices late."""
        wire.closed = True
        wire.waiting = []
        connection, wire.connection = wire.connection, None
        if connection is not None:
            connection.peer_open = False
            for pipe in connection.pipes.values():
                pipe.clear()
            self._timeline.after(self._rng.uniform(*NOTICE_S), self._broker_loses, connection)
