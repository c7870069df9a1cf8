"""The scheduler, event by event: what becomes of a job, from its submission to the result that is acked."""

from __future__ import annotations

import pytest

from dolmetsch import messages as m
from dolmetsch.effects import Drain, FromPeer, Op, Persist, Recover, Send
from dolmetsch.errors import LocalError
from dolmetsch.jobs import Job, State
from tests.scheduling import N1, N2, Cluster, G, cluster, key, lease_one, sent, spec

__all__ = ["cluster"]  # fixtures


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
