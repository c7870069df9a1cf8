"""What must go on in a storm, and who sees that it does: a trickle of jobs, and the broker's own word on its nodes."""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass, field
from typing import Final

import psutil
import zmq

from bench.load import Load, LoadError
from dolmetsch.keys import Credentials
from dolmetsch.messages import Telemetry
from dolmetsch.transport import SubPort
from dolmetsch.wire import decode

PAUSE_S: Final = 0.05  # between two jobs of the trickle
ANSWER_S: Final = 10.0  # far above what an echo takes in a storm, and below any deadline
POLL_MS: Final = 200


class Trickle(threading.Thread):
    """One job after the other, each checked: its answer comes, once, and is its text."""

    def __init__(self, address: str, keys: Credentials | None) -> None:
        super().__init__(daemon=True)
        self._load = Load(address, keys=keys)
        self._ended = threading.Event()
        self.slowest_s = 0.0
        self.answered = 0
        self.problem = ""

    def run(self) -> None:
        try:
            with self._load as load:
                while not self._ended.wait(PAUSE_S):
                    self._one(load, f"Tropfen {self.answered}")
        except LoadError as error:
            self.problem = str(error)

    def _one(self, load: Load, text: str) -> None:
        started = time.monotonic()
        load.run(load.jobs([text]), ANSWER_S)
        (answer,) = load.answers.values()
        if answer.texts != (text,) or load.duplicates:
            raise LoadError(f"{text!r} was answered by {answer.texts}, {load.duplicates} times more")
        load.answers.clear()
        self.slowest_s = max(self.slowest_s, time.monotonic() - started)
        self.answered += 1

    def end(self) -> None:
        self._ended.set()
        self.join(2 * ANSWER_S)


@dataclass
class Seen:
    """What the broker has said since the lookout began; times in seconds."""

    heard: int = 0
    longest_gap_s: float = 0.0
    silent_s: float = 0.0  # the longest that any node had been silent for
    departed: set[str] = field(default_factory=set)
    incarnations: dict[str, set[str]] = field(default_factory=dict)
    rss_bytes: int = 0
    descriptors: int = 0


class Lookout(threading.Thread):
    """Hears the telemetry, and looks at the broker's process from outside."""

    def __init__(self, where: str, keys: Credentials | None, broker: psutil.Process) -> None:
        super().__init__(daemon=True)
        self._where = where
        self._keys = keys
        self._broker = broker
        self._ended = threading.Event()
        self.seen = Seen()

    def run(self) -> None:
        context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        port = SubPort(context, self._where, self._keys)
        last = time.monotonic()
        try:
            while not self._ended.is_set():
                port.socket.poll(POLL_MS)
                for frames in port.receive(8):
                    now = time.monotonic()
                    if self.seen.heard:
                        self.seen.longest_gap_s = max(self.seen.longest_gap_s, now - last)
                    last = now
                    message = decode(frames)
                    assert isinstance(message, Telemetry)
                    self._look(message)
                self._measure()
        finally:
            port.close()
            context.term()

    def _look(self, telemetry: Telemetry) -> None:
        self.seen.heard += 1
        self.seen.departed |= {f"{one.name}: {one.how}, {one.why}" for one in telemetry.departed}
        for node in telemetry.nodes:
            self.seen.silent_s = max(self.seen.silent_s, node.seen_s_ago)
            self.seen.incarnations.setdefault(node.name, set()).add(node.incarnation)

    def _measure(self) -> None:
        try:
            self.seen.rss_bytes = max(self.seen.rss_bytes, self._broker.memory_info().rss)
            self.seen.descriptors = max(self.seen.descriptors, self._broker.num_fds())
        except psutil.Error:  # it has ended, which others will say
            self._ended.set()

    def end(self) -> None:
        self._ended.set()
        self.join(5.0)
