"""Bytes between a node and its child, both ways. Only ``RemoteError`` leaves either side. A child answers each job that
it took once, whatever else came; a node takes answers only for jobs that it gave, each once, with texts for all of its.

The first byte says which way, and where the stream is cut in two.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import select
import socket
import subprocess
import sys
from typing import Any, Final

import msgpack

from dolmetsch.child import Child, PoolJob, PoolOutcome
from dolmetsch.engine import EchoEngine
from dolmetsch.errors import RemoteError
from dolmetsch.worker import Worker

MOST_BYTES: Final = 4096
TOKENS: Final = (
    b"\x92\xa4jobs\x91", b"\x92\xa4drop\x91", b"\x92\xa4done\x91", b"\x92\xa5begin\x91", b"\x92\xa5ready\x81",
    b"\x92\xa6broken\xa1x", b"\xc4\x01a", b"\xc4\x01b", b"\xa7de\xe2\x86\x92en", b"\xc0", b"\xc2", b"\xc3", b"\x90",
    b"\x91\xa1x", b"\x95", b"\x96", b"\xdc\xff\xff", b"\xdd\x00\xff\xff\xff", b"\xc7\x00\x01", b"\xc1", b"\xcb\x7f\xf8",
)  # fmt: skip
TO_CHILD: Final = 1  # in the first byte; the other bits are the cut
ROUTE: Final = "de→en"
KEYS: Final = (b"a", b"b", b"c")

logging.getLogger("dolmetsch.engine").setLevel(logging.WARNING)  # each engine says that it is the echo


@functools.cache
def _process() -> subprocess.Popen[bytes]:
    """What the parent believes to be its child: a process that has ended."""
    process = subprocess.Popen([sys.executable, "-S", "-c", ""])
    process.wait(30)
    return process


def seeds() -> list[bytes]:
    """What a node says, and what a child says."""
    jobs = [[key, ROUTE, ["Guten Morgen", ""], number == 0, number == 1, number] for number, key in enumerate(KEYS)]
    down: list[list[Any]] = [["jobs", jobs], ["drop", [b"b", b"z"]], ["jobs", jobs[:1]]]
    up: list[list[Any]] = [
        ["ready", {ROUTE: "m"}],
        ["begin", [b"a", b"b"]],
        ["done", [[b"a", ["x", "y"], "m", "", ""], [b"b", None, "", "engine_error", "it broke"]]],
        ["done", [[b"c", ["x", "y"] * 3, "m", "", ""]]],
        ["broken", "nothing to translate with"],
    ]
    ways = ((TO_CHILD, down), (0, up))
    whole = [bytes((way,)) + b"".join(map(msgpack.packb, said)) for way, said in ways]
    return whole + [bytes((way | 20,)) + msgpack.packb(one) for way, said in ways for one in said]


def check(data: bytes) -> None:
    if not data:
        return
    cut = 1 + (data[0] >> 1)
    parts = [part for part in (data[1:cut], data[cut:]) if part]
    (_to_child if data[0] & TO_CHILD else _to_parent)(parts)


def _to_child(parts: list[bytes]) -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs, contextlib.suppress(RemoteError):
        worker = Worker(theirs, EchoEngine([ROUTE]))
        try:
            for part in parts:
                worker._feed(part)
        finally:
            begun = answered = 0
            for kind, what in _worked(worker, ours):
                begun += len(what) if kind == "begin" else 0
                answered += len(what) if kind == "done" else 0
            assert begun == answered


def _worked(worker: Worker, parent: socket.socket) -> list[list[Any]]:
    """All that the child says until it has no work left."""
    unpacker = msgpack.Unpacker(raw=False)
    while worker._engine.pending:
        worker._work()
        while select.select([parent], [], [], 0)[0]:
            unpacker.feed(parent.recv(1 << 18))
    return list(unpacker)


def _to_parent(parts: list[bytes]) -> None:
    ours, theirs = socket.socketpair()
    outcomes: list[PoolOutcome] = []
    with ours, theirs:
        ours.setblocking(False)
        child = Child(_process(), ours, 0, 0.0)
        jobs = [PoolJob(key, ROUTE, ("x", "y"), 2, False, False, alternatives=n) for n, key in enumerate(KEYS)]
        for job in jobs:
            child.hold(job, 0.0)
        child.give(jobs)
        for part in parts:
            theirs.sendall(part)
            try:
                child.receive(1.0, outcomes)
            except RemoteError as error:
                assert str(error).isprintable()  # it gets into logs
                break
        answered = [one.key for one in outcomes]
        assert len(set(answered)) == len(answered) and set(answered) <= set(KEYS)
        assert {*answered, *child.hand} == set(KEYS)
        assert child.hand_chars == sum(job.chars for job in child.hand.values())
        for one in outcomes:
            assert {type(said) for said in (one.model, one.code, one.detail)} == {str}
            if one.texts is not None:
                assert len(one.texts) == 2 * (1 + KEYS.index(one.key)) and {*map(type, one.texts)} == {str}
