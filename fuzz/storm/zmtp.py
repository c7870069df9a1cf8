"""ZMTP by hand, for peers that libzmq would never be: RFC 23 of ZeroMQ, as far as a greeting, READY and frames."""

from __future__ import annotations

import contextlib
import socket
import struct
import time
from typing import Final

SIGNATURE: Final = b"\xff" + bytes(8) + b"\x7f"
GREETING_BYTES: Final = 64
MORE: Final = 1
LONG: Final = 2
COMMAND: Final = 4
CONNECT_S: Final = 5.0


def greeting(mechanism: bytes = b"NULL", major: int = 3, minor: int = 0) -> bytes:
    """The 64 bytes with which both sides begin."""
    return SIGNATURE + bytes((major, minor)) + mechanism.ljust(20, b"\0") + bytes(32)


def frame(body: bytes, flags: int = 0) -> bytes:
    """One frame, or with COMMAND one command."""
    if len(body) > 255 or flags & LONG:
        return bytes((flags | LONG,)) + struct.pack(">Q", len(body)) + body
    return bytes((flags, len(body))) + body


def ready(kind: bytes) -> bytes:
    """What follows the greetings where there are no keys; ``kind`` is the socket's type."""
    return frame(b"\x05READY\x0bSocket-Type" + struct.pack(">L", len(kind)) + kind, COMMAND)


def subscription(topic: bytes) -> bytes:
    return frame(b"\x01" + topic)


def say(port: int, data: bytes) -> None:
    """Connect, say ``data``, and listen until the other side hangs up: closed at once, what was said would be lost."""
    with contextlib.suppress(OSError), connect(port) as one:  # it may hang up before it has heard all
        one.sendall(data)
        one.shutdown(socket.SHUT_WR)
        until = time.monotonic() + CONNECT_S
        while one.recv(65536) and time.monotonic() < until:
            pass


def connect(port: int) -> socket.socket:
    """A TCP connection to loopback. Raises ``OSError``."""
    return socket.create_connection(("127.0.0.1", port), CONNECT_S)
