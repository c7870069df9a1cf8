"""Rates and percentiles: what counters and histograms say of the last while."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from bench.telemetry import NO_COUNTS, NOTHING, Scene, node
from dashboard.rates import BUCKETS, WINDOW_S, Reading, Window, between, latency_of, percentile, reading
from dolmetsch.reports import LATENCY_MS, Counts, Histogram

counts = st.lists(st.integers(0, 10**6), min_size=BUCKETS, max_size=BUCKETS)
parts = st.floats(0, 1)


def only(bound: int, number: int = 1) -> list[int]:
    """So many jobs in the bucket up to ``bound`` ms."""
    return [number if one == bound else 0 for one in (*LATENCY_MS, math.inf)]


def at(
    up_s: float, done: int = 0, failed: int = 0, *, broker: str = "a", latency: tuple[Histogram, ...] = ()
) -> Reading:
    lanes = latency or (NOTHING, NOTHING)
    return Reading(broker, up_s, replace(NO_COUNTS, done=done, failed=failed, chars_done=40 * done), lanes)


# ---- percentiles ----


def test_a_percentile_lies_on_a_line_inside_its_bucket() -> None:
    assert percentile(only(10, 4), 0.5) == 8.5  # from 7 to 10
    assert percentile(only(5), 0.5) == 2.5  # the first begins at nothing
    assert percentile([1, 1, *[0] * (BUCKETS - 2)], 1.0) == 7.0
    assert percentile([0] * BUCKETS, 0.5) is None


def test_of_what_is_beyond_the_last_bound_only_that_is_known() -> None:
    beyond = [0] * (BUCKETS - 1) + [3]
    assert percentile(beyond, 0.5) == LATENCY_MS[-1] == percentile(beyond, 0.99)


@given(counts, parts, parts)
def test_percentiles_rise_and_stay_where_jobs_were(jobs: list[int], one: float, other: float) -> None:
    low, high = percentile(jobs, min(one, other)), percentile(jobs, max(one, other))
    if not any(jobs):
        assert low is None and high is None
        return
    assert low is not None and high is not None and low <= high
    first = next(bucket for bucket, number in enumerate(jobs) if number)
    last = max(bucket for bucket, number in enumerate(jobs) if number)
    bounds = (0, *LATENCY_MS, LATENCY_MS[-1])
    assert bounds[first] <= low <= high <= bounds[last + 1]


@given(counts, parts, st.integers(2, 50))
def test_percentiles_do_not_depend_on_how_many_jobs_there_were(jobs: list[int], part: float, times: int) -> None:
    one, other = percentile(jobs, part), percentile([times * number for number in jobs], part)
    assert one == other if one is None or other is None else math.isclose(one, other, rel_tol=1e-9)


def test_the_interactive_lane_goes_first_and_all_lanes_stand_in_for_it() -> None:
    assert latency_of((only(20), only(60_000, 1000))).p95_ms == pytest.approx(19.75)
    assert latency_of((only(20, 0), only(20))).p50_ms == 17.5
    assert latency_of((only(20, 0), only(20, 0))) == (None, None, None)


# ---- differences ----


def test_a_change_is_what_happened_between_two_readings() -> None:
    before = Histogram(tuple(only(20)), 18)
    after = Histogram(tuple(only(20, 4)), 72)
    change = between(at(10, 1, latency=(before, NOTHING)), at(12, 4, 1, latency=(after, NOTHING)))
    assert change is not None
    assert (change.seconds, change.translations_per_s, change.failed_per_s, change.chars_per_s) == (2, 1.5, 0.5, 60)
    assert (change.error_rate, change.mean_ms) == (0.25, 18.0)
    assert list(change.latency[0].counts) == only(20, 3)


@given(
    st.lists(st.tuples(st.sampled_from("ab"), st.floats(0, 1000), st.integers(0, 50), st.integers(0, 50)), max_size=30)
)
def test_no_rate_is_ever_negative_or_infinite(steps: list[tuple[str, float, int, int]]) -> None:
    window = Window()
    for broker, up_s, done, failed in steps:
        latency = (Histogram(tuple(only(20, done)), 18 * done), NOTHING)
        window.add(at(up_s, done, failed, broker=broker, latency=latency))
        change = window.change()
        if change is not None:
            rates = (change.translations_per_s, change.failed_per_s, change.error_rate, change.mean_ms or 0.0)
            assert all(0 <= rate < math.inf for rate in rates)


def test_a_restarted_broker_is_not_compared_with_the_one_before() -> None:
    window = Window()
    assert window.add(at(100, 500)) is None and window.change() is None
    assert window.add(at(101, 510)) is not None
    assert window.add(at(1, 3, broker="b")) is None and window.change() is None
    change = window.add(at(2, 5, broker="b"))
    assert change is not None and change.translations_per_s == 2


def test_a_window_is_a_minute_long() -> None:
    window = Window()
    for second in range(300):
        window.add(at(float(second), 10 * second))
    change = window.change()
    assert change is not None and change.seconds == WINDOW_S and change.translations_per_s == 10


def test_buckets_and_lanes_that_are_left_out_are_empty() -> None:
    found = reading(replace(Scene(nodes=(node("pi-1"),)).telemetry(), latency=(Histogram((1, 2), 15),)))
    assert [len(lane.counts) for lane in found.latency] == [BUCKETS, BUCKETS]
    assert sum(found.latency[0].counts) == 3 and found.latency[1] == NOTHING


def test_counts_are_told_apart() -> None:
    assert at(1, 2).counts == Counts(*[{"done": 2, "chars_done": 80}.get(name, 0) for name in Counts.__struct_fields__])
