"""The server: waitress, with a main loop that ends at a signal and refusals in our form."""

from __future__ import annotations

import logging
import socket
import time
from collections.abc import Callable
from typing import Any, Final

import waitress.channel
import waitress.server
import waitress.task
import waitress.wasyncore

from dashboard.guard import HEADERS
from dashboard.pages import JSON, encode_json
from dolmetsch.errors import ConfigError
from dolmetsch.lifecycle import Signals

THREADS: Final = 8
CONNECTIONS: Final = 600  # open at once; below the 1024 descriptors that a process may have
IDLE_S: Final = 60  # then a connection is closed; a page that looks asks every second
LOOK_S: Final = 10  # how often idle connections are looked for
MAX_HEADER_BYTES: Final = 16 * 2**10
MAX_BODY_BYTES: Final = 64 * 2**10
BACKLOG: Final = 1024
DRAIN_S: Final = 2.0  # what was asked is answered within this after a signal
END_S: Final = 2  # then threads have so long to end


def listen(where: str) -> socket.socket:
    """The listening socket of ``HOST:PORT``. Raises ``ConfigError``."""
    host, _, port = where.strip().rpartition(":")
    host = host.strip("[]")
    if not host or not port.isdecimal() or int(port) > 65_535:
        raise ConfigError(f"cannot listen at {where!r}: it looks like 127.0.0.1:5000 or [::1]:5000")
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, int(port)), family=family, backlog=BACKLOG, dualstack_ipv6=host == "::")
    except OSError as error:
        raise ConfigError(
            f"cannot listen at {where} ({error.strerror or error}): is another dashboard running?"
            " Stop it, or give --listen another port"
        ) from error


class _ErrorTask(waitress.task.ErrorTask):
    """What waitress itself refuses (no HTTP, too large) is refused in our form."""

    def execute(self) -> None:
        request: Any = self.request
        error = request.error
        body = encode_json({"error": error.reason.lower()})
        self.status = f"{error.code} {error.reason}"
        self.response_headers = [*HEADERS, ("Content-Type", JSON), ("Cache-Control", "no-store")]
        self.set_close_on_finish()
        self.content_length = len(body)
        self.write(body)


class _Channel(waitress.channel.HTTPChannel):
    error_task_class = _ErrorTask


class _Bell(waitress.wasyncore.file_dispatcher):
    """Wakes the main loop at a signal."""

    def __init__(self, signals: Signals, sockets: dict[int, Any]) -> None:
        pipe: Any = signals.fd
        super().__init__(pipe, map=sockets)
        self._signals = signals

    def handle_read(self) -> None:
        self._signals.drain()

    def writable(self) -> bool:
        return False


class Server:
    """Serves ``app`` at ``listener``: one thread reads and writes, ``THREADS`` others answer."""

    def __init__(self, app: Any, listener: socket.socket) -> None:
        logging.getLogger("waitress.queue").setLevel(logging.ERROR)  # many who ask at once are no event
        self._sockets: dict[int, Any] = {}
        made: Any = waitress.server.create_server(
            app,
            map=self._sockets,
            sockets=[listener],
            threads=THREADS,
            connection_limit=CONNECTIONS,
            channel_timeout=IDLE_S,
            cleanup_interval=LOOK_S,
            max_request_header_size=MAX_HEADER_BYTES,
            max_request_body_size=2 * MAX_BODY_BYTES,  # what is little more is read, or its sender hears no answer
            backlog=BACKLOG,
            ident=None,
            log_socket_errors=False,
            clear_untrusted_proxy_headers=False,  # the guard wants to see them
        )
        made.channel_class = _Channel
        self._waitress = made

    def run(self, signals: Signals, turn_s: float, tick: Callable[[], bool]) -> None:
        """Serve until a signal says stop or ``tick``, called at least every ``turn_s`` seconds, is False."""
        bell = _Bell(signals, self._sockets)
        tick_at = time.monotonic()
        while not signals.stop:
            if time.monotonic() >= tick_at:
                tick_at = time.monotonic() + turn_s
                if not tick():
                    break
            self._turn(turn_s)
        waitress.wasyncore.dispatcher.close(self._waitress)  # takes no more connections, and keeps those that are
        until = time.monotonic() + DRAIN_S
        while self._busy() and time.monotonic() < until and not signals.force:
            self._turn(0.1)
        bell.close()

    def close(self) -> None:
        """End the threads and hang up."""
        self._waitress.task_dispatcher.shutdown(timeout=END_S)
        waitress.wasyncore.close_all(self._sockets)

    def _turn(self, wait_s: float) -> None:
        waitress.wasyncore.loop(timeout=wait_s, use_poll=True, map=self._sockets, count=1)

    def _busy(self) -> bool:
        """Whether somebody waits for an answer; who does not is hung up on."""
        busy = False
        for channel in self._waitress.active_channels.values():
            if channel.requests or channel.total_outbufs_len:
                busy = True
            else:
                channel.will_close = True
        return busy
