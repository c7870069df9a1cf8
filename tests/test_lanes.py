"""Queues, timers and the cache: the small rooms around the scheduler."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from dolmetsch.cache import ENTRY_BYTES, ResultCache
from dolmetsch.jobs import Job, State
from dolmetsch.lanes import FairQueue, Lanes
from dolmetsch.messages import BULK, INTERACTIVE
from dolmetsch.settled import SettledIds
from dolmetsch.timers import Timers
from tests.scheduling import key


def job(number: int, chars: int = 10, tenant: str = "t", lane: int = INTERACTIVE) -> Job:
    return Job(
        seq=number, id=key(number), gateway="g", tenant=tenant, lane=lane, route="de→en", texts=("x" * chars,),
        reply_to=b"", deadline=60.0, queued_at=0.0,
    )  # fmt: skip


def test_one_tenant_is_served_in_order() -> None:
    queue = FairQueue()
    for number in range(100):
        queue.push(job(number, chars=1 + number * 37 % 900))
    assert [queue.pop().seq for _ in range(100)] == list(range(100))  # type: ignore[union-attr]
    assert queue.pop() is None
    assert (queue.jobs, queue.chars) == (0, 0)


@settings(deadline=None, derandomize=True)
@given(st.lists(st.tuples(st.sampled_from("abc"), st.integers(1, 3000)), min_size=1, max_size=60))
def test_no_tenant_is_ahead_by_more_than_its_turn_and_a_job(jobs: list[tuple[str, int]]) -> None:
    """The bound of deficit round robin: while both wait, two tenants differ by a quantum and their longest job."""
    queue = FairQueue()
    waiting: dict[str, int] = {}
    for number, (tenant, chars) in enumerate(jobs):
        queue.push(job(number, chars, tenant))
        waiting[tenant] = waiting.get(tenant, 0) + 1
    served = dict.fromkeys(waiting, 0)
    while (one := queue.pop()) is not None:
        served[one.tenant] += one.chars
        waiting[one.tenant] -= 1
        busy = [tenant for tenant, left in waiting.items() if left]
        for tenant in busy:
            for other in busy:
                assert abs(served[tenant] - served[other]) <= 2 * 3000 + 2 * 500


@settings(deadline=None, derandomize=True)
@given(st.lists(st.tuples(st.sampled_from("abc"), st.integers(1, 3000), st.booleans()), min_size=1, max_size=60))
def test_a_job_given_back_is_the_next_and_nothing_else_changes(jobs: list[tuple[str, int, bool]]) -> None:
    quick, slow = FairQueue(), FairQueue()
    for number, (tenant, chars, _) in enumerate(jobs):
        quick.push(job(number, chars, tenant))
        slow.push(job(number, chars, tenant))
    for _, _, comes_back in jobs:
        left, one = (slow.jobs, slow.chars), slow.pop()
        assert one is not None
        if comes_back:
            slow.give_back(one)
            assert (slow.jobs, slow.chars) == left
            assert slow.pop() is one
        expected = quick.pop()
        assert expected is not None and one.seq == expected.seq
    assert slow.pop() is None


def test_aged_bulk_that_is_given_back_is_due_still() -> None:
    lanes, routes = Lanes(bulk_age_s=10.0), ({"de→en"}, {"de→en"})
    for number in range(9):
        lanes.push(job(number))
    lanes.push(job(9, lane=BULK))
    assert [lanes.pop(routes, 0.0).seq for _ in range(3)] == [0, 1, 2]  # type: ignore[union-attr]
    for _ in range(2):
        due = lanes.pop(routes, 10.0)
        assert due is not None and due.lane == BULK
        lanes.give_back(due)
    assert [lanes.pop(routes, 10.0).seq for _ in range(2)] == [9, 3]  # type: ignore[union-attr]


def test_cancelled_places_do_not_pile_up() -> None:
    queue = FairQueue()
    for number in range(10_000):
        one = job(number)
        queue.push(one)
        one.state = State.SETTLED
        queue.discard(one)
    assert queue.jobs == 0
    assert queue._places < 200


def test_a_job_that_came_back_is_first_of_its_tenant() -> None:
    queue = FairQueue()
    queue.push(job(1))
    queue.push(job(2), front=True)
    assert [queue.pop().seq for _ in range(2)] == [2, 1]  # type: ignore[union-attr]


@settings(deadline=None, derandomize=True)
@given(st.lists(st.tuples(st.integers(0, 9), st.floats(0, 100), st.booleans()), max_size=60))
def test_timers_strike_late_by_a_slot_at_most_and_never_early(steps: list[tuple[int, float, bool]]) -> None:
    timers: Timers[int] = Timers(0.25)
    model: dict[int, tuple[float, set[int]]] = {}
    for name, when, cancel in steps:
        if name in model:
            timers.cancel(name, model.pop(name)[1])
        if not cancel:
            model[name] = (when, timers.add(name, when))
    assert len(timers) == len(model)
    now = 0.0
    while model:
        due = timers.next()
        assert due is not None
        now = max(now, due)
        for name in timers.due(now):
            when, _ = model.pop(name)
            assert when <= now <= when + 0.25 + 1e-9
    assert timers.next() is None


def test_the_cache_is_bounded_and_forgets_the_least_used() -> None:
    cache = ResultCache(10 * (ENTRY_BYTES + 2))
    for letter in "abcdefghij":
        cache.put("de→en", "v1", (letter,), (letter,))
    assert cache.get("de→en", "v1", ("a",)) == ("a",)
    cache.put("de→en", "v1", ("k",), ("k",))
    assert cache.get("de→en", "v1", ("a", "k")) == ("a", "k")
    assert cache.get("de→en", "v1", ("b",)) is None
    assert cache.bytes <= 10 * (ENTRY_BYTES + 2)
    assert cache.hits == 2


def test_the_cache_tells_routes_models_and_texts_apart() -> None:
    cache = ResultCache(1 << 20)
    cache.put("de→en", "v1", ("a",), ("x",))
    assert cache.get("de→en", "v2", ("a",)) is None
    assert cache.get("fr→en", "v1", ("a",)) is None
    assert cache.get("de→en", "v1", ("a", "b")) is None
    cache.put("de→en", "v1", ("a",), ("y",))
    assert cache.get("de→en", "v1", ("a",)) == ("y",)


def test_a_cache_of_no_bytes_is_off() -> None:
    cache = ResultCache(0)
    cache.put("de→en", "v1", ("a",), ("x",))
    assert cache.get("de→en", "v1", ("a",)) is None


def test_settled_ids() -> None:
    ids = SettledIds(3)
    for number in (1, 2, 2, 3, 4):
        ids.add(key(number))
    assert [number for number in range(6) if key(number) in ids] == [2, 3, 4]
    assert len(SettledIds(0)) == 0
