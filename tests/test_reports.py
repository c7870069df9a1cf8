"""What a gateway reports, and what it is told of routes, through real sockets: the client, the broker, ``--status``."""

from __future__ import annotations

import asyncio
import json
import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import zmq
from msgspec.structs import astuple

from bench.cluster import Cluster, command
from dolmetsch.client import Client
from dolmetsch.messages import Goodbye, Message, Register, Welcome
from dolmetsch.reports import NO_LATENCY_MS, GatewayStatus, Route
from dolmetsch.wire import decode, encode

NEW = "fr→en"


@contextmanager
def peer(cluster: Cluster) -> Iterator[zmq.Socket[bytes]]:
    """A bare socket, to speak to the broker as whoever we like."""
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    socket = context.socket(zmq.DEALER)
    try:
        socket.connect(cluster.address)
        yield socket
    finally:
        socket.close(0)
        context.term()


def say(socket: zmq.Socket[bytes], message: Message) -> None:
    socket.send_multipart(encode(message))


async def until(true: Callable[[], bool], within_s: float, what: str) -> None:
    end = time.monotonic() + within_s
    while not true():
        assert time.monotonic() < end, f"not within {within_s:g} s: {what}"
        await asyncio.sleep(0.02)


async def the_gateways(client: Client) -> tuple[GatewayStatus, ...]:
    return (await client.status()).gateways


def test_what_a_gateway_reports_is_in_the_status_and_on_the_terminal(echo: Cluster) -> None:
    async def run() -> None:
        async with Client(echo.address, gateway="ours") as client:
            await client.wait_up(5.0)
            assert await the_gateways(client) == ()
            client.report(kind="discord", servers=2, latency_ms=48.5, queued=1, answered=20, failed=3)
            (first,) = await the_gateways(client)
            assert astuple(first)[:-1] == ("ours", "up", "discord", 2, 48.5, 1, 20, 3, 0)
            assert 0 <= first.seen_s_ago < 2.0
            shown = await asyncio.to_thread(status_of, echo)
            words = "ours: up, discord, 2 servers, 48 ms, 1 queued, 20 answered, 3 failed, 0 jobs unanswered, seen"
            assert f"\ngateway  {words}" in shown
            record = json.loads(await asyncio.to_thread(status_of, echo, "--json"))
            assert [(one["name"], one["servers"]) for one in record["gateways"]] == [("ours", 2)]
            client.report(kind="discord", servers=2, latency_ms=math.nan, queued=0, answered=21, failed=3)
            (second,) = await the_gateways(client)
            assert (second.latency_ms, second.queued, second.answered) == (NO_LATENCY_MS, 0, 21)

    asyncio.run(run())
    assert echo.status().bad_frames == 0


def status_of(cluster: Cluster, *more: str) -> str:
    ended = command("gateway_cli.py", "--broker", cluster.address, "--status", *more, cluster=cluster)
    assert ended.returncode == 0
    return ended.stdout


def test_a_report_without_a_broker_is_no_trouble_and_the_next_one_arrives(cluster: Cluster) -> None:
    async def run() -> None:
        async with Client(cluster.address, gateway="ours") as client:
            client.report(kind="cli", servers=0, latency_ms=None, queued=0, answered=0, failed=0)
            cluster.broker()
            await client.wait_up(20.0)
            assert await the_gateways(client) == (), "the old one was not kept"
            client.report(kind="cli", servers=0, latency_ms=None, queued=0, answered=1, failed=0)
            (shown,) = await the_gateways(client)
            assert (shown.kind, shown.latency_ms, shown.answered) == ("cli", NO_LATENCY_MS, 1)

    asyncio.run(run())


def test_a_client_that_stays_follows_the_routes(echo: Cluster) -> None:
    async def run() -> None:
        def routes() -> set[str]:
            return {route.route for route in client.routes}

        async with Client(echo.address, gateway="ours") as client:
            await client.wait_up(5.0)
            assert routes() == {"de→en"}
            with peer(echo) as node:
                offered = (Route("de→en", "m"), Route(NEW, "m"))
                say(node, Register(node="new", incarnation="1", routes=offered, capacity=0, engine="echo", held=()))
                assert node.poll(5000)
                assert isinstance(decode(node.recv_multipart()), Welcome)
                await until(lambda: routes() == {"de→en", NEW}, 3.0, "a new route is known")
                say(node, Goodbye())
                await until(lambda: routes() == {"de→en"}, 3.0, "the last node of a route has left")
            await asyncio.to_thread(echo.kill, "one")
            await until(lambda: routes() == set(), 8.0, "the last node was lost")
            assert client.trouble == "", "it was connected all the time"

    asyncio.run(run())
