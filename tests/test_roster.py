"""Who gets the next job: the queues of nodes that are kept, against a look at every node."""

from __future__ import annotations

import random

import pytest

from dolmetsch import messages as m
from dolmetsch.errors import LocalError
from dolmetsch.jobs import Job
from dolmetsch.roster import ASSUMED_CHARS_PER_S, BANDS, HOLD_S, NEWCOMER, STALE, Node, Portion, Roster

ROUTES = (("de→en",), ("de→en", "fr→en"), ("en→de",))
BAND = 2 ** (1 / BANDS)  # nodes of one band differ in speed by less than this


def node(number: int, routes: tuple[str, ...] = ("de→en",), capacity: int = 4) -> Node:
    name = f"n{number}"
    return Node(
        peer=name.encode(),
        name=name,
        incarnation="i",
        routes=dict.fromkeys(routes, "model"),
        capacity=capacity,
        now=0.0,
    )


def beat(capacity: int = 4, chars_per_s: float = 1000.0, *, draining: bool = False) -> m.Heartbeat:
    return m.Heartbeat(
        held=(), capacity=capacity, draining=draining, workers=1, queued=0, in_flight=0, chars_per_s=chars_per_s,
        cpu_percent=0.0, core_percent=(), ram_percent=0.0, ram_used_bytes=0, temperature_c=0.0, throttled=False,
        children=(),
    )  # fmt: skip


def job(number: int, chars: int = 50, route: str = "de→en", lane: int = m.INTERACTIVE) -> Job:
    return Job(
        seq=number, id=number.to_bytes(16, "big"), gateway="g", tenant="t", lane=lane, route=route,
        texts=("x" * chars,), reply_to=b"", deadline=60.0, queued_at=0.0,
    )  # fmt: skip


def test_a_node_is_given_bulk_for_so_many_seconds_and_people_always() -> None:
    roster = Roster()
    slow = node(1, capacity=100)
    roster.add_node(slow)
    roster.heard(slow, beat(100, chars_per_s=10.0))
    for number in range(1, 4):
        assert slow.room(m.BULK) > 0 and roster.open_routes()[m.BULK]
        slow.lend(job(number, int(HOLD_S * 10.0 / 2), lane=m.BULK))
    assert slow.room(m.BULK) == 0 and slow.room(m.INTERACTIVE) == 97
    assert roster.open_routes() == ({"de→en"}, set())
    roster.heard(slow, beat(100, chars_per_s=20.0))
    assert roster.open_routes() == ({"de→en"}, {"de→en"})


def test_the_kept_queues_choose_as_a_look_at_every_node_would() -> None:
    rng, roster, held = random.Random(7), Roster(), list[tuple[Node, Job]]()
    for step in range(6000):
        known = list(roster.nodes.values())
        match rng.randrange(8):
            case 0 if len(known) < 30:
                roster.add_node(node(step, rng.choice(ROUTES), rng.randrange(12)))
            case 1 if len(known) > 10:
                gone = rng.choice(known)
                roster.remove_node(gone)
                for one, lent in held:  # its leases are lost after it has gone
                    if one is gone:
                        gone.release(lent)
                held = [(one, lent) for one, lent in held if one is not gone]
            case 2 if known:
                speed = rng.choice((0.0, 1.0, 900.0, 1000.0, 4000.0, 1e9))
                roster.heard(rng.choice(known), beat(rng.randrange(12), speed, draining=rng.random() < 0.1))
            case 3 if held:
                one, done = held.pop(rng.randrange(len(held)))
                one.release(done)
            case _:
                lane = rng.choice((m.INTERACTIVE, m.BULK))
                wanted = job(step, rng.randrange(1, 3000), rng.choice(("de→en", "fr→en", "en→de")), lane)
                if known and rng.random() < 0.3:  # it has come back
                    wanted.attempt, wanted.node = 1, rng.choice(known).name
                able = [one for one in known if one.room(lane) > 0 and wanted.route in one.routes]
                open_to_lane = {route for one in known if one.room(lane) > 0 for route in one.routes}
                assert roster.open_routes()[lane] == open_to_lane
                if not able:
                    with pytest.raises(LocalError, match="no node has room"):
                        roster.earliest(wanted)
                    continue
                others = able
                if wanted.attempt:
                    others = [one for one in able if one.name != wanted.node] or able
                chosen = roster.earliest(wanted)
                assert chosen in others
                best = min(one.finish_s(wanted) for one in others)
                assert chosen.finish_s(wanted) <= best * BAND
                chosen.lend(wanted)
                held.append((chosen, wanted))


def test_nodes_leave_nothing_behind() -> None:
    roster = Roster()
    for number in range(300):
        one = node(number, (f"a{chr(97 + number % 26)}→en",))
        roster.add_node(one)
        roster.heard(one, beat(chars_per_s=1.5**number % 1e8 + 1))
        roster.open_routes()
        roster.remove_node(one)
    assert roster.open_routes() == (set(), set())
    assert (roster.nodes, roster.routes(), roster._bands, roster._moved) == ({}, {}, {}, ({}, {}))


def test_places_out_of_date_are_swept() -> None:
    roster = Roster()
    for number in range(3):
        roster.add_node(node(number, capacity=4096))
    for number in range(4000):
        given = job(number)
        chosen = roster.earliest(given)
        chosen.lend(given)
        if number % 2:
            chosen.release(given)
    (band,) = roster._bands.values()
    assert max(map(len, band._places)) <= STALE + 2 * 3 + 1


def test_bulk_leaves_room_for_people_and_people_may_take_it_all() -> None:
    bulk, people = node(1, capacity=16), node(2, capacity=16)
    for number in range(14):
        assert bulk.room(m.BULK) > 0
        bulk.lend(job(number, lane=m.BULK))
    assert (bulk.room(m.BULK), bulk.room(m.INTERACTIVE)) == (0, 2)
    for number in range(16):
        assert people.room(m.INTERACTIVE) > 0
        people.lend(job(number))
    assert (people.room(m.BULK), people.room(m.INTERACTIVE)) == (0, 0)
    people.release(job(3))
    assert (people.room(m.BULK), people.room(m.INTERACTIVE)) == (1, 1)  # whose turn it is the lanes say


def test_a_portion_that_people_began_gives_bulk_no_room_that_is_theirs() -> None:
    roster, one = Roster(), node(1, capacity=16)
    roster.add_node(one)
    for number in range(14):
        one.lend(job(number, 1, lane=m.BULK))
    portion = Portion(one, 9, job(20, 1))
    assert not portion.takes(job(21, 1, lane=m.BULK))
    assert portion.takes(job(22, 1))


def test_people_are_not_sent_to_a_slow_node_because_the_fast_one_has_bulk() -> None:
    roster, fast, slow = Roster(), node(1, capacity=40), node(2, capacity=40)
    for one, speed in ((fast, 4000.0), (slow, 500.0)):
        roster.add_node(one)
        roster.heard(one, beat(40, speed))
    fast.lend(job(1, 8000, lane=m.BULK))
    assert roster.earliest(job(2)) is fast
    assert roster.earliest(job(2, lane=m.BULK)) is slow
    for number in range(3, 23):
        fast.lend(job(number))
    assert roster.earliest(job(23)) is slow  # 1000 characters of other people do count


def test_equal_nodes_take_turns() -> None:
    roster = Roster()
    for number in range(5):
        roster.add_node(node(number))
    chosen = []
    for number in range(10):
        one = roster.earliest(job(number))
        one.lend(job(number))
        chosen.append(one.name)
        one.release(job(number))
    assert chosen == ["n0", "n1", "n2", "n3", "n4"] * 2


def test_a_newcomer_is_taken_for_a_little_faster_than_the_fastest_that_is_here() -> None:
    roster = Roster()
    fast, slow = node(1), node(2)
    for one, speed in ((fast, 8000.0), (slow, 2000.0)):
        roster.add_node(one)
        roster.heard(one, beat(chars_per_s=speed))
    assert roster.newcomers_rate() == pytest.approx(8000.0 * NEWCOMER)
    roster.heard(fast, beat(chars_per_s=4000.0))  # it was too hot
    assert roster.newcomers_rate() == pytest.approx(4000.0 * NEWCOMER)
    roster.remove_node(fast)
    assert roster.newcomers_rate() == pytest.approx(2000.0 * NEWCOMER)
    roster.remove_node(slow)
    assert roster.newcomers_rate() == ASSUMED_CHARS_PER_S


def test_a_portion_is_so_many_jobs_but_no_more_than_a_quarter_of_a_second() -> None:
    roster = Roster()
    one = node(1)
    roster.add_node(one)  # 1000 characters a second
    portion = Portion(one, 3, job(1, 20))
    assert [portion.takes(job(number, 20)) for number in range(2, 6)] == [True, True, False, False]
    portion = Portion(one, 100, job(1, 100))
    assert [portion.takes(job(number, 100)) for number in range(2, 6)] == [True, False, False, False]


def test_a_portion_of_bulk_is_up_to_a_second() -> None:
    roster = Roster()
    one = node(1)
    roster.add_node(one)
    portion = Portion(one, 100, job(1, 400, lane=m.BULK))
    assert [portion.takes(job(number, 400, lane=m.BULK)) for number in range(2, 6)] == [True, False, False, False]


def test_a_portion_of_one_job_is_more_for_a_node_that_does_not_notice() -> None:
    roster = Roster()
    one = node(1)
    roster.add_node(one)
    assert not Portion(one, 1, job(1, 20)).takes(job(2, 20))
    roster.heard(one, beat(chars_per_s=100_000.0))
    portion = Portion(one, 1, job(1, 300))  # a moment is 1000 characters of it
    assert [portion.takes(job(number, 300)) for number in range(2, 6)] == [True, True, False, False]


def test_a_portion_takes_neither_another_route_nor_what_the_node_had_before() -> None:
    one = node(1, ("de→en",))
    portion = Portion(one, 10, job(1, 1))
    back = job(2, 1)
    back.attempt, back.node = 1, one.name
    assert not portion.takes(back)
    assert not portion.takes(job(3, 1, "fr→en"))
    assert portion.takes(job(4, 1))
