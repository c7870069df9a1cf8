"""The client for threads, through real sockets: many at once, a broker that comes and goes, calls that are given up."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import zmq

from bench.cluster import Cluster, free_port
from dolmetsch import threads
from dolmetsch.client import Client, _within
from dolmetsch.errors import JobFailed, JobRejected, NoBroker, TransportError
from dolmetsch.keys import Credentials, KeyPair
from dolmetsch.messages import INTERACTIVE
from dolmetsch.threads import BlockingClient, Work
from tests.conftest import wait_until

ROUTE = "de→en"


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """One echo cluster for all tests here."""
    with Cluster(tmp_path_factory.mktemp("threads")) as made:
        made.broker()
        made.node("one", "--engine", "echo", "--max-workers", "1")
        made.wait_ready(1, 1)
        yield made


@pytest.fixture
def client(cluster: Cluster) -> Iterator[BlockingClient]:
    with BlockingClient(cluster.address, gateway="threads", kind="http", units=lambda: 3) as made:
        wait_until(lambda: bool(made.routes), 5, "welcomed")
        yield made


def test_many_threads_each_get_their_own_answers_in_order(client: BlockingClient) -> None:
    def ask(number: int) -> bool:
        texts = [f"{number}.{part}" for part in range(20)]
        answers = client.translate(
            [Work(ROUTE, (text,), "t") for text in texts], deadline_s=20.0, since=time.monotonic()
        )
        return [answer.texts for answer in answers] == [(text,) for text in texts]

    with ThreadPoolExecutor(32) as pool:
        assert all(pool.map(ask, range(100)))
    assert client.trouble == ""
    assert {route.route for route in client.routes} == {ROUTE}
    assert client.alive


def test_anything_that_the_client_can_do_is_called_from_a_thread(client: BlockingClient) -> None:
    status = client.call(lambda one: one.status(5.0), 6.0)
    assert [node.name for node in status.nodes] == ["one"]
    with pytest.raises(NoBroker):
        client.call(lambda one: asyncio.sleep(30), 0.05)
    assert client.translate([Work(ROUTE, ("a",))], deadline_s=5.0)[0].texts == ("a",), "it goes on"


def test_alternatives_lanes_and_nothing_to_do(client: BlockingClient) -> None:
    (answer,) = client.translate([Work(ROUTE, ("a", "b"), alternatives=2, lane=INTERACTIVE)], deadline_s=5.0)
    assert answer.texts == ("a", "b") * 3
    assert client.translate([], deadline_s=5.0) == []


def test_the_broker_is_told_how_the_gateway_is(client: BlockingClient, cluster: Cluster) -> None:
    client.translate([Work(ROUTE, ("a",)), Work(ROUTE, ("b",))], deadline_s=5.0)
    with pytest.raises(JobRejected):
        client.translate([Work("xx→yy", ("a",))], deadline_s=5.0)

    def told() -> bool:
        return [one[:-2] for one in cluster.status().gateways if one.name == "threads" and one.answered] == [
            ("threads", "up", "http", 3, -1.0, 0, 1, 1)
        ]

    wait_until(told, 5, "one call was answered, one was not")


def test_the_first_failure_ends_the_call_and_the_rest_is_cancelled(client: BlockingClient, cluster: Cluster) -> None:
    works = [Work(ROUTE, ("a",)), Work(ROUTE, ("\ud800",)), Work("xx→yy", ("b",))]
    with pytest.raises(JobRejected) as caught:
        client.translate(works, deadline_s=5.0)
    assert caught.value.code in ("bad_text", "unknown_route")
    wait_until(lambda: not any(one.unanswered for one in cluster.status().gateways), 5, "nothing is left over")


def test_an_address_that_is_none() -> None:
    with pytest.raises(TransportError):
        BlockingClient("tcp://nowhere at all", gateway="t", kind="http")


def test_an_address_that_is_none_leaves_no_context_behind() -> None:
    pair = KeyPair(*zmq.curve_keypair())
    client = Client("tcp://nowhere at all", gateway="t", keys=Credentials(pair, pair.public))

    async def enter() -> None:
        async with client:
            pass

    with pytest.raises(TransportError):
        asyncio.run(enter())
    assert client._context.closed


def test_a_cancellation_is_never_taken_for_an_answer() -> None:
    """asyncio.wait_for of Python 3.11 swallows one that comes together with the result."""

    async def ask() -> None:
        future: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        asking = asyncio.create_task(_within(future, 5.0, ""))
        await asyncio.sleep(0)
        future.set_result(1)
        asking.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asking

    asyncio.run(ask())


def test_a_broker_that_comes_later_answers_what_was_asked_before(tmp_path: Path) -> None:
    with Cluster(tmp_path) as later, BlockingClient(later.address, gateway="early", kind="http") as client:
        assert client.trouble
        with ThreadPoolExecutor(1) as pool:
            asked = pool.submit(client.translate, [Work(ROUTE, ("früh",))], deadline_s=30.0)
            later.broker()
            later.node("one", "--engine", "echo", "--max-workers", "1")
            (answer,) = asked.result(30)
            assert answer.texts == ("früh",)
        wait_until(lambda: client.trouble == "", 5, "no trouble any more")
        # Without a node a job waits for its deadline, and no longer.
        later.kill("one")
        with pytest.raises(JobFailed) as caught:
            client.translate([Work(ROUTE, ("spät",))], deadline_s=1.0)
        assert caught.value.code == "deadline"
        wait_until(lambda: later.status().queued_bulk == 0, 5, "it was cancelled")
        # Closing ends whoever still waits.
        with ThreadPoolExecutor(1) as pool:
            asked = pool.submit(client.translate, [Work(ROUTE, ("nie",))], deadline_s=30.0)
            wait_until(lambda: later.status().queued_bulk == 1, 5, "it waits")
            client.__exit__(None, None, None)
            with pytest.raises(JobFailed) as caught:
                asked.result(5)
            assert caught.value.code == "draining"
        assert not client.alive
        with pytest.raises(JobFailed):
            client.translate([Work(ROUTE, ("danach",))], deadline_s=5.0)


def test_without_a_broker_calls_wait_for_it_and_later_do_not(monkeypatch: pytest.MonkeyPatch) -> None:
    where = f"tcp://127.0.0.1:{free_port()}"
    monkeypatch.setattr(threads, "PATIENCE_S", 0.5)
    with BlockingClient(where, gateway="t", kind="http") as client:
        started = time.monotonic()
        with pytest.raises(NoBroker, match=where):
            client.translate([Work(ROUTE, ("a",))], deadline_s=0.2)
        assert 0.2 <= time.monotonic() - started < 5.0
        assert client.trouble
        wait_until(lambda: time.monotonic() - started > 0.6, 2, "patience is over")
        started = time.monotonic()
        with pytest.raises(NoBroker):
            client.translate([Work(ROUTE, ("a",))], deadline_s=30.0)
        assert time.monotonic() - started < 5.0
    assert "client" not in {thread.name for thread in threading.enumerate()}
