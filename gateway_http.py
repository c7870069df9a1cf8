#!/usr/bin/env python3
"""The HTTP gateway: the LibreTranslate API in front of the cluster, and the keys for it.

One loop: aiohttp's server, the API and the client are all in it.
"""

from __future__ import annotations

from dolmetsch.bootstrap import in_venv

in_venv()

import argparse
import asyncio
import ipaddress
import logging
import os
import signal
import socket
import sys
import time
from contextlib import closing
from pathlib import Path

from dolmetsch import __version__, config, logs
from dolmetsch.apikeys import Allowance, Keys
from dolmetsch.calls import Calls
from dolmetsch.detect import Detector
from dolmetsch.errors import ConfigError, DolmetschError, LedgerError
from dolmetsch.httpapi import Api
from dolmetsch.httpserver import HttpServer
from dolmetsch.lifecycle import feed_watchdog, sd_notify
from dolmetsch.listening import host_and_port, listen
from dolmetsch.transport import broker_of

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


def _listen(settings: config.HttpConfig, opened: bool) -> socket.socket:
    """The listening socket. Beyond loopback anybody could use the cluster, so that takes keys or a clear word."""
    where = settings.listen
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


class _Stop:
    """Two signals: the first says drain, the second end now. For the loop that runs."""

    def __init__(self) -> None:
        self.drain = asyncio.Event()
        self.now = asyncio.Event()
        for number in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(number, self._handle)

    def _handle(self) -> None:
        (self.now if self.drain.is_set() else self.drain).set()


async def _serve(settings: config.Config, keys: Keys, listener: socket.socket) -> None:
    """Open what a server needs, and run it."""
    stop = _Stop()
    # Here and not with the first request: its model takes half a second and 100 MB.
    detector = Detector()
    broker, credentials = broker_of(settings)
    # The name is this gateway's alone: of two with one name, the broker would give one the other's answers.
    name = f"http-{socket.gethostname()[:64]}-{listener.getsockname()[1]}"

    def holders() -> int:
        try:
            return keys.count()
        except LedgerError:
            return 0  # for the report only; requests say so

    calls = Calls(broker, gateway=name, kind="http", keys=credentials, units=holders)
    with Api(settings.http, calls, keys, detector) as api:
        async with calls:
            server = HttpServer(api.answer, most_bytes=settings.http.body_bytes, connections=settings.http.connections)
            await calls.is_there()  # or the first request would hear that no node is there
            log.info("listening at http://%s, broker %s", settings.http.listen, broker)
            await _run(server, listener, calls, stop, settings.http.drain_s)


async def _run(server: HttpServer, listener: socket.socket, calls: Calls, stop: _Stop, drain_s: float) -> None:
    """Serve until a signal says stop; then answer what was asked, for at most ``drain_s`` seconds.

    A second signal ends that too, and so does a bug in any task.
    """
    sd_notify("READY=1")
    async with asyncio.TaskGroup() as tasks:
        serving = tasks.create_task(server.serve(listener))
        beside = [tasks.create_task(one) for one in (calls.report(), feed_watchdog())]
        await stop.drain.wait()
        serving.cancel()
        await asyncio.wait({serving})
        listener.close()
        log.info("stopping: answering what was asked")
        sd_notify("STOPPING=1")
        last = [tasks.create_task(one) for one in (server.close(), stop.now.wait())]
        await asyncio.wait(last, timeout=drain_s, return_when=asyncio.FIRST_COMPLETED)
        for task in (*beside, *last):
            task.cancel()


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
        with closing(_keys(settings.http)) as keys, _listen(settings.http, arguments.open) as listener:
            asyncio.run(_serve(settings, keys, listener))
    except DolmetschError as error:
        log.error("%s", error)
        return 1
    log.info("stopped")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
