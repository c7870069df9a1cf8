"""The engine on the embedded model: batches, their order, protected spans, what a failure costs."""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import ctranslate2
import pytest

from dolmetsch import decoder as decoder_module
from dolmetsch.config import EngineConfig
from dolmetsch.engine import ArgosEngine, Outcome
from dolmetsch.errors import ConfigError
from dolmetsch.packages import Package
from tests.engines import LONG, OTHER, ROUTE, RUNAWAY, SHORT, engine, finish, keys, package, run, translate

__all__ = ["engine", "package"]  # fixtures


def test_translates_and_names_the_model(engine: ArgosEngine, package: Package) -> None:
    engine.submit(b"1", ROUTE, ["Ich bin müde."])
    assert finish(engine) == {b"1": Outcome(b"1", ("I'm tired.",), package.model_version, "", "")}
    assert engine.routes == {ROUTE: package.model_version}


def test_texts_and_sentences_come_back_in_their_order(engine: ArgosEngine) -> None:
    texts = (LONG, SHORT, f"{OTHER} {SHORT}\n\n- {SHORT}\n- {OTHER}", OTHER)
    long, short, structured, other = translate(engine, *texts)
    assert structured == f"{other} {short}\n\n- {short}\n- {other}"
    assert len(long) > len(other) and short != other


def test_a_text_without_words_comes_back_untouched(engine: ArgosEngine) -> None:
    texts = ("", "  \n\t ", "😂😂", "<@123456789012345678>", "12:30", "https://example.org/a_b?c=ä")
    assert translate(engine, *texts) == texts
    engine.submit(b"none", ROUTE, [])
    assert finish(engine)[b"none"].texts == ()


def test_jobs_share_a_batch_and_get_their_own_results(engine: ArgosEngine) -> None:
    alone = {text: translate(engine, text) for text in (SHORT, OTHER)}
    engine.submit(b"a", ROUTE, [SHORT])
    engine.submit(b"b", ROUTE, [OTHER])
    batch = engine.next_batch()
    assert keys(batch) == (b"a", b"b")
    assert engine.pending == 0
    assert batch is not None
    outcomes = {outcome.key: outcome.texts for outcome in run(engine, batch)}
    assert outcomes == {b"a": alone[SHORT], b"b": alone[OTHER]}


def test_a_batch_holds_the_tokens_it_may(package: Package) -> None:
    engine = ArgosEngine([package], EngineConfig(batch_tokens=64))
    for number in range(40):
        engine.submit(b"%d" % number, ROUTE, [(SHORT, OTHER, LONG)[number % 3]])
    seen: list[bytes] = []
    while batch := engine.next_batch():
        longest = max(len(sentence.tokens) for sentence in batch.sentences)
        assert longest * len(batch.sentences) <= 64 or len(batch.sentences) == 1
        seen += batch.keys
        run(engine, batch)
    assert sorted(seen) == sorted(b"%d" % number for number in range(40))


def test_the_oldest_leads_and_the_nearest_in_length_follow(package: Package) -> None:
    engine = ArgosEngine([package], EngineConfig(batch_tokens=32))
    for key, text in ((b"short", SHORT), (b"long", LONG), (b"short2", OTHER), (b"long2", LONG)):
        engine.submit(key, ROUTE, [text])
    order: list[tuple[bytes, ...]] = []
    while batch := engine.next_batch():
        order.append(batch.keys)
        run(engine, batch)
    assert order == [(b"short", b"short2"), (b"long",), (b"long2",)]


def test_urgent_jobs_go_first_but_starve_nobody(package: Package) -> None:
    engine = ArgosEngine([package], EngineConfig(batch_tokens=32))
    for number in range(6):
        engine.submit(b"bulk%d" % number, ROUTE, [LONG])
    for number in range(6):
        engine.submit(b"urgent%d" % number, ROUTE, [LONG], urgent=True)
    order = [keys(engine.next_batch()) for _ in range(8)]
    assert order == [
        (b"urgent0",), (b"urgent1",), (b"urgent2",), (b"bulk0",),
        (b"urgent3",), (b"urgent4",), (b"urgent5",), (b"bulk1",),
    ]  # fmt: skip


def test_urgent_jobs_share_no_batch_with_others_and_can_be_run_beside_one(engine: ArgosEngine) -> None:
    engine.submit(b"bulk", ROUTE, [SHORT, OTHER])
    engine.submit(b"bulk2", ROUTE, [SHORT])
    assert engine.next_batch(beside=True) is None
    engine.submit(b"person", ROUTE, [SHORT], urgent=True)
    engine.submit(b"person2", ROUTE, [OTHER], urgent=True)
    urgent = engine.next_batch()
    assert urgent is not None and urgent.keys == (b"person", b"person2") and not urgent.patient
    bulk = engine.next_batch()
    assert bulk is not None and bulk.keys == (b"bulk", b"bulk2") and bulk.patient
    engine.submit(b"suspect", ROUTE, [SHORT], urgent=True, alone=True)
    assert engine.next_batch(beside=True) is None
    outputs = engine.run(bulk)
    assert {outcome.key for outcome in engine.finish(urgent, engine.run(urgent))} == {b"person", b"person2"}
    assert {outcome.key for outcome in engine.finish(bulk, outputs)} == {b"bulk", b"bulk2"}
    suspect = engine.next_batch()
    assert suspect is not None and suspect.keys == (b"suspect",) and not suspect.patient


def test_a_job_dropped_while_its_batch_runs_is_not_answered(engine: ArgosEngine) -> None:
    engine.submit(b"a", ROUTE, [SHORT])
    engine.submit(b"b", ROUTE, [SHORT])
    batch = engine.next_batch()
    assert batch is not None
    outputs = engine.run(batch)
    engine.drop(b"a")
    engine.submit(b"a", ROUTE, [OTHER])  # the same key anew: another job
    assert [outcome.key for outcome in engine.finish(batch, outputs)] == [b"b"]
    assert finish(engine)[b"a"].texts is not None


def test_a_suspect_is_alone_in_its_batch(engine: ArgosEngine) -> None:
    engine.submit(b"a", ROUTE, [SHORT])
    engine.submit(b"suspect", ROUTE, [SHORT, OTHER], alone=True)
    engine.submit(b"suspect2", ROUTE, [SHORT], alone=True)
    engine.submit(b"b", ROUTE, [SHORT])
    assert [keys(engine.next_batch()) for _ in range(3)] == [(b"a", b"b"), (b"suspect",), (b"suspect2",)]


def test_a_dropped_job_is_forgotten_before_and_in_its_batch(engine: ArgosEngine) -> None:
    for key in (b"a", b"b", b"c"):
        engine.submit(key, ROUTE, [SHORT, OTHER])
    engine.drop(b"a")
    engine.drop(b"unknown")
    assert engine.pending == 4
    batch = engine.next_batch()
    assert keys(batch) == (b"b", b"c")
    engine.drop(b"c")
    assert batch is not None
    assert [outcome.key for outcome in run(engine, batch)] == [b"b"]
    engine.submit(b"c", ROUTE, [SHORT])  # the key is free again
    assert list(finish(engine)) == [b"c"]


def test_a_known_key_is_taken_once(engine: ArgosEngine) -> None:
    engine.submit(b"a", ROUTE, [SHORT])
    engine.submit(b"a", ROUTE, [OTHER])
    outcomes = finish(engine)
    assert outcomes[b"a"].texts == translate(engine, SHORT)


def test_equal_sentences_of_a_batch_are_decoded_once(engine: ArgosEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    decoded: list[int] = []
    real = decoder_module.Decoder.translate

    def spy(self: object, package: Package, rows: list[tuple[str, ...]], **how: object) -> object:
        decoded.append(len(rows))
        return real(self, package, rows, **how)  # type: ignore[arg-type]

    monkeypatch.setattr(decoder_module.Decoder, "translate", spy)
    assert len(set(translate(engine, *[SHORT] * 10))) == 1
    assert decoded == [1]


@pytest.mark.parametrize(
    ("text", "spans"),
    [
        ("Hallo <@123456789012345678>, kommst du heute?", ["<@123456789012345678>"]),
        ("Schau mal https://example.org/weg?x=1&y=ä_b (ist gut)", ["https://example.org/weg?x=1&y=ä_b"]),
        ("Führe `pip install x_y` aus und frag <@&42> oder <#77>.", ["`pip install x_y`", "<@&42>", "<#77>"]),
        (
            "<@1> hat <@22> gesagt, dass <@333> und <@4444> nicht zu <#5> kommen <:kek:123>",
            ["<@1>", "<@22>", "<@333>", "<@4444>", "<#5>", "<:kek:123>"],
        ),
    ],
)
def test_protected_spans_come_out_byte_for_byte(engine: ArgosEngine, text: str, spans: list[str]) -> None:
    (out,) = translate(engine, text)
    assert [out.count(span) for span in spans] == [1] * len(spans), out
    assert out != text


def test_a_sentence_that_loses_a_span_is_translated_in_pieces(engine: ArgosEngine) -> None:
    spans = [f"<@{number}{number}>" for number in range(1, 10)]
    text = "Gestern haben " + " und ".join(spans) + " mit uns gespielt."
    engine.submit(b"a", ROUTE, [text])
    first = engine.next_batch()
    assert first is not None
    assert run(engine, first) == []  # the stand-ins did not all come through
    assert engine.pending > 1
    out = finish(engine)[b"a"].texts
    assert out is not None
    assert [word.strip(",.") for word in out[0].split() if word.startswith("<@")] == spans


@pytest.mark.parametrize(("twice_part", "models"), [(0.0, 1), (1.0, 2)])
def test_an_urgent_batch_beside_another_and_large_weights_are_kept_once(
    package: Package, monkeypatch: pytest.MonkeyPatch, twice_part: float, models: int
) -> None:
    opened: list[int] = []
    real = ctranslate2.Translator

    def open_translator(path: str, **options: Any) -> ctranslate2.Translator:
        opened.append(options["inter_threads"])
        return real(path, **options)

    monkeypatch.setattr(ctranslate2, "Translator", open_translator)
    monkeypatch.setattr(decoder_module, "TWICE_PART", twice_part)
    engine = ArgosEngine([package], EngineConfig())
    alone = translate(engine, SHORT, LONG)
    for number in range(200):
        engine.submit(b"%d" % number, ROUTE, [LONG.replace("Park", f"Park {number}")])
    patient = engine.next_batch()
    assert patient is not None
    with ThreadPoolExecutor(1) as executor:
        running = executor.submit(engine.run, patient)
        for text, expected in zip((SHORT, LONG), alone, strict=True):
            engine.submit(b"person", ROUTE, [text], urgent=True)
            urgent = engine.next_batch(beside=True)
            assert urgent is not None and urgent.keys == (b"person",)
            assert [outcome.texts for outcome in run(engine, urgent)] == [(expected,)]
        assert {outcome.key for outcome in engine.finish(patient, running.result())} == set(patient.keys)
    assert len(opened) == models and sum(opened) == 2, "a thread for each"


def test_only_outputs_with_unknown_words_pay_for_naming_them(package: Package, monkeypatch: pytest.MonkeyPatch) -> None:
    decoder = decoder_module.Decoder(EngineConfig())
    runs: list[tuple[list[tuple[str, ...]], bool]] = []

    def run(
        translator: object, prefix: str, rows: list[tuple[str, ...]], options: Mapping[str, object]
    ) -> list[list[str]]:
        named = "replace_unknowns" in options
        runs.append((rows, named))
        return [["▁see", row[-1] if named or row[-1] != "▁Ж" else "<unk>"] for row in rows]

    monkeypatch.setattr(decoder_module, "_run", run)
    known, unknown = ("▁siehe", "▁Haus"), ("▁siehe", "▁Ж")
    outputs = decoder.translate(package, [known, unknown], again=False)
    assert outputs == {known: ["▁see", "▁Haus"], unknown: ["▁see", "▁Ж"]}
    assert runs == [([known, unknown], False), ([unknown], True)]


def test_a_batch_that_fails_costs_only_the_culprit(engine: ArgosEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decoder_module, "MAX_SOURCE_TOKENS", 10_000)  # the model knows 512 positions
    engine.submit(b"bad", ROUTE, ["Ё" * 590])
    engine.submit(b"good", ROUTE, [SHORT])
    engine._config = EngineConfig(batch_tokens=16384)
    batch = engine.next_batch()
    assert batch is not None and batch.keys == (b"bad", b"good")
    outcomes = {outcome.key: outcome for outcome in run(engine, batch)}
    assert outcomes[b"bad"].code == "engine_error"
    assert outcomes[b"bad"].detail.startswith("CTranslate2: RuntimeError for ")  # without its message
    assert outcomes[b"good"].texts == translate(engine, SHORT)


def test_texts_stay_out_of_details_and_logs(
    engine: ArgosEngine, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(decoder_module, "RETRY", {"no_such_option": 1})  # pybind11 then lists all arguments
    engine.submit(b"tokens", ROUTE, [RUNAWAY])
    engine.submit(b"text", ROUTE, ["Ein \ud800 im Text."])  # is no UTF-8, and the codec says which character
    outcomes = finish(engine)
    assert {outcome.code for outcome in outcomes.values()} == {"engine_error"}
    assert "TypeError" in outcomes[b"tokens"].detail and "UnicodeEncodeError" in outcomes[b"text"].detail
    said = " ".join([caplog.text, *[outcome.detail for outcome in outcomes.values()]])
    assert "UnicodeEncodeError" in caplog.text
    assert not [words for words in ("ha'", "haha", "ud800", "\ud800", "im Text") if words in said], said


def test_the_records_of_a_job_do_not_show_its_texts(engine: ArgosEngine) -> None:
    engine.submit(b"a", ROUTE, [SHORT])
    batch = engine.next_batch()
    assert batch is not None
    (sentence,) = batch.sentences
    for record in (batch, sentence, sentence.part, sentence.part.text, sentence.job):
        assert "Hunger" not in repr(record)


def test_an_unknown_compute_type_is_a_configuration_error(package: Package) -> None:
    with pytest.raises(ConfigError, match="compute_type = 'int3'"):
        ArgosEngine([package], EngineConfig(compute_type="int3")).warm()


def test_alternatives_follow_the_best_translations(engine: ArgosEngine) -> None:
    texts = ["Guten Morgen. Wie geht es dir?", "> Das ist <@42> sehr wichtig!", "🙂"]
    best = translate(engine, *texts)
    engine.submit(b"ranked", ROUTE, texts, alternatives=2)
    engine.submit(b"other", ROUTE, ["Guten Morgen."])
    outcomes = finish(engine)
    ranked = outcomes[b"ranked"].texts
    assert ranked is not None and ranked[:3] == best
    assert len(set(ranked[0::3])) == 3, "three different ones"
    assert all(text.startswith("> ") and "<@42>" in text for text in ranked[1::3])
    assert ranked[2::3] == ("🙂",) * 3
    assert outcomes[b"other"].texts is not None
