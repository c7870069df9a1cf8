#!/usr/bin/env python3
"""A node: this machine's workers for the cluster. One DEALER socket, a pool of children, one loop around both.

The loop never computes, loads or waits on a disk: children translate, so the heartbeat is never late.
"""

from __future__ import annotations

from dolmetsch.bootstrap import in_venv

in_venv()

import argparse
import fcntl
import ipaddress
import os
import random
import socket
import sys
import time
import uuid
from pathlib import Path
from typing import IO, Final
from urllib.parse import urlsplit

import msgspec
import zmq

from dolmetsch import __version__, config, logs
from dolmetsch.enrol import enrol
from dolmetsch.errors import ConfigError, DolmetschError, NodeError, RemoteError
from dolmetsch.keys import Invitation, fingerprint, given_invitation
from dolmetsch.lifecycle import Signals, sd_notify
from dolmetsch.messages import BULK, Error, LeasedJob
from dolmetsch.pool import Load, Pool, PoolJob, PoolOutcome
from dolmetsch.reports import ChildStatus, Route
from dolmetsch.session import (
    Beat,
    Drain,
    Effect,
    Ended,
    FromBroker,
    Health,
    Joined,
    Leave,
    Offer,
    Reconnect,
    Renew,
    Send,
    Session,
    Start,
    Stop,
    Tick,
)
from dolmetsch.stats import HostStats, Sampler, about_machine
from dolmetsch.transport import DealerPort, address, broker_of
from dolmetsch.wire import decode

BEAT_S: Final = 1.0  # until the broker says otherwise
TICK_S: Final = 0.1  # how often the pool is looked at while it has work ...
REST_S: Final = 1.0  # ... and while it has none
POLLOUT: Final = int(zmq.POLLOUT)  # an enum's own arithmetic takes a microsecond each time
READ_AT_ONCE: Final = 64
CLOSE_S: Final = 3.0  # children have this long to end once the session is over
SILENT: Final = "does not answer"
NAMES: Final = 64  # nodes on one host that may run without --name


class Node:
    """The loop's state: a session with the broker, a pool of children, and the socket between."""

    def __init__(self, settings: config.Config, session: Session, pool: Pool, port: DealerPort) -> None:
        self._settings = settings
        self._session = session
        self._pool = pool
        self._port = port
        self._log = logs.start("node")
        self._sampler = Sampler()
        self._stats: HostStats = self._sampler.sample()
        self._beat_at = 0.0
        self._beat_s = BEAT_S
        self._tick_at = 0.0
        self._poller = zmq.Poller()
        self._polled: dict[int, bool] = {}
        self._away = False
        self._offered: tuple[dict[str, str], int] = ({}, 0)
        self._died = ""
        self._trouble = ""
        self._left: Leave | None = None

    def run(self, signals: Signals) -> None:
        """Work until a signal says stop, then drain. Raises ``NodeError`` when it cannot work at all."""
        now = time.monotonic()
        self._pool.start(now)
        self._poller.register(self._port.socket, zmq.POLLIN)
        self._poller.register(signals.fd, zmq.POLLIN)
        draining = False
        try:
            while self._left is None and not signals.force:
                self._watch_children()
                ready = dict(self._poller.poll(self._wait_ms()))
                now = time.monotonic()
                if signals.fd in ready:
                    signals.drain()
                if signals.stop and not draining:
                    draining = True
                    self._log.info("stopping: finishing %d jobs", self._session.held)
                    sd_notify("STOPPING=1")
                    self._handle(Drain(now + self._settings.node.drain_s), now)
                self._turn(ready, now)
        finally:
            self._pool.close(time.monotonic(), CLOSE_S)
        if self._left is not None and self._left.why is not None:
            raise NodeError(self._left.why)

    def _wait_ms(self) -> int:
        now = time.monotonic()
        due = min(self._beat_at, self._tick_at)
        for one in (self._session.next_deadline(), self._pool.next_deadline()):
            if one is not None:
                due = min(due, one)
        return max(0, int((due - now) * 1000) + 1)

    def _watch_children(self) -> None:
        wanted = self._pool.fds()
        for fd in self._polled.keys() - wanted.keys():
            self._poller.unregister(fd)
            del self._polled[fd]
        for fd, write in wanted.items():
            if self._polled.get(fd) is not write:
                self._poller.register(fd, zmq.POLLIN | zmq.POLLOUT if write else zmq.POLLIN)
                self._polled[fd] = write

    def _turn(self, ready: dict[int | zmq.Socket[bytes], int], now: float) -> None:
        outcomes: list[PoolOutcome] = []
        for fd in list(self._polled):
            events = ready.get(fd, 0)
            if events & ~POLLOUT:
                outcomes += self._pool.on_readable(fd, now)
                self._look_soon(now)
            if events & POLLOUT:
                self._pool.on_writable(fd, now)
        for frames in self._port.receive(READ_AT_ONCE):
            try:
                message = decode(frames)
            except RemoteError as error:
                if error.code == "wrong_version":
                    raise NodeError(error.detail) from error
                self._log.warning("not understood, from the broker: %s", error)
                continue
            if isinstance(message, Error) and message.code == "not_allowed":
                self._say_trouble(f"says: {message.detail}")
            self._handle(FromBroker(message), now)
        if now >= self._beat_at:
            self._beat(now)
        if now >= self._tick_at:
            outcomes += self._pool.tick(now, Load(self._stats.core_percent, self._stats.ram_percent))
            self._tick_at = now + (REST_S if self._pool.at_rest else TICK_S)
            self._look_at_pool(now)
            if self._pool.away is not self._away:
                self._away = self._pool.away
                self._beat_at = now  # the broker is to know at once
        if outcomes:
            self._handle(_ended(outcomes), now)
        self._handle(Tick(), now)

    def _look_soon(self, now: float) -> None:
        self._tick_at = min(self._tick_at, now + TICK_S)

    def _look_at_pool(self, now: float) -> None:
        if self._pool.broken is not None:
            raise NodeError(self._pool.broken)
        if self._pool.last_death != self._died:
            self._died = self._pool.last_death
            self._log.warning("%s", self._died)
        offered = (dict(self._pool.routes), self._pool.ready)
        if self._pool.ready and offered != self._offered:
            if offered[0] != self._offered[0]:
                self._log.info("can translate %s", ", ".join(sorted(offered[0])))
            self._offered = offered
            routes = tuple(Route(route, model) for route, model in sorted(offered[0].items()))
            self._handle(Offer(routes, self._pool.max_workers), now)

    def _beat(self, now: float) -> None:
        self._beat_at = now + self._beat_s
        self._stats = self._sampler.sample()
        sd_notify("WATCHDOG=1")
        health = Health(
            workers=self._pool.ready,
            slots=0 if self._pool.away else self._pool.max_workers,
            queued=self._pool.queued,
            in_flight=self._pool.in_flight,
            jobs_per_s=self._pool.jobs_per_s,
            chars_per_s=self._pool.chars_per_s,
            cpu_percent=self._stats.cpu_percent,
            core_percent=self._stats.core_percent,
            ram_percent=self._stats.ram_percent,
            ram_used_bytes=self._stats.ram_used_bytes,
            temperature_c=self._stats.temperature_c,
            throttled=bool(self._stats.throttled),
            children=tuple(
                ChildStatus(one.pid, one.core, one.state, one.rss_bytes, one.jobs_done, one.restarts, one.in_flight)
                for one in self._pool.children()
            ),
        )
        self._handle(Beat(health), now)

    def _say_trouble(self, what: str) -> None:
        """Once, until it is another trouble or none: it may last for days."""
        if what != self._trouble and (what != SILENT or not self._trouble):
            self._trouble = what
            self._log.warning("the broker at %s %s; trying again until it takes us", self._port.where, what)

    def _handle(self, event: FromBroker | Offer | Ended | Beat | Tick | Drain, now: float) -> None:
        for effect in self._session.handle(event, now):
            self._carry_out(effect, now)

    def _carry_out(self, effect: Effect, now: float) -> None:
        match effect:
            case Send(message):
                self._port.send(message)
            case Start(jobs):
                self._pool.submit([_pool_job(job, now) for job in jobs], now)
                self._look_soon(now)
            case Stop(job_ids):
                self._pool.cancel(job_ids)
            case Renew():
                self._log.info("starting the children anew, as an operator asked")
                self._pool.renew()
                self._look_soon(now)
            case Reconnect():
                self._poller.unregister(self._port.socket)
                self._port.reconnect()
                self._poller.register(self._port.socket, zmq.POLLIN)
                self._say_trouble(self._port.trouble or SILENT)
            case Joined(_, heartbeat_s):
                self._beat_s = heartbeat_s
                self._trouble = ""
                self._beat_at = now  # the broker does not know our health yet
                self._log.info("joined %s, workers: %d", self._port.where, self._pool.ready)
                sd_notify("READY=1")
            case Leave():
                self._left = effect


def _pool_job(job: LeasedJob, now: float) -> PoolJob:
    chars = sum(map(len, job.texts))
    return PoolJob(job.job_id, job.route, job.texts, chars, job.lane != BULK, job.suspect, now, job.alternatives)


def _ended(outcomes: list[PoolOutcome]) -> Ended:
    finished = [
        (one.key, one.texts, one.model, _ms(one.wait_s), _ms(one.work_s)) for one in outcomes if one.texts is not None
    ]
    failed = [(one.key, one.code, one.detail, one.retry) for one in outcomes if one.texts is None]
    return Ended(finished, failed)


def _ms(seconds: float) -> int:
    return max(0, round(seconds * 1000))


def default_name() -> tuple[str, IO[bytes] | None]:
    """A name that no other node has: host, end of the network card's address, and a number when there are several.

    The open file keeps the number taken for as long as this process lives.
    """
    base = f"{socket.gethostname()}-{uuid.getnode() & 0xFFFF:04x}"
    folder = config.data_path("nodes")
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(1, NAMES + 1):
        lock = (folder / f"{number}.lock").open("wb")
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            lock.close()
            continue
        return (base if number == 1 else f"{base}-{number}"), lock
    raise NodeError(f"{NAMES} nodes run on this host already: give this one a --name")


def choose_cores(wanted: tuple[int, ...], broker: str) -> tuple[int, ...]:
    """The cores for children; beside a broker on this host, the first core is left to it when there are more than two.

    Raises ``ConfigError`` for a core that this process may not use.
    """
    allowed = tuple(sorted(os.sched_getaffinity(0)))
    missing = [core for core in wanted if core not in allowed]
    if missing:
        raise ConfigError(
            f"pool.cores: this process may not use core {missing[0]}, only {', '.join(map(str, allowed))}"
        )
    if wanted:
        return wanted
    return allowed[1:] if _is_here(broker) and len(allowed) > 2 else allowed


def _is_here(broker: str) -> bool:
    host = urlsplit(broker).hostname or ""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host in ("localhost", socket.gethostname())


def _arguments(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="node.py", description="Lends this machine's cores to a dolmetsch cluster.")
    parser.add_argument("--broker", metavar="ADDRESS", help="the broker (default: the one joined, else one here)")
    parser.add_argument(
        "--join", metavar="INVITATION", help="enrol with what `python broker.py invite` printed; - reads it from a line"
    )
    parser.add_argument("--discover", action="store_true", help="find the broker in this network, and ask to be let in")
    parser.add_argument("--name", help="name in the cluster (default: made from the host's)")
    parser.add_argument("--min-workers", type=int, metavar="N", help="children kept at all times (default 1)")
    parser.add_argument("--max-workers", type=int, metavar="N", help="children at most (default: one for each core)")
    parser.add_argument("--cores", metavar="0,1", help="cores for the children (default: all, or all but the broker's)")
    parser.add_argument(
        "--engine", choices=("argos", "echo"), default="argos", help="echo gives texts back unchanged: for benchmarks"
    )
    parser.add_argument("--packages", type=Path, action="append", metavar="FOLDER", help="look for packages only here")
    parser.add_argument("--config", metavar="PATH", type=Path, help="a TOML file; --show-config prints its keys")
    parser.add_argument("--show-config", action="store_true", help="print the configuration in force, and end")
    parser.add_argument("--version", action="version", version=f"dolmetsch {__version__}")
    return parser.parse_args(argv)


def _settings(arguments: argparse.Namespace) -> config.Config:
    cores = None if arguments.cores is None else [part for part in arguments.cores.split(",") if part]
    flags = {
        "node": {"broker": arguments.broker, "name": arguments.name},
        "pool": {"min_workers": arguments.min_workers, "max_workers": arguments.max_workers, "cores": cores},
    }
    return config.load(arguments.config, os.environ, flags)


def main(argv: list[str]) -> int:
    """Run a node until SIGTERM or SIGINT; the exit status."""
    arguments = _arguments(argv)
    log = logs.start("node")
    try:
        settings = _settings(arguments)
        if arguments.show_config:
            print(config.show(settings))
            return 0
        _serve(settings, arguments)
    except DolmetschError as error:
        log.error("%s", error)
        return 1
    log.info("stopped")
    return 0


def _serve(settings: config.Config, arguments: argparse.Namespace) -> None:
    given = None if arguments.join is None else given_invitation(arguments.join)
    if arguments.engine == "echo":
        logs.start("node").warning("echo engine: texts come back unchanged; this is for benchmarks only")
    name, lock = (settings.node.name, None) if settings.node.name else default_name()
    try:
        with Signals() as signals:
            invitation = given or (_look_around(settings.node.broker) if arguments.discover else None)
            if invitation is not None:
                if not enrol(settings.keys, invitation, name, signals):
                    return
                settings = msgspec.structs.replace(settings, node=msgspec.structs.replace(settings.node, broker=""))
            _work(settings, arguments, name, signals)
    finally:
        if lock is not None:
            lock.close()


def _look_around(wanted: str) -> Invitation:
    """What to knock with: an invitation without a token, for the broker that was found."""
    from dolmetsch.discovery import find, the_broker  # a tenth of a second that others need not wait for

    found = the_broker(find(), address(wanted) if wanted else None)
    logs.start("node").info("found %s at %s, its key is %s", found.name, found.broker, fingerprint(found.key))
    return Invitation(found.broker, found.door, found.key, b"")


def _work(settings: config.Config, arguments: argparse.Namespace, name: str, signals: Signals) -> None:
    broker, keys = broker_of(settings)
    cores = choose_cores(settings.pool.cores, broker)
    pool = Pool(
        settings.pool,
        settings.engine,
        engine_kind=arguments.engine,
        routes=("de→en",) if arguments.engine == "echo" else (),
        packages=arguments.packages or (),
        cores=cores,
    )
    rng = random.Random()
    incarnation = uuid.uuid4().hex
    about, now = about_machine(), time.monotonic()
    session = Session(name=name, incarnation=incarnation, engine=arguments.engine, rng=rng, now=now, about=about)
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    port = DealerPort(context, broker, f"node/{name}/{incarnation}", keys)
    logs.start("node").info("%s: children on cores %s, broker %s", name, ",".join(map(str, cores)), broker)
    try:
        Node(settings, session, pool, port).run(signals)
    finally:
        port.close()
        context.term()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
