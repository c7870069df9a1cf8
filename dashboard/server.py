"""The server: how much of waitress a dashboard needs."""

from __future__ import annotations

import socket
from typing import Any, Final

from dashboard.guard import HEADERS
from dashboard.pages import JSON, encode_json
from dashboard.serving import Headers, Server

THREADS: Final = 8
CONNECTIONS: Final = 600  # open at once; below the 1024 descriptors that a process may have
IDLE_S: Final = 60  # then a connection is closed; a page that looks asks every second
LOOK_S: Final = 10  # how often idle connections are looked for
MAX_HEADER_BYTES: Final = 16 * 2**10
MAX_BODY_BYTES: Final = 64 * 2**10
DRAIN_S: Final = 2.0  # what was asked is answered within this after a signal


def make(app: Any, listener: socket.socket) -> Server:
    """A server of ``app`` at ``listener``."""
    return Server(
        app,
        listener,
        _refuse,
        threads=THREADS,
        connection_limit=CONNECTIONS,
        channel_timeout=IDLE_S,
        cleanup_interval=LOOK_S,
        max_request_header_size=MAX_HEADER_BYTES,
        max_request_body_size=2 * MAX_BODY_BYTES,  # what is little more is read, or its sender hears no answer
    )


def _refuse(code: int, reason: str) -> tuple[Headers, bytes]:
    headers = [*HEADERS, ("Content-Type", JSON), ("Cache-Control", "no-store")]
    return headers, encode_json({"error": reason.lower()})
