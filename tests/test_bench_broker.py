"""The pure parts of bench/broker.py and bench/peers.py, and a crowd of simulated nodes at a real broker."""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest

from bench import broker, peers, plot
from bench.cluster import Cluster
from bench.load import Load
from dolmetsch import session


def cell(*spans: tuple[float, int, float]) -> broker.Cell:
    return broker.Cell([broker.Span(*span) for span in spans])


def test_a_cell_tells_medians() -> None:
    found = cell((2.0, 1000, 0.1), (2.0, 4000, 0.2), (1.0, 1000, 0.9))
    assert found.jobs_per_s == 1000
    assert found.cost_us == pytest.approx(100)
    assert found.core_percent == pytest.approx(10)


@pytest.mark.parametrize(("nodes", "processes"), [(1, 1), (2, 2), (10, 4), (1000, 4)])
def test_each_node_is_in_one_process(nodes: int, processes: int) -> None:
    shares = broker.share(nodes)
    assert len(shares) == processes
    assert [first + one for first, count in shares for one in range(count)] == list(range(nodes))
    assert max(count for _, count in shares) - min(count for _, count in shares) <= 1


def test_the_ratio_is_by_what_is_queued() -> None:
    costs = {(10, 0): 40.0, (1000, 0): 50.0, (10, 50): 40.0, (1000, 50): 60.0, (1000, 70): 60.0}
    assert broker.ratio(costs, 10, 1000) == pytest.approx({0: 1.25, 50: 1.5})


def test_heartbeats_are_taken_off_by_time_not_by_jobs() -> None:
    assert broker.net_us(cell((2.0, 1000, 0.3)), 50.0) == pytest.approx(200.0)


def test_every_job_is_another() -> None:
    jobs = broker.specs("de→en")
    some = [next(jobs) for _ in range(300)]
    assert len({one.job_id for one in some}) == len({one.texts for one in some}) == 300
    assert {len(one.job_id) for one in some} == {16}


def test_the_fastest_peer_is_not_oneself() -> None:
    rows = {"we": peers.Row([9.0]), "slow": peers.Row([1.0, 2.0, 9.0]), "fast": peers.Row([3.0]), "none": peers.Row()}
    assert peers.fastest(rows, "we") == 3.0
    assert peers.fastest({"we": peers.Row([9.0])}, "we") == 0.0


def test_a_peer_that_cannot_be_installed_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "requirements-nobody.txt").write_text("./not-there\n")
    monkeypatch.setattr(peers, "HERE", tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    with pytest.raises(peers.PeerMissing, match=r"cannot be installed: .*not-there"):
        peers.environment("nobody")
    assert not list((tmp_path / "cache").rglob("complete"))


def test_the_picture_is_drawn_to_scale() -> None:
    drawn = plot.svg("cost <µs>", "nodes", {"none": [(1, 50.0), (1000, 60.0)], "many": [(1, 51.0), (1000, 60.5)]})
    root = ElementTree.fromstring(drawn)
    lines = [one.attrib["points"].split() for one in root.iter("{http://www.w3.org/2000/svg}polyline")]
    assert len(lines) == 2
    (left, _), (right, _) = [[float(part) for part in point.split(",")] for point in lines[0]]
    assert (left, right) == (plot.LEFT, plot.WIDTH - plot.RIGHT)
    names = [one for one in root.iter("{http://www.w3.org/2000/svg}text") if one.text in ("none", "many")]
    places = [float(one.attrib["y"]) for one in names]
    assert abs(places[0] - places[1]) >= plot.NAME_PX


@pytest.mark.parametrize(("most", "apart"), [(60.0, 20.0), (100.0, 20.0), (48.0, 10.0), (300.0, 100.0), (0.9, 0.2)])
def test_marks_are_round(most: float, apart: float) -> None:
    assert plot.step(most) == pytest.approx(apart)


def test_a_crowd_works_as_nodes_do() -> None:
    with Cluster() as cluster:
        cluster.broker()
        cluster.wait_listening()
        cluster.start("crowd", "-m", "bench.crowd", cluster.address, "de→en", "0", "70", "100")
        cluster.start("away", "-m", "bench.crowd", cluster.address, "en→de", "70", "1", "0")
        status = cluster.wait_ready(71)
        assert {node.capacity for node in status.nodes if node.routes == ("de→en",)} == {session.MIN_CREDIT}
        with Load(cluster.address, window=1000) as load:
            load.post(broker.specs("en→de"), 30)
            jobs = 2000
            load.run(load.jobs([f"Satz {n}." for n in range(jobs)]))
            assert len(load.answers) == jobs
            assert not load.duplicates
        status = cluster.status()
        assert (status.queued_bulk, status.leased, status.done) == (30, 0, jobs)
        assert cluster.end("crowd") == 0
        assert [node.name for node in cluster.status().nodes] == ["sim-70"]
