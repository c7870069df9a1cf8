"""Browsers that poll the dashboard, and callers of the HTTP gateway, some of which hang up: a process of their own."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import random
import signal
import subprocess
import sys
from collections.abc import Iterator
from typing import Final

from bench.cluster import HOUSE

BROWSERS: Final = 8
CALLERS: Final = 4
ANSWER_S: Final = 30.0


async def _browser(port: int, over: asyncio.Event, seen: dict[str, int]) -> None:
    """Looks at the dashboard once a second, each time over a new connection."""
    while not over.is_set():
        well = await _asks(port, b"GET /api/cluster HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n")
        seen["polls"] += well
        seen["blind"] += not well
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(over.wait(), 1.0)


async def _caller(port: int, over: asyncio.Event, seen: dict[str, int], rng: random.Random) -> None:
    """Has texts translated; one in five hangs up with its request half said, or before the answer."""
    for number in itertools.count():
        if over.is_set():
            return
        body = json.dumps({"q": f"Hallo {number}", "source": "de", "target": "en"}).encode()
        head = (
            "POST /translate HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Type: application/json\r\n"
            f"Content-Length: {len(body)}\r\n\r\n"
        )
        cut = rng.choice((None, None, None, None, rng.randrange(len(head) + len(body) + 1)))
        seen["asked"] += 1
        well = await _asks(port, head.encode() + body, cut)
        seen["answered" if cut is None else "hung_up"] += well
        await asyncio.sleep(0.05)


async def _asks(port: int, request: bytes, cut: int | None = None) -> bool:
    """One request; with ``cut`` only so many bytes of it, and then the connection is gone."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        writer.write(request[:cut])
        if cut is not None:
            writer.transport.abort()
            return True
        answer = await asyncio.wait_for(reader.read(), ANSWER_S)
        return answer.startswith(b"HTTP/1.1 200")
    finally:
        writer.close()


async def visit(dashboard: int, http: int) -> None:
    """All visitors, until SIGTERM; prints what they saw."""
    over = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, over.set)
    seen = dict.fromkeys(("polls", "blind", "asked", "answered", "hung_up"), 0)
    browsers = [_browser(dashboard, over, seen) for _ in range(BROWSERS)]
    callers = [_caller(http, over, seen, random.Random(number)) for number in range(CALLERS)]
    await asyncio.gather(*browsers, *callers)
    print(json.dumps(seen))


@contextlib.contextmanager
def visitors(ports: dict[str, int]) -> Iterator[dict[str, int]]:
    """Visitors meanwhile; afterwards the dictionary says what they saw."""
    seen: dict[str, int] = {}
    arguments = [sys.executable, "-m", "bench.visitors", str(ports["dashboard"]), str(ports["http"])]
    with subprocess.Popen(arguments, cwd=HOUSE, stdout=subprocess.PIPE) as process:
        try:
            yield seen
        finally:
            process.terminate()
            printed, _ = process.communicate(timeout=2 * ANSWER_S)
    if process.returncode:
        raise SystemExit("the visitors failed")
    seen.update(json.loads(printed))


if __name__ == "__main__":
    asyncio.run(visit(int(sys.argv[1]), int(sys.argv[2])))
