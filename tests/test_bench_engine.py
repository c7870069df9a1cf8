"""The benches of the engine and of a board: their arithmetic, and what a board tells of its power."""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path

import pytest

from bench import engine, pi
from bench.cluster import HOUSE
from bench.processes import deal, gather

PMIC = """
 3V7_WL_SW_A current(0)=0.10000000A
   VDD_CORE_A current(7)=2.00000000A
 3V7_WL_SW_V volt(8)=4.00000000V
   VDD_CORE_V volt(15)=0.80000000V
     EXT5V_V volt(24)=5.10000000V
"""


def row(name: str, seconds: list[float], texts: int = 10, beside: list[float] | None = None) -> engine.Row:
    return engine.Row(name, ["Hallo"] * texts, {"kind": "limit"}, seconds=seconds, beside=beside or [])


@pytest.mark.parametrize(("texts", "shares"), [(0, 2), (1, 2), (7, 1), (7, 3), (9, 3)])
def test_what_was_dealt_is_gathered_in_order(texts: int, shares: int) -> None:
    cards = [str(number) for number in range(texts)]
    dealt = deal(cards, shares)
    assert gather(dealt) == cards
    assert max(map(len, dealt)) - min(map(len, dealt)) <= 1


def test_each_round_is_compared_with_that_of_the_limit_beside_it() -> None:
    limit = row("s: " + engine.LIMIT, [1.0, 2.0, 1.0])
    assert row("s: a", [2.0, 4.0, 2.0]).part_of(limit) == 0.5
    assert row("s: our cluster, 1 child", [2.0, 2.0, 2.0], beside=[1.8, 1.8, 1.8]).part_of(limit) == pytest.approx(0.9)
    assert row("s: half the texts", [1.0, 2.0, 1.0], texts=5).part_of(limit) == 0.5
    assert limit.per_s == 10.0


def test_targets_are_met_or_not() -> None:
    rows = [
        row("s: " + engine.LIMIT, [1.0]),
        row("s: argostranslate, defaults", [50.0]),
        row("s: argostranslate, best", [4.0]),
        row("s: our cluster, 2 children", [1.0], beside=[0.96]),
    ]
    found = engine.ratios(rows, "s")
    assert found == {
        "to_limit": pytest.approx(0.96), "times_usual": pytest.approx(48.0), "times_best": pytest.approx(3.84),
    }  # fmt: skip
    assert [line[-1] for line in engine.targets({"s": found})] == ["met", "yes", "yes", "no"]
    assert engine.ratios(rows[:1], "s") == {}


def test_pairs_are_read_before_anything_is_measured(tmp_path: Path) -> None:
    file = tmp_path / "pairs.tsv"
    file.write_text("Hallo\tHello\nJa\tYes\n")
    assert engine.read_pairs(str(file)) == [["Hallo", "Hello"], ["Ja", "Yes"]]
    file.write_text("Hallo\n")
    for path in (file, tmp_path / "away.tsv"):
        with pytest.raises(argparse.ArgumentTypeError, match=path.name):
            engine.read_pairs(str(path))


def test_a_board_tells_its_power_by_rails(tmp_path: Path) -> None:
    assert pi.pmic_watts(PMIC) == pytest.approx(0.1 * 4.0 + 2.0 * 0.8)  # a rail without its current does not count
    assert pi.pmic_watts("Command not registered") is None
    assert pi.rapl_joules(tmp_path) is None
    for name, word, energy in (("intel-rapl:0", "package-0", 5_000_000), ("intel-rapl:1", "psys", 9_000_000)):
        zone = tmp_path / "class" / "powercap" / name
        zone.mkdir(parents=True)
        (zone / "name").write_text(word + "\n")
        (zone / "energy_uj").write_text(f"{energy}\n")
    assert pi.rapl_joules(tmp_path) == 5.0


def test_what_a_board_does_not_tell_is_said() -> None:
    assert (pi.say(None), pi.say(False), pi.say(48.26, "{:.1f} °C")) == (pi.NOT_REPORTED, "no", "48.3 °C")
    assert (pi.ever([None, None]), pi.ever([None, False]), pi.ever([False, True])) == (None, False, True)


def test_the_table_of_this_board() -> None:
    command = [sys.executable, "bench/pi.py", "--quick", "--cores", "0"]
    done = subprocess.run(command, cwd=HOUSE, capture_output=True, text=True, timeout=60, check=True)
    *table, last = done.stdout.strip().splitlines()
    figures = json.loads(last)
    assert figures["translations_per_s"] > 0 and figures["cores"] == 1
    assert any(line.startswith("target tokens/s") for line in table)
