"""The broker's gate: who may connect, who may say what, and the door where newcomers knock.

It exists only where there are keys. The allow-list may change at any moment, by the owner's commands or a deployment:
it is looked at every second, and each message is judged by what it says now. So a revoked key is refused at once,
though its connection still stands.
"""

from __future__ import annotations

import logging
from collections import OrderedDict
from typing import Final

import zmq

from dolmetsch.access import LISTENERS, may_send
from dolmetsch.errors import DolmetschError, InputError, RemoteError
from dolmetsch.keyring import ADMITTED, Keyring
from dolmetsch.keys import KeyPair, fingerprint, is_fingerprint
from dolmetsch.logs import Sparing
from dolmetsch.messages import APPROVE, REFUSE, Knock, Manage, Managed, Message, Verdict
from dolmetsch.reports import Waiting
from dolmetsch.transport import CLUSTER, DOOR, TELEMETRY, Arrival, RouterPort, ZapPort
from dolmetsch.wire import decode

REFRESH_S: Final = 1.0
KNOCKS_AT_ONCE: Final = 16
MAX_PEERS: Final = 8192  # connections whose key is remembered, to end them when it is revoked
MAX_SAID: Final = 256  # refused keys that the log has named lately
SAY_AGAIN_S: Final = 3600.0

log = logging.getLogger("gate")


class Gate:
    """``pair`` is the broker's own. Everything runs in the broker's loop: call ``turn`` in each of its turns."""

    def __init__(self, context: zmq.Context[zmq.Socket[bytes]], pair: KeyPair, ring: Keyring) -> None:
        self.pair = pair
        self._ring = ring
        self._zap = ZapPort(context)
        self._door: RouterPort | None = None
        self._context = context
        self._peers: OrderedDict[bytes, bytes] = OrderedDict()  # routing identity to the key behind it
        self._said: OrderedDict[bytes, float] = OrderedDict()
        self._strangers = Sparing(log)
        self._refresh_at = 0.0
        self._lost: set[bytes] = set()  # keys that lost their role, and whose peers are still to go
        self._waiting: tuple[Waiting, ...] = ()
        ring.refresh()

    def open_door(self, where: str) -> str:
        """Let newcomers knock at ``where``; the address with its real port. Raises ``TransportError``."""
        self._door = RouterPort(self._context, self.pair, DOOR)
        return self._door.bind(where)

    @property
    def sockets(self) -> list[zmq.Socket[bytes]]:
        """What the loop polls for reading."""
        return [self._zap.socket] + ([] if self._door is None else [self._door.socket])

    @property
    def waiting(self) -> tuple[Waiting, ...]:
        """Who waits to be let in."""
        return self._waiting

    def turn(self, now: float) -> list[bytes]:
        """Serve the gate; the peers whose key was revoked, or has another role now."""
        self._zap.answer(lambda domain, key, where: self._may_enter(domain, key, where, now))
        if self._door is not None:
            for arrival in self._door.receive(KNOCKS_AT_ONCE):
                self._knocked(self._door, arrival, now)
        if now < self._refresh_at and not self._lost:
            return []
        lost = self._lost | self._refresh(now)
        self._lost = set()
        gone = [peer for peer, key in self._peers.items() if key in lost]
        for peer in gone:
            del self._peers[peer]
        for key in lost:
            log.warning("the key %s was revoked, or has another role", fingerprint(key))
        return gone

    def _refresh(self, now: float) -> set[bytes]:
        """Look at the allow-list; the keys that have lost their role."""
        self._refresh_at = now + REFRESH_S
        try:
            lost = self._ring.refresh()
            pending = self._ring.pending()
        except DolmetschError as error:  # a broken disk must not stop those who are in
            self._say(b"", f"the allow-list: {error}", now)
            return set()
        self._waiting = tuple(Waiting(one.name, one.address, fingerprint(one.public)) for one in pending)
        return lost

    def may_send(self, arrival: Arrival, message: Message, now: float) -> bool:
        """Whether the key behind ``arrival`` may send ``message``; what may not is dropped, and logged once."""
        role = self._ring.roles.get(arrival.key)
        if may_send(role, message):
            self._peers[arrival.peer] = arrival.key
            self._peers.move_to_end(arrival.peer)
            if len(self._peers) > MAX_PEERS:
                self._peers.popitem(last=False)
            return True
        kind = type(message).__name__.upper()
        what = f"is for a {role}, and sent {kind}" if role else "was revoked, and its messages are dropped"
        self._say(arrival.key, f"the key {fingerprint(arrival.key)}, from {arrival.address}, {what}", now)
        return False

    def _may_enter(self, domain: str, key: bytes, where: str, now: float) -> bool:
        if domain == DOOR:
            return True
        if key not in self._ring.roles:  # it may have been let in a moment ago
            self._lost |= self._refresh(now)
        role = self._ring.roles.get(key)
        if (domain == CLUSTER and role is not None) or (domain == TELEMETRY and role in LISTENERS):
            return True
        why = f"is not on the allow-list ({domain})" if role is None else f"is for a {role}: no telemetry for it"
        self._say(key, f"refused: the key {fingerprint(key)}, from {where}, {why}", now)
        return False

    def _knocked(self, door: RouterPort, arrival: Arrival, now: float) -> None:
        try:
            knock = decode(arrival.frames)
            if not isinstance(knock, Knock):
                raise RemoteError("bad_message", "not a KNOCK")
            state, detail = self._ring.knock(arrival.key, knock.name, knock.token, arrival.address)
        except DolmetschError as error:
            self._say(arrival.key, f"a knock from {arrival.address}: {error}", now)
            return
        what = f"{knock.name} at {arrival.address}, key {fingerprint(arrival.key)}: {state}, {detail}"
        if state == ADMITTED:
            log.info("%s", what)
        else:
            self._say(arrival.key, what, now)
        door.send(arrival.peer, Verdict(state=state, detail=detail))

    def manage(self, message: Manage) -> Managed:
        """Approve or refuse who waits, by its key's fingerprint: anybody can take any name."""
        act = {APPROVE: self._ring.approve, REFUSE: self._ring.refuse}[message.action]
        try:
            if not is_fingerprint(message.node):
                raise InputError(f"{message.node} is no fingerprint")
            stranger = act(message.node)
        except DolmetschError as error:
            return Managed(action=message.action, node=message.node, count=0, problem=str(error))
        log.info("%s: %s at %s, key %s", message.action, stranger.name, stranger.address, fingerprint(stranger.public))
        self._refresh_at = 0.0
        return Managed(action=message.action, node=message.node, count=1, problem="")

    def _say(self, key: bytes, text: str, now: float) -> None:
        """Log ``text``, once an hour for each key: a refused computer tries again every few seconds."""
        if now < self._said.get(key, -SAY_AGAIN_S) + SAY_AGAIN_S:
            return
        self._said[key] = now
        self._said.move_to_end(key)
        if len(self._said) > MAX_SAID:
            self._said.popitem(last=False)
        self._strangers.warning(text, now)

    def close(self) -> None:
        """Close the sockets and the allow-list."""
        self._zap.close()
        if self._door is not None:
            self._door.close()
        self._ring.close()
