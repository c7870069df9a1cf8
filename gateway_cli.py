#!/usr/bin/env python3
"""The terminal gateway: one text, standard input, or whole files, translated by the cluster."""

from __future__ import annotations

from dolmetsch.bootstrap import in_venv

in_venv()

import argparse
import asyncio
import contextlib
import getpass
import json
import os
import re
import signal
import sys
import uuid
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import IO, Any, Final

from msgspec.structs import asdict

from dolmetsch import __version__, config, logs
from dolmetsch.admission import ROUTE
from dolmetsch.client import INTERACTIVE, Answer, Client
from dolmetsch.errors import DolmetschError, InputError, JobFailed, JobRejected, NoBroker
from dolmetsch.lines import Line, LineRun, Order, Pack, Progress, check_input, file_packs, pipe_packs
from dolmetsch.messages import DRAIN, MAX_TEXT_CHARS, REQUEUE, RESUME, Status
from dolmetsch.transport import Broker, broker_of

CONNECT_S: Final = 5.0  # a broker on the LAN answers in milliseconds
TEXT_DEADLINE_S: Final = 60.0
FILE_DEADLINE_S: Final = 3600.0
LOOK_S: Final = 0.2
NODE_S: Final = 120.0  # for a node to finish what it holds, or to load its models
INTERRUPTED: Final = 130  # what a shell expects after Ctrl-C


def _arguments(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="gateway_cli.py",
        description="Translates a text, standard input or a file, by a dolmetsch cluster.",
        epilog="exit status: 0 all translated, 1 something was not, 2 wrong use, 130 interrupted",
    )
    parser.add_argument("text", nargs="*", help="the text; without it, standard input is translated line by line")
    parser.add_argument("--route", default="de→en", help="languages, for instance de→en or de-en (the default)")
    parser.add_argument("--file", type=Path, metavar="IN", help="translate this file line by line")
    parser.add_argument("--out", type=Path, metavar="OUT", help="write the lines here; run again to go on after Ctrl-C")
    parser.add_argument("--overwrite", action="store_true", help="replace OUT instead of going on with it")
    parser.add_argument("--json", action="store_true", help="print JSON, one object a text or line")
    parser.add_argument("--deadline", type=float, metavar="S", help="seconds a text may take (60; lines of files 3600)")
    parser.add_argument("--broker", metavar="ADDRESS", help="the broker (default: the one joined, else one here)")
    parser.add_argument("--config", type=Path, metavar="PATH", help="a TOML file, as for node.py")
    parser.add_argument("--status", action="store_true", help="show the cluster instead")
    parser.add_argument("--wait", type=float, metavar="S", help="wait up to S seconds until the cluster can translate")
    parser.add_argument("--drain", metavar="NODE", help="give this node no more work, and wait until it holds none")
    parser.add_argument("--resume", metavar="NODE", help="give it work again, and wait until it can translate")
    parser.add_argument("--requeue-dead", action="store_true", help="send all dead letters round again")
    parser.add_argument("--version", action="version", version=f"dolmetsch {__version__}")
    arguments = parser.parse_args(argv)
    if arguments.out and not arguments.file:
        parser.error("--out needs --file")
    if arguments.file and arguments.text:
        parser.error("give a text or --file, not both")
    if arguments.deadline is not None and not 0 < arguments.deadline <= 86_400:
        parser.error("--deadline is from 0 to 86400 seconds")
    return arguments


def _route(text: str) -> str:
    route = re.sub(r"\s*(?:->|→|-|:)\s*", "→", text.strip(), count=1)
    if ROUTE.fullmatch(route) is None:
        raise InputError(f"cannot understand the route {text!r}: it looks like de→en or de-en")
    return route


def _user() -> str:
    try:
        return f"cli:{getpass.getuser()}"
    except (KeyError, OSError):  # a uid without a name
        return f"cli:{os.getuid()}"


async def _one_text(client: Client, arguments: argparse.Namespace) -> int:
    text = " ".join(arguments.text)
    try:
        text.encode()
    except UnicodeEncodeError:
        raise InputError("the text is not UTF-8: set a UTF-8 locale, or give the text by --file") from None
    if not text.strip():
        raise InputError("there is no text to translate")
    if len(text) > MAX_TEXT_CHARS:
        raise InputError(f"the text has {len(text)} characters, more than {MAX_TEXT_CHARS}: put it in a file, by lines")
    deadline_s = arguments.deadline or TEXT_DEADLINE_S
    route = _route(arguments.route)
    answer = await client.translate(text, route, lane=INTERACTIVE, tenant=_user(), deadline_s=deadline_s)
    print(_json_line(route, text, answer) if arguments.json else (answer.texts or ("",))[0])
    return 0


def _json_line(route: str, text: str, answer: Answer | None, error: DolmetschError | None = None) -> str:
    record: dict[str, Any] = {"route": route, "text": text}
    if answer is not None and answer.texts is not None:
        record |= {"translation": answer.texts[0], "model": answer.model, "cached": answer.cached}
        record |= {"attempts": answer.attempts, "took_ms": answer.took_ms}
    elif error is not None:
        record |= {"error": getattr(error, "code", "error"), "detail": str(error)}
    else:
        record |= {"translation": text}
    return json.dumps(record, ensure_ascii=False)


class _Output:
    """Writes lines in order, shows a bar, and remembers what failed."""

    def __init__(self, out: IO[str], route: str, as_json: bool, progress: Progress | None, total: int | None) -> None:
        from tqdm import tqdm  # a tenth of a second that a single text need not wait for

        self._out, self._route, self._json, self._progress = out, route, as_json, progress
        self.failed = list(progress.failed) if progress else []
        start = progress.written if progress else 0
        hidden = not sys.stderr.isatty() or out is sys.stdout
        self._bar = tqdm(total=total, initial=start, unit="line", file=sys.stderr, disable=hidden, mininterval=0.5)

    def write(self, lines: list[Line]) -> None:
        """Append ``lines``; on return they are with the operating system, which a crash of ours does not touch."""
        new = [line for line in lines if line.error is not None]
        for line in new:
            self._bar.write(f"line {line.number}: {line.error}", file=sys.stderr)
        if new:
            self.failed += [line.number for line in new]
            if self._progress is not None:
                self._progress.failed = self.failed
                self._progress.save()
        self._out.writelines(self._format(line) + "\n" for line in lines)
        self._out.flush()
        self._bar.update(len(lines))

    def _format(self, line: Line) -> str:
        if self._json:
            return _json_line(self._route, line.text, line.answer, line.error)
        if line.answer is not None and line.answer.texts is not None:
            return line.answer.texts[0]
        return "" if line.error is not None else line.text

    def close(self) -> None:
        self._bar.close()


async def _many_lines(
    client: Client,
    order: Order,
    output: _Output,
    packs: AsyncIterator[Pack],
    early: dict[bytes, Answer] | None = None,
    after: int = 0,
) -> int:
    try:
        await LineRun(client, order, output.write, {} if early is None else early, after).run(packs)
    finally:
        output.close()
    if output.failed:
        shown = ", ".join(map(str, output.failed[:10])) + (", ..." if len(output.failed) > 10 else "")
        print(f"{_count(len(output.failed), 'line')} not translated: {shown}", file=sys.stderr)
    return 1 if output.failed else 0


async def _standard_input(client: Client, arguments: argparse.Namespace) -> int:
    order = _order(arguments, uuid.uuid4().hex)
    output = _Output(sys.stdout, order.route, arguments.json, None, None)
    return await _many_lines(client, order, output, pipe_packs(sys.stdin.buffer))


def _order(arguments: argparse.Namespace, run_id: str) -> Order:
    deadline_s = arguments.deadline or FILE_DEADLINE_S
    return Order(route=_route(arguments.route), tenant=_user(), deadline_s=deadline_s, run_id=run_id)


async def _file(broker: Broker, arguments: argparse.Namespace) -> int:
    route = _route(arguments.route)
    source, total = check_input(arguments.file, route + ("/json" if arguments.json else ""))
    if arguments.out is None:
        async with _connect(broker, f"cli-{uuid.uuid4().hex[:12]}") as client:
            order = _order(arguments, uuid.uuid4().hex)
            output = _Output(sys.stdout, order.route, arguments.json, None, total)
            return await _many_lines(client, order, output, file_packs(arguments.file, 0))
    if arguments.out.exists() and arguments.out.samefile(arguments.file):
        raise InputError("--out is the input itself: give another file")
    # The run's name is the gateway's: what the cluster finished for a run that was killed waits for the next one.
    async with contextlib.AsyncExitStack() as stack:
        progress, out = Progress.open(arguments.out, source, overwrite=arguments.overwrite)
        stack.enter_context(out)
        early: dict[bytes, Answer] = {}
        gateway = f"cli-{progress.run_id[:12]}"
        client = await stack.enter_async_context(_connect(broker, gateway, lambda one: _keep(early, one)))
        if progress.written:
            print(f"going on behind line {progress.written} of {total}", file=sys.stderr)
        output = _Output(out, route, arguments.json, progress, total)
        packs = file_packs(arguments.file, progress.written)
        order = _order(arguments, progress.run_id)
        status = await _many_lines(client, order, output, packs, early, progress.written)
        progress.close()
        print(f"{total} lines, {arguments.out}", file=sys.stderr)
        return status


def _keep(early: dict[bytes, Answer], answer: Answer) -> None:
    early[answer.job_id] = answer


@contextlib.asynccontextmanager
async def _connect(
    broker: Broker, gateway: str, on_stray: Callable[[Answer], None] | None = None
) -> AsyncIterator[Client]:
    async with Client(broker.where, gateway=gateway, keys=broker.keys, on_stray=on_stray) as client:
        await client.wait_up(CONNECT_S)
        yield client


async def _wait_ready(broker: Broker, within_s: float) -> int:
    loop = asyncio.get_running_loop()
    until = loop.time() + within_s
    async with Client(broker.where, gateway=f"cli-{uuid.uuid4().hex[:12]}", keys=broker.keys) as client:
        while (left_s := until - loop.time()) > 0:
            with contextlib.suppress(NoBroker):
                status = await client.status(left_s)
                if status.routes and any(node.workers for node in status.nodes):
                    print(_ready_line(status), flush=True)
                    return 0
            await asyncio.sleep(LOOK_S)
        refusal = client.refusal
    if client.trouble:
        raise NoBroker(broker.where, within_s, refusal)
    raise InputError(f"no node could translate within {within_s:g} s")


async def _move_node(broker: Broker, arguments: argparse.Namespace) -> int:
    """Drain or resume a node, and wait until that is so."""
    name, action = (arguments.drain, DRAIN) if arguments.drain else (arguments.resume, RESUME)
    within_s = NODE_S if arguments.wait is None else arguments.wait
    loop = asyncio.get_running_loop()
    until = loop.time() + within_s
    async with _connect(broker, f"cli-{uuid.uuid4().hex[:12]}") as client:
        managed = await client.manage(action, node=name)
        if managed.problem:
            raise InputError(managed.problem)
        while (left_s := until - loop.time()) > 0:
            status = await client.status(left_s)
            node = next((one for one in status.nodes if one.name == name), None)
            if node is None:
                raise InputError(f"{name} has left the cluster")
            if node.state == ("draining" if action == DRAIN else "ready") and (
                node.leased == 0 if action == DRAIN else node.workers > 0
            ):
                print(f"{name} {'holds nothing any more' if action == DRAIN else 'takes work again'}")
                return 0
            await asyncio.sleep(LOOK_S)
    raise InputError(f"{name} still {'holds jobs' if action == DRAIN else 'cannot work'} after {within_s:g} s")


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'s' * (number != 1)}"


def _ready_line(status: Status) -> str:
    workers = sum(node.workers for node in status.nodes)
    routes = ", ".join(route.route for route in status.routes)
    count = f"{_count(len(status.nodes), 'node')}, {_count(workers, 'worker')}"
    return f'dolmetsch is ready: {routes}, {count}. Now type: python3 gateway_cli.py "Guten Morgen"'


def _show_status(status: Status, as_json: bool) -> str:
    if as_json:
        record = {name: getattr(status, name) for name in status.__struct_fields__}
        record["nodes"] = [asdict(node) for node in status.nodes]
        record["gateways"] = [asdict(gateway) for gateway in status.gateways]
        record["routes"] = {route.route: route.model for route in status.routes}
        return json.dumps(record, ensure_ascii=False)
    lines = [
        f"routes   {', '.join(f'{route.route} ({route.model})' for route in status.routes) or 'none'}",
        f"queue    {status.queued_interactive} interactive, {status.queued_bulk} bulk, {status.leased} at nodes,"
        f" {status.undelivered} undelivered, {status.dead_letters} dead letters",
        f"so far   {status.done} done ({status.cache_hits} from the cache), {status.failed} failed,"
        f" {status.rejected} rejected, median {status.median_ms:g} ms, up {status.uptime_s:.0f} s",
    ]
    for node in status.nodes:
        heat = "" if node.temperature_c < -273 else f", {node.temperature_c:.0f} °C"
        lines.append(
            f"node     {node.name}: {node.state}, {_count(node.workers, 'worker')}, {node.leased}/{node.capacity} jobs,"
            f" {node.chars_per_s:.0f} characters/s, CPU {node.cpu_percent:.0f} %, RAM {node.ram_percent:.0f} %{heat}"
            f"{', throttled' if node.throttled else ''}, seen {node.seen_s_ago:.1f} s ago"
        )
    for gateway in status.gateways:
        latency = "" if gateway.latency_ms < 0 else f", {gateway.latency_ms:.0f} ms"
        lines.append(
            f"gateway  {gateway.name}: {gateway.state}, {gateway.kind}, {_count(gateway.servers, 'server')}{latency},"
            f" {gateway.queued} queued, {gateway.answered} answered, {gateway.failed} failed,"
            f" {_count(gateway.unanswered, 'job')} unanswered, seen {gateway.seen_s_ago:.1f} s ago"
        )
    return "\n".join(lines)


async def _run(arguments: argparse.Namespace, broker: Broker) -> int:
    if arguments.drain or arguments.resume:
        return await _move_node(broker, arguments)
    if arguments.wait is not None:
        return await _wait_ready(broker, arguments.wait)
    if arguments.file:
        return await _file(broker, arguments)
    async with _connect(broker, f"cli-{uuid.uuid4().hex[:12]}") as client:
        if arguments.status:
            print(_show_status(await client.status(), arguments.json))
            return 0
        if arguments.requeue_dead:
            print(f"{_count((await client.manage(REQUEUE)).count, 'dead letter')} requeued")
            return 0
        if arguments.text:
            return await _one_text(client, arguments)
        return await _standard_input(client, arguments)


async def _interruptible(arguments: argparse.Namespace, broker: Broker) -> int:
    """SIGTERM ends a run like Ctrl-C: what is written stays written."""
    task = asyncio.current_task()
    assert task is not None
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
    return await _run(arguments, broker)


def main(argv: list[str]) -> int:
    """Do what the command line says; the exit status."""
    logs.discreet()
    arguments = _arguments(argv)
    try:
        settings = config.load(arguments.config, os.environ, {"node": {"broker": arguments.broker}})
        status = asyncio.run(_interruptible(arguments, broker_of(settings)))
        sys.stdout.flush()
        return status
    except (KeyboardInterrupt, asyncio.CancelledError):
        again = ": run the same command again to go on" if arguments.out else ""
        print(f"interrupted{again}", file=sys.stderr)
        return INTERRUPTED
    except OSError as error:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or Python complains once more at its end
        if not isinstance(error, BrokenPipeError):  # whoever read our output may have had enough
            print(f"gateway_cli.py: cannot write the output: {error.strerror}", file=sys.stderr)
        return 1
    except DolmetschError as error:
        if arguments.json and isinstance(error, JobRejected | JobFailed):
            print(_json_line(arguments.route, " ".join(arguments.text), None, error))
        print(f"gateway_cli.py: {error}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
