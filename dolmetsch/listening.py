"""Where an HTTP server listens: ``HOST:PORT``, and the socket there."""

from __future__ import annotations

import os
import socket
from typing import Final

from dolmetsch.errors import ConfigError

BACKLOG: Final = 1024
DEAF_MS: Final = 60_000  # the kernel gives up on who does not read for so long: a server might wait for ever


def host_and_port(where: str) -> tuple[str, int]:
    """``HOST:PORT`` apart. Raises ``ConfigError``."""
    host, _, port = where.strip().rpartition(":")
    host = host.strip("[]")
    if not host or not port.isdecimal() or int(port) > 65_535:
        raise ConfigError(f"cannot listen at {where!r}: it looks like 127.0.0.1:5000 or [::1]:5000")
    return host, int(port)


def listen(where: str) -> socket.socket:
    """The listening socket of ``HOST:PORT``. Raises ``ConfigError``."""
    host, port = host_and_port(where)
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        made = socket.create_server((host, port), family=family, backlog=BACKLOG, dualstack_ipv6=host == "::")
    except OSError as error:
        number = error.errno or 0  # create_server's own text repeats the address
        why = os.strerror(number) if number > 0 else "there is no such name"
        raise ConfigError(f"cannot listen at {where} ({why}): choose another with --listen") from error
    made.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, DEAF_MS)  # those that it accepts have it too
    return made
