"""Which language a text is in, and what languages are called."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest

from bench.throughput import sentences
from dolmetsch import detect
from dolmetsch.detect import MAX_SETS, UNKNOWN, Detector, Guess

BOTH = ("de", "en")


@pytest.fixture(scope="module")
def detector() -> Detector:
    return Detector()


def test_german_sentences_are_german(detector: Detector) -> None:
    found = [detector.detect(text, BOTH)[0].language for text in sentences()[:500]]
    assert found.count("de") >= 498


@pytest.mark.parametrize(
    ("text", "language"),
    [
        ("Ich bin müde", "de"), ("Guten Morgen", "de"), ("WO IST DER BAHNHOF?", "de"), ("das Haus", "de"),
        ("I am tired", "en"), ("Good morning", "en"), ("WHERE IS THE STATION?", "en"), ("the house", "en"),
        ("Siehe https://example.org/where/is/the/house und sage nichts", "de"),
    ],
)  # fmt: skip
def test_short_ones(detector: Detector, text: str, language: str) -> None:
    first, *more = detector.detect(text, BOTH)
    assert first.language == language
    assert 50 < first.confidence <= 100
    assert all(guess.confidence <= first.confidence for guess in more)


@pytest.mark.parametrize("text", ["", " \n", "123 456", "🙂🙂", "https://example.org/ja", "...", "_"])
def test_what_cannot_be_told(detector: Detector, text: str) -> None:
    assert detector.detect(text, BOTH) == [UNKNOWN] == [Guess("en", 0.0)]


def test_only_what_is_on_offer(detector: Detector) -> None:
    text = "Bonjour tout le monde, comment allez-vous ?"
    assert detector.detect(text, ("fr", "de", "en"))[0].language == "fr"
    assert detector.detect(text, BOTH)[0].language in BOTH
    assert detector.detect(text, ()) == detector.detect(text, ("xx",)) == [UNKNOWN]


@pytest.mark.parametrize(
    ("languages", "text", "language"),
    [
        (("pb", "en"), "Bom dia, como você está hoje?", "pb"), (("pt", "pb", "en"), "Bom dia, como está hoje?", "pt"),
        (("zt", "en"), "今天天氣很好", "zt"), (("zh", "zt", "en"), "今天天气很好", "zh"),
        (("nb", "en"), "Jeg er trøtt", "nb"),
    ],
)  # fmt: skip
def test_codes_of_packages_that_the_model_does_not_know(
    detector: Detector, languages: tuple[str, ...], text: str, language: str
) -> None:
    assert detector.detect(text, languages)[0].language == language


def test_names_and_codes() -> None:
    assert [detect.shown(code) for code in ("de", "pb", "zh", "zt")] == ["de", "pt-BR", "zh-Hans", "zh-Hant"]
    assert (detect.name("de"), detect.name("xx")) == ("German", "xx")


def test_threads_and_changing_languages(detector: Detector) -> None:
    codes = ["fr", "es", "it", "nl", "pl", "sv", "da", "fi", "cs", "pt", "ro", "hu", "tr", "ru", "uk", "el", "ja", "ko"]
    sets = [("de", "en", code) for code in codes]

    def look(number: int) -> bool:
        languages = sets[number % len(sets)]
        return detector.detect("Das ist ein ganz gewöhnlicher deutscher Satz.", languages)[0].language == "de"

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(look, range(200)))
    assert len(detector._ready) <= MAX_SETS


def test_a_long_text_takes_no_long_time(detector: Detector) -> None:
    for text in ("x" * 10**6, "@" * 10**6, "a@" * 10**6, "http://" * 10**5, "Haus " * 10**6):
        detector.detect(text, BOTH)
