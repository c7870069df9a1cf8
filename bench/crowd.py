"""A crowd: many nodes in one process, each a real session over a socket of its own, with an echo instead of a pool.

    python -m bench.crowd ADDRESS ROUTE FIRST COUNT PER_S

What is not real is the work: a job's texts come back in the turn in which they came. What a node says of itself is made
up: that it has one worker, which does ``PER_S`` jobs a second; or none, with 0, so that it wants no jobs.
"""

from __future__ import annotations

import random
import select
import signal
import sys
import time
import uuid
from dataclasses import dataclass
from typing import Final

import zmq

from dolmetsch import __version__
from dolmetsch.messages import LeasedJob
from dolmetsch.reports import About, ChildStatus, Route
from dolmetsch.session import (
    Beat,
    Drain,
    Ended,
    Event,
    FromBroker,
    Health,
    Joined,
    Leave,
    Offer,
    Reconnect,
    Send,
    Session,
    Start,
    Tick,
)
from dolmetsch.transport import DealerPort
from dolmetsch.wire import decode

MODEL: Final = "echo"
JOB_CHARS: Final = 60.0  # of the benchmarks' texts, about
READ_AT_ONCE: Final = 64
LOOK_S: Final = 0.25  # how often each session is asked what time does
ABOUT: Final = About("crowd", "a simulated node", "Linux", __version__, 4, 8 * 2**30, 0.0)


@dataclass(slots=True)
class Member:
    """A node: its session, its socket, and when it beats next."""

    session: Session
    port: DealerPort
    beat_at: float
    beat_s: float = 1.0
    left: bool = False


class Crowd:
    """``count`` nodes, named ``sim-FIRST`` and so on, in one loop."""

    def __init__(
        self, context: zmq.Context[zmq.Socket[bytes]], where: str, route: str, first: int, count: int, per_s: int
    ) -> None:
        now = time.monotonic()
        self._route = Route(route, MODEL)
        self._per_s = per_s
        self._epoll = select.epoll()
        self._members: dict[int, Member] = {}
        for number in range(first, first + count):
            name, incarnation = f"sim-{number}", uuid.uuid4().hex
            session = Session(
                name=name, incarnation=incarnation, engine="echo", rng=random.Random(number), now=now, about=ABOUT
            )
            port = DealerPort(context, where, f"node/{name}/{incarnation}")
            self._add(Member(session, port, now + (number - first) / count))
        self._stop = False
        signal.signal(signal.SIGTERM, self._told_to_stop)

    def _told_to_stop(self, *_: object) -> None:
        self._stop = True

    def _add(self, member: Member) -> None:
        self._members[member.port.fd] = member
        self._epoll.register(member.port.fd, select.EPOLLIN)

    def run(self) -> None:
        """Until SIGTERM; then every node finishes what it holds (nothing, with an echo) and says goodbye."""
        now = time.monotonic()
        for member in list(self._members.values()):
            self._handle(member, Offer((self._route,), int(self._per_s > 0)), now)
        look_at = now
        while not self._stop:
            ready = self._epoll.poll(max(0.0, look_at - time.monotonic()), len(self._members))
            now = time.monotonic()
            for fd, _ in ready:
                self._turn(self._members[fd], now)
            if now >= look_at:
                look_at = now + LOOK_S / 10
                self._look(now)
        for member in self._members.values():
            self._handle(member, Drain(now), now)
            self._handle(member, Tick(), now)
            member.port.close()

    def _look(self, now: float) -> None:
        for member in list(self._members.values()):
            if now >= member.beat_at:
                member.beat_at = now + member.beat_s
                self._handle(member, Beat(self._health()), now)
                self._turn(member, now)
            elif not member.session.up:
                self._turn(member, now)

    def _turn(self, member: Member, now: float) -> None:
        # A ZMQ_FD tells of changes only, and a send takes their news: so read again after each, until nothing is left.
        while True:
            read = 0
            for frames in member.port.receive(READ_AT_ONCE):
                read += 1
                self._handle(member, FromBroker(decode(frames)), now)
            self._handle(member, Tick(), now)
            if not read:
                return

    def _handle(self, member: Member, event: Event, now: float) -> None:
        for effect in member.session.handle(event, now):
            match effect:
                case Send(message):
                    member.port.send(message)
                case Start(jobs):
                    self._handle(member, _echo(jobs), now)
                case Reconnect():
                    self._epoll.unregister(member.port.fd)
                    del self._members[member.port.fd]
                    member.port.reconnect()
                    self._add(member)
                case Joined(_, heartbeat_s):
                    member.beat_s = heartbeat_s
                    self._handle(member, Beat(self._health()), now)
                case Leave(why) if why is not None:
                    raise SystemExit(why)
                case _:
                    pass

    def _health(self) -> Health:
        return Health(
            workers=1, slots=int(self._per_s > 0), queued=0, in_flight=0,
            jobs_per_s=self._per_s, chars_per_s=self._per_s * JOB_CHARS,
            cpu_percent=70.0, core_percent=(20.0, 88.0, 90.0, 88.0), ram_percent=31.0, ram_used_bytes=2 * 2**30,
            temperature_c=61.0, throttled=False,
            children=tuple([ChildStatus(900 + core, core, "busy", 120_000_000, 40, 0, 2) for core in (1, 2, 3)]),
        )  # fmt: skip


def _echo(jobs: tuple[LeasedJob, ...]) -> Ended:
    return Ended([(job.job_id, job.texts, MODEL, 0, 0) for job in jobs], ())


def main() -> None:
    """Run a crowd until SIGTERM."""
    where, route, first, count, per_s = sys.argv[1:]
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    Crowd(context, where, route, int(first), int(count), int(per_s)).run()
    context.term()


if __name__ == "__main__":
    main()
