#!/usr/bin/env python3
"""What the HTTP gateway carries: 2 000 real sentences from 32 clients at once, beside the terminal gateway.

    python bench/http.py [--quick] [--cores 0,1] [--libretranslate URL]

One broker, one node with a pinned child a core, one HTTP gateway, real processes and sockets on this computer; the
clients are a process of their own on the same cores. Each client sends its next request when it has its answer: once a
sentence a request, once 16. In turn with them the terminal gateway translates a file of the same sentences; the time
that it takes to start is taken off, so that what is compared is work. A gateway without HTTP that has 32 sentences on
their way shows how much of the difference is not HTTP: children get smaller batches then. The broker's result cache is
off, and so are limits. --cores are the children's; with fewer than all of them the gateways, the broker and the
clients keep to the others, as they do where the nodes are other computers.

With --libretranslate the same clients ask that server instead, and nothing of dolmetsch is started.
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path[0] = str(Path(__file__).resolve().parent.parent)  # not bench/: its http.py would hide Python's own

from dolmetsch.bootstrap import in_venv

in_venv()

import argparse
import asyncio
import contextlib
import json
import os
import statistics
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Final
from urllib.parse import urlsplit

from bench.cluster import Cluster, command, free_port, leave
from bench.load import Load
from bench.report import finish
from bench.throughput import sentences
from dolmetsch.packages import EMBEDDED

CLIENTS: Final = 32
LIST: Final = 16
READY_S: Final = 30.0
ANSWER_S: Final = 120.0


# ---- the clients: a process of their own ----


def requests_of(url: str, texts: list[str], size: int, key: str) -> list[bytes]:
    """The bytes of each request, made beforehand: the clients' own work is not what is measured."""
    parts = urlsplit(url)
    made = []
    for start in range(0, len(texts), size):
        fields: dict[str, object] = {"source": "de", "target": "en"}
        if key:
            fields["api_key"] = key
        fields["q"] = texts[start] if size == 1 else texts[start : start + size]
        body = json.dumps(fields).encode()
        head = (
            f"POST {parts.path.rstrip('/')}/translate HTTP/1.1\r\nHost: {parts.netloc}\r\n"
            f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
        )
        made.append(head.encode() + body)
    return made


async def ask(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, request: bytes, size: int) -> None:
    """One request and its answer, which must hold ``size`` translations."""
    writer.write(request)
    head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").lower()
    length = head.partition("content-length:")[2].partition("\r\n")[0]
    if not head.startswith("http/1.1 200") or not length:
        raise SystemExit(f"not an answer to count: {head.splitlines()[0]}")
    new = json.loads(await reader.readexactly(int(length)))["translatedText"]
    if not new or (size > 1 and (len(new) != size or not all(new))):
        raise SystemExit("a translation is missing")


async def client(url: str, work: Iterator[tuple[bytes, int]], took_ms: list[float]) -> None:
    """One client with one connection, as long as there is work."""
    parts = urlsplit(url)
    port = parts.port or (443 if parts.scheme == "https" else 80)
    reader, writer = await asyncio.open_connection(parts.hostname, port, ssl=parts.scheme == "https" or None)
    for request, size in work:
        started = time.perf_counter()
        await asyncio.wait_for(ask(reader, writer, request, size), ANSWER_S)
        took_ms.append((time.perf_counter() - started) * 1000)
    writer.close()


async def load(url: str, size: int, key: str) -> None:
    """All sentences by CLIENTS clients; prints sentences a second and the times of requests."""
    texts = sentences()
    made = requests_of(url, texts, size, key)
    work = iter([(request, min(size, len(texts) - size * number)) for number, request in enumerate(made)])
    took_ms: list[float] = []
    started = time.perf_counter()
    await asyncio.gather(*(client(url, work, took_ms) for _ in range(CLIENTS)))
    seconds = time.perf_counter() - started
    cuts = statistics.quantiles(took_ms, n=100)
    print(json.dumps({"per_s": len(texts) / seconds, "p50_ms": cuts[49], "p95_ms": cuts[94]}))


def measure(url: str, size: int, key: str) -> dict[str, float]:
    """Have a process of clients do it."""
    ended = subprocess.run(
        [sys.executable, __file__, "--load", url, "--size", str(size), "--key", key],
        capture_output=True, text=True, timeout=600, check=False,
    )  # fmt: skip
    if ended.returncode:
        raise SystemExit(f"the clients failed: {ended.stderr.strip().splitlines()[-1:]}")
    figures: dict[str, float] = json.loads(ended.stdout)
    return figures


# ---- the gateways ----


def start_gateway(cluster: Cluster) -> str:
    """The HTTP gateway, ready to translate; its URL."""
    port = free_port()
    for name in ("PER_MINUTE", "CHARS_PER_MINUTE"):
        cluster.environment[f"DOLMETSCH_HTTP_{name}"] = "0"
    cluster.start("http", "gateway_http.py", "--broker", cluster.address, "--listen", f"127.0.0.1:{port}")
    url = f"http://127.0.0.1:{port}"
    until = time.monotonic() + READY_S
    while time.monotonic() < until:
        with contextlib.suppress(OSError, urllib.error.HTTPError), urllib.request.urlopen(f"{url}/health", timeout=5):
            return url
        time.sleep(0.05)
    raise SystemExit(f"the HTTP gateway is not ready after {READY_S:g} s:\n{cluster.log('http')[-2000:]}")


def terminal(cluster: Cluster, lines: int) -> float:
    """Seconds in which the terminal gateway translates a file of so many lines."""
    source = cluster.folder / "in.txt"
    texts = sentences()
    source.write_text("".join(f"{texts[number % len(texts)]}\n" for number in range(lines)), encoding="utf-8")
    started = time.perf_counter()
    ended = command("gateway_cli.py", "--broker", cluster.address, "--file", str(source), cluster=cluster)
    seconds = time.perf_counter() - started
    if ended.returncode or len(ended.stdout.splitlines()) != lines:
        raise SystemExit(f"the terminal gateway failed: {ended.stderr.strip()}")
    return seconds


@dataclass
class Figures:
    """Of each round: what the clients measured, and sentences a second without HTTP."""

    singles: list[dict[str, float]] = field(default_factory=list)
    lists: list[dict[str, float]] = field(default_factory=list)
    terminals: list[float] = field(default_factory=list)
    directs: list[float] = field(default_factory=list)

    def ask(self, url: str, key: str) -> None:
        """Both loads, in turn."""
        self.singles.append(measure(url, 1, key))
        self.lists.append(measure(url, LIST, key))


def direct(cluster: Cluster) -> float:
    """Sentences a second with as many on their way as there are clients, and no HTTP."""
    texts = sentences()
    with Load(cluster.address, window=CLIENTS) as load:
        return len(texts) / load.until_answered(load.jobs(texts))


def whole_cluster(quick: bool, cores: list[int]) -> Figures:
    """A cluster on this computer: its HTTP gateway, its terminal gateway, and neither."""
    rounds, lines = (3, 2000) if quick else (7, 8000)
    figures = Figures()
    with Cluster() as cluster:
        cluster.environment["DOLMETSCH_SCHEDULER_CACHE_BYTES"] = "0"
        count = str(len(cores))
        cluster.node(
            "node", "--cores", ",".join(map(str, cores)), "--min-workers", count, "--max-workers", count,
            "--packages", str(EMBEDDED),
        )  # fmt: skip
        leave(cores)
        cluster.broker()
        cluster.wait_ready(1, len(cores))
        url = start_gateway(cluster)
        Figures().ask(url, "")  # warm
        start_s = min(terminal(cluster, 1) for _ in range(2))
        for _ in range(rounds):
            figures.terminals.append(lines / (terminal(cluster, lines) - start_s))
            figures.ask(url, "")
            figures.directs.append(direct(cluster))
        cluster.end("http")
    return figures


def row(what: str, rounds: list[dict[str, float]]) -> tuple[str, str, str, str]:
    p50, p95 = (statistics.median(one[name] for one in rounds) for name in ("p50_ms", "p95_ms"))
    return rate(what, [one["per_s"] for one in rounds], f"{p50:.0f} / {p95:.0f}")


def rate(what: str, rates: list[float], times: str = "") -> tuple[str, str, str, str]:
    return what, f"{statistics.median(rates):.0f}", times, " ".join(f"{one:.0f}" for one in rates)


def main() -> None:
    """Run it and print it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="under 40 seconds")
    parser.add_argument("--cores", default=",".join(map(str, sorted(os.sched_getaffinity(0)))), help="for example 0,1")
    parser.add_argument("--libretranslate", metavar="URL", help="measure this server instead")
    parser.add_argument("--key", default="", help="its API key")
    parser.add_argument("--load", metavar="URL", help=argparse.SUPPRESS)
    parser.add_argument("--size", type=int, default=1, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.load:
        asyncio.run(load(arguments.load, arguments.size, arguments.key))
        return
    if arguments.libretranslate:
        found = Figures()
        for _ in range(1 if arguments.quick else 3):
            found.ask(arguments.libretranslate, arguments.key)
    else:
        found = whole_cluster(arguments.quick, [int(core) for core in arguments.cores.split(",")])
    rows = [
        ("what", "sentences/s", "ms a request, p50 / p95", "rounds"),
        row("HTTP, one sentence a request", found.singles),
        row(f"HTTP, {LIST} sentences a request", found.lists),
    ]
    figures: dict[str, object] = {
        "http_per_s": round(statistics.median(one["per_s"] for one in found.singles), 1),
        "http_list_per_s": round(statistics.median(one["per_s"] for one in found.lists), 1),
    }
    if found.terminals:
        single, many = (
            statistics.median(one["per_s"] / alone for one, alone in zip(some, found.terminals, strict=True))
            for some in (found.singles, found.lists)
        )
        rows += [
            rate(f"no HTTP, {CLIENTS} sentences on their way", found.directs),
            rate("the terminal gateway, a file", found.terminals),
            ("HTTP to terminal, one a request, target 0.85", f"{single:.3f}", "", ""),
            (f"HTTP to terminal, {LIST} a request, target 0.85", f"{many:.3f}", "", ""),
        ]
        figures |= {
            "direct_per_s": round(statistics.median(found.directs), 1),
            "terminal_per_s": round(statistics.median(found.terminals), 1),
            "ratio_to_terminal": round(single, 3),
            "list_ratio_to_terminal": round(many, 3),
        }
    where = arguments.libretranslate or f"a cluster on this computer, children on cores {arguments.cores}"
    finish(
        f"http: {len(sentences())} sentences, {CLIENTS} clients, {where}", rows, figures | {"quick": arguments.quick}
    )


if __name__ == "__main__":
    main()
