"""The reply book and the manners: what the Discord gateway remembers, and how much it lets people ask for."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from pathlib import Path

import pytest

from dolmetsch import replybook
from dolmetsch.config import DiscordConfig
from dolmetsch.correspondence import job_id
from dolmetsch.errors import LedgerError
from dolmetsch.manners import Asker, Manners
from dolmetsch.replybook import GONE, TOLD, WANTED, Entry, Key, ReplyBook
from dolmetsch.slash import fitting

KEY = Key(11, "de→en")


@pytest.fixture
def book(tmp_path: Path) -> Iterator[ReplyBook]:
    made = ReplyBook(tmp_path / "book.sqlite3", window_s=100.0)
    yield made
    made.close()


def test_what_is_written_is_there_after_a_restart(tmp_path: Path) -> None:
    path = tmp_path / "folder" / "book.sqlite3"
    book = ReplyBook(path, 100.0)
    book.add(Entry(KEY, 2, None, "🇩🇪", 50.0))
    book.change(KEY, 51.0, parts=(7, 5, 6), shown="stamp", sign=True)
    book.close()
    assert path.stat().st_mode & 0o077 == 0
    book = ReplyBook(path, 100.0)
    found = Entry(KEY, 2, None, "🇩🇪", 50.0, WANTED, 0, "stamp", (7, 5, 6), True)
    assert book.get(KEY) == book.of_part(5) == found
    assert book.of_message(11) == [found]
    assert book.get(Key(11, "en→de")) is book.of_part(4) is None
    book.change(KEY, 52.0, parts=(7,))
    assert book.of_part(5) is None
    book.forget(KEY)
    assert book.get(KEY) is book.of_part(7) is None
    book.close()


def test_a_change_leaves_the_other_columns_alone(book: ReplyBook) -> None:
    book.add(Entry(KEY, 2, 3, "🇩🇪", 50.0))
    book.change(KEY, 51.0, state=GONE)
    book.change(KEY, 52.0, parts=(1,))
    entry = book.get(KEY)
    assert entry is not None and (entry.state, entry.parts, entry.guild) == (GONE, (1,), 3)


def test_what_is_left_to_do(book: ReplyBook) -> None:
    changes = [
        {}, {"shown": "s"}, {"state": TOLD}, {"state": GONE}, {"state": GONE, "parts": (1,)},
        {"shown": "s", "sign": True}, {"state": GONE, "shown": "s"},
    ]  # fmt: skip
    for number, change in enumerate(changes):
        book.add(Entry(Key(number, "de→en"), 2, 3, "🇩🇪", float(number)))
        book.change(Key(number, "de→en"), 50.0 + number, **change)
    assert [entry.key.message for entry in book.unsettled()] == [0, 4, 5]
    for number in (0, 2, 3, 4):
        book.change(Key(number, "de→en"), 60.0 + number, parts=(100 + number,))
    assert [entry.key.message for entry in book.latest(0.0, 9)] == [2, 0]
    assert [entry.key.message for entry in book.latest(0.0, 1)] == [2]
    assert book.latest(63.0, 9) == []


def test_an_error_leaves_no_transaction_behind(book: ReplyBook) -> None:
    book.add(Entry(KEY, 2, 3, "🇩🇪", 50.0))
    with pytest.raises(LedgerError):
        book.change(KEY, 51.0, parts=(1,), nonsense=1)
    book.change(KEY, 52.0, parts=(2,))
    assert book.of_part(1) is None and book.of_part(2) is not None


def test_the_book_is_bounded_by_age_and_number(book: ReplyBook, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(replybook, "MAX_ENTRIES", 3)
    for number in range(6):
        book.add(Entry(Key(number, "de→en"), 2, 3, "🇩🇪", 10.0 * number))
        book.change(Key(number, "de→en"), 10.0 * number, parts=(100 + number,))
    book.purge(105.0)
    assert [number for number in range(6) if book.get(Key(number, "de→en"))] == [3, 4, 5]
    book.purge(145.0)
    assert [number for number in range(6) if book.of_part(100 + number)] == [5]


def test_a_second_process_and_a_foreign_file_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "book.sqlite3"
    book = ReplyBook(path, 100.0)
    with pytest.raises(LedgerError, match="in use by another Discord gateway"):
        ReplyBook(path, 100.0)
    book.close()
    with sqlite3.connect(path) as db:
        db.execute("PRAGMA user_version = 99")
    db.close()
    with pytest.raises(LedgerError, match="newer dolmetsch"):
        ReplyBook(path, 100.0)
    (tmp_path / "text").write_text("not a database" * 100)
    with pytest.raises(LedgerError, match="move it away"):
        ReplyBook(tmp_path / "text", 100.0)
    with pytest.raises(LedgerError, match="to another place"):
        ReplyBook(tmp_path / "text" / "below", 100.0)


def test_each_limit_counts_for_itself_and_a_refusal_costs_nothing() -> None:
    config = DiscordConfig(user_limit=2, channel_limit=3, guild_limit=4, total_limit=5, limit_s=10.0)
    manners = Manners(config)
    ask = [(1, 1, 1), (1, 1, 1), (1, 2, 2), (2, 1, 1), (3, 1, 1), (3, 2, 1), (3, 3, 1), (3, 3, 3), (4, 4, 4)]
    waits = [manners.ask(Asker(*asker), 100.0 + number / 100) for number, asker in enumerate(ask)]
    refused_by = ["", "", "user", "", "channel", "", "guild", "", "total"]
    assert [bool(wait_s) for wait_s in waits] == [bool(limit) for limit in refused_by]
    assert all(wait_s == 0.0 or 9.0 < wait_s <= 10.0 for wait_s in waits)
    assert manners.ask(Asker(1, 1, 1), 110.5) == 0.0


def test_in_direct_messages_each_user_is_a_guild_of_his_own() -> None:
    manners = Manners(DiscordConfig(guild_limit=1))
    assert manners.ask(Asker(1, 1, None), 5.0) == manners.ask(Asker(2, 2, None), 5.0) == 0.0


def test_told_once_until_the_time_is_over() -> None:
    manners = Manners(DiscordConfig())
    told = [manners.tell(Asker(1, 1, 1), 10.0, now) for now in (100.0, 105.0, 109.9, 110.1, 111.0)]
    assert told == [True, False, False, True, False]
    assert not manners.tell(Asker(2, 1, 1), 10.0, 112.0)  # one notice in a channel is enough
    assert manners.tell(Asker(2, 2, 1), 10.0, 112.0)


def test_a_job_is_its_message_route_text_and_turn() -> None:
    numbers = {
        job_id(KEY, "a", 0), job_id(KEY, "b", 0), job_id(KEY, "a", 1), job_id(Key(12, "de→en"), "a", 0),
        job_id(Key(11, "en→de"), "a", 0),
    }  # fmt: skip
    assert len(numbers) == 5 and all(len(number) == 16 for number in numbers)
    assert job_id(KEY, "a", 0) == job_id(Key(11, "de→en"), "a", 0)


def test_routes_to_the_members_own_language_come_first() -> None:
    routes = ["de→en", "fr→en", "en→de"]
    assert fitting(routes, "de") == ["en→de"]
    assert fitting(routes, "en-US") == ["de→en", "fr→en"]
    assert fitting(routes, "ja") == routes
    assert fitting([], "de") == []
