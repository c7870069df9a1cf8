"""The history: rings of slots by a clock of our own, and the file from which they come back."""

from __future__ import annotations

import itertools
import logging
import math
import os
import sqlite3
import stat
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bench.cluster import HOUSE
from dashboard import charts
from dashboard.charts import CLUSTER, MAX_NODES, NODE, SPANS, Charts, Sample
from dashboard.history import BROKEN, SCHEMA_VERSION, History, Store
from dashboard.rates import BUCKETS
from dolmetsch.errors import LedgerError
from dolmetsch.reports import LATENCY_MS

START = 1_800_000_000.0  # a multiple of every step
UNKNOWN = float("nan")
IDLE = tuple([0] * BUCKETS)


def jobs(bound: int, number: int) -> tuple[int, ...]:
    return tuple([number if one == bound else 0 for one in (*LATENCY_MS, math.inf)])


def sample(at: float, **changes: Any) -> Sample:
    values: dict[str, Any] = {
        "at": at, "seconds": 1.0, "translations_per_s": 4.0, "failed_per_s": 0.5, "latency": (jobs(20, 4), IDLE),
        "queued": 3, "in_flight": 5, "nodes_up": 2, "workers": 6, "nodes": {"pi-1": (50.0, 30.0, 60.0, 2000.0)},
    }  # fmt: skip
    return Sample(**{**values, **changes})


def answer(charts: Charts, span: str, now: float, node: str | None = None) -> Any:
    """As who asks gets it: NaN is null."""
    return msgspec.json.decode(msgspec.json.encode(charts.answer(span, now, node)))


def known(found: Any, series: str = "translations_per_s") -> dict[float, float]:
    """The points of a series of the cluster that are not null."""
    pairs = zip(found["times"], found["cluster"][series], strict=True)
    return {time: value for time, value in pairs if value is not None}


def ask(history: History, span: str, now: float, node: str | None = None) -> Any:
    return msgspec.json.decode(history.page(span, now, node).made().body)


# ---- rings ----


def test_an_answer_has_every_slot_of_its_span_and_gaps_are_null() -> None:
    found = answer(Charts(), "5m", START)
    assert (found["span"], found["step_s"], len(found["times"])) == ("5m", 1, 300)
    assert found["times"] == sorted(found["times"]) and found["nodes"] == {}
    assert set(found["cluster"]) == set(CLUSTER) and known(found) == {}
    held = Charts()
    held.add(sample(START))
    held.add(sample(START + 10))
    assert known(answer(held, "5m", START + 12)) == {START: 4.0, START + 10: 4.0}
    assert answer(held, "5m", START + 12)["times"][-1] == START + 11, "of this very second nothing can be here yet"


@pytest.mark.parametrize("span", SPANS)
def test_a_span_is_as_long_as_its_name_says_and_no_longer(span: charts.Span) -> None:
    held = Charts()
    for slot in range(2 * span.size):
        held.add(sample(START + slot * span.step_s, translations_per_s=float(slot)))
    end = START + (2 * span.size - 1) * span.step_s
    found = known(answer(held, span.name, end))
    assert len(found) == span.points <= 360
    assert span.points * span.step_s == {"5m": 300, "1h": 3600, "24h": 86_400}[span.name]
    assert found[end] == 2 * span.size - 1


def test_a_slot_is_the_mean_the_most_or_the_least_of_its_samples() -> None:
    held = Charts()
    for second, value in enumerate((1.0, 2.0, 6.0)):
        node = (10 * value, UNKNOWN, 50 + value, 100 * value)
        held.add(
            sample(
                START + second + 0.5, translations_per_s=value, queued=int(value), nodes_up=4 - second,
                nodes={"pi-1": node},
            )
        )  # fmt: skip
    found = answer(held, "1h", START + 5)
    last = {name: values[-1] for name, values in found["cluster"].items()}
    assert (last["translations_per_s"], last["queued"], last["nodes_up"], last["workers"]) == (3.0, 6, 2, 6)
    assert {name: values[-1] for name, values in found["nodes"]["pi-1"].items()} == {
        "cpu_percent": 30.0, "ram_percent": None, "temperature_c": 56.0, "chars_per_s": 300.0,
    }  # fmt: skip


def test_percentiles_of_a_slot_are_of_all_its_jobs() -> None:
    held = Charts()
    held.add(sample(START + 0.1, latency=(jobs(20, 99), IDLE)))
    held.add(sample(START + 1.1, latency=(IDLE, jobs(60_000, 500))))
    held.add(sample(START + 2.1, latency=(jobs(1_000, 1), IDLE)))
    seconds = answer(held, "5m", START + 2.5)["cluster"]["p50_ms"][-3:]
    assert seconds[0] == 17.5 and seconds[1] > 30_000 and 700 < seconds[2] <= 1_000
    slot = {name: answer(held, "1h", START + 5)["cluster"][name][-1] for name in ("p50_ms", "p99_ms")}
    assert 15 < slot["p50_ms"] < 20 and slot["p99_ms"] == 20.0, "the interactive lane had jobs"


def test_a_broker_a_little_slower_than_a_second_leaves_no_gaps() -> None:
    held = Charts()
    for number in range(1200):
        held.add(sample(START + number * 1.0042, seconds=1.0042))
    end = START + 1199 * 1.0042
    assert len(known(answer(held, "5m", end))) == 300


def test_a_pause_is_a_gap() -> None:
    held = Charts()
    held.add(sample(START))
    held.add(sample(START + 60, seconds=60.0))
    assert sorted(known(answer(held, "5m", START + 60))) == [START, START + 58, START + 59, START + 60]


def test_a_node_that_has_nothing_in_the_span_is_left_out_and_one_may_be_asked_for_alone() -> None:
    held = Charts()
    both = {"pi-1": (1.0, 2.0, 3.0, 4.0), "pi-2": (5.0, 6.0, UNKNOWN, 8.0)}
    held.add(sample(START, nodes=both))
    held.add(sample(START + 400))
    assert set(answer(held, "5m", START + 400)["nodes"]) == {"pi-1"}
    assert set(answer(held, "1h", START + 400)["nodes"]) == {"pi-1", "pi-2"}
    assert set(answer(held, "1h", START + 400, "pi-2")["nodes"]) == {"pi-2"}
    assert answer(held, "1h", START + 400, "nobody")["nodes"] == {}
    assert answer(held, "1h", START + 400)["nodes"]["pi-2"]["temperature_c"][-1] is None


def test_names_of_nodes_are_bounded_and_a_new_one_has_nothing_of_the_old() -> None:
    held = Charts()
    for number in range(MAX_NODES + 20):
        held.add(sample(START + number, nodes={"steady": (1.0, 1.0, 1.0, 1.0), f"pi-{number}": (7.0, 7.0, 7.0, 7.0)}))
    end = START + MAX_NODES + 19
    found = answer(held, "1h", end)["nodes"]
    assert len(held.numbers) == MAX_NODES and "steady" in found and "pi-0" not in found
    assert [one for one in found["pi-270"]["cpu_percent"] if one is not None] == [7.0]
    flood = {f"new-{number}": (1.0, 1.0, 1.0, 1.0) for number in range(2 * MAX_NODES)}
    held.add(sample(end + 1, nodes=flood))
    assert len(held.numbers) == MAX_NODES


@given(
    st.lists(
        st.tuples(st.floats(-90_000, 90_000), st.floats(0.01, 100), st.sampled_from(["pi-1", "pi-2"])), max_size=40
    ),
    st.floats(-100_000, 100_000),
)
@settings(max_examples=60, deadline=None)
def test_whatever_the_clock_does_answers_are_in_order_and_of_their_span(
    steps: list[tuple[float, float, str]], look: float
) -> None:
    held = Charts()
    at = START
    for jump, seconds, name in steps:
        at = max(0.0, at + jump)
        held.add(sample(at, seconds=seconds, nodes={name: (50.0, 30.0, 60.0, 2000.0)}))
    for span in SPANS:
        found = answer(held, span.name, at + look if at + look > 0 else at)
        times = found["times"]
        assert len(times) == span.points and all(
            late - early == span.step_s for early, late in itertools.pairwise(times)
        )
        assert all(value in (None, 4.0) for value in found["cluster"]["translations_per_s"])
        assert all(len(one) == span.points for node in found["nodes"].values() for one in node.values())
    again = Charts()
    again.restore(held.numbers, everything(held))
    assert all(answer(again, span.name, at) == answer(held, span.name, at) for span in SPANS), (
        "what is kept is what was shown"
    )


def everything(held: Charts) -> list[charts.Row]:
    held.change_all()
    return sorted(held.take_changed(), key=lambda row: row.node is not None)


def test_rows_that_fit_nowhere_are_left_out() -> None:
    held = Charts()
    nine, four = (1.0,) * len(CLUSTER), (1.0,) * len(NODE)
    slot = int(START)
    rows = [
        charts.Row(7, 0, None, slot, 1, nine),
        charts.Row(0, 5, None, slot, 1, nine),
        charts.Row(0, slot % SPANS[0].size, None, slot, 1, (1.0,)),
        charts.Row(0, slot % SPANS[0].size, 3, slot, 1, four),
    ]
    held.restore({"pi-1": 900}, rows)
    assert known(answer(held, "5m", START)) == {} and held.numbers == {}


# ---- the file ----


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "data" / "history.sqlite3"


def opened(path: Path) -> History:
    history = History(path)
    history.open()
    return history


def filled(path: Path, seconds: Iterable[int]) -> History:
    history = opened(path)
    for second in seconds:
        history.add(sample(START + second, translations_per_s=float(second)))
    return history


def test_a_day_comes_back_after_a_restart(path: Path) -> None:
    history = filled(path, range(700))
    before = {span.name: ask(history, span.name, START + 699) for span in SPANS}
    history.close()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    again = opened(path)
    assert {span.name: ask(again, span.name, START + 699) for span in SPANS} == before
    assert again.knows("pi-1") and not again.knows("pi-2")
    again.close()


def test_a_slot_that_a_restart_cut_in_two_is_gone_on_with(path: Path) -> None:
    first = opened(path)
    for second in range(60):
        first.add(sample(START + second, translations_per_s=10.0))
    first.close()
    second_ = opened(path)
    for second in range(60, 120):
        second_.add(sample(START + second, translations_per_s=20.0, latency=()))
    found = ask(second_, "24h", START + 120)["cluster"]
    assert (found["translations_per_s"][-1], found["p50_ms"][-1]) == (15.0, 17.5)
    second_.close()


def test_only_the_last_seconds_are_lost_when_it_is_killed(path: Path) -> None:
    program = f"""
import os, pathlib
from tests.test_history import START, filled, sample
history = filled(pathlib.Path({str(path)!r}), range(100))
history.write()
history.add(sample(START + 100))
os.kill(os.getpid(), 9)
"""
    ended = subprocess.run([sys.executable, "-c", program], cwd=HOUSE, capture_output=True, timeout=30, check=False)
    assert ended.returncode == -9, ended.stderr
    history = opened(path)
    assert len(known(ask(history, "5m", START + 100))) == 100
    history.close()


def test_only_what_changed_is_written_and_places_are_written_over(path: Path) -> None:
    history = filled(path, range(20))
    history.write()
    rows = sqlite_rows(history)
    history.write()
    assert sqlite_rows(history) == rows == (20 + 2 + 1, 20 + 2 + 1)
    for second in range(20, 2000):
        history.add(sample(START + second, nodes={"pi-2": (1.0, 1.0, 1.0, 1.0)}))
    history.write()
    size = history.size_bytes()
    cluster, nodes = sqlite_rows(history)
    assert cluster == 330 + 200 + 9
    assert nodes == 330 + 200 + 9 + 1, "pi-1 is in the first two of the hour, and shares the first of the day"
    for second in range(2000, 4000):
        history.add(sample(START + second, nodes={"pi-2": (1.0, 1.0, 1.0, 1.0)}))
        if second % 10 == 9:
            history.write()
    assert sqlite_rows(history)[0] == 330 + 370 + 17
    assert history.size_bytes() < size + 2**21
    history.close()


def sqlite_rows(history: History) -> tuple[int, int]:
    db = history._store._db
    assert db is not None
    count = "SELECT (SELECT count(*) FROM cluster_slot), (SELECT count(*) FROM node_slot)"
    found: tuple[int, int] = db.execute(count).fetchone()
    return found


def test_a_number_that_is_given_again_takes_nothing_along(path: Path) -> None:
    history = opened(path)
    for number in range(MAX_NODES + 1):
        history.add(sample(START + number, nodes={f"pi-{number}": (9.0, 9.0, 9.0, 9.0)}))
        if number % 100 == 0:
            history.write()
    history.close()
    again = opened(path)
    assert not again.knows("pi-0") and again.knows(f"pi-{MAX_NODES}")
    found = ask(again, "24h", START + MAX_NODES, f"pi-{MAX_NODES}")["nodes"][f"pi-{MAX_NODES}"]
    assert [one for one in found["cpu_percent"] if one is not None] == [9.0]
    again.close()


def test_answers_to_all_are_made_once_a_step(path: Path) -> None:
    history = filled(path, range(5))
    page = history.page("1h", START + 5)
    assert history.page("1h", START + 14.9) is page
    assert history.page("1h", START + 15.1) is not page
    assert history.page("1h", START - 50) is not page, "the clock was set back"
    assert history.page("5m", START + 5, "pi-1") is not history.page("5m", START + 5, "pi-1")
    history.close()


# ---- files that cannot be used ----


def damage(path: Path, kind: str) -> None:
    content = bytearray(path.read_bytes())
    if kind == "pages":
        for place in range(4096 + 100, len(content), 4096):
            content[place : place + 500] = os.urandom(500)
    elif kind == "header":
        content[:4096] = bytes(4096)
    else:
        del content[len(content) // 2 + 77 :]
    path.write_bytes(content)


@pytest.mark.parametrize("kind", ["pages", "header", "cut"])
def test_a_corrupt_file_is_moved_aside_with_one_line(path: Path, kind: str, caplog: pytest.LogCaptureFixture) -> None:
    filled(path, range(600)).close()
    damage(path, kind)
    with caplog.at_level(logging.WARNING):
        history = opened(path)
    (line,) = [record.getMessage() for record in caplog.records]
    assert "corrupt" in line and path.name + BROKEN in line and "\n" not in line
    assert path.with_name(path.name + BROKEN).exists()
    assert known(ask(history, "5m", START + 599)) == {}
    history.add(sample(START + 600))
    history.close()
    again = opened(path)
    assert known(ask(again, "5m", START + 600)) == {START + 600: 4.0}
    again.close()


def make_text(path: Path) -> None:
    path.write_text("a shopping list\n" * 100)


def make_other(path: Path) -> None:
    with sqlite3.connect(path) as db:
        db.execute("CREATE TABLE recipe (name TEXT)")
    db.close()


def make_newer(path: Path) -> None:
    opened(path).close()
    with sqlite3.connect(path) as db:
        db.execute(f"PRAGMA user_version = {SCHEMA_VERSION + 1}")
    db.close()


@pytest.mark.parametrize(
    ("make", "word"),
    [(make_text, "is no history"), (make_other, "is no history"), (make_newer, "newer dolmetsch")],
)
def test_a_foreign_or_newer_file_is_refused_and_left_alone(path: Path, make: Any, word: str) -> None:
    path.parent.mkdir()
    make(path)
    before = path.read_bytes()
    with pytest.raises(LedgerError, match=word) as raised:
        opened(path)
    assert "\n" not in str(raised.value) and path.read_bytes() == before


def test_a_second_dashboard_and_a_folder_that_cannot_be_written_are_refused(path: Path) -> None:
    history = opened(path)
    with pytest.raises(LedgerError, match="in use by another dashboard"):
        opened(path)
    history.close()
    with pytest.raises(LedgerError, match="cannot write"):
        opened(path / "below-a-file" / "history.sqlite3")
    path.with_name("folder").mkdir()
    with pytest.raises(LedgerError, match="cannot write"):
        opened(path.with_name("folder"))


def test_a_disk_that_is_full_is_said_once_and_nothing_is_lost(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    history = filled(path, range(10))
    db = history._store._db
    assert db is not None
    (pages,) = db.execute("PRAGMA page_count").fetchone()
    db.execute(f"PRAGMA max_page_count = {pages}")
    for second in range(10, 300):
        history.add(sample(START + second, nodes={f"pi-{n}": (1.0, 2.0, 3.0, 4.0) for n in range(9)}))
    history.write()
    history.write()
    assert "full" in history.problem and str(path.parent) not in history.problem
    assert len([record for record in caplog.records if record.levelno == logging.WARNING]) == 1
    assert len(known(ask(history, "5m", START + 299))) == 300, "charts are shown all the same"
    db.execute("PRAGMA max_page_count = 1000000")
    history.write()
    assert history.problem == ""
    history.close()
    again = opened(path)
    assert len(known(ask(again, "5m", START + 299))) == 300
    again.close()


def test_a_file_that_breaks_while_it_is_in_use_is_made_anew_from_memory(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    history = filled(path, range(50))
    history.write()

    def broken(*_: Any) -> None:
        raise sqlite3.DatabaseError("database disk image is malformed")

    with monkeypatch.context() as patch:
        patch.setattr(Store, "_write", broken)
        damaged = path.with_name(path.name + BROKEN)
        patch.setattr(Store, "_judge_header", judge_once(path))
        history.add(sample(START + 50))
        history.write()
    assert damaged.exists() and "malformed" in history.problem
    history.write()
    assert history.problem == ""
    history.close()
    again = opened(path)
    assert len(known(ask(again, "5m", START + 50))) == 51
    again.close()


def judge_once(path: Path) -> Any:
    """As if the file were corrupt when it is looked at next, and the new one after that were not."""
    from dashboard.history import Corrupt

    seen: list[int] = []

    def judge(_: Store) -> None:
        seen.append(1)
        if len(seen) == 1:
            raise Corrupt("database disk image is malformed")

    return judge
