#!/usr/bin/env python3
"""The broker: one ROUTER socket, one loop around the scheduler, one ledger.

Each turn of the loop: read what has arrived, hand it to the scheduler, commit what must be kept, and only then send.
"""

from __future__ import annotations

from dolmetsch.bootstrap import in_venv

in_venv()

import argparse
import contextlib
import gc
import os
import resource
import socket
import sys
import time
import uuid
from collections import OrderedDict
from pathlib import Path
from typing import TYPE_CHECKING, Final

import zmq

from dolmetsch import __version__, config, logs, owner
from dolmetsch.effects import Beat, Drain, Effect, FromPeer, PeerGone, Persist, Send, Tick
from dolmetsch.errors import DolmetschError, LedgerError, RemoteError
from dolmetsch.gate import Gate
from dolmetsch.keys import KeyPair, fingerprint, is_loopback
from dolmetsch.ledger import SqliteLedger
from dolmetsch.lifecycle import Signals, sd_notify
from dolmetsch.messages import APPROVE, REFUSE, Error, Manage, Managed, Message
from dolmetsch.reports import BrokerHealth
from dolmetsch.scheduler import Scheduler
from dolmetsch.stats import ProcessSampler
from dolmetsch.transport import PubPort, RouterPort, address, telemetry_address
from dolmetsch.wire import decode

if TYPE_CHECKING:
    from dolmetsch.discovery import Announcer

TICK_MESSAGES: Final = 256  # messages read in one turn ...
TICK_S: Final = 0.02  # ... or as many as fit into this, so that a flood cannot keep others waiting
FIRST_TICK_S: Final = 0.002  # while no node has work, so that the first of many jobs do not wait for the others
WAIT_S: Final = 1.0  # the longest wait for something to happen
PUBLISH_S: Final = 1.0
TIDY_S: Final = 2.0  # seconds without a commit after which deleted texts are wiped from the write-ahead log, ...
TIDY_MOST_S: Final = 60.0  # ... and the most that they stay there while there is always something to do
DESCRIPTORS: Final = 65_536
ANSWERED: Final = 256  # peers remembered as told that they are not understood
NOT_ALLOWED: Final = Error(
    code="not_allowed",
    detail="this computer's key may not do that, or was revoked: ask for an invitation (python broker.py invite)",
)
NO_KEYS: Final = "this broker has no keys: nobody needs to be let in"


class Broker:
    """The loop's state: the scheduler, its ledger and its socket."""

    def __init__(
        self,
        settings: config.Config,
        ledger: SqliteLedger,
        port: RouterPort,
        stage: PubPort | None,
        gate: Gate | None,
    ) -> None:
        self._settings = settings
        self._ledger = ledger
        self._port = port
        self._stage = stage  # where telemetry is published
        self._gate = gate  # None: no keys, on this computer alone
        self._sampler = ProcessSampler()
        self._publish_at = time.monotonic()
        self._log = logs.start("broker")
        self._strangers = logs.Sparing(self._log)
        self._told: OrderedDict[bytes, None] = OrderedDict()
        self._tidy_at: float | None = None
        self._soiled_at = 0.0  # the first commit since it was tidied
        self.scheduler = Scheduler(settings.scheduler, incarnation=uuid.uuid4().hex, now=time.monotonic())

    def recover(self) -> None:
        """Take over what the ledger holds."""
        now = time.monotonic()
        found = self._ledger.load(now)
        self._carry_out(self.scheduler.handle(found, now), now)
        if found.records:
            self._log.info("the ledger holds %d jobs from before", len(found.records))

    def run(self, signals: Signals) -> None:
        """Turn until a signal says stop; then drain for at most ``drain_s`` seconds. A second signal ends it now."""
        poller = zmq.Poller()
        poller.register(self._port.socket, zmq.POLLIN)
        poller.register(signals.fd, zmq.POLLIN)
        for socket_ in [] if self._gate is None else self._gate.sockets:
            poller.register(socket_, zmq.POLLIN)
        stop_at: float | None = None
        while not signals.force:
            ready = dict(poller.poll(self._wait_ms()))
            now = time.monotonic()
            if signals.fd in ready:
                signals.drain()
            self._turn(now)
            sd_notify("WATCHDOG=1")
            if signals.stop and stop_at is None:
                self._log.info("stopping: taking no more jobs")
                sd_notify("STOPPING=1")
                self._carry_out(self.scheduler.handle(Drain(), now), now)
                stop_at = now + self._settings.broker.drain_s
            if stop_at is not None and (now >= stop_at or not self.scheduler.leased):
                break

    def _wait_ms(self) -> int:
        now = time.monotonic()
        due = now + WAIT_S if self._stage is None else min(now + WAIT_S, self._publish_at)
        for one in (self.scheduler.next_deadline(), self._tidy_at):
            if one is not None:
                due = min(due, one)
        return max(0, int((due - now) * 1000) + 1)

    def _turn(self, now: float) -> None:
        effects: list[Effect] = []
        until = now + (TICK_S if self.scheduler.leased else FIRST_TICK_S)
        for peer in [] if self._gate is None else self._gate.turn(now):
            effects += self.scheduler.handle(PeerGone(peer), now)
        for arrival in self._port.receive(TICK_MESSAGES):
            try:
                message = decode(arrival.frames)
            except RemoteError as error:
                self._not_understood(arrival.peer, error)
                continue
            if self._gate is None or self._gate.may_send(arrival, message, now):
                effects += self._take(arrival.peer, message, now)
            else:
                self._tell(arrival.peer, NOT_ALLOWED)
            if time.monotonic() >= until:
                break
        effects += self.scheduler.handle(Tick(), now)
        if self._stage is not None and now >= self._publish_at:
            self._publish_at = now + PUBLISH_S
            effects += self.scheduler.handle(Beat(self._health()), now)
        self._carry_out(effects, now)
        if self._tidy_at is not None and now >= self._tidy_at:
            self._tidy(now)

    def _tidy(self, now: float) -> None:
        try:
            self._tidy_at = None
            if not self._ledger.tidy():  # the rest soon, whatever is committed until then, but not in each turn
                self._tidy_at = now + TIDY_S
                self._soiled_at = now + TIDY_S - TIDY_MOST_S
        except LedgerError as error:  # nothing is lost by that: the next commit will tell whether the disk still works
            self._log.warning("%s", error)
            self._tidy_at = now + TIDY_MOST_S

    def _take(self, peer: bytes, message: Message, now: float) -> list[Effect]:
        if isinstance(message, Manage) and message.action in (APPROVE, REFUSE):
            if self._gate is None:
                return [Send(peer, Managed(action=message.action, node=message.node, count=0, problem=NO_KEYS))]
            return [Send(peer, self._gate.manage(message))]
        return self.scheduler.handle(FromPeer(peer, message), now)

    def _carry_out(self, effects: list[Effect], now: float) -> None:
        """Commit, then send; what the sends reveal may call for another round."""
        while effects:
            changes: list[Persist] = []
            sends: list[Send] = []
            for effect in effects:
                if isinstance(effect, Persist):
                    changes.append(effect)
                elif isinstance(effect, Send):
                    sends.append(effect)
                elif self._stage is not None:
                    self._stage.send(effect.message)
            if changes:
                self._ledger.commit(changes)
                self._soiled_at = now if self._tidy_at is None else self._soiled_at
                self._tidy_at = min(now + TIDY_S, self._soiled_at + TIDY_MOST_S)
            gone = dict.fromkeys(one.peer for one in sends if not self._port.send(one.peer, one.message))
            effects = [effect for peer in gone for effect in self.scheduler.handle(PeerGone(peer), now)]

    def _health(self) -> BrokerHealth:
        process = self._sampler.sample()
        used, free = self._ledger.disk()
        return BrokerHealth(
            host=socket.gethostname(),
            version=__version__,
            pid=os.getpid(),
            cpu_percent=process.cpu_percent,
            rss_bytes=process.rss_bytes,
            ledger_bytes=used,
            disk_free_bytes=free,
            waiting=() if self._gate is None else self._gate.waiting,
        )

    def _not_understood(self, peer: bytes, error: RemoteError) -> None:
        """Count it, and say so once to each peer: answering every one would let a stranger make us talk."""
        self.scheduler.books.tally.bad_frames += 1
        if self._tell(peer, Error(code=error.code, detail=error.detail)):
            self._strangers.warning(f"not understood, from {peer[:80].hex()}: {error}", time.monotonic())

    def _tell(self, peer: bytes, error: Error) -> bool:
        """Say what is wrong, once to each peer; whether that was now."""
        if peer in self._told:
            return False
        self._told[peer] = None
        if len(self._told) > ANSWERED:
            self._told.popitem(last=False)
        self._port.send(peer, error)
        return True


def _arguments(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="broker.py", description="Hands translation jobs to nodes; loses none.")
    parser.add_argument("--bind", metavar="ADDRESS", help="listen here (default tcp://127.0.0.1:5570)")
    parser.add_argument("--ledger", metavar="PATH", help="file that keeps accepted jobs")
    parser.add_argument("--config", metavar="PATH", type=Path, help="a TOML file; --show-config prints its keys")
    parser.add_argument("--show-config", action="store_true", help="print the configuration in force, and end")
    parser.add_argument("--version", action="version", version=f"dolmetsch {__version__}")
    owner.add_commands(parser)
    return parser.parse_args(argv)


def main(argv: list[str]) -> int:
    """Run a broker until SIGTERM or SIGINT, or carry out a command of its owner; the exit status."""
    arguments = _arguments(argv)
    log = logs.start("broker")
    try:
        flags = {"broker": {"bind": arguments.bind, "ledger": arguments.ledger}}
        settings = config.load(arguments.config, os.environ, flags)
        if arguments.show_config:
            print(config.show(settings))
            return 0
        if arguments.command is not None:
            owner.run(arguments, settings)
            return 0
        path = (
            Path(settings.broker.ledger).expanduser() if settings.broker.ledger else config.data_path("ledger.sqlite3")
        )
        _serve(settings, path)
    except DolmetschError as error:
        log.error("%s", error)
        return 1
    log.info("stopped")
    return 0


def _open_gate(settings: config.Config, context: zmq.Context[zmq.Socket[bytes]], beyond: bool) -> Gate | None:
    """The gate, where anybody else could connect, and always once there is a key. Raises ``KeyFileError``."""
    if not beyond and not owner.has_pair(settings):
        return None
    pair = owner.prepare(settings)
    log = logs.start("broker")
    log.info("only keys on the allow-list may connect; this broker's has the fingerprint %s", fingerprint(pair.public))
    return Gate(context, pair, owner.keyring(settings))


def _announce(where: str, door: str, pair: KeyPair) -> Announcer:
    from dolmetsch.discovery import Announcer  # a tenth of a second and 11 MB that a broker on loopback need not spend

    announcer = Announcer(lambda: owner.reachable(where), door, pair.public)
    announcer.start()
    return announcer


def _take_descriptors() -> None:
    """As many connections as the system allows: its soft limit, often 1024, is meant for programs that use select."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = DESCRIPTORS if hard == resource.RLIM_INFINITY else min(DESCRIPTORS, hard)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def _serve(settings: config.Config, path: Path) -> None:
    log = logs.start("broker")
    # Jobs are many, long-lived and free of cycles: frequent full collections would only walk them.
    gc.set_threshold(50_000, 20, 100)
    _take_descriptors()
    where, door = owner.places(settings.broker)
    wanted = settings.broker.telemetry
    telemetry = "" if wanted == "off" else address(wanted) if wanted else telemetry_address(where)
    beyond = not all(is_loopback(one) for one in (where, telemetry) if one)
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    with contextlib.ExitStack() as stack:
        stack.callback(context.term)
        gate = _open_gate(settings, context, beyond)
        if gate is not None:
            stack.callback(gate.close)
        pair = None if gate is None else gate.pair
        port = RouterPort(context, pair)
        stack.callback(port.close)
        bound = port.bind(where)  # before the ledger is opened: a second broker must not touch it
        stage = None
        if telemetry:
            stage = PubPort(context, pair)
            stack.callback(stage.close)
            stage.bind(telemetry)
        if gate is not None and door:
            door = gate.open_door(door)
            log.info("newcomers enrol at %s (python broker.py invite)", door)
            if settings.broker.announce and not is_loopback(where):
                stack.callback(_announce(bound, door, gate.pair).close)
        ledger = SqliteLedger(path, settings.scheduler.max_settled)
        stack.callback(ledger.close)
        with Signals() as signals:
            broker = Broker(settings, ledger, port, stage, gate)
            broker.recover()
            log.info("listening at %s, ledger %s", bound, path)
            sd_notify("READY=1")
            broker.run(signals)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
