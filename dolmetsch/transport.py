"""Sockets: the only module that sets a ZeroMQ option. Frames in, frames out, and never a wait.

``RouterPort`` is the broker's side, ``DealerPort`` a node's or gateway's. Both send without blocking: a full or absent
peer is an answer, not a wait. ``PubPort`` is where the broker publishes telemetry, ``SubPort`` where it is read.

With keys, every connection is encrypted and both ends prove who they are (CURVE, RFC 26 of ZeroMQ); ``ZapPort`` is
where the broker then says who may connect at all (ZAP, RFC 27).
"""

from __future__ import annotations

import re
import struct
from collections.abc import Callable, Iterator
from typing import Final, NamedTuple

import zmq
from zmq.utils import z85

from dolmetsch.config import Config
from dolmetsch.errors import TransportError
from dolmetsch.keys import Credentials, KeyPair, credentials, default_broker
from dolmetsch.messages import MAX_MESSAGE_BYTES, Message
from dolmetsch.wire import PROTOCOL, encode

DEFAULT_PORT: Final = 5570
HIGH_WATER: Final = 20_000  # messages a peer: far above what credit and windows allow, so reaching it is an alarm
LINGER_MS: Final = 1_000  # a process ends within this even if its last messages cannot be delivered
HEARTBEAT_MS: Final = 4_000  # the broker's ZMTP heartbeat finds connections that died without a word, within twice this
HANDSHAKE_MS: Final = 5_000  # who connects and then says nothing keeps a descriptor no longer than this
TELEMETRY_HIGH_WATER: Final = 8  # a listener that is so many seconds behind misses some: the next one says it all
CONNECT_MS: Final = 2_000  # an address that does not answer may be an old one: the next try asks for the name's again
RECONNECT_MS: Final = 100
RECONNECT_MAX_MS: Final = 5_000
CLUSTER: Final = "cluster"  # the ZAP domains: who may work and ask, ...
TELEMETRY: Final = "telemetry"  # ... who may listen, ...
DOOR: Final = "door"  # ... and who may knock: anybody
DOOR_BYTES: Final = 4096  # strangers get little room: one short message, ...
DOOR_HIGH_WATER: Final = 16  # ... and few that wait
CUT_OFF: Final = 3  # handshakes that end without a reason, in a row, before it is taken for a wrong key
LISTENER_BYTES: Final = 4096  # a listener sends its key and what it wants to hear, no more
ZAP_AT_ONCE: Final = 256
_FAILED_HANDSHAKES: Final = (
    zmq.EVENT_HANDSHAKE_FAILED_AUTH | zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL | zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL
)
# Of a monitor's message, zmq_socket_monitor(3): number and value. pyzmq's function for it would import asyncio, which
# takes a broker or node a twelfth of its start.
_EVENT: Final = struct.Struct("=H")
_MORE: Final = zmq.DONTWAIT | zmq.SNDMORE
_ADDRESS: Final = re.compile(r"(?:tcp://)?(?P<host>\[[0-9a-fA-F:.]+\]|[^:/\[\]\s]+)(?::(?P<port>\d{1,5}|\*))?")


def address(text: str) -> str:
    """``HOST``, ``HOST:PORT`` or ``tcp://HOST:PORT`` as ``tcp://HOST:PORT``. Raises ``TransportError``."""
    found = _ADDRESS.fullmatch(text.strip())
    if found is None or (found["port"] not in (None, "*") and not 0 < int(found["port"]) < 65536):
        raise TransportError(f"cannot understand the address {text!r}: it looks like tcp://192.0.2.7:{DEFAULT_PORT}")
    return f"tcp://{found['host']}:{found['port'] or DEFAULT_PORT}"


class Broker(NamedTuple):
    """Where a broker is, and the keys for it; None on this computer."""

    where: str
    keys: Credentials | None


def broker_of(settings: Config) -> Broker:
    """The broker that a node or gateway is to talk to.

    Raises ``TransportError``, ``ConfigError`` and ``KeyFileError``.
    """
    where = address(settings.node.broker or default_broker(settings.keys))
    return Broker(where, credentials(settings.keys, where))


def telemetry_address(broker: str) -> str:
    """Where a broker at ``broker`` publishes by itself: one port higher. Raises ``TransportError``."""
    return _above(broker, 1, "telemetry goes (broker.telemetry)")


def door_address(broker: str) -> str:
    """Where one enrols with a broker at ``broker`` by itself: two ports higher. Raises ``TransportError``."""
    return _above(broker, 2, "its door is (broker.door)")


def _above(broker: str, ports: int, what: str) -> str:
    host, _, port = address(broker).rpartition(":")
    if port == "*" or int(port) + ports > 65535:
        raise TransportError(f"there is no port {ports} above that of {broker}: say where {what}")
    return f"{host}:{int(port) + ports}"


def _prepare(socket: zmq.Socket[bytes]) -> None:
    socket.setsockopt(zmq.LINGER, LINGER_MS)
    socket.setsockopt(zmq.SNDHWM, HIGH_WATER)
    socket.setsockopt(zmq.RCVHWM, HIGH_WATER)
    socket.setsockopt(zmq.MAXMSGSIZE, MAX_MESSAGE_BYTES)
    socket.setsockopt(zmq.CONNECT_TIMEOUT, CONNECT_MS)
    socket.setsockopt(zmq.RECONNECT_IVL, RECONNECT_MS)
    socket.setsockopt(zmq.RECONNECT_IVL_MAX, RECONNECT_MAX_MS)


def _serve(socket: zmq.Socket[bytes], keys: KeyPair | None, domain: str) -> None:
    socket.setsockopt(zmq.HANDSHAKE_IVL, HANDSHAKE_MS)
    # Only here: who dials tells by the broker's silence, sooner, and connects anew. With a thousand nodes, both ends'
    # heartbeats took libzmq's thread two thirds of its time.
    socket.setsockopt(zmq.HEARTBEAT_IVL, HEARTBEAT_MS)
    socket.setsockopt(zmq.HEARTBEAT_TIMEOUT, HEARTBEAT_MS)
    if keys is not None:
        socket.setsockopt(zmq.CURVE_SERVER, 1)
        socket.setsockopt(zmq.CURVE_SECRETKEY, keys.secret)
        socket.setsockopt_string(zmq.ZAP_DOMAIN, domain)


def _dial(socket: zmq.Socket[bytes], keys: Credentials | None) -> None:
    if keys is not None:
        socket.setsockopt(zmq.CURVE_SERVERKEY, keys.broker)
        socket.setsockopt(zmq.CURVE_PUBLICKEY, keys.own.public)
        socket.setsockopt(zmq.CURVE_SECRETKEY, keys.own.secret)


def _connect(socket: zmq.Socket[bytes], where: str, *, six: bool) -> None:
    """Connect, to a name's address in IPv6 if ``six``. Raises ``TransportError``, and closes the socket then.

    libzmq asks for the address anew at each of its tries, and takes the first: with ``ZMQ_IPV6`` one of IPv6 where
    there is any, even if the broker listens in IPv4 only. So who connects anew without having heard anything tries the
    other.
    """
    socket.setsockopt(zmq.IPV6, six or "[" in where)
    try:
        socket.connect(where)
    except zmq.ZMQError as error:
        socket.close(0)
        raise TransportError(f"cannot connect to {where}: {error.strerror}") from error


def _bind(socket: zmq.Socket[bytes], where: str, flag: str) -> str:
    socket.setsockopt(zmq.IPV6, "[" in where)  # an IPv4 address stays one, in logs too
    try:
        socket.bind(where)
    except zmq.ZMQError as error:
        if error.errno == zmq.EADDRINUSE:
            raise TransportError(f"{where} is in use: is another broker running? Stop it, or give {flag}") from error
        raise TransportError(f"cannot listen at {where}: {error.strerror}") from error
    return socket.getsockopt_string(zmq.LAST_ENDPOINT)


class Arrival(NamedTuple):
    """What came to a ROUTER: from which peer, by whose key (Z85; empty without keys) and address, and the frames."""

    peer: bytes
    key: bytes
    address: str
    frames: list[bytes]


class RouterPort:
    """The broker's socket; with ``domain`` DOOR the one for strangers."""

    def __init__(
        self, context: zmq.Context[zmq.Socket[bytes]], keys: KeyPair | None = None, domain: str = CLUSTER
    ) -> None:
        self._secured = keys is not None
        self.socket = context.socket(zmq.ROUTER)
        _prepare(self.socket)
        _serve(self.socket, keys, domain)
        self.socket.setsockopt(zmq.ROUTER_MANDATORY, 1)
        if domain == DOOR:
            self.socket.setsockopt(zmq.MAXMSGSIZE, DOOR_BYTES)
            self.socket.setsockopt(zmq.RCVHWM, DOOR_HIGH_WATER)
            self.socket.setsockopt(zmq.SNDHWM, DOOR_HIGH_WATER)

    def bind(self, where: str) -> str:
        """Listen at ``where``; the address with its real port. Raises ``TransportError``."""
        return _bind(self.socket, where, "--bind")

    def receive(self, most: int) -> Iterator[Arrival]:
        """What has arrived, ``most`` messages of it."""
        for _ in range(most):
            try:
                yield _arrival(_receive(self.socket), self._secured)
            except zmq.Again:
                return

    def send(self, peer: bytes, message: Message) -> bool:
        """Send; False: nobody is there any more. A full peer is left to the sender's resend."""
        try:
            _send(self.socket, [peer, *encode(message)])
        except zmq.Again:
            return True
        except zmq.ZMQError as error:
            if error.errno == zmq.EHOSTUNREACH:
                return False
            raise
        return True

    def close(self) -> None:
        """Close within the linger time."""
        self.socket.close()


def _arrival(frames: list[zmq.Frame], secured: bool) -> Arrival:
    """With the connection's own word on whose it is, for each message: an identity can be taken by another."""
    peer, *rest = frames
    key, where = (str(peer["User-Id"]).encode(), str(peer["Peer-Address"])) if secured else (b"", "")
    return Arrival(peer.bytes, key, where, [one.bytes for one in rest])


# pyzmq's own send_multipart and recv_multipart cost a broker three times as much: they look at every frame's type, make
# flags anew for each, and ask the socket whether there is more where the frame knows.


def _send(socket: zmq.Socket[bytes], frames: list[bytes]) -> None:
    for frame in frames[:-1]:
        socket.send(frame, _MORE)
    socket.send(frames[-1], zmq.DONTWAIT)


def _receive(socket: zmq.Socket[bytes]) -> list[zmq.Frame]:
    frames = [socket.recv(zmq.DONTWAIT, copy=False)]
    while frames[-1].more:
        frames.append(socket.recv(zmq.DONTWAIT, copy=False))
    return frames


class ZapPort:
    """Where libzmq asks who may connect to this context's sockets; without it, anybody with a key of their own may.

    pyzmq's own needs a thread with an asyncio loop, and does not tell from where a key came.
    """

    def __init__(self, context: zmq.Context[zmq.Socket[bytes]]) -> None:
        self.socket = context.socket(zmq.REP)
        self.socket.setsockopt(zmq.LINGER, 0)
        self.socket.bind("inproc://zeromq.zap.01")

    def answer(self, may_enter: Callable[[str, bytes, str], bool]) -> None:
        """Answer what is asked now: ``may_enter(domain, public key, address)``."""
        for _ in range(ZAP_AT_ONCE):
            try:
                version, request, domain, where, _, mechanism, *credentials = self.socket.recv_multipart(zmq.DONTWAIT)
            except zmq.Again:
                return
            key = z85.encode(credentials[0]) if mechanism == b"CURVE" and len(credentials) == 1 else b""
            good = key != b"" and may_enter(domain.decode(), key, where.decode())
            status = (b"200", b"OK", key) if good else (b"400", b"no access", b"")
            self.socket.send_multipart([version, request, *status, b""])

    def close(self) -> None:
        """Close at once."""
        self.socket.close()


class DealerPort:
    """A node's or gateway's socket. Each ``connect`` makes a new one, with an identity of its own."""

    def __init__(
        self,
        context: zmq.Context[zmq.Socket[bytes]],
        where: str,
        name: str,
        keys: Credentials | None = None,
    ) -> None:
        self._context = context
        self._keys = keys
        self._monitor: zmq.Socket[bytes] | None = None
        self._trouble = ""
        self._cut_off = 0  # handshakes in a row that ended without a reason
        self.where = where
        self._name = name.encode()[:200]
        self._count = 0
        self._six = False
        self._heard = False
        self.socket: zmq.Socket[bytes] = self._new()

    def _new(self) -> zmq.Socket[bytes]:
        self._count += 1
        socket = self._context.socket(zmq.DEALER)
        _prepare(socket)
        _dial(socket, self._keys)
        if self._keys is not None:
            self._monitor = socket.get_monitor_socket(_FAILED_HANDSHAKES | zmq.EVENT_HANDSHAKE_SUCCEEDED)
        # A ROUTER ignores a second connection with an identity it still believes in: so never use one twice.
        socket.setsockopt(zmq.ROUTING_ID, self._name + b"/" + str(self._count).encode())
        _connect(socket, self.where, six=self._six)
        return socket

    @property
    def fd(self) -> int:
        """A descriptor that becomes readable when something may have changed (ZMQ_FD: edge-triggered)."""
        fd = self.socket.getsockopt(zmq.FD)
        assert isinstance(fd, int)
        return fd

    @property
    def readable(self) -> bool:
        """Whether a message waits now."""
        events = self.socket.getsockopt(zmq.EVENTS)
        return isinstance(events, int) and bool(events & zmq.POLLIN)

    @property
    def trouble(self) -> str:
        """Why the last handshake failed, in words that follow "the broker at X"; empty when none has."""
        self._follow_handshakes()
        return self._trouble

    def _follow_handshakes(self) -> None:
        while self._monitor is not None and self._monitor.poll(0):
            (event,) = _EVENT.unpack_from(self._monitor.recv_multipart(zmq.DONTWAIT)[0])
            # A broker that ends in the middle of a handshake looks like one with another key, but not again and again.
            self._cut_off = self._cut_off + 1 if event == zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL else 0
            self._trouble = "" if 0 < self._cut_off < CUT_OFF else _TROUBLES.get(event, "")

    def reconnect(self) -> None:
        """Drop the connection, and what waits in it, for a new one."""
        self._follow_handshakes()
        self._shut(0)
        self._six ^= not self._heard
        self._heard = False
        self.socket = self._new()

    def _shut(self, linger_ms: int | None) -> None:
        if self._monitor is not None:
            self.socket.disable_monitor()
            self._monitor.close(0)
            self._monitor = None
        self.socket.close(linger_ms)

    def receive(self, most: int) -> Iterator[list[bytes]]:
        """What has arrived, ``most`` messages of it."""
        for _ in range(most):
            try:
                frames = self.socket.recv_multipart(zmq.DONTWAIT)
            except zmq.Again:
                return
            self._heard = True
            yield frames

    def send(self, message: Message) -> bool:
        """Send; False: the socket is full, and the sender will try again."""
        try:
            _send(self.socket, encode(message))
        except zmq.Again:
            return False
        return True

    def close(self) -> None:
        """Close within the linger time."""
        self._shut(None)


_TROUBLES: Final[dict[int, str]] = {
    zmq.EVENT_HANDSHAKE_FAILED_AUTH: "does not know this computer's key, or has revoked it: ask for an invitation"
    " (python broker.py invite)",
    zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL: "does not have the key that is known here for it: is it another broker, or"
    " was its key changed? Join it anew (python broker.py invite)",
    zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL: "speaks without keys, or something else: nothing is sent to it in the clear",
}


class PubPort:
    """The socket on which the broker tells everybody the same: one send, however many listen."""

    def __init__(self, context: zmq.Context[zmq.Socket[bytes]], keys: KeyPair | None = None) -> None:
        self.socket = context.socket(zmq.PUB)
        _prepare(self.socket)
        _serve(self.socket, keys, TELEMETRY)
        self.socket.setsockopt(zmq.SNDHWM, TELEMETRY_HIGH_WATER)
        self.socket.setsockopt(zmq.MAXMSGSIZE, LISTENER_BYTES)  # of what comes in: names of topics
        self.socket.setsockopt(zmq.LINGER, 0)

    def bind(self, where: str) -> str:
        """Publish at ``where``; the address with its real port. Raises ``TransportError``."""
        return _bind(self.socket, where, "broker.telemetry another address")

    def send(self, message: Message) -> None:
        """Send to whoever listens; who does not keep up misses it."""
        self.socket.send_multipart(encode(message), zmq.DONTWAIT)

    def close(self) -> None:
        """Close at once."""
        self.socket.close()


class SubPort:
    """A listener's socket."""

    def __init__(self, context: zmq.Context[zmq.Socket[bytes]], where: str, keys: Credentials | None = None) -> None:
        self._context = context
        self._keys = keys
        self._six = False
        self._heard = False
        self.where = where
        self.socket: zmq.Socket[bytes] = self._new()

    def _new(self) -> zmq.Socket[bytes]:
        socket = self._context.socket(zmq.SUB)
        _prepare(socket)
        _dial(socket, self._keys)
        socket.setsockopt(zmq.RCVHWM, TELEMETRY_HIGH_WATER)
        socket.setsockopt(zmq.SUBSCRIBE, PROTOCOL)
        _connect(socket, self.where, six=self._six)
        return socket

    def reconnect(self) -> None:
        """Drop the connection for a new one."""
        self.socket.close(0)
        self._six ^= not self._heard
        self._heard = False
        self.socket = self._new()

    def receive(self, most: int) -> Iterator[list[bytes]]:
        """What has arrived, ``most`` messages of it."""
        for _ in range(most):
            try:
                frames = self.socket.recv_multipart(zmq.DONTWAIT)
            except zmq.Again:
                return
            self._heard = True
            yield frames

    def close(self) -> None:
        """Close at once."""
        self.socket.close(0)
