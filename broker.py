#!/usr/bin/env python3
"""The broker: one ROUTER socket, one loop around the scheduler, one ledger.

Each turn of the loop: read what has arrived, hand it to the scheduler, commit what must be kept, and only then send.
"""

from __future__ import annotations

from dolmetsch.bootstrap import in_venv

in_venv()

import argparse
import gc
import ipaddress
import os
import socket
import sys
import time
import uuid
from collections import OrderedDict
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

import zmq

from dolmetsch import __version__, config, logs
from dolmetsch.effects import Beat, Drain, Effect, FromPeer, PeerGone, Persist, Send, Tick
from dolmetsch.errors import ConfigError, DolmetschError, RemoteError
from dolmetsch.ledger import SqliteLedger
from dolmetsch.lifecycle import Signals, sd_notify
from dolmetsch.messages import Error
from dolmetsch.reports import BrokerHealth
from dolmetsch.scheduler import Scheduler
from dolmetsch.stats import ProcessSampler
from dolmetsch.transport import PubPort, RouterPort, address, telemetry_address
from dolmetsch.wire import decode

TICK_MESSAGES: Final = 256  # messages read in one turn ...
TICK_S: Final = 0.02  # ... or as many as fit into this, so that a flood cannot keep others waiting
FIRST_TICK_S: Final = 0.002  # while no node has work, so that the first of many jobs do not wait for the others
WAIT_S: Final = 1.0  # the longest wait for something to happen
PUBLISH_S: Final = 1.0
TIDY_S: Final = 2.0  # seconds without a commit after which deleted texts are wiped from the write-ahead log
ANSWERED: Final = 256  # peers remembered as told that they are not understood


class Broker:
    """The loop's state: the scheduler, its ledger and its socket."""

    def __init__(self, settings: config.Config, ledger: SqliteLedger, port: RouterPort, stage: PubPort | None) -> None:
        self._settings = settings
        self._ledger = ledger
        self._port = port
        self._stage = stage  # where telemetry is published
        self._sampler = ProcessSampler()
        self._publish_at = time.monotonic()
        self._log = logs.start("broker")
        self._told: OrderedDict[bytes, None] = OrderedDict()
        self._tidy_at: float | None = None
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
        for peer, *frames in self._port.receive(TICK_MESSAGES):
            try:
                message = decode(frames)
            except RemoteError as error:
                self._not_understood(peer, error)
                continue
            effects += self.scheduler.handle(FromPeer(peer, message), now)
            if time.monotonic() >= until:
                break
        effects += self.scheduler.handle(Tick(), now)
        if self._stage is not None and now >= self._publish_at:
            self._publish_at = now + PUBLISH_S
            effects += self.scheduler.handle(Beat(self._health()), now)
        self._carry_out(effects, now)
        if self._tidy_at is not None and now >= self._tidy_at:
            self._ledger.tidy()
            self._tidy_at = None

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
                self._tidy_at = now + TIDY_S
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
        )

    def _not_understood(self, peer: bytes, error: RemoteError) -> None:
        """Count it, and say so once to each peer: answering every one would let a stranger make us talk."""
        self.scheduler.books.tally.bad_frames += 1
        if peer in self._told:
            return
        self._told[peer] = None
        if len(self._told) > ANSWERED:
            self._told.popitem(last=False)
        self._log.warning("not understood, from %s: %s", peer[:80].hex(), error)
        self._port.send(peer, Error(code=error.code, detail=error.detail))


def _arguments(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="broker.py", description="Hands translation jobs to nodes; loses none.")
    parser.add_argument("--bind", metavar="ADDRESS", help="listen here (default tcp://127.0.0.1:5570)")
    parser.add_argument("--ledger", metavar="PATH", help="file that keeps accepted jobs")
    parser.add_argument("--config", metavar="PATH", type=Path, help="a TOML file; --show-config prints its keys")
    parser.add_argument("--insecure", action="store_true", help="listen beyond this computer without keys")
    parser.add_argument("--show-config", action="store_true", help="print the configuration in force, and end")
    parser.add_argument("--version", action="version", version=f"dolmetsch {__version__}")
    return parser.parse_args(argv)


def _check_reach(where: str, insecure: bool) -> None:
    """Beyond loopback anybody on the network could read along and send jobs, so that takes a clear word."""
    host = urlsplit(where).hostname or ""
    try:
        local = ipaddress.ip_address(host).is_loopback
    except ValueError:
        local = host == "localhost"
    if not local and not insecure:
        raise ConfigError(
            f"{where} is open to the whole network, and there are no keys: add --insecure if you trust that network"
        )


def main(argv: list[str]) -> int:
    """Run a broker until SIGTERM or SIGINT; the exit status."""
    arguments = _arguments(argv)
    log = logs.start("broker")
    try:
        flags = {"broker": {"bind": arguments.bind, "ledger": arguments.ledger}}
        settings = config.load(arguments.config, os.environ, flags)
        if arguments.show_config:
            print(config.show(settings))
            return 0
        where = address(settings.broker.bind)
        telemetry = _telemetry(settings.broker.telemetry, where)
        for one in (where, telemetry):
            if one is not None:
                _check_reach(one, arguments.insecure)
        path = (
            Path(settings.broker.ledger).expanduser() if settings.broker.ledger else config.data_path("ledger.sqlite3")
        )
        _serve(settings, where, telemetry, path)
    except DolmetschError as error:
        log.error("%s", error)
        return 1
    log.info("stopped")
    return 0


def _telemetry(wanted: str, broker: str) -> str | None:
    if wanted == "off":
        return None
    return address(wanted) if wanted else telemetry_address(broker)


def _serve(settings: config.Config, where: str, telemetry: str | None, path: Path) -> None:
    log = logs.start("broker")
    # Jobs are many, long-lived and free of cycles: frequent full collections would only walk them.
    gc.set_threshold(50_000, 20, 100)
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    port = RouterPort(context)
    stage = None if telemetry is None else PubPort(context)
    ledger = SqliteLedger(path, settings.scheduler.max_settled)
    try:
        bound = port.bind(where)  # first of all: a second broker must not touch the ledger
        if stage is not None and telemetry is not None:
            stage.bind(telemetry)
        with Signals() as signals:
            broker = Broker(settings, ledger, port, stage)
            broker.recover()
            log.info("listening at %s, ledger %s", bound, path)
            sd_notify("READY=1")
            broker.run(signals)
    finally:
        ledger.close()
        port.close()
        if stage is not None:
            stage.close()
        context.term()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
