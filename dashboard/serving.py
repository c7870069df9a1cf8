"""An HTTP server: waitress, with a main loop that ends at a signal, and refusals in the application's own form."""

from __future__ import annotations

import logging
import socket
import time
from collections.abc import Callable, Sequence
from typing import Any, Final

import waitress.channel
import waitress.server
import waitress.task
import waitress.wasyncore

from dolmetsch.lifecycle import Signals, sd_notify
from dolmetsch.listening import BACKLOG

EACH_S: Final = 25e-6  # a turn looks at every connection, some 2 us each: the more there are, the longer until the next
END_S: Final = 2  # threads whose client is gone have this long to end

log = logging.getLogger("http")

Headers = Sequence[tuple[str, str]]
Refuse = Callable[[int, str], tuple[Headers, bytes]]
"""From the status and its reason to what is sent."""


def _channel_class(refuse: Refuse) -> type[waitress.channel.HTTPChannel]:
    class Task(waitress.task.ErrorTask):
        """What waitress itself refuses (no HTTP, too large)."""

        def execute(self) -> None:
            request: Any = self.request
            error = request.error
            headers, body = refuse(error.code, error.reason)
            self.status = f"{error.code} {error.reason}"
            self.response_headers = list(headers)
            self.set_close_on_finish()
            self.content_length = len(body)
            self.write(body)

    class Channel(waitress.channel.HTTPChannel):
        error_task_class = Task

    return Channel


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
    """Serves ``app`` at ``listener``: the thread of ``run`` reads and writes, others answer.

    ``limits`` are waitress's own. Headers of proxies are left in a request: whom to believe is the application's.
    """

    def __init__(self, app: Any, listener: socket.socket, refuse: Refuse, **limits: Any) -> None:
        logging.getLogger("waitress.queue").setLevel(logging.ERROR)  # more requests than threads wait: no event
        self._sockets: dict[int, Any] = {}
        made: Any = waitress.server.create_server(
            app,
            map=self._sockets,
            sockets=[listener],
            backlog=BACKLOG,
            ident=None,
            log_socket_errors=False,
            clear_untrusted_proxy_headers=False,
            **limits,
        )
        made.channel_class = _channel_class(refuse)
        self._waitress = made

    def run(self, signals: Signals, turn_s: float, tick: Callable[[], bool], drain_s: float) -> None:
        """Serve until a signal says stop or ``tick``, called at least every ``turn_s`` seconds, is False.

        Then answer what was asked, for at most ``drain_s`` seconds; a second signal ends that too.
        """
        bell = _Bell(signals, self._sockets)
        tick_at = time.monotonic()
        while not signals.stop:
            if (now := time.monotonic()) >= tick_at:  # a turn is short when there is much to do
                tick_at = now + turn_s
                if not tick():
                    break
            self._turn(turn_s)
        log.info("stopping: answering what was asked")
        sd_notify("STOPPING=1")
        waitress.wasyncore.dispatcher.close(self._waitress)  # takes no more connections, and keeps those that are
        until = time.monotonic() + drain_s
        while self._busy() and time.monotonic() < until and not signals.force and tick():
            self._turn(0.1)
        bell.close()

    def close(self) -> None:
        """End the threads and hang up."""
        self._waitress.task_dispatcher.shutdown(timeout=END_S)
        waitress.wasyncore.close_all(self._sockets)

    def _turn(self, wait_s: float) -> None:
        waitress.wasyncore.loop(timeout=wait_s, use_poll=True, map=self._sockets, count=1)
        time.sleep(len(self._sockets) * EACH_S)  # what comes meanwhile is found in one turn: 5 ms for 200 browsers

    def _busy(self) -> bool:
        """Whether somebody waits for an answer; who does not is hung up on."""
        busy = False
        for channel in self._waitress.active_channels.values():
            if channel.requests or channel.total_outbufs_len:
                busy = True
            else:
                channel.will_close = True
        return busy
