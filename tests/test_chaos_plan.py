"""What is pure in chaos: the plan of a seed, and the account that is kept of the load."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from chaos.journal import Tally, is_answer, text_of
from chaos.plan import KINDS, LAST_S, REST_S, SETTLE_S, plan

SEEDS = range(50)
ALL = sorted(KINDS)


def test_a_seed_is_a_plan() -> None:
    assert plan(7, 20, ALL) == plan(7, 20, list(reversed(ALL)))
    assert len({plan(seed, 20, ALL) for seed in SEEDS}) == len(SEEDS)


@pytest.mark.parametrize("seed", SEEDS)
def test_a_plan_keeps_its_bounds(seed: int) -> None:
    troubles = plan(seed, 10, ALL)
    assert {one.fault for one in troubles} == set(ALL)  # ten minutes are enough for each
    assert list(troubles) == sorted(troubles, key=lambda one: one.at)
    assert all(one.until <= 600 - LAST_S for one in troubles)
    for one in troubles:
        kind = KINDS[one.fault]
        assert one.target in kind.targets
        assert kind.for_s[0] <= one.for_s <= kind.for_s[1]
    for target in {one.target for one in troubles}:
        ours = [one for one in troubles if one.target == target]
        assert all(later.at >= earlier.until + SETTLE_S - 0.1 for earlier, later in pairwise(ours))
    longest_s = max(kind.for_s[1] for kind in KINDS.values()) + REST_S[1] + SETTLE_S
    assert all(later.at - earlier.at <= longest_s for earlier, later in pairwise(troubles))


def test_faults_overlap_now_and_then() -> None:
    pairs = [pair for seed in SEEDS for pair in pairwise(plan(seed, 10, ALL))]
    share = sum(later.at < earlier.until for earlier, later in pairs) / len(pairs)
    assert 0.1 < share < 0.4


def test_only_what_was_asked_for() -> None:
    assert {one.fault for one in plan(1, 20, ["poison", "cut-link"])} == {"poison", "cut-link"}


def test_no_two_texts_are_alike() -> None:
    assert len({text_of(number) for number in range(5000)}) == 5000


@pytest.mark.parametrize(
    ("text", "good"),
    [
        ("He is just over 40. `17`", True),
        ("`17` He is just over 40.", True),
        ("He is just over 40. `18`", False),
        ("He is just over 40.", False),
        ("`17`", False),
        ("", False),
        ("He is `17` just over 40. `17`", False),
    ],
)
def test_whose_answer_it_is(text: str, good: bool) -> None:
    assert is_answer(17, text) is good


class Journal:
    def __init__(self, path: Path) -> None:
        self.path, self.tally = path, Tally(path)

    def note(self, **entry: Any) -> None:
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(entry) + "\n")
        self.tally.read()


@pytest.fixture
def journal(tmp_path: Path) -> Journal:
    made = Journal(tmp_path / "journal")
    made.note(start=1)
    made.note(sent=0, at=10.0)
    made.note(sent=1, at=11.0)
    return made


def test_what_has_no_answer_is_waiting(journal: Journal) -> None:
    journal.note(got=1, at=12.5, text="One. `1`", attempts=1)
    assert journal.tally.waiting == {0: 10.0}
    assert journal.tally.longest_s(10.0, 12.0) == 1.5
    assert not journal.tally.all_before(10.5)
    journal.note(got=0, at=13.0, text="Nought. `0`", attempts=1)
    assert journal.tally.all_before(10.5)
    assert not journal.tally.all_before(11.5)  # nothing that was sent since then has come back


def test_an_answer_twice_is_one_too_many(journal: Journal) -> None:
    journal.note(got=0, at=12.0, text="Nought. `0`", attempts=1)
    journal.note(got=0, at=13.0, text="Nought. `0`", attempts=1)
    assert journal.tally.doubled == [0]


def test_after_a_kill_an_answer_may_come_again_but_not_another_one(journal: Journal) -> None:
    journal.note(got=0, at=12.0, text="Nought. `0`", attempts=1)
    journal.note(got=1, at=12.0, text="One. `1`", attempts=1)
    journal.note(start=2)
    journal.note(got=0, at=13.0, text="Nought. `0`", attempts=1)
    assert (journal.tally.again, journal.tally.doubled) == (1, [])
    journal.note(got=1, at=13.0, text="Uno. `1`", attempts=2)
    assert journal.tally.doubled == [1]
    journal.note(got=0, at=14.0, text="Nought. `0`", attempts=1)
    assert journal.tally.doubled == [1, 0]


def test_the_answer_to_another_job_is_wrong(journal: Journal) -> None:
    journal.note(got=0, at=12.0, text="One. `1`", attempts=1)
    assert journal.tally.wrong == [(0, "One. `1`")]


def test_a_failure_is_not_an_answer(journal: Journal) -> None:
    journal.note(failed=0, at=12.0, why="deadline")
    assert journal.tally.failed == [(0, "deadline")]
    assert journal.tally.waiting == {1: 11.0}
    assert journal.tally.got == {}


def test_a_line_without_its_end_is_not_there_yet(journal: Journal) -> None:
    with journal.path.open("ab") as file:
        file.write(b'{"got": 0, "at": 12.0, "te')
        file.flush()
        journal.tally.read()
        assert 0 in journal.tally.waiting
        file.write(b'xt": "Nought. `0`", "attempts": 1}\n')
    journal.tally.read()
    assert 0 in journal.tally.got
