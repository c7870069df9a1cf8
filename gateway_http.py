#!/usr/bin/env python3
"""The HTTP gateway: the LibreTranslate API in front of the cluster, and the keys for it.

Bottle answers, waitress serves: its main thread reads requests and writes answers, its other threads each hold one
request and wait for its translation, and one more thread runs the client.
"""

from __future__ import annotations

from dolmetsch.bootstrap import in_venv

in_venv()

import argparse
import ipaddress
import logging
import os
import socket
import sys
import time
from pathlib import Path
from typing import Any, Final

from dolmetsch import __version__, config, logs
from dolmetsch.apikeys import Allowance, Keys
from dolmetsch.detect import Detector
from dolmetsch.errors import ConfigError, DolmetschError, LedgerError
from dolmetsch.httpapi import CORS, Api, error_body
from dolmetsch.httpspec import too_large
from dolmetsch.lifecycle import Signals, sd_notify, watchdog_interval_s
from dolmetsch.serving import Headers, Server, host_and_port, listen
from dolmetsch.threads import BlockingClient
from dolmetsch.transport import broker_of

SPARE_THREADS: Final = 8  # above those that translate: for languages, health, refusals
MAX_HEADER_BYTES: Final = 64 * 2**10  # a form may come in the query
TURN_S: Final = 1.0  # the main loop looks at the signals and the client at least so often

log = logging.getLogger("http")


def _arguments(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="gateway_http.py", description="Serves the LibreTranslate API from a dolmetsch cluster."
    )
    parser.add_argument("--listen", metavar="HOST:PORT", help="listen here (default 127.0.0.1:5050)")
    parser.add_argument("--open", action="store_true", help="listen beyond this computer without asking for keys")
    parser.add_argument("--broker", metavar="ADDRESS", help="the broker (default: the one joined, else one here)")
    parser.add_argument("--config", type=Path, metavar="PATH", help="a TOML file; --show-config prints its keys")
    parser.add_argument("--show-config", action="store_true", help="print the configuration in force, and end")
    parser.add_argument("--version", action="version", version=f"dolmetsch {__version__}")
    commands = parser.add_subparsers(dest="command", metavar="keys")
    keys = commands.add_parser("keys", help="give, show and take back API keys").add_subparsers(
        dest="action", required=True, metavar="add|list|remove"
    )
    add = keys.add_parser("add", help="make a key and print it, this once")
    add.add_argument("name", help="whom it is for")
    add.add_argument("--per-minute", type=_count, default=60, metavar="N", help="requests a minute (60); 0: any")
    add.add_argument("--chars-per-minute", type=_count, default=0, metavar="N", help="characters a minute (0: any)")
    keys.add_parser("list", help="who has one, and how much each may ask for")
    keys.add_parser("remove", help="a key is valid no longer, at once").add_argument("name", help="whose")
    return parser.parse_args(argv)


def _count(text: str) -> int:
    number = int(text)
    if not 0 <= number <= 10**9:
        raise ValueError
    return number


# ---- keys ----


def _keys(settings: config.HttpConfig) -> Keys:
    return Keys(Path(settings.keys).expanduser() if settings.keys else config.data_path("http.sqlite3"))


def _manage_keys(arguments: argparse.Namespace, keys: Keys) -> None:
    if arguments.action == "add":
        print(keys.add(arguments.name, Allowance(arguments.per_minute, arguments.chars_per_minute)))
        print("this is the only time it can be seen; it is valid now", file=sys.stderr)
    elif arguments.action == "remove":
        keys.remove(arguments.name)
    else:
        for holder in keys.all():
            requests, chars = ("any" if number == 0 else str(number) for number in holder.allowance)
            added = time.strftime("%Y-%m-%d", time.localtime(holder.added))
            print(f"{holder.name}: {requests} requests, {chars} characters a minute, since {added}")


# ---- serving ----


def _listen(where: str, settings: config.HttpConfig, opened: bool) -> socket.socket:
    """The listening socket. Beyond loopback anybody could use the cluster, so that takes keys or a clear word."""
    host, _ = host_and_port(where)
    try:
        local = ipaddress.ip_address(host).is_loopback
    except ValueError:
        local = host == "localhost"
    if not (local or opened or settings.require_key):
        raise ConfigError(
            f"{where} is open to the whole network, and no key is needed: set http.require_key, or add --open"
        )
    return listen(where)


def _server(app: Any, listener: socket.socket, settings: config.HttpConfig) -> Server:
    def refuse(code: int, reason: str) -> tuple[Headers, bytes]:
        words = str(too_large(settings.body_bytes)) if code == 413 else reason
        return [*CORS.items(), ("Content-Type", "application/json")], error_body(words)

    return Server(
        app,
        listener,
        refuse,
        threads=settings.concurrent + SPARE_THREADS,
        connection_limit=settings.connections,
        max_request_header_size=MAX_HEADER_BYTES,
        max_request_body_size=settings.body_bytes + 1,
    )


def _run(server: Server, signals: Signals, client: BlockingClient, drain_s: float) -> None:
    def tick() -> bool:
        sd_notify("WATCHDOG=1")
        return client.alive

    server.run(signals, min(TURN_S, watchdog_interval_s() or TURN_S), tick, drain_s)


def _serve(settings: config.Config, opened: bool) -> bool:
    """Serve until a signal; False when the client has broken down."""
    where = settings.http.listen
    keys = _keys(settings.http)

    def holders() -> int:
        try:
            return keys.count()
        except LedgerError:
            return 0  # for the report only; requests say so

    with _listen(where, settings.http, opened) as listener, Signals() as signals:
        # Here and not with the first request: its model takes half a second and 100 MB, and serves all threads.
        detector = Detector()
        broker, credentials = broker_of(settings)
        # The name is this gateway's alone: of two with one name, the broker would give one the other's answers.
        name = f"http-{socket.gethostname()[:64]}-{listener.getsockname()[1]}"
        with BlockingClient(broker, gateway=name, kind="http", keys=credentials, units=holders) as client:
            server = _server(Api(settings.http, client, keys, detector).app, listener, settings.http)
            log.info("listening at http://%s, broker %s", where, broker)
            sd_notify("READY=1")
            _run(server, signals, client, settings.http.drain_s)
            alive = client.alive
        server.close()
    keys.close()
    return alive


def main(argv: list[str]) -> int:
    """Do what the command line says; the exit status."""
    arguments = _arguments(argv)
    logs.start("http")
    try:
        flags = {"http": {"listen": arguments.listen}, "node": {"broker": arguments.broker}}
        settings = config.load(arguments.config, os.environ, flags)
        if arguments.show_config:
            print(config.show(settings))
            return 0
        if arguments.command == "keys":
            _manage_keys(arguments, _keys(settings.http))
            return 0
        if not _serve(settings, arguments.open):
            return 1
    except DolmetschError as error:
        log.error("%s", error)
        return 1
    log.info("stopped")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
