"""The client for threads, through real sockets: what the loop does for them, and its end."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from bench.cluster import Cluster, free_port
from dolmetsch.client import Client
from dolmetsch.errors import JobFailed, NoBroker, TransportError
from dolmetsch.threads import BlockingClient
from tests.conftest import wait_until

ROUTE = "de→en"


@pytest.fixture
def client(tmp_path: Path) -> Iterator[BlockingClient]:
    with Cluster(tmp_path) as cluster:
        cluster.broker()
        cluster.node("one", "--engine", "echo", "--max-workers", "1")
        cluster.wait_ready(1, 1)
        with BlockingClient(cluster.address, gateway="threads", kind="dashboard") as made:
            yield made


def test_anything_that_the_client_can_do_is_called_from_threads(client: BlockingClient) -> None:
    def ask(number: int) -> bool:
        return client.call(lambda one: one.translate(str(number), ROUTE), 20.0).texts == (str(number),)

    with ThreadPoolExecutor(16) as pool:
        assert all(pool.map(ask, range(100)))
    with pytest.raises(NoBroker):
        client.call(lambda one: asyncio.sleep(30), 0.05)
    status = client.call(lambda one: one.status(5.0), 6.0)
    assert [node.name for node in status.nodes] == ["one"], "it goes on"

    def told() -> bool:
        return [one.kind for one in client.call(lambda one: one.status(5.0), 6.0).gateways] == ["dashboard"]

    wait_until(told, 5, "the broker knows of it")
    assert client.alive


def test_the_end_ends_whoever_waits() -> None:
    started = threading.Event()

    async def wait(_: object) -> None:
        started.set()
        await asyncio.sleep(30)

    with (
        BlockingClient(f"tcp://127.0.0.1:{free_port()}", gateway="t", kind="dashboard") as client,
        ThreadPoolExecutor(1) as pool,
    ):
        asked = pool.submit(client.call, wait, 30.0)
        assert started.wait(5)
        client.__exit__(None, None, None)
        with pytest.raises(JobFailed):
            asked.result(5)
        assert not client.alive
        with pytest.raises(JobFailed):
            client.call(wait, 5.0)
    assert "client" not in {thread.name for thread in threading.enumerate()}


def test_an_address_that_is_none() -> None:
    with pytest.raises(TransportError):
        BlockingClient("tcp://nowhere at all", gateway="t", kind="dashboard")


def test_no_turn_of_the_loop_comes_after_the_close() -> None:
    """A turn that was asked for, and came early because the socket called for it, comes no second time."""
    complaints: list[str] = []

    async def scene() -> None:
        loop = asyncio.get_running_loop()
        loop.set_exception_handler(lambda _, context: complaints.append(str(context)))
        async with Client(f"tcp://127.0.0.1:{free_port()}", gateway="t") as client:
            client._pump()
        await asyncio.sleep(0)

    asyncio.run(scene())
    assert complaints == []
