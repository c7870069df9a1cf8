"""The whole cluster: real processes, real sockets, the real model, and kill -9 where it hurts."""

from __future__ import annotations

import os
import signal
import sqlite3
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil
import pytest
import zmq

from bench.cluster import Cluster, command
from bench.load import Load
from bench.throughput import sentences
from dolmetsch.lines import packs
from dolmetsch.messages import Error, Ping, Reregister
from dolmetsch.packages import EMBEDDED, open_package
from dolmetsch.wire import decode, encode
from tests.conftest import wait_until
from tests.embedded import GERMAN

ONE_WORKER = ("--packages", str(EMBEDDED), "--max-workers", "1")


@contextmanager
def under_load(cluster: Cluster, texts: list[str]) -> Iterator[tuple[Load, Future[float]]]:
    """``texts`` are on their way through the cluster, in a thread of their own."""
    with ThreadPoolExecutor(1) as pool:
        load = Load(cluster.address, window=1000)

        def run() -> float:
            with load:
                return load.run(load.jobs(texts), within_s=90)

        yield load, pool.submit(run)


def half_way(load: Load, count: int) -> None:
    wait_until(lambda: len(load.answers) >= count, 60, f"{count} answers")


def assert_each_exactly_once(cluster: Cluster, load: Load, count: int) -> None:
    assert len(load.answers) == count
    assert load.duplicates == 0
    assert [one for one in load.answers.values() if one.texts is None] == []
    wait_until(lambda: _nothing_left(cluster), 10, "the broker has settled everything")


def _nothing_left(cluster: Cluster) -> bool:
    status = cluster.status()
    return (status.queued_bulk, status.leased, status.undelivered, status.dead_letters) == (0, 0, 0, 0)


def test_kill_9_of_a_node_loses_nothing(cluster: Cluster) -> None:
    cluster.broker()
    cluster.node("one", *ONE_WORKER)
    cluster.node("two", *ONE_WORKER)
    cluster.wait_ready(2, 2)
    texts = sentences()
    with under_load(cluster, texts) as (load, end):
        half_way(load, 600)
        assert {node.leased > 0 for node in cluster.status().nodes} == {True}
        cluster.kill("one")
        took_s = wait_until(
            lambda: [node.name for node in cluster.status().nodes] == ["two"], 10, "the dead node is given up"
        )
        assert took_s < 4.0, "its jobs are leased anew within four seconds"
        end.result(90)
    assert_each_exactly_once(cluster, load, len(texts))


def test_kill_9_of_the_broker_loses_nothing(cluster: Cluster) -> None:
    cluster.broker()
    cluster.node("one", *ONE_WORKER)
    cluster.node("two", *ONE_WORKER)
    cluster.wait_ready(2, 2)
    texts = sentences()
    with under_load(cluster, texts) as (load, end):
        for count in (500, 1200):
            half_way(load, count)
            cluster.kill("broker")
            cluster.broker()
        end.result(90)
    assert_each_exactly_once(cluster, load, len(texts))
    assert "the ledger holds" in cluster.log("broker")
    cluster.end("broker")
    with sqlite3.connect(cluster.ledger) as db:
        assert db.execute("SELECT count(*) FROM turn").fetchone() == (0,)
    db.close()


def test_kill_9_of_the_gateway_loses_nothing(cluster: Cluster, tmp_path: Path) -> None:
    cluster.broker()
    cluster.node("one", *ONE_WORKER)
    cluster.node("two", *ONE_WORKER)
    cluster.wait_ready(2, 2)
    texts = sentences()
    source, out = tmp_path / "in.txt", tmp_path / "out.txt"
    source.write_text("".join(f"{text}\n" for text in texts), encoding="utf-8")
    arguments = ("gateway_cli.py", "--broker", cluster.address, "--file", str(source), "--out", str(out))
    for least in (300, 1100):
        cluster.start("gateway", *arguments)
        wait_until(lambda least=least: out.exists() and out.read_bytes().count(b"\n") >= least, 60, "lines")  # type: ignore[misc]
        cluster.kill("gateway")
    assert out.read_bytes().count(b"\n") < len(texts)
    ended = command(*arguments, cluster=cluster, timeout_s=90)
    assert (ended.returncode, ended.stderr.splitlines()[-1]) == (0, f"2000 lines, {out}")
    lines = out.read_text(encoding="utf-8").splitlines()
    assert len(lines) == len(texts)
    assert all(lines)
    wait_until(lambda: _nothing_left(cluster), 10, "the broker has settled everything")
    # Each line was translated once: what a killed gateway had asked for was kept for the next one.
    assert cluster.status().accepted == len(list(packs(enumerate(texts, 1))))
    assert not (tmp_path / "out.txt.progress").exists()


def test_kill_9_of_a_child_costs_only_its_batch(cluster: Cluster) -> None:
    cluster.broker()
    node = cluster.node("one", "--packages", str(EMBEDDED), "--min-workers", "2", "--max-workers", "2")
    cluster.wait_ready(1, 2)
    texts = sentences()
    with under_load(cluster, texts) as (load, end):
        for count in (200, 500, 900):
            half_way(load, count)
            psutil.Process(node.pid).children()[0].kill()
        end.result(90)
    assert_each_exactly_once(cluster, load, len(texts))
    assert cluster.log("one").count("was killed by SIGKILL") == 3


def test_a_node_without_a_child_holds_up_nobody(cluster: Cluster) -> None:
    """It kept its jobs, and was given more, for as long as its child waited for its restart: up to 30 s."""
    cluster.broker()
    one = cluster.node("one", "--engine", "echo", "--max-workers", "1")
    cluster.node("two", "--engine", "echo", "--max-workers", "1")
    cluster.wait_ready(2, 2)

    def capacity() -> int:
        return next(node.capacity for node in cluster.status().nodes if node.name == "one")

    with Load(cluster.address) as load:
        for deaths in range(1, 9):
            wait_until(lambda: bool(psutil.Process(one.pid).children()) or not capacity(), 20, "a child, or no credit")
            if not capacity():
                break
            with suppress(IndexError, psutil.NoSuchProcess):
                psutil.Process(one.pid).children()[0].kill()
            wait_until(lambda count=deaths: cluster.log("one").count("SIGKILL") >= count, 10, "it is missed")
        assert capacity() == 0
        assert load.until_answered(load.jobs([f"Guten Abend {n}." for n in range(20)]), 20) < 2.0
    wait_until(lambda: capacity() > 0, 40, "it takes part again")


def test_a_stopped_node_is_given_up_and_takes_part_again(cluster: Cluster) -> None:
    cluster.broker()
    one = cluster.node("one", *ONE_WORKER)
    cluster.node("two", *ONE_WORKER)
    cluster.wait_ready(2, 2)
    texts = sentences()[:1000]
    with under_load(cluster, texts) as (load, end):
        half_way(load, 200)
        one.send_signal(signal.SIGSTOP)
        try:
            wait_until(lambda: len(cluster.status().nodes) == 1, 10, "the stopped node is given up")
        finally:
            one.send_signal(signal.SIGCONT)
        end.result(90)
        wait_until(lambda: len(cluster.status().nodes) == 2, 20, "it is back")
    assert_each_exactly_once(cluster, load, len(texts))


def test_a_node_that_is_asked_to_end_finishes_what_it_holds(cluster: Cluster) -> None:
    cluster.broker()
    cluster.node("one", *ONE_WORKER)
    cluster.wait_ready(1, 1)
    texts = sentences()[:600]
    with under_load(cluster, texts) as (load, end):
        half_way(load, 100)
        assert cluster.end("one") == 0
        cluster.node("two", *ONE_WORKER)
        end.result(90)
    assert_each_exactly_once(cluster, load, len(texts))
    assert all(one.attempts == 1 for one in load.answers.values())


def test_queued_jobs_survive_a_broker_that_is_asked_to_end(cluster: Cluster) -> None:
    cluster.broker()
    cluster.wait_listening()
    with Load(cluster.address, window=500) as load:
        load.post(load.jobs(["Guten Morgen"] * 500), 500)
        assert cluster.end("broker") == 0
        cluster.broker()
        wait_until(lambda: cluster.status().queued_bulk == 500, 20, "the queue is back")
    assert "Traceback" not in cluster.log("broker")


def test_memory_of_the_broker_with_a_hundred_thousand_jobs(cluster: Cluster) -> None:
    broker = cluster.broker()
    cluster.wait_listening()
    with Load(cluster.address) as load:
        load.post(load.jobs([f"{n:06d} " + "Wörter " * 27 + "Ende." for n in range(100_000)]), 100_000)
    assert cluster.status().queued_bulk == 100_000
    assert psutil.Process(broker.pid).memory_info().rss <= 120 * 2**20


def test_memory_of_a_child(cluster: Cluster) -> None:
    cluster.broker()
    node = cluster.node("one", *ONE_WORKER)
    cluster.wait_ready(1, 1)
    texts = sentences()[:300]
    with Load(cluster.address) as load:
        load.run(load.jobs([*texts, "\n".join(texts[:200])]))
    (child,) = psutil.Process(node.pid).children()
    package = open_package(GERMAN)
    assert child.memory_info().rss <= 2.5 * package.size_bytes + 120 * 2**20


def test_a_live_broker_shrugs_off_nonsense(cluster: Cluster) -> None:
    cluster.broker()
    cluster.node("one", "--engine", "echo")
    cluster.wait_ready(1)
    rng = __import__("random").Random(7)
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    socket = context.socket(zmq.DEALER)
    try:
        socket.connect(cluster.address)
        for _ in range(500):
            socket.send_multipart([rng.randbytes(rng.randrange(60)) for _ in range(rng.randrange(1, 5))])
        socket.send_multipart([b"dolm2", b"HELLO", b"\x80"])
        socket.send_multipart(encode(Ping()))
        answers = []
        while not isinstance(answers[-1:] and answers[-1], Reregister):
            assert socket.poll(5000), "the broker answers"
            answers.append(decode(socket.recv_multipart()))
        # It says once that it does not understand, counts the rest, and still answers what it does understand.
        assert [type(one) for one in answers] == [Error, Reregister]
    finally:
        socket.close(0)
        context.term()
    assert cluster.status().bad_frames == 501
    with Load(cluster.address) as load:
        load.run(load.jobs(["noch da?"]))
        assert [one.texts for one in load.answers.values()] == [("noch da?",)]


def test_children_are_pinned_and_grow_with_the_backlog(cluster: Cluster) -> None:
    cores = sorted(os.sched_getaffinity(0))
    if len(cores) < 2:
        pytest.skip("one core: there is nothing to grow to")
    cluster.environment["MAX_CPU"] = "100"  # the test's own processes keep the cores busy
    cluster.broker()
    node = cluster.node("one", "--packages", str(EMBEDDED), "--cores", f"{cores[0]},{cores[1]}")
    cluster.wait_ready(1, 1)
    with under_load(cluster, sentences() * 2) as (load, end):
        wait_until(lambda: len(psutil.Process(node.pid).children()) == 2, 30, "a second child")
        end.result(90)
    pinned = [child.cpu_affinity() for child in psutil.Process(node.pid).children()]
    assert sorted(pinned) == [[cores[0]], [cores[1]]]
    assert len(load.answers) == 4000


def test_two_nodes_without_names_get_different_ones(cluster: Cluster) -> None:
    cluster.broker()
    for log in ("a", "b"):
        cluster.start(log, "node.py", "--broker", cluster.address, "--engine", "echo", "--max-workers", "1")
    names = [node.name for node in cluster.wait_ready(2).nodes]
    assert len(set(names)) == 2
