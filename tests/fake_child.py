"""A scripted child for tests of the pool: a real process that speaks the protocol and does what a job says.

Texts: ``crash`` (killed by its own SIGKILL), ``exit:N`` (ends with status N), ``hang``, ``refuse`` (a failure as an
answer), ``garble`` (bytes that are no protocol), ``mangle`` (an answer of wrong types), ``sleep:S``; anything else
comes back in capitals. A batch is ``--batch`` jobs, the urgent first. ``--start`` says how it starts: well, broken,
exit (status 1) or mute (never ready).
"""

from __future__ import annotations

import argparse
import os
import signal
import socket
import sys
import time
from typing import Any

import msgpack


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--start", default="well")
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--silent", action="store_true")
    parser.add_argument("--hung-bulk", action="store_true", help="what is not urgent is begun and never done")
    for name in ("--fd", "--core"):
        parser.add_argument(name, type=int)
    for name in ("--engine", "--config-json", "--routes"):
        parser.add_argument(name)
    parser.add_argument("--packages", nargs="*")
    args = parser.parse_args()
    sock = socket.socket(fileno=args.fd)
    if args.start == "broken":
        say(sock, ["broken", "no package for de→en"])
        sys.exit(3)
    if args.start == "exit":
        sys.exit(1)
    if args.start == "mute":
        time.sleep(60)
    say(sock, ["ready", {"de→en": "fake-1"}])
    serve(sock, args.batch, args.silent, args.hung_bulk)


def say(sock: socket.socket, message: list[Any]) -> None:
    sock.sendall(msgpack.packb(message))


def serve(sock: socket.socket, size: int, silent: bool, hung_bulk: bool) -> None:
    unpacker = msgpack.Unpacker()
    waiting: dict[bytes, list[Any]] = {}
    while True:
        sock.setblocking(not waiting)
        try:
            data = sock.recv(65536)
        except BlockingIOError:
            data = None
        sock.setblocking(True)
        if data == b"":
            return
        unpacker.feed(data or b"")
        for kind, items in unpacker:
            if kind == "jobs":
                waiting.update((job[0], job) for job in items)
            else:
                for key in items:
                    waiting.pop(key, None)
        batch = sorted(waiting.values(), key=lambda job: not job[3])[:size]
        for job in batch:
            del waiting[job[0]]
        if batch:
            if not silent:
                say(sock, ["begin", [job[0] for job in batch]])
            if not hung_bulk or batch[0][3]:
                say(sock, ["done", [[job[0], *translate(sock, job[2][0])] for job in batch]])


def translate(sock: socket.socket, text: str) -> list[Any]:
    order, _, value = text.partition(":")
    if order == "crash":
        os.kill(os.getpid(), signal.SIGKILL)
    elif order == "exit":
        os._exit(int(value))
    elif order == "hang":
        time.sleep(60)
    elif order == "garble":
        sock.sendall(b"\xc1\xc1\xc1")
        time.sleep(60)
    elif order == "mangle":
        return ["texts that are none", 7, {}, None]
    elif order == "refuse":
        return [None, "", "no_route", "no such route"]
    elif order == "sleep":
        time.sleep(float(value))
    return [[text.upper()], "fake-1", "", ""]


if __name__ == "__main__":
    main()
