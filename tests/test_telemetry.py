"""What the broker publishes and what operators may ask: event by event, then with real programs and sockets."""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
import zmq
from msgspec.structs import replace

from bench.cluster import Cluster as Programs
from dolmetsch import messages as m
from dolmetsch.chronicle import RECENT, SLOW, Chronicle
from dolmetsch.client import Client
from dolmetsch.effects import Beat, Publish
from dolmetsch.errors import TransportError
from dolmetsch.jobs import Job, Outcome, State
from dolmetsch.reports import LATENCY_MS, About, BrokerHealth, JobReport
from dolmetsch.transport import SubPort, telemetry_address
from dolmetsch.wire import decode, encode
from tests.conftest import wait_until
from tests.scheduling import N1, Cluster, G, key, sent, spec

HEALTH = BrokerHealth("pi-0", "0.1.0", 42, 1.5, 60_000_000, 4096, 10**10)
QUICK_S = 5.0


@pytest.fixture
def core() -> Cluster:
    made = Cluster()
    made.gateway()
    return made


def told(core: Cluster) -> m.Telemetry:
    (effect,) = core.scheduler.handle(Beat(HEALTH), core.now)
    assert isinstance(effect, Publish)
    found = decode(encode(effect.message))
    assert repr(found) == repr(effect.message), "records of records are records again"
    assert isinstance(found, m.Telemetry)
    return found


# ---- what is told ----


def test_an_empty_cluster_is_told_too() -> None:
    telemetry = told(Cluster())
    assert telemetry.health == HEALTH
    assert (telemetry.nodes, telemetry.jobs, telemetry.dead, telemetry.departed) == ((), (), (), ())
    assert [sum(one.counts) for one in telemetry.latency] == [0, 0]


def test_a_job_tells_where_its_time_went(core: Cluster) -> None:
    core.submit(replace(spec(1), waited_ms=120))
    core.now += 0.5
    (lease,) = sent(core.node(), m.Lease)
    core.now += 0.25
    item = m.Finished(lease.job_id, lease.attempt, ("Hello",), "v1", 30, 200)
    core.say(N1, m.Done(jobs=(item,)))
    assert told(core).jobs == (), "its gateway has not got it yet"
    core.now += 0.125
    core.say(G, m.Ack(jobs=(key(1),)))
    (job,) = told(core).jobs
    stages = (job.gateway_ms, job.queue_ms, job.wire_ms, job.batch_ms, job.decode_ms, job.reply_ms)
    assert stages == (120, 500, 20, 30, 200, 125)
    assert (job.state, job.node, job.model, job.lane, job.attempts, job.code) == ("done", "node-1", "v1", 0, 1, "")
    assert [line.what for line in job.story] == ["leased to node-1", "done", "acked"]
    assert told(core).jobs == (), "told once"


def test_no_text_is_told(core: Cluster) -> None:
    core.node()
    (lease,) = sent(core.submit(spec(1, "Geheimnis")), m.Lease)
    core.done(N1, lease)
    core.say(G, m.Ack(jobs=(key(1),)))
    core.submit(spec(2, "Geheimnis", route="de→en", deadline_s=0.5))
    core.tick(1)
    frames = encode(told(core))
    assert b"Geheimnis" not in b"".join(frames) and b"tenant" not in frames[2]


def test_latency_is_counted_by_lane_and_the_cache_counts_too(core: Cluster) -> None:
    core.node()
    for number, lane in ((1, m.INTERACTIVE), (2, m.BULK)):
        (lease,) = sent(core.submit(spec(number, f"Text {number}", lane=lane)), m.Lease)
        core.now += 0.0195
        core.done(N1, lease)
    core.submit(spec(3, "Text 1"))
    interactive, bulk = told(core).latency
    assert interactive.counts[LATENCY_MS.index(20)] == 1 and interactive.counts[0] == 1
    assert (sum(interactive.counts), interactive.sum_ms, sum(bulk.counts), bulk.sum_ms) == (2, 19, 1, 19)
    counts = told(core).counts
    assert (counts.done, counts.cache_hits, counts.chars_done) == (3, 1, 18)


def test_a_dead_letter_is_told_until_it_is_purged(core: Cluster) -> None:
    core.submit(spec(1, deadline_s=5))
    core.tick(6)
    telemetry = told(core)
    assert [job.code for job in telemetry.dead] == ["deadline"] == [job.code for job in telemetry.jobs]
    (job,) = telemetry.dead
    assert (job.state, job.queue_ms, job.ended_s_ago) == ("dead", 5000, 1.0)
    (managed,) = sent(core.say(G, m.Manage(action=m.PURGE)), m.Managed)
    assert managed.count == 0 and managed.problem.startswith("1 not purged: "), "its gateway does not know yet"
    core.say(G, m.Ack(jobs=(key(1),)))
    (managed,) = sent(core.say(G, m.Manage(action=m.PURGE, jobs=(key(1), key(2)))), m.Managed)
    assert (managed.count, managed.problem) == (1, "")
    assert told(core).dead == () and core.state(1) is None


def test_a_lost_node_and_one_that_left(core: Cluster) -> None:
    core.node(b"a", name="lost")
    core.node(b"b", name="leaves")
    core.say(b"b", m.Goodbye())
    core.tick(4)
    departed = {one.name: one for one in told(core).departed}
    assert {name: one.how for name, one in departed.items()} == {"leaves": "left", "lost": "lost"}
    assert departed["leaves"].gone_s_ago == 4.0 and departed["lost"].gone_s_ago == 1.0
    core.node(b"c", name="lost")
    telemetry = told(core)
    assert [one.name for one in telemetry.departed] == ["leaves"] and [one.name for one in telemetry.nodes] == ["lost"]


def test_a_node_is_told_with_all_that_is_known(core: Cluster) -> None:
    about = About("pi-1", "Raspberry Pi 5", "Debian 12", "0.1.0", 4, 2**33, 1000.0)
    core.say(
        N1,
        m.Register(
            node="one", incarnation="1", routes=(), capacity=4, engine="echo", about=about, held=(),
        ),
    )  # fmt: skip
    core.now += 2
    core.beat(N1, workers=3, core_percent=(1.0, 2.0), temperature_c=82.0, throttled=True, draining=True)
    (node,) = told(core).nodes
    assert (node.about, node.up_s, node.joined_s_ago, node.state) == (about, 1002.0, 2.0, "draining")
    assert (node.workers, node.core_percent, node.temperature_c, node.throttled) == (3, (1.0, 2.0), 82.0, True)


def test_a_flood_of_jobs_is_told_by_a_sample_with_the_slowest() -> None:
    chronicle = Chronicle()
    for number in range(2000):
        job = Job(
            seq=number, id=key(number), gateway="g", tenant="t", lane=0, route="de→en", texts=("x",), reply_to=b"",
            deadline=60.0, queued_at=0.0,
        )  # fmt: skip
        took_s = 50.0 if number in (7, 700) else 1.0 + number / 4000
        job.state, job.outcome = State.DONE, Outcome(("y",), "", "", "", False, int(took_s * 1000))
        chronicle.ended(job, took_s)
    found = chronicle.take(100.0)
    assert len(found) <= RECENT + SLOW <= m.MAX_REPORTED
    assert {key(7), key(700), key(1999)} <= {one.job_id for one in found}
    assert chronicle.take(100.0) == ()


# ---- what operators ask ----


def test_orders_go_to_their_node(core: Cluster) -> None:
    core.node()
    for action in (m.DRAIN, m.RESUME, m.RESTART):
        sends = core.say(G, m.Manage(action=action, node="node-1"))
        assert [one.message.action for one in sends if one.peer == N1] == [action]
        (managed,) = sent(sends, m.Managed)
        assert (managed.action, managed.node, managed.count, managed.problem) == (action, "node-1", 1, "")


@pytest.mark.parametrize(("action", "word"), [(m.DRAIN, "no node called"), ("dance", "unknown action")])
def test_what_cannot_be_done_is_said(core: Cluster, action: str, word: str) -> None:
    (managed,) = sent(core.say(G, m.Manage(action=action, node="nobody")), m.Managed)
    assert managed.count == 0 and word in managed.problem


# ---- real programs ----


@contextmanager
def listener(cluster: Programs) -> Iterator[Callable[[], m.Telemetry]]:
    """The next telemetry, each time it is called."""
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    port = SubPort(context, telemetry_address(cluster.address))

    def following() -> m.Telemetry:
        assert port.socket.poll(5000), "nothing is published"
        (frames,) = itertools.islice(port.receive(1), 1)
        message = decode(frames)
        assert isinstance(message, m.Telemetry)
        return message

    try:
        yield following
    finally:
        port.close()
        context.term()


def manage(cluster: Programs, action: str, **what: object) -> m.Managed:
    async def ask() -> m.Managed:
        async with Client(cluster.address, gateway="operator") as client:
            await client.wait_up(QUICK_S)
            return await client.manage(action, **what)  # type: ignore[arg-type]

    return asyncio.run(ask())


def test_telemetry_is_published_and_a_node_can_be_drained_resumed_and_renewed(echo: Programs) -> None:
    with listener(echo) as following:
        first = following()
        assert first.health.rss_bytes > 10**7 and first.health.ledger_bytes > 0
        (node,) = first.nodes
        assert node.about.cores >= 1 and node.about.up_s > 0 and "Linux" in node.about.system
        (pid,) = [child.pid for child in node.children]

        def until(true: Callable[[m.Telemetry], bool], what: str) -> None:
            wait_until(lambda: true(following()), QUICK_S, what)

        assert manage(echo, m.DRAIN, node="one").count == 1
        until(lambda one: one.nodes[0].state == "draining" and one.nodes[0].capacity == 0, "the node drains")
        assert manage(echo, m.RESUME, node="one").count == 1
        until(lambda one: one.nodes[0].state == "ready" and one.nodes[0].capacity > 0, "the node takes work again")
        assert manage(echo, m.RESTART, node="one").count == 1
        until(lambda one: [child.pid for child in one.nodes[0].children] not in ([pid], []), "its child is another")
        until(lambda one: one.nodes[0].workers == 1, "it translates again")
        assert "no node called" in manage(echo, m.DRAIN, node="two").problem

        async def one_job() -> None:
            async with Client(echo.address, gateway="g") as client:
                await client.translate("Guten Morgen", "de→en")

        asyncio.run(one_job())
        jobs: list[JobReport] = []

        def acked() -> bool:
            jobs.extend(following().jobs)
            return bool(jobs)

        wait_until(acked, QUICK_S, "the job is told")
        assert jobs[0].node == "one" and jobs[0].chars == 12
        echo.kill("one")
        killed = time.monotonic()
        until(lambda one: [(gone.name, gone.how) for gone in one.departed] == [("one", "lost")], "the node is lost")
        assert time.monotonic() - killed < QUICK_S


def test_alternatives_come_in_order_of_their_rank(cluster: Programs) -> None:
    cluster.broker()
    cluster.node("one", "--max-workers", "1")
    cluster.wait_ready(1, 1)
    texts = ("Guten Morgen. Wie geht es dir?", "Das Haus <@42> ist groß.")

    async def run() -> tuple[tuple[str, ...], tuple[str, ...]]:
        async with Client(cluster.address, gateway="g") as client:
            best = await client.translate(texts, "de→en")
            all_of_them = await client.translate(texts, "de→en", alternatives=2)
            assert best.texts is not None and all_of_them.texts is not None
            return best.texts, all_of_them.texts

    best, ranked = asyncio.run(run())
    assert len(ranked) == 6
    assert ranked[:2] == best
    assert ranked[2] != ranked[0] and ranked[4] not in (ranked[0], ranked[2])
    assert all("<@42>" in ranked[place] for place in (1, 3, 5))


def test_the_telemetry_port_in_use_is_one_clear_line(cluster: Programs) -> None:
    with listener(cluster):
        context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        taken = context.socket(zmq.PUB)
        try:
            taken.bind(telemetry_address(cluster.address))
            broker = cluster.broker()
            assert broker.wait(10) == 1
        finally:
            taken.close(0)
            context.term()
    assert "is in use" in cluster.log("broker") and "Traceback" not in cluster.log("broker")
    assert "broker.telemetry" in cluster.log("broker")


def test_an_address_without_a_next_port() -> None:
    assert telemetry_address("192.0.2.7") == "tcp://192.0.2.7:5571"
    with pytest.raises(TransportError, match="telemetry"):
        telemetry_address("tcp://192.0.2.7:65535")
