"""Outputs that loop or do not end: how they are found, tried again and refused; sentences of too many tokens."""

from __future__ import annotations

from collections.abc import Iterable

import ctranslate2
import pytest
import sentencepiece
from hypothesis import given
from hypothesis import strategies as st

from dolmetsch import decoder as decoder_module
from dolmetsch.config import EngineConfig
from dolmetsch.decoder import (
    LOOP_COPIES,
    LOOP_PERIOD,
    LOOP_TOKENS,
    MAX_SOURCE_TOKENS,
    MAX_TARGET_TOKENS,
    degenerate,
    loop_tokens,
    max_target_tokens,
)
from dolmetsch.engine import ArgosEngine
from dolmetsch.packages import Package, open_package
from dolmetsch.segment import parse
from dolmetsch.tokenizer import open_tokenizer
from tests.embedded import GERMAN
from tests.engines import LONG, OTHER, ROUTE, RUNAWAY, SHORT, engine, finish, keys, package, run, translate

__all__ = ["engine", "package"]  # fixtures


@pytest.mark.parametrize(
    ("tokens", "length"),
    [
        ("a b c d e f g h", 0),
        ("a a b b c c", 0),
        ("x a a a y", 3),
        ("a b a b a b", 6),
        ("a b a b a b a c", 7),
        ("a b a b", 0),
        ("q a b c a b c a b c a", 10),
        ("", 0),
    ],
)
def test_loops_are_measured_in_tokens(tokens: str, length: int) -> None:
    assert loop_tokens(tokens.split()) == length


def test_a_phrase_longer_than_the_period_is_no_loop() -> None:
    phrase = [str(number) for number in range(LOOP_PERIOD + 1)]
    assert loop_tokens(phrase * 4) == 0
    assert loop_tokens(phrase[:-1] * 4) == 4 * LOOP_PERIOD


@given(st.lists(st.sampled_from("abc"), max_size=60))
def test_a_loop_is_found_wherever_it_is(tokens: list[str]) -> None:
    longest = 0
    for period in range(1, LOOP_PERIOD + 1):
        for start in range(len(tokens)):
            end = start + period
            while end < len(tokens) and tokens[end] == tokens[end - period]:
                end += 1
            if end - start >= LOOP_COPIES * period:
                longest = max(longest, end - start)
    assert loop_tokens(tokens) == longest
    source = [str(number) for number in range(30)]
    assert ("repeated itself" in degenerate(source, ["▁yes", *tokens])) is (longest >= LOOP_TOKENS)


def test_degenerate_says_what_is_wrong() -> None:
    source = ["▁Das", "▁ist", "▁ein", "▁Satz", "."]
    assert degenerate(source, ["▁This", "▁is", "▁a", "▁sentence", "."]) == ""
    assert "nothing" in degenerate(source, [])
    assert "nothing" in degenerate(source, ["▁", "▁"])
    assert "repeated itself over 9 tokens" in degenerate(source, ["▁well", *["▁so"] * 9])
    assert degenerate(["▁nein"] * 9, ["▁no"] * 9) == ""
    assert "did not come to an end" in degenerate(source, [str(number) for number in range(35)])


def test_the_output_is_bounded_by_the_input() -> None:
    assert max_target_tokens(1) == 23
    assert max_target_tokens(MAX_SOURCE_TOKENS) == MAX_TARGET_TOKENS


LOOPERS = (
    RUNAWAY,
    "haha " * 30,
    "kek" * 20,
    "x" * 20,
    "lol " * 40,
    "ezmzwäläroxass rjn crhfde i yodäkds cj mnknibybzxxvjuuvdu kwq",
)


def raw_outputs(beam_size: int) -> Iterable[tuple[list[str], list[str]]]:
    """What CTranslate2 alone makes of LOOPERS."""
    pieces = sentencepiece.SentencePieceProcessor(model_file=str(GERMAN / "sentencepiece.model"))
    translator = ctranslate2.Translator(str(GERMAN / "model"), inter_threads=1, intra_threads=1)
    for text in LOOPERS:
        row = pieces.encode(text, out_type=str)
        result = translator.translate_batch([row], beam_size=beam_size, max_decoding_length=max_target_tokens(len(row)))
        yield row, result[0].hypotheses[0]


def test_the_model_loops_and_the_guard_mends_it(engine: ArgosEngine) -> None:
    faulty = [degenerate(row, output) for row, output in raw_outputs(2)]
    assert sum(map(bool, faulty)) >= 4, faulty  # otherwise this test shows nothing
    tokenizer = open_tokenizer(open_package(GERMAN))
    texts = translate(engine, *LOOPERS)
    for text, out in zip(LOOPERS, texts, strict=True):
        row, output = tokenizer.encode([text, out])
        assert degenerate(row, output) == "", out


def test_a_second_try_does_not_hold_up_the_others(engine: ArgosEngine) -> None:
    engine.submit(b"runaway", ROUTE, [RUNAWAY])
    engine.submit(b"fine", ROUTE, [LONG])
    first, second = engine.next_batch(), None
    assert keys(first) == (b"runaway", b"fine")
    assert first is not None
    assert [outcome.key for outcome in run(engine, first)] == [b"fine"]
    second = engine.next_batch()
    assert keys(second) == (b"runaway",)
    assert second is not None
    (outcome,) = run(engine, second)
    assert outcome.texts is not None


def test_what_stays_degenerate_fails_its_job_alone(package: Package, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decoder_module, "RETRY", {})  # the second try is then as helpless as the first
    monkeypatch.setattr(decoder_module, "RETRY_BEAM", 1)
    engine = ArgosEngine([package], EngineConfig(beam_size=1))
    engine.submit(b"bad", ROUTE, [OTHER, RUNAWAY, LONG])
    engine.submit(b"good", ROUTE, [SHORT])
    outcomes = finish(engine)
    bad = outcomes[b"bad"]
    assert (bad.texts, bad.code) == (None, "degenerate_output")
    assert "did not come to an end within 320 tokens for 100" in bad.detail
    assert outcomes[b"good"].texts is not None


NAMES = ", ".join(["Tom", "Mia", "Lea", "Ben", "Eva", "Uwe", "Kai"] * 17)


@pytest.mark.parametrize("text", [f"Ich kenne {NAMES}.", "k " * 299, "Ё" * 590, "日本語のテキストです" * 20])
def test_a_sentence_of_too_many_tokens_is_cut_and_joined(engine: ArgosEngine, text: str) -> None:
    engine.submit(b"a", ROUTE, [text])
    assert engine.pending > 1
    sizes: list[int] = []
    while batch := engine.next_batch():
        sizes += [len(sentence.tokens) for sentence in batch.sentences if not sentence.again]
        outcomes = run(engine, batch)
    sources = [segment.source for segment in parse(text, "de").segments]
    whole = open_tokenizer(open_package(GERMAN)).encode(sources)
    assert max(map(len, whole)) > MAX_SOURCE_TOKENS
    assert sum(sizes) == sum(map(len, whole))  # nothing was dropped
    assert max(sizes) <= MAX_SOURCE_TOKENS
    assert [(outcome.key, outcome.code or "") for outcome in outcomes] in ([(b"a", "")], [(b"a", "degenerate_output")])
