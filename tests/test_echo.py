"""The echo engine: texts come back as they are, by the rules of batches."""

from __future__ import annotations

import pytest

from dolmetsch.engine import ECHO_JOBS, EchoEngine
from tests.engines import ROUTE, finish, keys, translate


def test_echo_returns_the_texts(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    engine = EchoEngine([ROUTE, "en→fr"])
    assert engine.routes == {ROUTE: "echo", "en→fr": "echo"}
    assert "untranslated" in caplog.text
    assert translate(engine, "a", "b") == ("a", "b")
    engine.submit(b"x", "fr→de", ["a"])
    assert finish(engine)[b"x"].code == "no_route"


def test_echo_keeps_the_rules_of_batches() -> None:
    engine = EchoEngine([ROUTE])
    for number in range(ECHO_JOBS + 1):
        engine.submit(b"%d" % number, ROUTE, ["a"])
    engine.submit(b"urgent", ROUTE, ["a"], urgent=True)
    engine.submit(b"suspect", ROUTE, ["a"], alone=True)
    engine.submit(b"gone", ROUTE, ["a"])
    engine.drop(b"gone")
    assert engine.pending == ECHO_JOBS + 3
    batches = [keys(engine.next_batch()) for _ in range(4)]
    assert batches[:2] == [(b"suspect",), (b"urgent",)]
    assert [len(batch) for batch in batches[2:]] == [ECHO_JOBS, 1]
    assert engine.next_batch() is None


def test_the_echo_engine_repeats_what_alternatives_were_asked_for() -> None:
    echo = EchoEngine([ROUTE])
    echo.submit(b"1", ROUTE, ["a", "b"], alternatives=1)
    assert finish(echo)[b"1"].texts == ("a", "b", "a", "b")
