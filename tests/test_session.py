"""A node's and a gateway's side of the wire, event by event, with no socket and no clock."""

from __future__ import annotations

import random
from collections.abc import Iterable
from typing import Any

import pytest
from msgspec.structs import replace

from dolmetsch import messages as m
from dolmetsch import outbox as ob
from dolmetsch import session as se
from dolmetsch.link import RECONNECT_MOST_S, SILENCE_S
from dolmetsch.reports import About
from dolmetsch.session import capacity
from tests.scheduling import key, spec

ROUTES = (m.Route("de→en", "v1"),)
REPORT = m.Report(kind="discord", servers=2, latency_ms=48.5, queued=1, answered=20, failed=3)


def lease(number: int, attempt: int = 1) -> m.LeasedJob:
    return m.LeasedJob(key(number), attempt, "de→en", ("Hallo",), 0, False)


def held(number: int, attempt: int = 1) -> m.HeldLease:
    return m.HeldLease(key(number), attempt)


def of(effects: Iterable[Any], kind: type) -> list[Any]:
    """The messages of one kind that were sent, or the effects of one kind."""
    found = []
    for one in effects:
        if isinstance(one, kind):
            found.append(one)
        elif hasattr(one, "message") and isinstance(one.message, kind):
            found.append(one.message)
    return found


class Node:
    """A session with a clock."""

    def __init__(self) -> None:
        self.now = 100.0
        self.session = se.Session(name="pi", incarnation="i", engine="echo", rng=random.Random(1), now=self.now)

    def handle(self, event: se.Event, after_s: float = 0.0) -> list[se.Effect]:
        self.now += after_s
        return self.session.handle(event, self.now) + self.session.handle(se.Tick(), self.now)

    def hear(self, message: m.Message, after_s: float = 0.0) -> list[se.Effect]:
        return self.handle(se.FromBroker(message), after_s)

    def tick(self, after_s: float = 0.0) -> list[se.Effect]:
        return self.handle(se.Tick(), after_s)

    def finish(self, number: int) -> list[se.Effect]:
        return self.handle(se.Ended([(key(number), ("Hello",), "v1", 12, 34)], []))


@pytest.fixture
def node() -> Node:
    made = Node()
    made.handle(se.Offer(ROUTES, 2))
    made.hear(m.Welcome(broker="b", heartbeat_s=1.0, edition=1, routes=()))
    return made


def health(**changes: Any) -> se.Health:
    fields = {
        "workers": 2, "slots": 2, "queued": 0, "in_flight": 0, "jobs_per_s": 0.0, "chars_per_s": 0.0,
        "cpu_percent": 1.0, "core_percent": (1.0,), "ram_percent": 1.0, "ram_used_bytes": 1, "temperature_c": None,
        "throttled": False, "children": (),
    }  # fmt: skip
    return se.Health(**{**fields, **changes})


def test_a_node_registers_when_it_can_translate_and_not_before() -> None:
    node = Node()
    assert node.tick(10) == []
    (register,) = of(node.handle(se.Offer(ROUTES, 2)), m.Register)
    assert (register.node, register.routes, register.capacity) == ("pi", ROUTES, 2 * se.MIN_CREDIT)
    assert of(node.tick(0.5), m.Register) == []
    assert len(of(node.tick(0.6), m.Register)) == 1  # no answer yet


def test_leases_start_once(node: Node) -> None:
    (start,) = of(node.hear(m.Lease(jobs=(lease(1), lease(2)))), se.Start)
    assert start.jobs == (lease(1), lease(2))
    assert of(node.hear(m.Lease(jobs=(lease(1),))), se.Start) == []


def test_outcomes_are_sent_until_received(node: Node) -> None:
    node.hear(m.Lease(jobs=(lease(1), lease(2))))
    (done,) = of(node.finish(1), m.Done)
    assert done.jobs == (m.Finished(key(1), 1, ("Hello",), "v1", 12, 34),)
    (failed,) = of(node.handle(se.Ended([], [(key(2), "child_crashed", "signal 9", True)])), m.Failed)
    assert failed.jobs == (m.Failure(key(2), 1, "child_crashed", "signal 9", True),)
    node.hear(m.Pong(), 1.0)
    again = node.hear(m.Pong(), 2.1)
    assert len(of(again, m.Done)) == len(of(again, m.Failed)) == 1
    node.hear(m.Received(jobs=(held(1), held(2))))
    assert node.session.held == 0
    node.hear(m.Pong(), 2.5)
    assert of(node.hear(m.Pong(), 2.5), m.Done) == []


def test_a_busy_node_gathers_bulk_outcomes_for_a_moment_but_never_interactive_ones(node: Node) -> None:
    bulk = tuple(replace(lease(n), lane=m.BULK) for n in range(3 * se.GATHER_JOBS))
    node.hear(m.Lease(jobs=bulk))
    assert of(node.finish(1), m.Done) == []
    assert of(node.finish(2), m.Done) == []
    (done,) = of(node.tick(se.GATHER_S), m.Done)
    assert len(done.jobs) == 2
    node.finish(3)
    node.hear(m.Lease(jobs=(lease(999),)))
    (done,) = of(node.finish(999), m.Done)
    assert len(done.jobs) == 2
    for number in range(4, 2 * se.GATHER_JOBS + 9):
        node.finish(number)
    node.tick(se.GATHER_S)
    assert len(of(node.finish(600), m.Done)) == 1  # few are left: not busy


def test_few_jobs_make_a_node_busy_when_they_take_it_long(node: Node) -> None:
    node.handle(se.Beat(health(jobs_per_s=10.0)))
    node.hear(m.Lease(jobs=tuple(replace(lease(n), lane=m.BULK) for n in range(13))))
    assert of(node.finish(0), m.Done) == []
    (done,) = of(node.tick(se.GATHER_S), m.Done)
    assert len(done.jobs) == 1
    assert of(node.finish(1), m.Done) == []
    (done,) = of(node.finish(2), m.Done)  # a second of work is left
    assert len(done.jobs) == 2


def test_a_newer_attempt_of_what_is_held_counts_for_the_work_under_way(node: Node) -> None:
    node.hear(m.Lease(jobs=(lease(1, 1),)))
    assert of(node.hear(m.Lease(jobs=(lease(1, 3),))), se.Start) == []
    (done,) = of(node.finish(1), m.Done)
    assert done.jobs[0].attempt == 3
    node.hear(m.Received(jobs=(held(1, 1),)))
    assert node.session.held == 1
    (done,) = of(node.hear(m.Lease(jobs=(lease(1, 4),))), m.Done)
    assert done.jobs[0].attempt == 4
    node.hear(m.Received(jobs=(held(1, 4),)))
    assert node.session.held == 0


def test_revoked_work_is_stopped_and_its_outcome_dropped(node: Node) -> None:
    node.hear(m.Lease(jobs=(lease(1),)))
    assert of(node.hear(m.Revoke(jobs=(held(1), held(9)))), se.Stop) == [se.Stop((key(1),))]
    assert of(node.finish(1), m.Done) == []


def test_every_beat_lists_what_is_worked_on_and_less_credit_when_hot(node: Node) -> None:
    node.hear(m.Lease(jobs=(lease(1), lease(2))))
    node.finish(2)
    (beat,) = of(node.handle(se.Beat(health(jobs_per_s=1600.0))), m.Heartbeat)
    assert beat.held == (held(1),)
    assert (beat.capacity, beat.temperature_c) == (1600 * se.PREFETCH_S, -300.0)
    for hot in ({"throttled": True}, {"temperature_c": 85.0}):
        (beat,) = of(node.handle(se.Beat(health(jobs_per_s=1600.0, **hot))), m.Heartbeat)
        assert beat.capacity == 800 * se.PREFETCH_S


def test_capacity_stays_in_its_bounds() -> None:
    assert capacity(4, 0.0, hot=False) == capacity(4, 0.1, hot=False) == 4 * se.MIN_CREDIT
    assert capacity(4, 1e6, hot=False) == m.MAX_CAPACITY
    assert capacity(1, 0.1, hot=True) >= 1
    assert capacity(0, 1e6, hot=False) == 0


def test_a_restarted_broker_is_shown_everything_and_told_the_outcomes_again(node: Node) -> None:
    node.hear(m.Lease(jobs=(lease(1), lease(2))))
    node.finish(2)
    (register,) = of(node.hear(m.Reregister()), m.Register)
    assert register.held == (held(1), held(2))
    (done,) = of(node.hear(m.Welcome(broker="b2", heartbeat_s=1.0, edition=1, routes=())), m.Done)
    assert done.jobs[0].job_id == key(2)


def test_silence_makes_new_connections_with_growing_waits_for_ever(node: Node) -> None:
    node.hear(m.Lease(jobs=(lease(1),)))
    waits, last = [], node.now
    for _ in range(4000):
        if of(node.tick(0.1), se.Reconnect):
            waits.append(node.now - last)
            last = node.now
    assert waits[0] == pytest.approx(SILENCE_S, abs=0.2)
    assert max(waits) < 1.25 * RECONNECT_MOST_S + 0.2
    assert waits[3] > 2 * SILENCE_S
    assert node.session.held == 1
    (joined,) = of(node.hear(m.Welcome(broker="b", heartbeat_s=1.0, edition=1, routes=())), se.Joined)
    assert joined == se.Joined("b", 1.0)


def test_draining_finishes_then_leaves(node: Node) -> None:
    node.hear(m.Lease(jobs=(lease(1),)))
    assert of(node.handle(se.Drain(node.now + 10)), se.Leave) == []
    (beat,) = of(node.handle(se.Beat(health())), m.Heartbeat)
    assert (beat.draining, beat.capacity) == (True, 0)
    node.finish(1)
    effects = node.hear(m.Received(jobs=(held(1),)))
    assert len(of(effects, m.Goodbye)) == 1
    assert of(effects, se.Leave) == [se.Leave(None)]


def test_draining_ends_in_time_even_if_the_work_does_not(node: Node) -> None:
    node.hear(m.Lease(jobs=(lease(1),)))
    node.handle(se.Drain(node.now + 10))
    assert len(of(node.tick(10.1), se.Leave)) == 1


def test_a_name_that_is_taken_ends_the_session(node: Node) -> None:
    (leave,) = of(node.hear(m.Error(code="name_taken", detail="give each its own")), se.Leave)
    assert leave.why == "give each its own"
    assert of(node.hear(m.Error(code="bad_message", detail="?")), se.Leave) == []


class Gateway:
    """An outbox with a clock."""

    def __init__(self) -> None:
        self.now = 100.0
        self.outbox = ob.Outbox(gateway="g", incarnation="i", rng=random.Random(1), now=self.now)

    def handle(self, event: ob.Event, after_s: float = 0.0) -> list[ob.Effect]:
        self.now += after_s
        return self.outbox.handle(event, self.now) + self.outbox.handle(ob.Tick(), self.now)

    def hear(self, message: m.Message, after_s: float = 0.0) -> list[ob.Effect]:
        return self.handle(ob.FromBroker(message), after_s)

    def welcome(self) -> list[ob.Effect]:
        return self.hear(m.Welcome(broker="b", heartbeat_s=1.0, edition=1, routes=ROUTES))

    def accept(self, number: int, state: str = "queued") -> list[ob.Effect]:
        return self.hear(m.Accepted(jobs=(m.JobState(key(number), state),)))


def answer(number: int, text: str = "Hello") -> m.Answer:
    return m.Answer(key(number), (text,), "", "", "v1", 1, False, 5, b"")


@pytest.fixture
def gateway() -> Gateway:
    made = Gateway()
    made.welcome()
    return made


def test_nothing_is_submitted_before_the_welcome() -> None:
    gateway = Gateway()
    effects = gateway.handle(ob.Post((spec(1),)))
    assert len(of(effects, m.Hello)) == 1
    assert of(effects, m.Submit) == []
    (submit,) = of(gateway.welcome(), m.Submit)
    assert submit.jobs == (spec(1),)


def test_a_job_is_submitted_until_there_is_a_word(gateway: Gateway) -> None:
    assert len(of(gateway.handle(ob.Post((spec(1), spec(1)))), m.Submit)) == 1
    gateway.hear(m.Pong(), 1.5)
    (submit,) = of(gateway.hear(m.Pong(), 1.0), m.Submit)
    assert [one.job_id for one in submit.jobs] == [key(1)]
    assert submit.jobs[0].deadline_s == pytest.approx(57.5)
    gateway.accept(1)
    gateway.hear(m.Pong(), 2.0)
    assert of(gateway.hear(m.Pong(), 2.0), m.Submit) == []


def test_a_result_is_delivered_once_and_acked_when_it_is_safe(gateway: Gateway) -> None:
    gateway.handle(ob.Post((spec(1),)))
    effects = gateway.hear(m.Result(jobs=(answer(1), answer(1))))
    assert of(effects, ob.Deliver) == [ob.Deliver(answer(1), stray=False)]
    assert of(effects, m.Ack) == []
    assert of(gateway.hear(m.Result(jobs=(answer(1),))), ob.Deliver) == []
    gateway.handle(ob.Have((key(1),)))
    assert not gateway.outbox.idle
    assert of(gateway.handle(ob.Tick(), ob.ACK_S), m.Ack) == [m.Ack(jobs=(key(1),))]
    assert gateway.outbox.idle
    late = gateway.hear(m.Result(jobs=(answer(1),)))
    assert of(late, ob.Deliver) == []
    assert of(gateway.handle(ob.Tick(), ob.ACK_S), m.Ack) == [m.Ack(jobs=(key(1),))]


def test_a_result_of_an_earlier_process_is_a_stray(gateway: Gateway) -> None:
    effects = gateway.hear(m.Result(jobs=(answer(7),)))
    assert of(effects, ob.Deliver) == [ob.Deliver(answer(7), stray=True)]
    assert of(gateway.hear(m.Result(jobs=(answer(7),))), ob.Deliver) == []
    gateway.handle(ob.Have((key(7),)))
    assert len(of(gateway.handle(ob.Tick(), ob.ACK_S), m.Ack)) == 1


def test_what_was_settled_before_is_said(gateway: Gateway) -> None:
    gateway.handle(ob.Post((spec(1),)))
    assert of(gateway.accept(1, "settled"), ob.Settled) == [ob.Settled(key(1))]


def test_refusals_are_passed_on(gateway: Gateway) -> None:
    gateway.handle(ob.Post((spec(1),)))
    refusal = m.Refusal(key(1), "overloaded", "overloaded: try again in 3 s", 3.0)
    assert of(gateway.hear(m.Rejected(jobs=(refusal,))), ob.Refuse) == [ob.Refuse(refusal)]
    assert gateway.outbox.open == 0


def test_a_new_broker_gets_all_that_is_open(gateway: Gateway) -> None:
    gateway.handle(ob.Post((spec(1), spec(2), spec(3))))
    gateway.accept(1)
    gateway.hear(m.Result(jobs=(answer(2),)))
    gateway.hear(m.Reregister())
    (submit,) = of(gateway.welcome(), m.Submit)
    assert [one.job_id for one in submit.jobs] == [key(1), key(3)]


def test_with_no_broker_a_job_ends_at_its_deadline_with_one_word(gateway: Gateway) -> None:
    gateway.handle(ob.Post((spec(1, deadline_s=30),)))
    gave_up: list[Any] = []
    downs: list[Any] = []
    for _ in range(400):
        effects = gateway.handle(ob.Tick(), 0.1)
        gave_up += of(effects, ob.GiveUp)
        downs += of(effects, ob.Down)
    assert gave_up == [ob.GiveUp(key(1), 30)]
    assert downs
    assert gateway.outbox.open == 0


def test_cancelling_tells_the_broker(gateway: Gateway) -> None:
    gateway.handle(ob.Post((spec(1),)))
    gateway.accept(1)
    assert of(gateway.handle(ob.Withdraw((key(1), key(2)))), m.Cancel) == [m.Cancel(jobs=(key(1),))]


def test_asking_is_repeated_until_answered(gateway: Gateway) -> None:
    assert len(of(gateway.handle(ob.Enquire()), m.Ask)) == 1
    gateway.hear(m.Pong(), 1.5)
    assert len(of(gateway.hear(m.Pong(), 1.0), m.Ask)) == 1


def test_a_report_is_sent_only_while_the_broker_is_there(gateway: Gateway) -> None:
    assert of(gateway.handle(ob.Tell(REPORT)), m.Report) == [REPORT]
    gateway.hear(m.Reregister())
    assert of(gateway.handle(ob.Tell(REPORT)), m.Report) == []
    assert of(gateway.welcome(), m.Report) == [], "it is old by now"
    gateway.handle(ob.Tick(), SILENCE_S)
    assert of(gateway.handle(ob.Tell(REPORT)), m.Report) == []


def test_routes_are_followed_and_each_ping_says_which_are_known(gateway: Gateway) -> None:
    (up,) = of(gateway.welcome(), ob.Up)
    assert up.routes == ROUTES
    assert of(gateway.handle(ob.Tick(), ob.PING_S), m.Ping) == [m.Ping(edition=1)]
    more = (*ROUTES, m.Route("fr→en", "v1"))
    assert of(gateway.hear(m.Routes(edition=2, routes=more)), ob.Offered) == [ob.Offered(more)]
    assert of(gateway.handle(ob.Tick(), ob.PING_S), m.Ping) == [m.Ping(edition=2)]
    gateway.hear(m.Reregister())
    gateway.welcome()  # of another broker, which counts anew
    assert of(gateway.handle(ob.Tick(), ob.PING_S), m.Ping) == [m.Ping(edition=1)]


def test_new_routes_submit_nothing_again(gateway: Gateway) -> None:
    gateway.handle(ob.Post((spec(1),)))
    gateway.accept(1)
    assert of(gateway.hear(m.Routes(edition=2, routes=())), m.Submit) == []


def test_memory_of_acks_is_bounded(gateway: Gateway) -> None:
    for number in range(3 * ob.MAX_ACKED):
        gateway.handle(ob.Have((key(number),)))
    assert len(gateway.outbox._acked) <= 2 * ob.MAX_ACKED


def test_an_operator_drains_a_node_and_it_stays(node: Node) -> None:
    node.handle(se.Beat(health()))
    node.hear(m.Lease(jobs=(lease(1),)))
    (beat,) = of(node.hear(m.Order(action=m.DRAIN)), m.Heartbeat)
    assert (beat.capacity, beat.draining) == (0, True)
    assert of(node.finish(1), m.Done) and of(node.hear(m.Received(jobs=(held(1),))), se.Leave) == []
    (beat,) = of(node.handle(se.Beat(health()), 1.0), m.Heartbeat)
    assert beat.draining, "until it is told otherwise"
    (beat,) = of(node.hear(m.Order(action=m.RESUME)), m.Heartbeat)
    assert (beat.capacity, beat.draining) == (2 * se.MIN_CREDIT, False)


def test_an_operator_has_the_children_renewed(node: Node) -> None:
    assert len(of(node.hear(m.Order(action=m.RESTART)), se.Renew)) == 1
    assert of(node.hear(m.Order(action="dance")), se.Renew) == []


def test_a_registration_says_how_long_the_machine_has_been_up() -> None:
    node = Node()
    node.session._about = About("pi", "Pi 5", "Debian", "0.1.0", 4, 2**33, 50.0)
    (register,) = of(node.handle(se.Offer(ROUTES, 2), 25.0), m.Register)
    assert register.about.up_s == 75.0


def test_without_a_broker_a_node_with_outcomes_looks_seldom(node: Node) -> None:
    node.hear(m.Lease(jobs=(lease(1),)))
    node.finish(1)
    turns, until = 0, node.now + 60.0
    while node.now < until:
        turns += 1
        due = node.session.next_deadline()
        assert due is not None
        node.tick(max(0.0, due - node.now) + 0.001)
    assert turns < 200  # and not a thousand a second
