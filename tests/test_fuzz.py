"""Every fuzz target over a few hundred fixed mutants, without a tracer; and what longer runs have found."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import msgpack
import pytest

from dolmetsch import config
from dolmetsch.errors import ConfigError, RemoteError
from dolmetsch.html import Page
from dolmetsch.messages import MAX_HELD, MAX_MESSAGE_BYTES
from dolmetsch.wire import PROTOCOL, decode
from fuzz.run import keep, plain
from fuzz.target import NAMES, Target, load

HOUSE = Path(__file__).parent.parent
COUNT = 1000


@pytest.fixture(autouse=True, scope="module")
def as_loud_as_before() -> Iterator[None]:
    """Targets silence what they provoke; other tests of this process want to hear it."""
    loggers = [logging.getLogger(name) for name in ("http", "dolmetsch.engine")]
    levels = [logger.level for logger in loggers]
    yield
    for logger, level in zip(loggers, levels, strict=True):
        logger.setLevel(level)


@pytest.mark.parametrize("name", NAMES)
def test_no_mutant_does_harm(name: str, tmp_path: Path) -> None:
    assert plain(load(name), COUNT, folder=tmp_path) == COUNT
    assert list(tmp_path.iterdir()) == []


def test_there_is_a_file_for_every_target_and_each_says_what_must_hold() -> None:
    files = {path.stem for path in (HOUSE / "fuzz" / "targets").glob("*.py")} - {"__init__"}
    assert files == set(NAMES)
    assert all(len(load(name).property) > 100 for name in NAMES)


def _fragile(data: bytes) -> None:
    if b"<" in data:
        raise ValueError("a bracket")


def test_a_bad_input_is_kept_and_can_be_tried_again(tmp_path: Path) -> None:
    target = Target("html", "no brackets", lambda: [b"abc"], _fragile, (b"<",), 100)
    with pytest.raises(ValueError, match="a bracket") as raised:
        plain(target, COUNT, folder=tmp_path)
    (kept,) = (tmp_path / "html").glob("crash-*")
    assert b"<" in kept.read_bytes() and f"python -m fuzz html --replay {kept}" in raised.value.__notes__[0]
    with pytest.raises(ValueError, match="a bracket"):
        target.attempt(kept.read_bytes())
    good = keep("html", b"\x00<p>Guten Tag</p>", tmp_path)
    ended = subprocess.run(
        [sys.executable, "-m", "fuzz", "html", "--replay", str(good)], cwd=HOUSE, capture_output=True, text=True,
        timeout=60, check=False,
    )  # fmt: skip
    assert (ended.returncode, ended.stdout) == (0, "html: 17 bytes do no harm\n"), ended.stderr


def test_mutants_are_the_same_on_every_computer() -> None:
    from fuzz.mutate import mutants

    def some(number: int) -> list[bytes]:
        return list(mutants([b"Guten Morgen", b"<b>"], [b"x"], 20, 50, number))

    assert some(1) == some(1) != some(2)
    assert some(1)[:2] == [b"Guten Morgen", b"<b>"] and max(map(len, some(1))) <= 20


# ---- what was found ----


def _nested(unit: bytes) -> bytes:
    """A body of nearly MAX_MESSAGE_BYTES: an array of arrays of ``unit``."""
    count = (MAX_MESSAGE_BYTES - 100) // MAX_HELD // len(unit) - 3

    def array(length: int) -> bytes:
        return b"\xdc" + length.to_bytes(2, "big")

    return b"\x81\xa4jobs" + array(MAX_HELD) + (array(count) + unit * count) * MAX_HELD


@pytest.mark.parametrize("unit", [b"\x80", b"\x81\xa0\xc0", b"\x91\xc0"], ids=["maps", "small maps", "arrays"])
def test_one_frame_does_not_keep_the_broker_for_seconds(unit: bytes) -> None:
    body = _nested(unit)
    assert 0.8 * MAX_MESSAGE_BYTES < len(body) <= MAX_MESSAGE_BYTES
    started = time.process_time()
    with pytest.raises(RemoteError):
        decode([PROTOCOL, b"SUBMIT", body])
    assert time.process_time() - started < 1.0  # of maps it was 3.4 s: all nodes took the broker for dead


def test_a_map_inside_another_is_refused() -> None:
    with pytest.raises(RemoteError):
        decode([PROTOCOL, b"ACK", msgpack.packb({"jobs": [{"a": 1}]})])


@pytest.mark.parametrize("text", ["a = " + "[" * 3000, "a = " + "9" * 5000], ids=["nested", "endless"])
def test_toml_that_its_own_parser_does_not_refuse_well(text: str, tmp_path: Path) -> None:
    path = tmp_path / "dolmetsch.toml"
    path.write_text(text)
    with pytest.raises(ConfigError, match="is not valid TOML"):
        config.load(path, {}, {})


def test_a_number_in_the_environment_that_is_no_text_is_named() -> None:
    broken = os.fsdecode(b"5\xff")
    with pytest.raises(ConfigError, match=r"the environment: broker\.drain_s: not UTF-8"):
        config.load(None, {"DOLMETSCH_BROKER_DRAIN_S": broken}, {})
    with pytest.raises(ConfigError, match=r"the environment: pool\.cores: not UTF-8"):
        config.load(None, {"DOLMETSCH_POOL_CORES": f"1,{broken}"}, {})
    assert config.load(None, {"DOLMETSCH_BROKER_LEDGER": broken}, {}).broker.ledger == broken  # a file may be named so


@pytest.mark.parametrize("space", "\xa0\x85\u2009\u202f\u3000\u2028")
def test_a_page_with_a_wide_space_before_a_period(space: str) -> None:
    """sentencex panics at it, which is no Exception: it ended the thread of whoever asked."""
    markup = f"<p>Das ist T{space}. Und <b>weiter</b>.</p>"
    page = Page(markup, "de")
    assert page.render({text: text for text in page.texts}) == markup
