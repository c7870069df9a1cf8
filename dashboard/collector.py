"""The collector: one thread that owns the socket on which the broker publishes, and swaps snapshots.

Threads that answer requests only read ``snapshot``: one reference, exchanged as a whole.
"""

from __future__ import annotations

import logging
import random
import threading
import time
from typing import Final

import zmq

from dashboard.history import History
from dashboard.snapshot import Snapshot
from dashboard.watch import SILENCE_S, Watch
from dolmetsch import logs
from dolmetsch.backoff import Backoff
from dolmetsch.errors import RemoteError, TransportError
from dolmetsch.keys import Credentials
from dolmetsch.messages import Telemetry
from dolmetsch.transport import SubPort
from dolmetsch.wire import decode

TURN_S: Final = 0.25  # how late a silence is noticed, and a stop
REFRESH_S: Final = 1.0  # a snapshot without news: ages grow, and a silence begins
READ_AT_ONCE: Final = 8
RECONNECT_S: Final = 10.0  # silence after which the socket is made anew, and again with growing pauses ...
RECONNECT_MAX_S: Final = 60.0  # ... up to this
STUCK_S: Final = 20.0  # a turn that takes so long is none
CLOSE_S: Final = 3.0

log = logging.getLogger("collector")


class Collector:
    """Listens at ``where`` for the broker at ``broker``; what it hears goes into ``history``."""

    def __init__(self, where: str, broker: str, history: History, keys: Credentials | None = None) -> None:
        self.where = where
        self._keys = keys
        self._history = history
        self._watch = Watch(broker, time.monotonic(), time.time())
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._port: SubPort | None = None
        self._pauses = Backoff(random.Random(), RECONNECT_S, RECONNECT_MAX_S)
        self._reconnect_at = time.monotonic() + RECONNECT_S
        self._refresh_at = 0.0
        self._stop = threading.Event()
        self._said: set[str] = set()
        self._turned = time.monotonic()
        self._thread = threading.Thread(target=self._run, name="collector", daemon=True)
        self.last_error = ""
        self.snapshot: Snapshot = self._watch.snapshot(time.monotonic(), time.time())

    def start(self) -> None:
        """Listen from now on. Raises ``TransportError`` for an address that is none."""
        self._port = SubPort(self._context, self.where, self._keys)
        self._thread.start()

    def close(self) -> None:
        """End within seconds."""
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join(CLOSE_S)
        if not self._thread.is_alive():
            if self._port is not None:
                self._port.close()
            self._context.term()

    @property
    def alive(self) -> bool:
        """Whether the thread runs."""
        return self._thread.is_alive()

    @property
    def well(self) -> bool:
        """Whether the thread goes round."""
        return self._thread.is_alive() and time.monotonic() - self._turned < STUCK_S

    def _run(self) -> None:
        while not self._stop.is_set():
            try:
                self._turn()
            except Exception as error:  # a bug in one turn must not blind the dashboard for good
                self._complain(f"a turn failed: {logs.trace(error)}")
                self._stop.wait(REFRESH_S)
            self._turned = time.monotonic()

    def _turn(self) -> None:
        news = self._read()
        now = time.monotonic()
        just_silent = self.snapshot.alive and self._watch.silent_s(now) > SILENCE_S
        if news or just_silent or now >= self._refresh_at:
            self._refresh_at = now + REFRESH_S
            self.snapshot = self._watch.snapshot(now, time.time(), self._history.problem)
        if news:
            self._pauses.reset()
            self._reconnect_at = now + RECONNECT_S
        elif now >= self._reconnect_at:
            self._reconnect_at = now + self._pauses.next_s()
            self._reconnect()

    def _read(self) -> bool:
        """Take what has come within a turn; whether something has."""
        if self._port is None:
            self._stop.wait(TURN_S)
            return False
        self._port.socket.poll(int(TURN_S * 1000))
        heard = False
        for frames in self._port.receive(READ_AT_ONCE):
            try:
                message = decode(frames)
            except RemoteError as error:
                self._watch.refuse(str(error))
                self._complain(f"not understood, from {self.where}: {error}")
                continue
            if isinstance(message, Telemetry):
                self._history.add(self._watch.take(message, time.monotonic(), time.time()))
                heard = True
        return heard

    def _reconnect(self) -> None:
        """The connection may be one that nobody has told us is dead, or the name may mean another address now."""
        try:
            if self._port is None:
                self._port = SubPort(self._context, self.where, self._keys)
            else:
                port, self._port = self._port, None
                port.reconnect()
                self._port = port
        except TransportError as error:
            self._complain(str(error))

    def _complain(self, words: str) -> None:
        """Say it once: what is wrong with one message is wrong with the next."""
        self.last_error = words
        if words not in self._said and len(self._said) < 100:
            self._said.add(words)
            log.warning("%s", words)
