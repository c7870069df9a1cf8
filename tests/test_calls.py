"""Calls through real sockets: many at once, a broker that comes and goes, callers that give up."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any

import pytest
import zmq
from msgspec.structs import astuple

from bench.cluster import Cluster, free_port
from dolmetsch import calls
from dolmetsch.calls import Calls, Work
from dolmetsch.client import Client, _within
from dolmetsch.errors import JobFailed, JobRejected, NoBroker, TransportError
from dolmetsch.keys import Credentials, KeyPair
from dolmetsch.messages import INTERACTIVE

ROUTE = "de→en"


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """One echo cluster for all tests here."""
    with Cluster(tmp_path_factory.mktemp("calls")) as made:
        made.broker()
        made.node("one", "--engine", "echo", "--max-workers", "1")
        made.wait_ready(1, 1)
        yield made


def with_calls(where: str, test: Callable[[Calls], Coroutine[Any, Any, None]]) -> None:
    """Run ``test`` with a client of its own, for 60 s at most."""

    async def run() -> None:
        async with asyncio.timeout(60), Calls(where, gateway="calls", kind="http", units=lambda: 3) as made:
            reporting = asyncio.create_task(made.report())
            try:
                await test(made)
            finally:
                reporting.cancel()

    asyncio.run(run())


async def until(done: Callable[[], bool], what: str) -> None:
    """Wait for it, 20 s at most; ``done`` may block."""
    end = time.monotonic() + 20.0
    while not await asyncio.to_thread(done):
        assert time.monotonic() < end, what
        await asyncio.sleep(0.02)


def test_many_callers_each_get_their_own_answers_in_order(cluster: Cluster) -> None:
    async def test(made: Calls) -> None:
        async def ask(number: int) -> bool:
            texts = [f"{number}.{part}" for part in range(20)]
            works = [Work(ROUTE, (text,), "t") for text in texts]
            answers = await made.translate(works, deadline_s=20.0, since=time.monotonic())
            return [answer.texts for answer in answers] == [(text,) for text in texts]

        assert all(await asyncio.gather(*map(ask, range(100))))
        assert made.trouble == ""
        assert {route.route for route in made.routes} == {ROUTE}

    with_calls(cluster.address, test)


def test_alternatives_lanes_and_nothing_to_do(cluster: Cluster) -> None:
    async def test(made: Calls) -> None:
        works = [Work(ROUTE, ("a", "b"), alternatives=2, lane=INTERACTIVE)]
        (answer,) = await made.translate(works, deadline_s=5.0)
        assert answer.texts == ("a", "b") * 3
        assert await made.translate([], deadline_s=5.0) == []

    with_calls(cluster.address, test)


def test_the_broker_is_told_how_the_gateway_is(cluster: Cluster) -> None:
    def told() -> bool:
        return [astuple(one)[:-2] for one in cluster.status().gateways if one.name == "calls" and one.answered] == [
            ("calls", "up", "http", 3, -1.0, 0, 1, 1)
        ]

    async def test(made: Calls) -> None:
        await made.translate([Work(ROUTE, ("a",)), Work(ROUTE, ("b",))], deadline_s=5.0)
        with pytest.raises(JobRejected):
            await made.translate([Work("xx→yy", ("a",))], deadline_s=5.0)
        await until(told, "one call was answered, one was not")

    with_calls(cluster.address, test)


def nothing_left(cluster: Cluster) -> Callable[[], bool]:
    return lambda: not any(one.unanswered for one in cluster.status().gateways)


def test_the_first_failure_ends_the_call_and_the_rest_is_cancelled(cluster: Cluster) -> None:
    async def test(made: Calls) -> None:
        works = [Work(ROUTE, ("a",)), Work(ROUTE, ("\ud800",)), Work("xx→yy", ("b",))]
        with pytest.raises(JobRejected) as caught:
            await made.translate(works, deadline_s=5.0)
        assert caught.value.code in ("bad_text", "unknown_route")
        await until(nothing_left(cluster), "nothing is left over")

    with_calls(cluster.address, test)


def test_an_address_that_is_none() -> None:
    with pytest.raises(TransportError):
        Calls("tcp://nowhere at all", gateway="t", kind="http")


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
    with Cluster(tmp_path) as later:

        def start() -> None:
            later.broker()
            later.node("one", "--engine", "echo", "--max-workers", "1")

        async def test(made: Calls) -> None:
            assert made.trouble
            asked = asyncio.create_task(made.translate([Work(ROUTE, ("früh",))], deadline_s=30.0))
            await asyncio.to_thread(start)
            (answer,) = await asked
            assert answer.texts == ("früh",)
            await until(lambda: made.trouble == "", "no trouble any more")
            # Without a node a job waits for its deadline, and no longer.
            await asyncio.to_thread(later.kill, "one")
            with pytest.raises(JobFailed) as caught:
                await made.translate([Work(ROUTE, ("spät",))], deadline_s=1.0)
            assert caught.value.code == "deadline"
            await until(lambda: later.status().queued_bulk == 0, "it was cancelled")
            # A caller that gives up takes its jobs along.
            asked = asyncio.create_task(made.translate([Work(ROUTE, ("doch nicht",))], deadline_s=30.0))
            await until(lambda: later.status().queued_bulk == 1, "it waits")
            asked.cancel()
            await until(lambda: later.status().queued_bulk == 0, "it was cancelled")

        with_calls(later.address, test)


def test_the_end_ends_whoever_waits() -> None:
    async def run() -> None:
        async with Calls(f"tcp://127.0.0.1:{free_port()}", gateway="t", kind="http") as made:
            asked = asyncio.create_task(made.translate([Work(ROUTE, ("nie",))], deadline_s=30.0))
            await asyncio.sleep(0)
        for one in (asked, made.translate([Work(ROUTE, ("danach",))], deadline_s=30.0)):
            with pytest.raises(JobFailed) as caught:
                await one
            assert caught.value.code == "draining"

    asyncio.run(run())


def test_without_a_broker_calls_wait_for_it_and_later_do_not(monkeypatch: pytest.MonkeyPatch) -> None:
    where = f"tcp://127.0.0.1:{free_port()}"
    monkeypatch.setattr(calls, "PATIENCE_S", 0.5)

    async def test(made: Calls) -> None:
        started = time.monotonic()
        with pytest.raises(NoBroker, match=where):
            await made.translate([Work(ROUTE, ("a",))], deadline_s=0.2)
        assert 0.2 <= time.monotonic() - started < 5.0
        assert made.trouble
        await until(lambda: time.monotonic() - started > 0.6, "patience is over")
        started = time.monotonic()
        with pytest.raises(NoBroker):
            await made.translate([Work(ROUTE, ("a",))], deadline_s=30.0)
        assert time.monotonic() - started < 5.0

    with_calls(where, test)
