"""Which node gets which job, and when: credit, lanes, tenants, routes, the earliest finish."""

from __future__ import annotations

import pytest

from dolmetsch import messages as m
from tests.scheduling import N1, N2, Cluster, cluster, key, sent, spec

__all__ = ["cluster"]  # fixtures


def test_credit_is_kept_and_what_is_over_waits(cluster: Cluster) -> None:
    cluster.node(capacity=2)
    assert len(sent(cluster.submit(*[spec(n) for n in range(5)]), m.Lease)) == 2
    assert cluster.scheduler.status(cluster.now).queued_interactive == 3


def test_a_draining_node_gets_nothing_more(cluster: Cluster) -> None:
    cluster.node()
    cluster.beat(N1, draining=True)
    assert sent(cluster.submit(spec(1)), m.Lease) == []


def test_interactive_goes_first_but_aged_bulk_gets_a_quarter() -> None:
    cluster = Cluster(bulk_age_s=10)
    cluster.gateway()
    for number in range(40):
        cluster.submit(spec(number, lane=m.BULK))
    cluster.now += 11
    for number in range(100, 140):
        cluster.submit(spec(number))
    served = sent(cluster.node(capacity=16), m.Lease)
    assert [one.lane for one in served] == [0, 0, 0, 1] * 4


def test_young_bulk_waits_for_all_that_is_interactive(cluster: Cluster) -> None:
    cluster.submit(spec(1, lane=m.BULK), spec(2), spec(3))
    assert [one.lane for one in sent(cluster.node(), m.Lease)] == [0, 0, 1]


def test_tenants_share_by_characters(cluster: Cluster) -> None:
    cluster.submit(*[spec(n, "x" * 400, tenant="novelist") for n in range(50)])
    cluster.submit(*[spec(100 + n, "x" * 40, tenant="guild") for n in range(50)])
    served = sent(cluster.node(capacity=40), m.Lease)
    chars = {"novelist": 0, "guild": 0}
    for one in served:
        chars["guild" if int.from_bytes(one.job_id, "big") >= 100 else "novelist"] += len(one.texts[0])
    assert abs(chars["novelist"] - chars["guild"]) <= 1000


def test_the_earliest_finish_wins(cluster: Cluster) -> None:
    cluster.node(N1)
    cluster.node(N2)
    cluster.beat(N1, chars_per_s=100.0)
    cluster.beat(N2, chars_per_s=1000.0)
    sends = cluster.submit(*[spec(n, "x" * 100) for n in range(4)])
    assert len(sent(sends, m.Lease, N2)) == 4
    sends = cluster.submit(*[spec(10 + n, "x" * 100) for n in range(4)])
    assert len(sent(sends, m.Lease, N1)) == 4  # the fast one has no credit left


def test_a_new_node_gets_the_next_job_and_so_can_measure_itself(cluster: Cluster) -> None:
    cluster.node(N1)
    cluster.beat(N1, chars_per_s=5000.0)
    cluster.node(N2)
    cluster.beat(N1, chars_per_s=50_000.0)  # measured anew, after the other came
    cluster.beat(N2)
    sends = cluster.submit(spec(1))
    assert len(sent(sends, m.Lease, N2)) == 1


def test_routes_are_matched_to_nodes(cluster: Cluster) -> None:
    cluster.node(N1, routes=("de→en",))
    cluster.node(N2, routes=("de→en", "fr→en"))
    sends = cluster.submit(spec(1, route="fr→en"))
    assert [one.job_id for one in sent(sends, m.Lease, N2)] == [key(1)]
    (refused,) = sent(cluster.submit(spec(2, route="it→en")), m.Rejected)
    assert (refused.code, refused.detail) == ("unknown_route", "no node offers it→en; there is de→en, fr→en")


def test_a_long_job_rather_waits_for_a_fast_node_than_it_goes_to_a_slow_one_that_has_room(cluster: Cluster) -> None:
    for peer, chars_per_s in ((N1, 1000.0), (N2, 100.0)):
        cluster.node(peer)
        cluster.beat(peer, capacity=100, chars_per_s=chars_per_s)
    sends = cluster.submit(*(spec(number, "x" * 2950, lane=m.BULK, deadline_s=600) for number in range(1, 12)))
    first = sent(sends, m.Lease, N1)
    assert (len(first), len(sent(sends, m.Lease, N2))) == (10, 1)  # 29.5 s of work for each
    sends = cluster.submit(*(spec(number, "y" * 1000, lane=m.BULK, deadline_s=600) for number in (12, 13)), spec(14))
    assert [one.job_id for one in sent(sends, m.Lease)] == [key(14)]  # people do not wait with them
    cluster.node(b"other", routes=("fr→en",))
    sends = cluster.submit(spec(15, lane=m.BULK, route="fr→en"))
    assert [one.job_id for one in sent(sends, m.Lease)] == [key(15)]  # nor do other routes
    sends = cluster.done(N1, *first[:1])
    assert [one.job_id for one in sent(sends, m.Lease, N1)] == [key(12), key(13)]
    assert sent(sends, m.Lease, N2) == []


@pytest.mark.parametrize(("lane", "nodes"), [(m.INTERACTIVE, 64), (m.BULK, 16)])
def test_a_turn_gives_to_few_of_many_nodes(cluster: Cluster, lane: int, nodes: int) -> None:
    for number in range(100):
        cluster.node(b"node%d" % number, capacity=100)
    sends = cluster.submit(*(spec(number, lane=lane) for number in range(1, 129)))
    leases = [one.message for one in sends if isinstance(one.message, m.Lease)]
    assert [len(lease.jobs) for lease in leases] == [128 // nodes] * nodes
    few = Cluster()
    few.gateway()
    for number in range(32):
        few.node(b"node%d" % number, capacity=100)
    sends = few.submit(*(spec(number, "Hallo " * 10, lane=lane) for number in range(1, 65)))
    assert [len(one.message.jobs) for one in sends if isinstance(one.message, m.Lease)] == [2] * 32
