"""Sockets: the only module that sets a ZeroMQ option. Frames in, frames out, and never a wait.

``RouterPort`` is the broker's side, ``DealerPort`` a node's or gateway's. Both send without blocking: a full or absent
peer is an answer, not a wait. ``PubPort`` is where the broker publishes telemetry, ``SubPort`` where it is read.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Final

import zmq

from dolmetsch.errors import TransportError
from dolmetsch.messages import MAX_MESSAGE_BYTES, Message
from dolmetsch.wire import PROTOCOL, encode

DEFAULT_PORT: Final = 5570
HIGH_WATER: Final = 20_000  # messages a peer: far above what credit and windows allow, so reaching it is an alarm
LINGER_MS: Final = 1_000  # a process ends within this even if its last messages cannot be delivered
HEARTBEAT_MS: Final = 2_000  # ZMTP's own heartbeat finds connections that died without a word
HEARTBEAT_TIMEOUT_MS: Final = 6_000
TELEMETRY_HIGH_WATER: Final = 8  # a listener that is so many seconds behind misses some: the next one says it all
RECONNECT_MS: Final = 100
RECONNECT_MAX_MS: Final = 5_000
_ADDRESS: Final = re.compile(r"(?:tcp://)?(?P<host>\[[0-9a-fA-F:.]+\]|[^:/\[\]\s]+)(?::(?P<port>\d{1,5}|\*))?")


def address(text: str) -> str:
    """``HOST``, ``HOST:PORT`` or ``tcp://HOST:PORT`` as ``tcp://HOST:PORT``. Raises ``TransportError``."""
    found = _ADDRESS.fullmatch(text.strip())
    if found is None or (found["port"] not in (None, "*") and not 0 < int(found["port"]) < 65536):
        raise TransportError(f"cannot understand the address {text!r}: it looks like tcp://192.0.2.7:{DEFAULT_PORT}")
    return f"tcp://{found['host']}:{found['port'] or DEFAULT_PORT}"


def telemetry_address(broker: str) -> str:
    """Where a broker at ``broker`` publishes by itself: one port higher. Raises ``TransportError``."""
    host, _, port = address(broker).rpartition(":")
    if port == "*" or int(port) == 65535:
        raise TransportError(f"there is no port after that of {broker}: say where telemetry goes (broker.telemetry)")
    return f"{host}:{int(port) + 1}"


def _prepare(socket: zmq.Socket[bytes]) -> None:
    socket.setsockopt(zmq.LINGER, LINGER_MS)
    socket.setsockopt(zmq.SNDHWM, HIGH_WATER)
    socket.setsockopt(zmq.RCVHWM, HIGH_WATER)
    socket.setsockopt(zmq.MAXMSGSIZE, MAX_MESSAGE_BYTES)
    socket.setsockopt(zmq.HEARTBEAT_IVL, HEARTBEAT_MS)
    socket.setsockopt(zmq.HEARTBEAT_TIMEOUT, HEARTBEAT_TIMEOUT_MS)
    socket.setsockopt(zmq.RECONNECT_IVL, RECONNECT_MS)
    socket.setsockopt(zmq.RECONNECT_IVL_MAX, RECONNECT_MAX_MS)


def _bind(socket: zmq.Socket[bytes], where: str, flag: str) -> str:
    socket.setsockopt(zmq.IPV6, "[" in where)  # an IPv4 address stays one, in logs too
    try:
        socket.bind(where)
    except zmq.ZMQError as error:
        if error.errno == zmq.EADDRINUSE:
            raise TransportError(f"{where} is in use: is another broker running? Stop it, or give {flag}") from error
        raise TransportError(f"cannot listen at {where}: {error.strerror}") from error
    return socket.getsockopt_string(zmq.LAST_ENDPOINT)


class RouterPort:
    """The broker's socket."""

    def __init__(self, context: zmq.Context[zmq.Socket[bytes]]) -> None:
        self.socket = context.socket(zmq.ROUTER)
        _prepare(self.socket)
        self.socket.setsockopt(zmq.ROUTER_MANDATORY, 1)

    def bind(self, where: str) -> str:
        """Listen at ``where``; the address with its real port. Raises ``TransportError``."""
        return _bind(self.socket, where, "--bind")

    def receive(self, most: int) -> Iterator[list[bytes]]:
        """What has arrived, ``most`` messages of it, as [identity, frames ...]."""
        for _ in range(most):
            try:
                yield self.socket.recv_multipart(zmq.DONTWAIT)
            except zmq.Again:
                return

    def send(self, peer: bytes, message: Message) -> bool:
        """Send; False: nobody is there any more. A full peer is left to the sender's resend."""
        try:
            self.socket.send_multipart([peer, *encode(message)], zmq.DONTWAIT)
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


class DealerPort:
    """A node's or gateway's socket. Each ``connect`` makes a new one, with an identity of its own."""

    def __init__(self, context: zmq.Context[zmq.Socket[bytes]], where: str, name: str) -> None:
        self._context = context
        self.where = where
        self._name = name.encode()[:200]
        self._count = 0
        self.socket: zmq.Socket[bytes] = self._new()

    def _new(self) -> zmq.Socket[bytes]:
        self._count += 1
        socket = self._context.socket(zmq.DEALER)
        _prepare(socket)
        # A ROUTER ignores a second connection with an identity it still believes in: so never use one twice.
        socket.setsockopt(zmq.ROUTING_ID, self._name + b"/" + str(self._count).encode())
        socket.setsockopt(zmq.IPV6, 1)  # a host's name may mean either
        try:
            socket.connect(self.where)
        except zmq.ZMQError as error:
            socket.close(0)
            raise TransportError(f"cannot connect to {self.where}: {error.strerror}") from error
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

    def reconnect(self) -> None:
        """Drop the connection, and what waits in it, for a new one."""
        self.socket.close(0)
        self.socket = self._new()

    def receive(self, most: int) -> Iterator[list[bytes]]:
        """What has arrived, ``most`` messages of it."""
        for _ in range(most):
            try:
                yield self.socket.recv_multipart(zmq.DONTWAIT)
            except zmq.Again:
                return

    def send(self, message: Message) -> bool:
        """Send; False: the socket is full, and the sender will try again."""
        try:
            self.socket.send_multipart(encode(message), zmq.DONTWAIT)
        except zmq.Again:
            return False
        return True

    def close(self) -> None:
        """Close within the linger time."""
        self.socket.close()


class PubPort:
    """The socket on which the broker tells everybody the same: one send, however many listen."""

    def __init__(self, context: zmq.Context[zmq.Socket[bytes]]) -> None:
        self.socket = context.socket(zmq.PUB)
        _prepare(self.socket)
        self.socket.setsockopt(zmq.SNDHWM, TELEMETRY_HIGH_WATER)
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

    def __init__(self, context: zmq.Context[zmq.Socket[bytes]], where: str) -> None:
        self._context = context
        self.where = where
        self.socket: zmq.Socket[bytes] = self._new()

    def _new(self) -> zmq.Socket[bytes]:
        socket = self._context.socket(zmq.SUB)
        _prepare(socket)
        socket.setsockopt(zmq.RCVHWM, TELEMETRY_HIGH_WATER)
        socket.setsockopt(zmq.IPV6, 1)
        socket.setsockopt(zmq.SUBSCRIBE, PROTOCOL)
        try:
            socket.connect(self.where)
        except zmq.ZMQError as error:
            socket.close(0)
            raise TransportError(f"cannot connect to {self.where}: {error.strerror}") from error
        return socket

    def reconnect(self) -> None:
        """Drop the connection for a new one."""
        self.socket.close(0)
        self.socket = self._new()

    def receive(self, most: int) -> Iterator[list[bytes]]:
        """What has arrived, ``most`` messages of it."""
        for _ in range(most):
            try:
                yield self.socket.recv_multipart(zmq.DONTWAIT)
            except zmq.Again:
                return

    def close(self) -> None:
        """Close at once."""
        self.socket.close(0)
