"""The engine on the embedded model: batches, order, guards, passes through English, tokenizers, broken packages."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

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
from dolmetsch.engine import ECHO_JOBS, ArgosEngine, Batch, EchoEngine, Engine, Outcome
from dolmetsch.errors import ConfigError, PackageError
from dolmetsch.packages import SHORTLIST, Package, open_package
from dolmetsch.segment import parse
from dolmetsch.tokenizer import BpeTokenizer, Merges, open_tokenizer
from tests.embedded import GERMAN

ROUTE = "de→en"
SHORT = "Ich habe Hunger."
OTHER = "Wo ist der Bahnhof?"
LONG = "Wenn das Wetter morgen gut ist, gehen wir mit den Kindern in den Park und spielen dort bis zum Abend."
RUNAWAY = "haha" * 50

CopyPackage = Callable[..., Package]


@pytest.fixture
def package() -> Package:
    return open_package(GERMAN)


@pytest.fixture
def engine(package: Package) -> ArgosEngine:
    return ArgosEngine([package], EngineConfig())


@pytest.fixture
def copy_package(tmp_path: Path) -> CopyPackage:
    """Copies the embedded package under other language codes; its language stays German to English."""

    def copy(from_code: str, to_code: str, **metadata: str) -> Package:
        path = tmp_path / f"translate-{from_code}_{to_code}-1_0"
        shutil.copytree(GERMAN, path)
        known = json.loads((path / "metadata.json").read_text())
        known.update(from_code=from_code, to_code=to_code, **metadata)
        (path / "metadata.json").write_text(json.dumps(known))
        return open_package(path)

    return copy


def run(engine: Engine, batch: Batch) -> list[Outcome]:
    """Run ``batch``; the jobs that are complete now."""
    return engine.finish(batch, engine.run(batch))


def finish(engine: Engine) -> dict[bytes, Outcome]:
    """Run everything that waits; no job may end twice."""
    outcomes: dict[bytes, Outcome] = {}
    while batch := engine.next_batch():
        for outcome in run(engine, batch):
            assert outcome.key not in outcomes
            outcomes[outcome.key] = outcome
    assert engine.pending == 0
    return outcomes


def translate(engine: Engine, *texts: str) -> tuple[str, ...]:
    engine.submit(b"job", ROUTE, texts)
    outcome = finish(engine)[b"job"]
    assert outcome.texts is not None, outcome.detail
    return outcome.texts


def keys(batch: Batch | None) -> tuple[bytes, ...]:
    assert batch is not None
    return batch.keys


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


def test_a_route_through_english_takes_two_passes(package: Package, copy_package: CopyPackage) -> None:
    onward = copy_package("en", "fr", package_version="2.0")
    engine = ArgosEngine([package, onward], EngineConfig())
    assert engine.routes == {
        ROUTE: package.model_version,
        "en→fr": onward.model_version,
        "de→fr": f"{package.model_version}+{onward.model_version}",
    }
    text = "Hallo <@42>, das Haus ist groß.\n- Wo ist <#7>?"
    (half,) = translate(engine, text)
    engine.submit(b"second", "en→fr", [half])
    engine.submit(b"both", "de→fr", [text])
    outcomes = finish(engine)
    assert outcomes[b"both"].texts == outcomes[b"second"].texts
    assert outcomes[b"both"].model == engine.routes["de→fr"]
    out = outcomes[b"both"].texts
    assert out is not None
    assert out[0].count("<@42>") == out[0].count("<#7>") == 1


def test_only_the_wanted_routes_are_served(package: Package, copy_package: CopyPackage) -> None:
    packages = [package, copy_package("en", "fr")]
    engine = ArgosEngine(packages, EngineConfig(), only=["de→fr"])
    assert list(engine.routes) == ["de→fr"]
    engine.submit(b"a", ROUTE, [SHORT])
    assert keys(engine.next_batch()) == (b"a",)
    with pytest.raises(PackageError, match="fr→de"):
        ArgosEngine(packages, EngineConfig(), only=["fr→de"])
    with pytest.raises(PackageError, match="no Argos package"):
        ArgosEngine([], EngineConfig())


def test_more_routes_than_a_message_holds_are_cut(package: Package, caplog: pytest.LogCaptureFixture) -> None:
    into = [replace(package, from_code=f"a{number}", path=Path(f"a{number}")) for number in range(40)]
    out_of = [replace(package, from_code="en", to_code=f"b{number}", path=Path(f"b{number}")) for number in range(40)]
    engine = ArgosEngine([*into, *out_of], EngineConfig())
    assert len(engine.routes) == 512
    assert {p.route for p in (*into, *out_of)} <= set(engine.routes)  # direct ones stay
    assert "left out" in caplog.text


def test_an_unknown_route_fails_at_once(engine: ArgosEngine) -> None:
    engine.submit(b"a", "tlh→en", [SHORT])
    assert engine.pending == 1
    outcome = finish(engine)[b"a"]
    assert (outcome.texts, outcome.code) == (None, "no_route")
    assert "tlh→en" in outcome.detail


def test_a_target_prefix_leads_the_output_and_is_taken_off(package: Package, copy_package: CopyPackage) -> None:
    prefixed = copy_package("de", "en", target_prefix="▁The")
    pieces = sentencepiece.SentencePieceProcessor(model_file=str(GERMAN / "sentencepiece.model"))
    translator = ctranslate2.Translator(str(GERMAN / "model"), inter_threads=1, intra_threads=1)
    row = pieces.encode(OTHER, out_type=str)
    tokens = translator.translate_batch([row], target_prefix=[["▁The"]], beam_size=2)[0].hypotheses[0]
    assert tokens[0] == "▁The"
    assert translate(ArgosEngine([prefixed], EngineConfig()), OTHER) == (pieces.decode(tokens[1:]),)


def test_the_shortlist_of_a_package_bounds_what_is_said(copy_package: CopyPackage) -> None:
    package = copy_package("de", "en")
    plain = package.path / "model" / SHORTLIST
    plain.write_text("\t▁Tom ▁Mary .\n")
    bounded = open_package(package.path)
    assert bounded.model_version != package.model_version  # another model: it may say something else
    (text,) = translate(ArgosEngine([bounded], EngineConfig()), "Ich bin müde.")
    assert set(text.replace(".", " ").split()) <= {"Tom", "Mary"}
    plain.unlink()
    assert translate(ArgosEngine([package], EngineConfig()), "Ich bin müde.") == ("I'm tired.",)


def test_only_the_packages_used_last_stay_loaded(
    package: Package, copy_package: CopyPackage, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    packages = [package, copy_package("en", "fr"), copy_package("en", "es")]
    engine = ArgosEngine(packages, EngineConfig())
    engine.warm()
    for route in (ROUTE, "en→fr", ROUTE, "en→es", ROUTE, "en→fr"):
        engine.submit(route.encode(), route, [SHORT])
        assert finish(engine)[route.encode()].texts is not None
    loaded = [line.split()[1] for line in caplog.messages if line.startswith("loaded")]
    assert loaded == [ROUTE, "en→fr", "en→es", "en→fr"]


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


def test_a_broken_model_or_tokenizer_is_one_clear_line(package: Package, copy_package: CopyPackage) -> None:
    no_model = copy_package("en", "fr")
    (no_model.path / "model" / "model.bin").write_bytes(b"not a model")
    no_tokenizer = copy_package("en", "es")
    (no_tokenizer.path / "sentencepiece.model").write_bytes(b"not a model either")
    for broken in (no_model, no_tokenizer):
        with pytest.raises(PackageError) as caught:
            ArgosEngine([broken], EngineConfig()).warm()
        assert str(broken.path) in str(caught.value) and "\n" not in str(caught.value)
    engine = ArgosEngine([package, no_model, no_tokenizer], EngineConfig())
    engine.warm()
    for key, route in ((b"a", "en→fr"), (b"b", "de→es"), (b"c", ROUTE)):
        engine.submit(key, route, [SHORT, LONG])
    outcomes = finish(engine)
    assert outcomes[b"a"].code == outcomes[b"b"].code == "engine_error"
    assert "model" in outcomes[b"a"].detail and "SentencePiece" in outcomes[b"b"].detail
    assert outcomes[b"c"].texts is not None


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


# ---- tokenizers ----

MERGES = "#version: 0.2\nl o\nlo w</w>\ne r</w>\nn e\nne w\nl o\n"


def test_merges_are_applied_lowest_rank_first(tmp_path: Path) -> None:
    path = tmp_path / "bpe.model"
    path.write_text(MERGES)
    merges = Merges.read(path)
    assert merges.split("low") == ("low",)
    assert merges.split("lower") == ("lo@@", "w@@", "er")
    assert merges.split("newer") == ("new@@", "er")
    assert merges.split("lolo") == ("lo@@", "l@@", "o")  # "o</w>" is not "o"
    assert merges.split("x") == ("x",)


def test_the_first_format_has_an_end_mark_of_its_own(tmp_path: Path) -> None:
    path = tmp_path / "bpe.model"
    path.write_text("l o\nlo w\nlow </w>\ne r\n")
    merges = Merges.read(path)
    assert merges.split("low") == ("low",)
    assert merges.split("lower") == ("low@@", "er")
    assert merges.split("lolo") == ("lo@@", "lo")


@pytest.mark.parametrize("content", ["#version: 9.9\na b\n", "a b c\n", "\udcff"])
def test_a_bad_list_of_merges_is_refused(tmp_path: Path, content: str) -> None:
    path = tmp_path / "bpe.model"
    path.write_bytes(content.encode("utf-8", "surrogateescape"))
    with pytest.raises(PackageError, match=r"bpe\.model"):
        Merges.read(path)


def test_bpe_tokens_come_back_as_the_sentence(tmp_path: Path) -> None:
    path = tmp_path / "bpe.model"
    path.write_text(MERGES)
    tokenizer = BpeTokenizer(path, "en", "en")
    sentences = ["The lower, newer one (it's low) costs 3.50!", 'Tom & Mary said "no" twice.']
    rows = tokenizer.encode(sentences)
    assert rows[0][rows[0].index("new@@") :][:2] == ["new@@", "er"]
    assert rows[1][3:6] == ["&@@", "a@@", "m@@"]  # Moses writes & as an entity
    assert tokenizer.decode(rows) == sentences
    assert [tokenizer.starts_word(["a@@", "b", "c"], at) for at in range(3)] == [True, False, True]


def test_a_bpe_package_translates(copy_package: CopyPackage) -> None:
    """The embedded model with its vocabulary written as BPE tokens: nonsense as language, complete as code."""
    package = copy_package("de", "en")
    vocabulary = package.path / "model" / "shared_vocabulary.json"
    pieces = json.loads(vocabulary.read_text())
    renamed = [
        piece if piece.startswith("<") else "_" if piece == "▁" else piece[1:] if piece[0] == "▁" else f"{piece}@@"
        for piece in pieces
    ]
    vocabulary.write_text(json.dumps(renamed))
    (package.path / "sentencepiece.model").unlink()
    (package.path / "bpe.model").write_text("#version: 0.2\nH u\nHu n\n")
    engine = ArgosEngine([open_package(package.path)], EngineConfig())
    (out,) = translate(engine, f"{SHORT} <@42>")
    assert out.endswith(" <@42>")
    assert "@@" not in out and "▁" not in out


# ---- the echo engine ----


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


def test_the_echo_engine_repeats_what_alternatives_were_asked_for() -> None:
    echo = EchoEngine([ROUTE])
    echo.submit(b"1", ROUTE, ["a", "b"], alternatives=1)
    assert finish(echo)[b"1"].texts == ("a", "b", "a", "b")
