"""The program: ``python -m dashboard`` serves http://127.0.0.1:5000/dashboard.

DASHBOARD_TOKEN, in the environment or in the file .env, is what actions need; without it they are allowed on this
computer only.
"""

# ruff: noqa: E402  # in_venv() comes before the imports that need it
from __future__ import annotations

from dolmetsch.bootstrap import in_venv

in_venv()

import argparse
import logging
import socket
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from dashboard import guard, server
from dashboard.app import Dashboard, Parts
from dashboard.collector import Collector
from dashboard.history import History
from dashboard.operator import Operator
from dashboard.serving import Server
from dolmetsch import __version__, config, logs
from dolmetsch.errors import DolmetschError
from dolmetsch.lifecycle import Signals, sd_notify, watchdog_interval_s
from dolmetsch.listening import listen
from dolmetsch.transport import address, broker_of, telemetry_address

HOUSE: Final = Path(__file__).resolve().parent.parent
TURN_S: Final = 1.0  # the main loop looks at the collector at least so often

log = logging.getLogger("dashboard")


def _arguments(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m dashboard", description="Shows the cluster, now and over a day.")
    parser.add_argument("--listen", metavar="HOST:PORT", help="listen here (default 127.0.0.1:5000)")
    parser.add_argument("--broker", metavar="ADDRESS", help="the broker (default: the one joined, else one here)")
    parser.add_argument("--telemetry", metavar="ADDRESS", help="where it publishes (default: one port above)")
    parser.add_argument("--history", metavar="PATH", help="file that keeps the last day")
    parser.add_argument("--config", metavar="PATH", type=Path, help="a TOML file; --show-config prints its keys")
    parser.add_argument("--env", metavar="PATH", type=Path, default=HOUSE / ".env", help="where the token is (.env)")
    parser.add_argument("--show-config", action="store_true", help="print the configuration in force, and end")
    parser.add_argument("--version", action="version", version=f"dolmetsch {__version__}")
    return parser.parse_args(argv)


def _serve(settings: config.Config, token: str) -> bool:
    """Serve until a signal; False when the dashboard has gone blind."""
    broker, keys = broker_of(settings)
    where = address(settings.dashboard.telemetry) if settings.dashboard.telemetry else telemetry_address(broker)
    hosts = guard.names(settings.dashboard.hosts)
    path = settings.dashboard.history
    with listen(settings.dashboard.listen) as listener, Signals() as signals:
        door = guard.Guard(listener.getsockname()[0], hosts, token)
        history = History(Path(path).expanduser() if path else config.data_path("history.sqlite3"))
        history.open()
        collector, operator = Collector(where, broker, history, keys), Operator(broker, keys)
        parts = Parts(
            collector=collector,
            history=history,
            operator=operator,
            guard=door,
            broker=broker,
            started=time.monotonic(),
        )
        http = server.make(Dashboard(parts).wsgi, listener)
        try:
            collector.start()
            history.start()
            log.info("%s", _url(listener))
            log.info("%s", _actions(door))
            sd_notify("READY=1")
            return _run(http, signals, collector)
        finally:
            http.close()
            operator.close()
            collector.close()
            history.close()


def _run(http: Server, signals: Signals, collector: Collector) -> bool:
    """Serve until a signal; whether the collector was there to the end."""

    def tick() -> bool:
        if collector.well:
            sd_notify("WATCHDOG=1")
        return collector.alive

    http.run(signals, min(TURN_S, watchdog_interval_s() or TURN_S), tick, server.DRAIN_S)
    if not collector.alive:
        log.error("the collector has ended by itself")
    return collector.alive


def _url(listener: socket.socket) -> str:
    """Where a browser finds it."""
    host, port = listener.getsockname()[:2]
    if host in ("0.0.0.0", "::"):  # nosec  # compared, not bound
        host = socket.gethostname()
    return f"http://{f'[{host}]' if ':' in host else host}:{port}/dashboard"


def _actions(door: guard.Guard) -> str:
    """Who may do more than look."""
    if door.token:
        return "actions need the token"
    if door.local:
        return "actions are open to this computer; set DASHBOARD_TOKEN before you put a proxy or a tunnel in front"
    return "actions are off: there is no DASHBOARD_TOKEN"


def main(argv: list[str]) -> int:
    """Run the dashboard until SIGTERM or SIGINT; the exit status."""
    arguments = _arguments(argv)
    logs.start("dashboard")
    try:
        values = config.environment(arguments.env)
        settings = config.load(arguments.config, values, _flags(arguments))
        if arguments.show_config:
            print(config.show(settings))
            return 0
        if not _serve(settings, guard.check_token(values.get("DASHBOARD_TOKEN", ""))):
            return 1
    except DolmetschError as error:
        log.error("%s", error)
        return 1
    log.info("stopped")
    return 0


def _flags(arguments: argparse.Namespace) -> Mapping[str, Mapping[str, str | None]]:
    ours = {name: getattr(arguments, name) for name in ("listen", "telemetry", "history")}
    return {"node": {"broker": arguments.broker}, "dashboard": ours}


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
