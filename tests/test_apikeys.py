"""API keys on disk, and how much a caller may ask for in a minute."""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dolmetsch.apikeys import MAX_KEY_CHARS, WINDOW_S, Allowance, Keys, Windows
from dolmetsch.errors import InputError, LedgerError

SOME = Allowance(60, 1000)
ANY = Allowance(0, 0)


@pytest.fixture
def keys(tmp_path: Path) -> Iterator[Keys]:
    made = Keys(tmp_path / "folder" / "keys.sqlite3")
    yield made
    made.close()


def test_a_key_is_known_to_a_running_gateway_at_once_and_until_it_is_removed(keys: Keys, tmp_path: Path) -> None:
    assert (keys.count(), keys.all()) == (0, [])
    command = Keys(tmp_path / "folder" / "keys.sqlite3")  # what `gateway_http.py keys add` opens beside the gateway
    key = command.add("Anna's phone", SOME)
    found = keys.find(key)
    assert found is not None
    assert (found.name, found.allowance) == ("Anna's phone", SOME)
    assert keys.all() == [found]
    other = command.add("Bert", ANY)
    assert keys.count() == 2
    command.remove("Anna's phone")
    assert keys.find(key) is None
    assert keys.find(other) is not None
    command.close()


def test_the_file_tells_no_key_and_is_its_owners_alone(keys: Keys, tmp_path: Path) -> None:
    key = keys.add("a", SOME)
    path = tmp_path / "folder" / "keys.sqlite3"
    everything = b"".join(file.read_bytes() for file in path.parent.iterdir())
    assert key.encode() not in everything
    assert len(key) >= 43, "256 bits"
    assert path.stat().st_mode & 0o077 == 0


@pytest.mark.parametrize("key", ["", "x", "ä" * MAX_KEY_CHARS, "x" * 10_000, "\ud800", "' OR 1=1 --"])
def test_what_is_no_key_is_nobodys(keys: Keys, key: str) -> None:
    keys.add("a", SOME)
    assert keys.find(key) is None


@pytest.mark.parametrize("name", ["", " a", "a\n", "x" * 65, "\x00"])
def test_a_name_that_is_none(keys: Keys, name: str) -> None:
    with pytest.raises(InputError, match="printable"):
        keys.add(name, SOME)


def test_a_name_has_one_key(keys: Keys) -> None:
    first = keys.add("a", SOME)
    with pytest.raises(InputError, match="already"):
        keys.add("a", ANY)
    assert keys.find(first) is not None
    with pytest.raises(InputError, match="no key for b"):
        keys.remove("b")


def test_files_that_cannot_be_used(tmp_path: Path) -> None:
    (tmp_path / "text").write_text("this is no database, and it is long enough to be read as one")
    with pytest.raises(LedgerError, match="move it away"):
        Keys(tmp_path / "text")
    with pytest.raises(LedgerError, match=r"http\.keys"):
        Keys(tmp_path / "text" / "below")
    with sqlite3.connect(tmp_path / "newer") as db:
        db.execute("PRAGMA user_version = 99")
    db.close()
    with pytest.raises(LedgerError, match="newer"):
        Keys(tmp_path / "newer")


def test_a_disk_that_fails_later_is_an_error_of_ours(keys: Keys) -> None:
    keys.close()
    for call in (keys.count, keys.all, lambda: keys.find("x"), lambda: keys.add("a", SOME)):
        with pytest.raises(LedgerError):
            call()


def test_threads_share_them(keys: Keys) -> None:
    key = keys.add("a", SOME)
    found: list[bool] = []
    threads = [
        threading.Thread(target=lambda: found.extend(keys.find(key) is not None for _ in range(50))) for _ in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10)
    assert found == [True] * 400


# ---- windows ----


def test_so_many_requests_in_any_minute() -> None:
    windows = Windows()
    allowance = Allowance(3, 0)
    assert [windows.take("a", allowance, 10, now) for now in (0.0, 10.0, 20.0)] == [0.0, 0.0, 0.0]
    wait_s = windows.take("a", allowance, 10, 30.0)
    assert wait_s == 31.0, "the first one is counted for a minute, and a step"
    assert windows.take("b", allowance, 10, 30.0) == 0.0, "another caller's window is another"
    assert windows.take("a", allowance, 10, 30.0 + wait_s - 0.01) > 0.0
    assert windows.take("a", allowance, 10, 30.0 + wait_s) == 0.0
    assert windows.take("a", allowance, 10, 30.0 + wait_s) == 10.0, "what was refused was not counted"


def test_so_many_characters_in_any_minute() -> None:
    windows = Windows()
    allowance = Allowance(0, 100)
    assert windows.take("a", allowance, 60, 0.0) == 0.0
    assert windows.take("a", allowance, 60, 1.0) == 60.0
    assert windows.take("a", allowance, 40, 1.0) == 0.0
    assert windows.take("a", allowance, 500, 62.0) == 0.0, "more than a minute's worth, into an empty window"
    assert windows.take("a", allowance, 1, 63.0) == 60.0


def test_no_limit() -> None:
    windows = Windows()
    assert {windows.take("a", ANY, 10**6, 0.0) for _ in range(1000)} == {0.0}


def test_callers_who_are_away_are_forgotten_and_there_are_never_too_many() -> None:
    windows = Windows(most=100)
    for number in range(1000):
        windows.take(f"caller {number}", SOME, 1, 0.0)
        assert len(windows._windows) <= 101
    for number in range(1000):
        windows.take(f"{number % 2}", Allowance(0, 0), 1, 100.0)
    assert set(windows._windows) == {"0", "1"}


@settings(max_examples=100)
@given(
    st.lists(st.tuples(st.floats(0, 40, allow_nan=False), st.integers(0, 60)), max_size=60),
    st.integers(1, 5), st.integers(30, 100),
)  # fmt: skip
def test_no_minute_holds_more_than_is_allowed(steps: list[tuple[float, int]], requests: int, chars: int) -> None:
    windows = Windows()
    now = 0.0
    taken: list[tuple[float, int]] = []
    for pause, size in steps:
        now += pause
        wait_s = windows.take("a", Allowance(requests, chars), size, now)
        if wait_s == 0.0:
            taken.append((now, size))
            minute = [one for at, one in taken if at > now - WINDOW_S]
            assert len(minute) <= requests
            assert sum(minute) <= max(chars, size)
        else:
            assert 0.0 < wait_s <= WINDOW_S + 1


def test_looking_counts_nothing() -> None:
    windows, once = Windows(), Allowance(1, 0)
    assert not windows.full("a", once, 0.0) and not windows.full("a", once, 0.0)
    assert windows.take("a", once, 0, 0.0) == 0.0
    assert windows.full("a", once, 1.0) and not windows.full("b", once, 1.0)
    assert not windows.full("a", once, WINDOW_S + 1.0)
