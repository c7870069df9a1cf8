"""Nodes and gateways that come, go, fall silent and come back: what they keep, and what is known of them."""

from __future__ import annotations

from dolmetsch import messages as m
from dolmetsch.effects import FromPeer, PeerGone
from dolmetsch.jobs import State
from dolmetsch.reports import NO_LATENCY_MS, GatewayStatus
from dolmetsch.scheduler import REPEATS
from dolmetsch.wire import decode, encode
from tests.scheduling import N1, N2, Cluster, G, cluster, key, lease_one, sent, spec

__all__ = ["cluster"]  # fixtures


def test_a_lost_node_gives_its_jobs_to_another_within_four_seconds(cluster: Cluster) -> None:
    lease_one(cluster)
    cluster.node(N2)
    waited = 0.0
    leases: list[m.LeasedJob] = []
    while not leases and waited < 4.0:
        cluster.beat(N2)
        leases = sent(cluster.tick(0.25), m.Lease, N2)
        waited += 0.25
    assert [(one.job_id, one.attempt) for one in leases] == [(key(1), 2)]
    assert waited < 4.0


def test_a_heartbeat_renews_what_it_lists_and_nothing_else(cluster: Cluster) -> None:
    cluster.node(capacity=2)
    leases = sent(cluster.submit(spec(1), spec(2)), m.Lease)
    assert len(leases) == 2
    for _ in range(20):
        cluster.tick(0.5)
        cluster.beat(N1, held=(m.HeldLease(key(1), 1),), capacity=0)
    assert cluster.state(1) is State.LEASED
    assert cluster.state(2) is State.QUEUED


def test_a_restarted_node_gives_up_what_it_held_at_once(cluster: Cluster) -> None:
    lease_one(cluster)
    sends = cluster.node(b"node-1/2", name="node-1", incarnation="2")
    assert [(one.job_id, one.attempt) for one in sent(sends, m.Lease, b"node-1/2")] == [(key(1), 2)]


def test_two_nodes_of_one_name_do_not_fight(cluster: Cluster) -> None:
    cluster.node(N1, name="pi", incarnation="1")
    cluster.node(N2, name="pi", incarnation="2")
    sends = cluster.node(N1, name="pi", incarnation="1")
    assert sent(sends, m.Error)[0].code == "name_taken"
    assert [one.name for one in cluster.scheduler.status(cluster.now).nodes] == ["pi"]


def test_a_node_that_changes_its_name_is_one_node(cluster: Cluster) -> None:
    cluster.node(N1, name="before")
    cluster.node(N1, name="after")
    cluster.say(N1, m.Goodbye())
    assert cluster.scheduler.status(cluster.now).nodes == ()


def test_a_node_on_a_new_connection_keeps_its_leases(cluster: Cluster) -> None:
    lease_one(cluster)
    sends = cluster.node(b"node-1/2", name="node-1", held=(m.HeldLease(key(1), 1),))
    assert sent(sends, m.Lease) == []
    assert cluster.state(1) is State.LEASED
    assert cluster.scheduler.books.jobs[key(1)].attempt == 1


def test_a_node_that_registers_twice_keeps_only_the_attempts_it_shows(cluster: Cluster) -> None:
    lease_one(cluster)
    cluster.say(N1, m.Failed(jobs=(m.Failure(key(1), 1, "child_crashed", "signal 9", True),)))  # leased again, as 2
    cluster.node(N1, held=(m.HeldLease(key(1), 1),))  # written before the second lease came
    assert cluster.scheduler.books.orphans == {}


def test_goodbye_requeues_without_blame(cluster: Cluster) -> None:
    lease_one(cluster)
    cluster.node(N2)
    assert [one.attempt for one in sent(cluster.say(N1, m.Goodbye()), m.Lease, N2)] == [2]
    assert cluster.scheduler.books.jobs[key(1)].losses == 0


def test_a_gateway_that_comes_back_gets_what_waited_for_it(cluster: Cluster) -> None:
    lease = lease_one(cluster)
    cluster._carry_out(cluster.scheduler.handle(PeerGone(G), cluster.now))
    assert sent(cluster.done(N1, lease), m.Result) == []
    sends = cluster.say(b"gateway-2", m.Hello(gateway="g", incarnation="2"))
    assert [(one.job_id, one.reply_to) for one in sent(sends, m.Result, b"gateway-2")] == [(key(1), b"r1")]


def test_strangers_are_asked_to_introduce_themselves(cluster: Cluster) -> None:
    assert sent(cluster.say(b"x", m.Submit(jobs=(spec(1),))), m.Reregister) != []
    assert sent(cluster.beat(b"y"), m.Reregister) != []
    assert sent(cluster.say(b"x", m.Ping()), m.Reregister) != []
    assert sent(cluster.say(G, m.Ping()), m.Pong) != []
    assert sent(cluster.say(b"x", m.Pong()), m.Error)[0].code == "bad_message"


def test_gateways_that_own_nothing_are_forgotten(cluster: Cluster) -> None:
    for number in range(50):
        cluster.gateway(f"cli-{number}", b"cli-%d" % number)
    cluster.tick(11)
    cluster.tick(1)
    assert len(cluster.scheduler.books.roster.gateways) == 0


def report(**changes: object) -> m.Report:
    fields: dict[str, object] = {
        "kind": "discord", "servers": 2, "latency_ms": 48.5, "queued": 1, "answered": 20, "failed": 3,
    }  # fmt: skip
    return m.Report(**{**fields, **changes})  # type: ignore[arg-type]


def reported(cluster: Cluster) -> list[GatewayStatus]:
    return list(cluster.scheduler.status(cluster.now).gateways)


def test_a_report_stands_in_the_status_until_the_next(cluster: Cluster) -> None:
    assert reported(cluster) == []
    assert cluster.say(G, report()) == []
    cluster.tick(0.5)
    assert reported(cluster) == [GatewayStatus("g", "up", "discord", 2, 48.5, 1, 20, 3, 0, 0.5)]
    cluster.say(G, report(latency_ms=NO_LATENCY_MS, answered=21))
    assert reported(cluster) == [GatewayStatus("g", "up", "discord", 2, NO_LATENCY_MS, 1, 21, 3, 0, 0.0)]


def test_a_report_counts_the_jobs_whose_answer_is_not_acked(cluster: Cluster) -> None:
    cluster.say(G, report())
    done = lease_one(cluster, 1)
    cluster.submit(spec(2, "zwei"), spec(3, "drei", route="de→en"))
    assert reported(cluster)[0].unanswered == 3
    cluster.done(N1, done)
    assert reported(cluster)[0].unanswered == 3
    cluster.say(G, m.Ack(jobs=(key(1),)))
    assert reported(cluster)[0].unanswered == 2
    cluster.say(N1, m.Failed(jobs=(m.Failure(key(2), 1, "no_route", "", False),)))
    assert reported(cluster)[0].unanswered == 2
    cluster.say(G, m.Ack(jobs=(key(2),)))
    assert cluster.state(2) is State.DEAD, "kept for an operator"
    assert reported(cluster)[0].unanswered == 1


def test_a_stranger_cannot_report(cluster: Cluster) -> None:
    (answer,) = cluster.say(b"x", report())
    assert (answer.peer, type(answer.message)) == (b"x", m.Reregister)
    cluster.node()
    assert sent(cluster.say(N1, report()), m.Reregister) != [], "a node is no gateway"
    assert reported(cluster) == []


def test_a_report_is_silent_when_its_gateway_is_and_forgotten_with_it(cluster: Cluster) -> None:
    cluster.gateway("idle", b"idle")
    cluster.say(b"idle", report(kind="cli"))
    cluster.say(G, report())
    cluster.submit(spec(1))  # it waits for a node, and its gateway is known as long
    for _ in range(11):
        cluster.tick(1.0)
    assert [(one.name, one.state, one.seen_s_ago) for one in reported(cluster)] == [("g", "silent", 11.0)]
    cluster.gateway("g", b"again")
    assert [one.state for one in reported(cluster)] == ["up"]
    cluster.say(b"again", m.Cancel(jobs=(key(1),)))
    cluster.scheduler.handle(PeerGone(b"again"), cluster.now)
    cluster.tick(1.0)
    assert reported(cluster) == []
    cluster.gateway("g")
    assert reported(cluster) == [], "nothing is left of the one before"


def test_reports_do_not_keep_gateways_or_outnumber_them(cluster: Cluster) -> None:
    for number in range(3 * m.MAX_GATEWAYS):
        peer = b"cli-%03d" % number
        cluster.gateway(peer.decode(), peer)
        cluster.say(peer, report())
    cluster.say(b"cli-000", report())
    names = [one.name for one in reported(cluster)]
    assert names == ["cli-000", *[f"cli-{number}" for number in range(2 * m.MAX_GATEWAYS + 1, 3 * m.MAX_GATEWAYS)]]
    cluster.tick(11)
    cluster.tick(1)
    assert not cluster.scheduler.books.reports


def test_a_status_fits_a_message_whatever_peers_are_called() -> None:
    cluster = Cluster()
    most = 2**53
    full = report(kind="→" * m.MAX_NAME_CHARS, servers=most, queued=most, answered=most, failed=most)
    for number in range(m.MAX_GATEWAYS):
        hello = m.Hello(gateway=f"{'→' * (m.MAX_NAME_CHARS - 3)}{number:03d}", incarnation="1")
        for message in (hello, full):
            cluster.scheduler.handle(FromPeer(b"g%d" % number, message), cluster.now)
    route = "→" * (m.MAX_NAME_CHARS - 7)
    for number in range(40):
        offered = tuple(m.Route(f"{route}{number:03d}{one:04d}", "→" * 256) for one in range(m.MAX_ROUTES))
        node = m.Register(node=f"n{number}", incarnation="1", routes=offered, capacity=1, engine="echo", held=())
        cluster.scheduler.handle(FromPeer(b"n%d" % number, node), cluster.now)
    status = cluster.scheduler.status(cluster.now)
    assert (len(status.routes), len(status.gateways)) == (m.MAX_ROUTES, m.MAX_GATEWAYS)
    assert 20 < len(status.nodes) < 40
    assert decode(encode(status)) == status


def test_a_gateway_that_stays_is_told_when_the_routes_are_others(cluster: Cluster) -> None:
    def ping(edition: int) -> list[m.Routes]:
        sends = cluster.say(G, m.Ping(edition=edition))
        assert [type(one.message) for one in sends][-1] is m.Pong
        found: list[m.Routes] = sent(sends, m.Routes, G)
        return found

    assert ping(0) == [], "no routes yet, as it was told"
    cluster.node()
    (first,) = ping(0)
    assert first.routes == (m.Route("de→en", "v1"),)
    assert ping(first.edition) == []
    cluster.node(N2)
    assert ping(first.edition) == [], "a second node with the same route is no news"
    cluster.node(N2, routes=("de→en", "fr→en"))
    assert ping(first.edition)[0].routes == (m.Route("de→en", "v1"), m.Route("fr→en", "v1"))
    (second,) = ping(first.edition)  # whoever did not get it is told again
    cluster.node(N2, routes=("de→en", "fr→en"), incarnation="2")
    assert ping(second.edition) == [], "a node that comes back as it was is no news"
    cluster.say(N2, m.Goodbye())
    (third,) = ping(second.edition)
    assert third.routes == first.routes
    cluster.say(N1, m.Goodbye())
    (last,) = ping(third.edition)
    assert last.routes == ()
    assert len({0, first.edition, second.edition, third.edition, last.edition}) == 5
    (hello,) = sent(cluster.say(G, m.Hello(gateway="g", incarnation="1")), m.Welcome)
    assert (hello.edition, hello.routes) == (last.edition, ())


def test_time_in_which_the_broker_slept_is_not_the_silence_of_others(cluster: Cluster) -> None:
    """One commit of 4 s on a slow card, and every node was lost and every lease counted against its job."""
    cluster.node()
    cluster.submit(spec(1))
    cluster.beat(N1, held=(m.HeldLease(key(1), 1),))
    cluster.sleep(40.0)
    assert cluster.state(1) is State.LEASED
    cluster.beat(N1, held=(m.HeldLease(key(1), 1),))
    cluster.tick(2.9)
    assert cluster.state(1) is State.LEASED
    cluster.tick(5.0)
    assert cluster.state(1) is State.QUEUED  # silence still counts


def test_a_gateway_that_reads_nothing_is_not_sent_its_results_for_ever(cluster: Cluster) -> None:
    """Every two seconds another copy of 2048 results stayed in the broker's memory."""
    cluster.node()
    cluster.submit(spec(1), spec(2))
    cluster.say(N1, m.Done(jobs=(m.Finished(key(1), 1, ("a",), "v1", 0, 0), m.Finished(key(2), 1, ("b",), "v1", 0, 0))))
    copies = 0
    for _ in range(60):
        cluster.say(G, m.Ping())
        copies += len(sent(cluster.tick(1.0), m.Result, G))
    assert copies == 2 * REPEATS
    cluster.say(G, m.Ack(jobs=(key(1),)))
    assert {one.job_id for one in sent(cluster.tick(4.0), m.Result, G)} == {key(2)}
