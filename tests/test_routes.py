"""Routes of an engine and the packages behind them: passes through English, what stays loaded, what is broken."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import ctranslate2
import pytest
import sentencepiece

from dolmetsch.config import EngineConfig
from dolmetsch.engine import ArgosEngine
from dolmetsch.errors import PackageError
from dolmetsch.packages import SHORTLIST, Package, open_package
from tests.embedded import GERMAN
from tests.engines import LONG, OTHER, ROUTE, SHORT, CopyPackage, copy_package, engine, finish, keys, package, translate

__all__ = ["copy_package", "engine", "package"]  # fixtures


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
