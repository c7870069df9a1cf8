"""The simulated world: plain seeds are well, and every fault planted on purpose is found.

A fault's seed is the first that finds it. When a change of the cores moves it, ``python -m simulation --fault NAME``
finds another; a fault that none of some thousand seeds finds is a hole in the simulation.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from simulation import __main__ as program
from simulation.faults import FAULTS
from simulation.story import FIRST_LINES, LAST_LINES
from simulation.witness import Witness
from simulation.world import simulate

HOUSE = Path(__file__).parent.parent
PLAIN = range(240)

# Fault -> the seed that finds it, and the rule that it breaks there.
FOUND = {
    "skip-a-commit": (0, "what a peer is told is on disk"),
    "send-before-commit": (0, "what a peer is told is on disk"),
    "forget-peer-gone": (8, "who is gone is not talked to"),
    "count-credit-wrong": (0, "credit is not exceeded"),
    "lease-to-the-drained": (6, "credit is not exceeded"),
    "forget-the-settled": (3, "an accepted job is done once"),
    "ignore-attempts": (355, "what a peer is told is on disk"),
    "never-expire": (43, "a lease ends unless renewed"),
    "expire-too-early": (0, "a lease is taken back for a reason"),
    "renew-nothing": (0, "a lease is taken back for a reason"),
    "reuse-an-attempt": (0, "a lease has a number of its own"),
    "forget-to-revoke": (0, "a lease is held by one node"),
    "lose-the-leased": (0, "a restarted broker has all it had"),
    "no-grace": (0, "a lease is taken back for a reason"),
    "lose-the-ageing": (13, "bulk is not starved"),
    "lose-the-urgent-lane": (0, "interactive goes first"),
    "forget-to-resend-results": (13, "everything drains"),
    "settle-unacked": (0, "a job is forgotten for a reason"),
    "mix-up-results": (10, "a result is what a node said"),
    "show-a-failed-lease": (12, "a failed lease is not shown again"),
    "forget-to-resend-outcomes": (161, "everything drains"),
    "forget-outcomes": (0, "a node works on what it holds"),
    "reuse-an-incarnation": (0, "an identity is used once"),
    "forget-to-resend-submits": (335, "a job is sent until it is answered"),
    "send-the-refused": (94, "the cores do not fail"),
    "hurry-without-a-broker": (0, "a loop rests while nothing happens"),
    "deliver-twice": (1, "a process is delivered an answer once"),
    "forget-what-was-acked": (0, "a process is delivered an answer once"),
    "drop-acks": (0, "everything drains"),
    "ack-too-early": (8, "an answer is acked when it is safe"),
}

# Seeds that found bugs in the cores, or in the watch, once. Their worlds change with the cores: beside them stand tests
# of their own.
ONCE_BAD = {
    45: "a refused job whose second copy waited to be sent stopped its gateway for ever",
    94: "likewise",
    7: "one crash of a child counted as two failures, when RECEIVED was lost",
    303: "likewise, when the next LEASE was lost too",
    5692: "the failure of a lease that waited to be shown again was thanked for and forgotten",
    4191: "the watch looked at a turn before it had counted the sleep which that turn forgives",
}


@pytest.mark.parametrize("first", PLAIN[::40])
def test_plain_worlds_are_well(first: int) -> None:
    for seed in range(first, first + 40):
        verdict = simulate(seed)
        assert not verdict.rule, f"python -m simulation --seed {seed} --story: {verdict.rule}: {verdict.what}"


@pytest.mark.parametrize("seed", ONCE_BAD)
def test_a_world_that_was_not_well_once(seed: int) -> None:
    verdict = simulate(seed)
    assert not verdict.rule, f"{ONCE_BAD[seed]}: {verdict.rule}: {verdict.what}"


@pytest.mark.parametrize("name", FAULTS)
def test_a_planted_fault_is_found(name: str) -> None:
    seed, rule = FOUND[name]
    with FAULTS[name].plant():
        assert simulate(seed).rule == rule
    assert not simulate(seed).rule  # and it is the fault that was found


def test_there_are_faults_enough_and_each_has_its_seed() -> None:
    assert FOUND.keys() == FAULTS.keys()
    assert len(FAULTS) >= 12


@pytest.mark.parametrize(
    ("name", "seed", "rule"),
    [("skip-a-commit", 9, "no two answers differ"), ("send-before-commit", 49, "an accepted job is settled or dead")],
)
def test_what_is_not_on_disk_is_noticed_without_looking_at_the_disk(
    name: str, seed: int, rule: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Witness, "about_to_say", lambda *_: None)
    with FAULTS[name].plant():
        assert simulate(seed).rule == rule


def test_a_failing_seed_replays_with_its_story() -> None:
    with FAULTS["drop-acks"].plant():
        quiet, told = simulate(0), simulate(0, told=True)
    assert (quiet.rule, quiet.what, quiet.digest) == (told.rule, told.what, told.digest)
    assert not quiet.story and "SUBMIT" in told.story
    assert FIRST_LINES < len(told.story.splitlines()) <= FIRST_LINES + LAST_LINES + 1


def test_a_run_is_the_same_in_every_process() -> None:
    def run(hash_seed: str) -> str:
        command = [sys.executable, "-m", "simulation", "--seed", "12", "--story"]
        environment = {**os.environ, "PYTHONHASHSEED": hash_seed}
        return subprocess.run(command, cwd=HOUSE, env=environment, check=True, capture_output=True, text=True).stdout

    assert run("1") == run("2") != ""


def test_the_program_says_how_to_replay_what_it_found(capsys: pytest.CaptureFixture[str]) -> None:
    assert program.main(["--seeds", "1", "--jobs", "1", "--fault", "count-credit-wrong"]) == 1
    printed = capsys.readouterr().out
    assert "python -m simulation --seed 0 --story --fault count-credit-wrong" in printed and "1 bad" in printed
    assert program.main(["--seeds", "1", "--jobs", "1"]) == 0
