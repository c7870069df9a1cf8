"""A load: many jobs through a real socket, as fast as the broker takes them, with the outbox that gateways use."""

from __future__ import annotations

import random
import time
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Final

import zmq

from dolmetsch.client import new_job_id
from dolmetsch.errors import RemoteError
from dolmetsch.keys import Credentials
from dolmetsch.lines import packs
from dolmetsch.messages import BULK, INTERACTIVE, Answer, JobSpec
from dolmetsch.outbox import (
    Deliver,
    Down,
    Effect,
    Event,
    FromBroker,
    GiveUp,
    Have,
    Outbox,
    Post,
    Reconnect,
    Refuse,
    Send,
    Tick,
)
from dolmetsch.transport import DealerPort
from dolmetsch.wire import decode

READ_AT_ONCE: Final = 512
ROUND: Final = 1024  # jobs submitted at a time, at most: what is on its way then stays near the window


class LoadError(Exception):
    """Raised when a load does not end well: a refusal, a job given up, time is over."""


@dataclass
class Load:
    """``run`` submits jobs, ``window`` at a time, and acks each result."""

    address: str
    window: int = 4096
    route: str = "de→en"
    lane: int = BULK
    answers: dict[bytes, Answer] = field(default_factory=dict)
    duplicates: int = 0
    keys: Credentials | None = None

    def __enter__(self) -> Load:
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        name = uuid.uuid4().hex[:12]
        self._port = DealerPort(self._context, self.address, f"load-{name}", self.keys)
        self._outbox = Outbox(gateway=f"load-{name}", incarnation=name, rng=random.Random(0), now=time.monotonic())
        self._poller = zmq.Poller()
        self._poller.register(self._port.socket, zmq.POLLIN)
        self._on_its_way = 0
        return self

    def __exit__(self, *_: object) -> None:
        self._port.close()
        self._context.term()

    def jobs(self, texts: Sequence[str], tenant: str = "bench") -> Iterator[JobSpec]:
        """A job for each text."""
        for text in texts:
            yield self._spec((text,), tenant)

    def packs(self, texts: Sequence[str], tenant: str = "bench") -> Iterator[JobSpec]:
        """The jobs that a file of these lines becomes."""
        for pack in packs(enumerate(texts, 1)):
            yield self._spec(tuple([text for _, text in pack]), tenant)

    def _spec(self, texts: tuple[str, ...], tenant: str) -> JobSpec:
        return JobSpec(new_job_id(), self.route, texts, self.lane, tenant, 600.0, b"")

    def run(self, specs: Iterator[JobSpec], within_s: float = 120.0) -> float:
        """All of ``specs`` to their acks; the seconds it took. Raises ``LoadError``."""
        started = time.monotonic()
        self.until_answered(specs, within_s)
        while not self._outbox.idle and time.monotonic() - started < within_s:
            self._handle(Tick())
            self._poller.poll(1)
        return time.monotonic() - started

    def until_answered(self, specs: Iterator[JobSpec], within_s: float = 120.0) -> float:
        """All of ``specs`` to their last answer; the seconds it took. Raises ``LoadError``."""
        started = time.monotonic()
        self._fill(specs)
        while self._on_its_way:
            if time.monotonic() - started > within_s:
                raise LoadError(f"{self._on_its_way} jobs are still on their way after {within_s:g} s")
            wait_s = min(1.0, max(0.0, self._outbox.next_deadline() - time.monotonic()))
            self._poller.poll(int(wait_s * 1000) + 1)
            self._read()
            self._fill(specs)
        return time.monotonic() - started

    def keep_up(self, specs: Iterator[JobSpec], seconds: float) -> int:
        """Keep ``window`` jobs on their way for ``seconds``; how many were answered. Their answers are not kept."""
        until = time.monotonic() + seconds
        answered = 0
        while (now := time.monotonic()) < until:
            self._fill(specs)
            self._poller.poll(max(1, int(1000 * min(until - now, self._outbox.next_deadline() - now))))
            self._read()
            answered += len(self.answers)
            self.answers.clear()
        return answered

    def post(self, specs: Iterator[JobSpec], count: int, within_s: float = 120.0) -> None:
        """Submit ``count`` jobs, and return once each of them is accepted: for a queue that nobody empties."""
        started = time.monotonic()
        for start in range(0, count, self.window):
            self._handle(Post(tuple(islice(specs, min(self.window, count - start)))))
            self._handle(Tick())
            while self._outbox.unanswered:
                if time.monotonic() - started > within_s:
                    raise LoadError(f"{self._outbox.unanswered} jobs are not accepted after {within_s:g} s")
                self._poller.poll(100)
                self._read()
                self._handle(Tick())

    def one(self, text: str) -> float:
        """One interactive job by itself; the seconds to its answer."""
        spec = JobSpec(new_job_id(), self.route, (text,), INTERACTIVE, "bench", 60.0, b"")
        seconds = self.until_answered(iter((spec,)), 60.0)
        self.run(iter(()))  # its ack too: the next one finds an idle cluster
        return seconds

    def _fill(self, specs: Iterator[JobSpec]) -> None:
        room = self.window - self._on_its_way
        # Rounds: submitting a job for each that came back would make messages of one job.
        if room >= min(self.window // 4, ROUND) or self._on_its_way == 0:
            new = tuple(islice(specs, room))
            self._on_its_way += len(new)
            self._handle(Post(new))
        self._handle(Tick())

    def _read(self) -> None:
        for frames in self._port.receive(READ_AT_ONCE):
            try:
                self._handle(FromBroker(decode(frames)))
            except RemoteError as error:
                raise LoadError(f"not understood: {error}") from error

    def _handle(self, event: Event) -> None:
        safe: list[bytes] = []
        for effect in self._outbox.handle(event, time.monotonic()):
            self._carry_out(effect, safe)
        if safe:
            self._outbox.handle(Have(tuple(safe)), time.monotonic())

    def _carry_out(self, effect: Effect, safe: list[bytes]) -> None:
        match effect:
            case Send(message):
                self._port.send(message)
            case Deliver(answer):
                self._on_its_way -= 1
                self.duplicates += answer.job_id in self.answers
                self.answers[answer.job_id] = answer
                safe.append(answer.job_id)
            case Refuse(refusal):
                raise LoadError(refusal.detail)
            case GiveUp():
                raise LoadError("a job was given up")
            case Down(why, fatal=True):
                raise LoadError(why)
            case Reconnect():
                self._poller.unregister(self._port.socket)
                self._port.reconnect()
                self._poller.register(self._port.socket, zmq.POLLIN)
            case _:
                pass
