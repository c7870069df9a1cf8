"""The scheduler, event by event: what goes in, which effects come out."""

from __future__ import annotations

from collections.abc import Iterable

import pytest

from dolmetsch import messages as m
from dolmetsch.config import SchedulerConfig
from dolmetsch.effects import Drain, Effect, FromPeer, Op, PeerGone, Persist, Recover, Send, Tick
from dolmetsch.errors import LocalError
from dolmetsch.jobs import Job, State
from dolmetsch.ledger import MemoryLedger
from dolmetsch.reports import NO_LATENCY_MS, GatewayStatus
from dolmetsch.scheduler import REPEATS, Scheduler
from dolmetsch.wire import decode, encode

G, N1, N2 = b"gateway", b"node-1", b"node-2"


LOOKS_S = 0.5


class Cluster:
    """A scheduler with its ledger and clock; ``say`` speaks as a peer and returns what was sent, by peer."""

    def __init__(self, ledger: MemoryLedger | None = None, **settings: float) -> None:
        self.now = 1000.0
        self.ledger = ledger or MemoryLedger()
        self.scheduler = Scheduler(SchedulerConfig(**settings), incarnation="b", now=self.now)
        self.persisted: list[Persist] = []
        self._carry_out(self.scheduler.handle(self.ledger.load(self.now), self.now))

    def _carry_out(self, effects: Iterable[Effect]) -> list[Send]:
        effects = list(effects)
        changes = [one for one in effects if isinstance(one, Persist)]
        self.ledger.commit(changes)
        self.persisted += changes
        self.scheduler.books.validate()
        return [one for one in effects if isinstance(one, Send)]

    def say(self, peer: bytes, message: m.Message) -> list[Send]:
        sends = self._carry_out(self.scheduler.handle(FromPeer(peer, message), self.now))
        return sends + self.tick()

    def tick(self, after_s: float = 0.0) -> list[Send]:
        """Let ``after_s`` seconds go by, in which the broker looks now and then, as it does."""
        until, sends = self.now + after_s, []
        while until - self.now > LOOKS_S:
            sends += self.sleep(LOOKS_S)
        return sends + self.sleep(until - self.now)

    def sleep(self, for_s: float) -> list[Send]:
        """Let ``for_s`` seconds go by in which the broker does not look at anything."""
        self.now += for_s
        return self._carry_out(self.scheduler.handle(Tick(), self.now))

    def restart(self) -> Cluster:
        again = Cluster(self.ledger)
        again.now = self.now
        return again

    def gateway(self, name: str = "g", peer: bytes = G) -> None:
        (send,) = [one for one in self.say(peer, m.Hello(gateway=name, incarnation="1")) if one.peer == peer][:1]
        assert isinstance(send.message, m.Welcome)

    def node(
        self, peer: bytes = N1, *, capacity: int = 4, routes: tuple[str, ...] = ("de→en",),
        held: tuple[m.HeldLease, ...] = (), name: str | None = None, incarnation: str = "1",
    ) -> list[Send]:  # fmt: skip
        offered = tuple(m.Route(route, "v1") for route in routes)
        name = name or peer.decode()
        return self.say(
            peer,
            m.Register(node=name, incarnation=incarnation, routes=offered, capacity=capacity, engine="echo", held=held),
        )

    def beat(self, peer: bytes, held: tuple[m.HeldLease, ...] = (), **changes: object) -> list[Send]:
        fields: dict[str, object] = {
            "held": held, "capacity": 4, "draining": False, "workers": 1, "queued": 0, "in_flight": 0,
            "chars_per_s": 0.0, "cpu_percent": 0.0, "core_percent": (), "ram_percent": 0.0, "ram_used_bytes": 0,
            "temperature_c": -300.0, "throttled": False, "children": (),
        }  # fmt: skip
        return self.say(peer, m.Heartbeat(**{**fields, **changes}))  # type: ignore[arg-type]

    def submit(self, *specs: m.JobSpec, peer: bytes = G) -> list[Send]:
        return self.say(peer, m.Submit(jobs=specs))

    def done(self, peer: bytes, *leases: m.LeasedJob) -> list[Send]:
        items = tuple(m.Finished(one.job_id, one.attempt, one.texts, "v1") for one in leases)
        return self.say(peer, m.Done(jobs=items))

    def state(self, number: int) -> State | None:
        job = self.scheduler.books.jobs.get(key(number))
        return job.state if job else None


def key(number: int) -> bytes:
    return number.to_bytes(16, "big")


def spec(
    number: int, text: str = "Hallo", *, lane: int = m.INTERACTIVE, tenant: str = "t", route: str = "de→en",
    deadline_s: float = 60.0,
) -> m.JobSpec:  # fmt: skip
    return m.JobSpec(key(number), route, (text,), lane, tenant, deadline_s, b"r%d" % number)


def sent(sends: Iterable[Send], kind: type, peer: bytes | None = None) -> list:  # type: ignore[type-arg]
    """All entries of messages of one kind, flattened where they are lists of jobs."""
    found = [one.message for one in sends if isinstance(one.message, kind) and peer in (None, one.peer)]
    if found and hasattr(found[0], "jobs"):
        return [entry for message in found for entry in message.jobs]
    return found


@pytest.fixture
def cluster() -> Cluster:
    made = Cluster()
    made.gateway()
    return made


def lease_one(cluster: Cluster, number: int = 1, peer: bytes = N1) -> m.LeasedJob:
    cluster.node(peer)
    (lease,) = sent(cluster.submit(spec(number)), m.Lease, peer)
    assert isinstance(lease, m.LeasedJob)
    return lease


def test_one_job_end_to_end(cluster: Cluster) -> None:
    cluster.node()
    sends = cluster.submit(spec(1))
    assert sent(sends, m.Accepted, G) == [m.JobState(key(1), "queued")]
    assert sent(sends, m.Lease, N1) == [m.LeasedJob(key(1), 1, "de→en", ("Hallo",), 0, False)]
    cluster.now += 0.5
    sends = cluster.say(N1, m.Done(jobs=(m.Finished(key(1), 1, ("Hello",), "v1"),)))
    assert sent(sends, m.Received, N1) == [m.HeldLease(key(1), 1)]
    assert sent(sends, m.Result, G) == [m.Answer(key(1), ("Hello",), "", "", "v1", 1, False, 500, b"r1")]
    assert cluster.say(G, m.Ack(jobs=(key(1),))) == []
    assert cluster.state(1) is None
    assert [one.op for one in cluster.persisted] == [Op.INSERT, Op.LEASE, Op.FINISH, Op.REMOVE]


def test_every_send_of_a_tick_comes_after_what_it_depends_on_is_persisted(cluster: Cluster) -> None:
    effects = cluster.scheduler.handle(FromPeer(G, m.Submit(jobs=(spec(1),))), cluster.now)
    kinds = [type(one) for one in effects]
    assert kinds == [Persist, Send]


def test_a_job_submitted_twice_is_one_job(cluster: Cluster) -> None:
    lease = lease_one(cluster)
    again = cluster.submit(spec(1))
    assert sent(again, m.Accepted) == [m.JobState(key(1), "leased")]
    assert sent(again, m.Lease) == []
    cluster.done(N1, lease)
    third = cluster.submit(spec(1))
    assert sent(third, m.Accepted) == [m.JobState(key(1), "done")]
    assert [one.job_id for one in sent(third, m.Result)] == [key(1)]
    cluster.say(G, m.Ack(jobs=(key(1),)))
    assert sent(cluster.submit(spec(1)), m.Accepted) == [m.JobState(key(1), "settled")]


def test_the_gateway_that_submitted_last_gets_the_result_also_after_a_restart(cluster: Cluster) -> None:
    lease = lease_one(cluster)
    cluster.gateway("other", b"other")
    assert sent(cluster.submit(spec(1), peer=b"other"), m.Accepted, b"other") == [m.JobState(key(1), "leased")]
    again = cluster.restart()
    again.gateway()
    again.gateway("other", b"other")
    again.node(held=(m.HeldLease(key(1), lease.attempt),))
    sends = again.done(N1, lease)
    assert sent(sends, m.Result, G) == []
    assert [one.job_id for one in sent(sends, m.Result, b"other")] == [key(1)]


def test_settled_ids_are_forgotten_beyond_their_cap() -> None:
    cluster = Cluster(max_settled=1)
    cluster.gateway()
    cluster.node()
    for number in (1, 2):
        cluster.done(N1, *sent(cluster.submit(spec(number)), m.Lease))
        cluster.say(G, m.Ack(jobs=(key(number),)))
    assert sent(cluster.submit(spec(2)), m.Accepted)[0].state == "settled"
    assert sent(cluster.submit(spec(1)), m.Accepted)[0].state != "settled"


def test_results_are_sent_again_until_acked(cluster: Cluster) -> None:
    lease = lease_one(cluster)
    assert len(sent(cluster.done(N1, lease), m.Result)) == 1
    assert sent(cluster.tick(1.0), m.Result) == []
    assert len(sent(cluster.tick(1.5), m.Result)) == 1
    cluster.say(G, m.Ack(jobs=(key(1),)))
    assert sent(cluster.tick(60), m.Result) == []


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


def test_the_first_result_wins_and_the_second_is_thanked_for(cluster: Cluster) -> None:
    lease = lease_one(cluster)
    cluster.node(N2)
    cluster.beat(N2)
    for _ in range(14):
        cluster.beat(N2)
        if second := sent(cluster.tick(0.25), m.Lease, N2):
            break
    cluster.node(N1, incarnation="1")  # it was only cut off
    late = cluster.done(N1, lease)
    assert len(sent(late, m.Result)) == 1
    assert sent(late, m.Revoke, N2) == [m.HeldLease(key(1), 2)]
    again = cluster.done(N2, *second)
    assert sent(again, m.Result) == []
    assert sent(again, m.Received, N2) == [m.HeldLease(key(1), 2)]


def test_a_result_for_a_job_that_is_queued_again_counts(cluster: Cluster) -> None:
    lease = lease_one(cluster)
    cluster.say(N1, m.Failed(jobs=(m.Failure(key(1), 1, "given_back", "", True),)))
    cluster.beat(N1, capacity=0)
    assert len(sent(cluster.done(N1, lease), m.Result)) <= 1
    assert cluster.state(1) is State.DONE


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


def test_failures_are_retried_then_buried_and_can_be_requeued(cluster: Cluster) -> None:
    lease_one(cluster)
    for attempt in (1, 2, 3):
        sends = cluster.say(N1, m.Failed(jobs=(m.Failure(key(1), attempt, "child_crashed", "signal 9", True),)))
        assert [one.suspect for one in sent(sends, m.Lease)] == ([True] if attempt < 3 else [])
    (answer,) = sent(sends, m.Result)
    assert (answer.texts, answer.code, answer.attempts) == (None, "child_crashed", 3)
    cluster.say(G, m.Ack(jobs=(key(1),)))
    assert cluster.state(1) is State.DEAD
    sends = cluster.say(G, m.Manage(action=m.REQUEUE))
    (managed,) = sent(sends, m.Managed)
    assert (managed.action, managed.count, managed.problem) == (m.REQUEUE, 1, "")
    assert [one.attempt for one in sent(sends, m.Lease)] == [4]


def test_a_failure_that_is_told_twice_counts_once(cluster: Cluster) -> None:
    lease_one(cluster)
    held = (m.HeldLease(key(1), 1),)
    cluster.beat(N1, held, capacity=0)  # so that the job stays queued
    failed = m.Failed(jobs=(m.Failure(key(1), 1, "child_crashed", "signal 9", True),))
    cluster.say(N1, failed)
    sends = cluster.node(N2, capacity=0, held=held, name=N1.decode())  # RECEIVED was lost: the node shows it again
    assert sent(sends, m.Revoke, N2)
    cluster.say(N2, failed)
    assert cluster.scheduler.books.jobs[key(1)].failures == 1


def test_a_node_that_registers_twice_keeps_only_the_attempts_it_shows(cluster: Cluster) -> None:
    lease_one(cluster)
    cluster.say(N1, m.Failed(jobs=(m.Failure(key(1), 1, "child_crashed", "signal 9", True),)))  # leased again, as 2
    cluster.node(N1, held=(m.HeldLease(key(1), 1),))  # written before the second lease came
    assert cluster.scheduler.books.orphans == {}


def test_a_dead_letter_can_be_requeued_after_a_restart(cluster: Cluster) -> None:
    cluster.submit(spec(1, deadline_s=5))
    cluster.tick(6)
    again = cluster.restart()
    again.gateway()
    again.now += 100
    again.say(G, m.Manage(action=m.REQUEUE))
    again.tick(1)
    assert again.state(1) is State.QUEUED
    assert [one.job_id for one in sent(again.node(), m.Lease)] == [key(1)]


def test_a_dead_letter_that_was_acked_is_told_again_when_it_is_submitted_again(cluster: Cluster) -> None:
    cluster.submit(spec(1, deadline_s=5))
    cluster.tick(6)
    cluster.say(G, m.Ack(jobs=(key(1),)))
    sends = cluster.submit(spec(1))
    assert sent(sends, m.Accepted) == [m.JobState(key(1), "dead")]
    assert [one.code for one in sent(sends, m.Result)] == ["deadline"]


def test_a_failure_that_no_node_could_mend_is_final(cluster: Cluster) -> None:
    lease_one(cluster)
    sends = cluster.say(N1, m.Failed(jobs=(m.Failure(key(1), 1, "degenerate_output", "it loops", False),)))
    assert [one.code for one in sent(sends, m.Result)] == ["degenerate_output"]


def test_giving_back_is_no_failure(cluster: Cluster) -> None:
    lease_one(cluster)
    for attempt in range(1, 8):
        cluster.say(N1, m.Failed(jobs=(m.Failure(key(1), attempt, "given_back", "", True),)))
    assert cluster.state(1) is State.LEASED


def test_lost_nodes_bury_a_job_in_the_end() -> None:
    cluster = Cluster(max_attempts=2)
    cluster.gateway()
    lease_one(cluster)
    cluster.tick(3.5)
    cluster.node()
    sends = cluster.tick(3.5)
    assert [one.code for one in sent(sends, m.Result)] == ["attempts"]


def test_goodbye_requeues_without_blame(cluster: Cluster) -> None:
    lease_one(cluster)
    cluster.node(N2)
    assert [one.attempt for one in sent(cluster.say(N1, m.Goodbye()), m.Lease, N2)] == [2]
    assert cluster.scheduler.books.jobs[key(1)].losses == 0


def test_deadlines_strike_in_the_queue_and_at_a_node(cluster: Cluster) -> None:
    cluster.submit(spec(1, deadline_s=5))
    sends = cluster.tick(5.5)
    assert [(one.code, one.detail) for one in sent(sends, m.Result)] == [
        ("deadline", "not translated before its deadline, in the queue: no node offers de→en")
    ]
    cluster.say(G, m.Ack(jobs=(key(1),)))
    cluster.node()
    cluster.submit(spec(2, deadline_s=2))
    sends = cluster.tick(2.5)
    assert [one.code for one in sent(sends, m.Result)] == ["deadline"]
    assert sent(sends, m.Revoke, N1) == [m.HeldLease(key(2), 1)]


def test_cancel_revokes_and_forgets(cluster: Cluster) -> None:
    lease_one(cluster)
    cluster.submit(spec(2), spec(3), spec(4), spec(5))
    sends = cluster.say(G, m.Cancel(jobs=(key(1), key(5), key(9))))
    assert sent(sends, m.Revoke, N1) == [m.HeldLease(key(1), 1)]
    assert {one.state for one in sent(sends, m.Accepted)} == {"settled"}
    assert cluster.state(1) is None
    assert cluster.state(5) is None


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


@pytest.mark.parametrize(
    ("bad", "code"),
    [
        (spec(1, "  \n "), "empty_text"),
        (m.JobSpec(key(1), "de→en", (), 0, "t", 60.0, b""), "empty_text"),
        (spec(1, "x" * (m.MAX_TEXT_CHARS + 1)), "too_large"),
        (m.JobSpec(key(1), "de→en", ("x" * 20_000,) * 3, 0, "t", 60.0, b""), "too_large"),
        (spec(1, route="deutsch"), "unknown_route"),
        (spec(1, deadline_s=0), "bad_deadline"),
    ],
)
def test_bad_jobs_are_rejected_and_good_ones_beside_them_taken(cluster: Cluster, bad: m.JobSpec, code: str) -> None:
    sends = cluster.submit(bad, spec(2))
    assert [(one.job_id, one.code, one.retry_after_s) for one in sent(sends, m.Rejected)] == [(key(1), code, 0.0)]
    assert [one.job_id for one in sent(sends, m.Accepted)] == [key(2)]


def test_overload_says_when_to_come_back_and_keeps_room_for_people() -> None:
    cluster = Cluster(max_jobs=10)
    cluster.gateway()
    sends = cluster.submit(*[spec(n, lane=m.BULK) for n in range(12)])
    assert len(sent(sends, m.Accepted)) == 9
    assert {one.code for one in sent(sends, m.Rejected)} == {"overloaded"}
    sends = cluster.submit(*[spec(100 + n) for n in range(3)])
    assert len(sent(sends, m.Accepted)) == 1
    assert all(1 <= one.retry_after_s <= 60 for one in sent(sends, m.Rejected))


def test_overload_counts_bytes_too() -> None:
    cluster = Cluster(max_bytes=1 << 20)
    cluster.gateway()
    sends = cluster.submit(*[spec(n, "x" * 20_000) for n in range(40)])
    assert 20 <= len(sent(sends, m.Accepted)) < 30


def test_the_cache_answers_without_a_node(cluster: Cluster) -> None:
    lease = lease_one(cluster)
    cluster.done(N1, lease)
    sends = cluster.submit(spec(2))
    assert sent(sends, m.Lease) == []
    (answer,) = sent(sends, m.Result)
    assert (answer.texts, answer.cached) == (("Hallo",), True)
    assert cluster.scheduler.status(cluster.now).cache_hits == 1


def test_draining_takes_nothing_new_and_leases_nothing(cluster: Cluster) -> None:
    cluster.submit(spec(1))
    cluster._carry_out(cluster.scheduler.handle(Drain(), cluster.now))
    (refused,) = sent(cluster.submit(spec(2)), m.Rejected)
    assert (refused.code, refused.retry_after_s) == ("draining", 5.0)
    assert sent(cluster.node(), m.Lease) == []


def test_a_gateway_that_comes_back_gets_what_waited_for_it(cluster: Cluster) -> None:
    lease = lease_one(cluster)
    cluster._carry_out(cluster.scheduler.handle(PeerGone(G), cluster.now))
    assert sent(cluster.done(N1, lease), m.Result) == []
    sends = cluster.say(b"gateway-2", m.Hello(gateway="g", incarnation="2"))
    assert [(one.job_id, one.reply_to) for one in sent(sends, m.Result, b"gateway-2")] == [(key(1), b"r1")]


def test_results_nobody_comes_for_are_given_up() -> None:
    cluster = Cluster(result_ttl_s=100)
    cluster.gateway()
    lease = lease_one(cluster)
    cluster.done(N1, lease)
    cluster.tick(101)
    assert cluster.state(1) is None


def test_dead_letters_are_capped_but_never_before_they_are_told() -> None:
    cluster = Cluster(max_dead=2)
    cluster.gateway()
    cluster.submit(*[spec(n, deadline_s=1) for n in range(5)])
    answers = sent(cluster.tick(2), m.Result)
    assert len(answers) == 5
    assert len(cluster.scheduler.books.dead) == 5
    cluster.say(G, m.Ack(jobs=tuple(one.job_id for one in answers)))
    assert len(cluster.scheduler.books.dead) == 2


def test_a_broker_restart_loses_nothing_and_waits_for_nodes_to_show_what_they_hold(cluster: Cluster) -> None:
    lease = lease_one(cluster, 1)
    cluster.beat(N1, held=(m.HeldLease(key(1), 1),), capacity=1)
    cluster.submit(spec(2), spec(3))
    again = cluster.restart()
    assert [again.state(n) for n in (1, 2, 3)] == [State.LEASED, State.QUEUED, State.QUEUED]
    again.gateway()
    sends = again.node(held=(m.HeldLease(key(1), lease.attempt),), capacity=1)
    assert sent(sends, m.Lease) == []
    assert again.state(1) is State.LEASED
    again.done(N1, lease)
    assert again.state(1) is State.DONE


def test_after_a_restart_leases_that_nobody_shows_are_queued_again(cluster: Cluster) -> None:
    lease_one(cluster)
    again = cluster.restart()
    again.gateway()
    again.node(N2)
    assert again.state(1) is State.LEASED
    for _ in range(24):
        again.tick(0.25)
        again.beat(N2)
    assert again.scheduler.books.jobs[key(1)].node == "node-2"


def test_after_a_restart_results_and_settled_ids_are_still_there(cluster: Cluster) -> None:
    cluster.done(N1, lease_one(cluster, 1))
    cluster.done(N1, *sent(cluster.submit(spec(2, "Welt")), m.Lease))
    cluster.say(G, m.Ack(jobs=(key(2),)))
    again = cluster.restart()
    sends = again.say(G, m.Hello(gateway="g", incarnation="2"))
    assert [one.job_id for one in sent(sends, m.Result)] == [key(1)]
    assert sent(again.submit(spec(2)), m.Accepted) == [m.JobState(key(2), "settled")]


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


def test_a_move_that_the_table_does_not_have_tells_the_story_and_no_text() -> None:
    job = Job(
        seq=1, id=key(1), gateway="g", tenant="t", lane=0, route="de→en", texts=("geheim",), reply_to=b"",
        deadline=60.0, queued_at=0.0,
    )  # fmt: skip
    job.move(State.LEASED, 1.0, "leased to pi")
    assert "geheim" not in f"{job} {job!r}", "an error that names a job quotes none of its text"
    with pytest.raises(LocalError, match="leased to pi"):
        job.move(State.LEASED, 2.0, "again")
    for number in range(100):
        job.move(State.QUEUED, 3.0, "back")
        job.move(State.LEASED, 3.0, f"try {number}")
    assert len(job.tell().splitlines()) == 17


def test_next_deadline_is_none_only_when_nothing_can_happen() -> None:
    cluster = Cluster()
    assert cluster.scheduler.next_deadline() is None
    cluster.gateway()
    assert cluster.scheduler.next_deadline() is not None


def test_recover_nothing() -> None:
    assert Cluster().scheduler.handle(Recover((), ()), 0.0) == []


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
