"""Flags: what the shipped table means, and that nothing but a whole flag it knows is one."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dolmetsch import flags as flags_room
from dolmetsch.admission import ROUTE
from dolmetsch.errors import ConfigError
from dolmetsch.flags import Flag, Flags

SHIPPED = Path(flags_room.__file__).with_name("flags.toml").read_text(encoding="utf-8")
ENGLAND = "\U0001f3f4\U000e0067\U000e0062\U000e0065\U000e006e\U000e0067\U000e007f"
SMALL = """
[flags]
"🇬🇧" = "en→de"
"🇩🇪" = "de→en"
"🇦🇹" = "de->en"
"🇺🇸" = "en-de"
"🇫🇷" = "fr→xx"
[shown]
en = "🇺🇸"
de = "🇩🇪"
"""


def flag(letters: str) -> str:
    """The emoji of two letters: "DE" -> 🇩🇪."""
    return "".join(chr(0x1F1E6 + ord(letter) - ord("A")) for letter in letters)


@pytest.fixture(scope="module")
def shipped() -> Flags:
    return Flags.parse(SHIPPED, "flags.toml")


@pytest.fixture(scope="module")
def small() -> Flags:
    return Flags.parse(SMALL, "small.toml")


# ---- the shipped table ----


@pytest.mark.parametrize(
    ("letters", "route"),
    [
        ("DE", "de→en"), ("AT", "de→en"), ("GB", "en→de"), ("US", "en→de"), ("FR", "fr→en"), ("ES", "es→en"),
        ("IT", "it→en"), ("PT", "pt→en"), ("BR", "pb→en"), ("NL", "nl→en"), ("PL", "pl→en"), ("RU", "ru→en"),
        ("UA", "uk→en"), ("CZ", "cs→en"), ("SE", "sv→en"), ("DK", "da→en"), ("NO", "nb→en"), ("FI", "fi→en"),
        ("TR", "tr→en"), ("JP", "ja→en"), ("CN", "zh→en"), ("TW", "zt→en"), ("KR", "ko→en"), ("SA", "ar→en"),
        ("GR", "el→en"), ("HU", "hu→en"), ("RO", "ro→en"), ("BG", "bg→en"), ("ID", "id→en"), ("IE", "ga→en"),
    ],
)  # fmt: skip
def test_a_flag_names_the_language_of_the_message(shipped: Flags, letters: str, route: str) -> None:
    found = shipped.get(flag(letters))
    assert found is not None
    assert (found.emoji, found.route) == (flag(letters), route)


@pytest.mark.parametrize(
    "alike", ["US UM", "AU HM", "FR CP MF", "NO BV SJ", "ES EA", "NL BQ"], ids=lambda alike: alike.replace(" ", "=")
)
def test_flags_that_look_alike_mean_the_same(shipped: Flags, alike: str) -> None:
    found = [shipped.get(flag(letters)) for letters in alike.split()]
    assert len({one.route for one in found if one}) == 1
    assert None not in found
    # The header shows the flag that was reacted with, not its better-known double.
    assert [one.header for one in found if one] == [
        f"{flag(letters)}➡️{shipped.language_flag(one.route[3:])}"
        for letters, one in zip(alike.split(), found, strict=True)
        if one
    ]


@pytest.mark.parametrize(("one", "other"), [("TD", "RO"), ("ID", "MC"), ("ID", "PL"), ("LU", "NL"), ("IE", "CI")])
def test_flags_that_look_alike_but_speak_otherwise_are_told_apart(shipped: Flags, one: str, other: str) -> None:
    first, second = shipped.get(flag(one)), shipped.get(flag(other))
    assert second is not None
    assert first is None or first.route != second.route


@pytest.mark.parametrize("letters", ["CH", "BE", "CA", "LU", "TD", "CY", "SG"])
def test_countries_of_several_languages_are_left_out(shipped: Flags, letters: str) -> None:
    assert shipped.get(flag(letters)) is None


def test_england_is_a_flag(shipped: Flags) -> None:
    assert shipped.get(ENGLAND) == Flag(ENGLAND, "en→de", f"{ENGLAND}➡️🇩🇪")
    assert shipped.get("\U0001f3f4\ufe0f" + ENGLAND[1:]) == shipped.get(ENGLAND)


@pytest.mark.parametrize(
    "other",
    [
        "", " ", "D", "DE", "de", ":flag_de:", "🇩", "🇪", "🇪🇩", "🇩🇪🇩🇪", "🇩🇪🇫🇷", "🇩🇪 ", " 🇩🇪", "🇩🇪🏽", "🇩🇪\u200d🇫🇷",
        "🇩 🇪",
        "🇩🇪\ufe0e", "🇩🇪\u200d", "🏴", "🏳️", "🏳️‍🌈", "🏴‍☠️", "🏁", "🚩", "👍", "❤️", ENGLAND[:-1], ENGLAND + "🇬🇧",
        ENGLAND[:1] + ENGLAND[2:],
    ],
)  # fmt: skip
def test_nothing_else_is_a_flag(shipped: Flags, other: str) -> None:
    assert shipped.get(other) is None


def test_every_flag_of_the_shipped_table_has_a_route_and_a_whole_header(shipped: Flags) -> None:
    pairs = [a + b for a in "ABCDEFGHIJKLMNOPQRSTUVWXYZ" for b in "ABCDEFGHIJKLMNOPQRSTUVWXYZ"]
    known = [one for one in map(shipped.get, [*map(flag, pairs), ENGLAND]) if one]
    assert len(known) == SHIPPED.count('→en"') + SHIPPED.count('→de"') - SHIPPED.count('" = "de→en" translates')
    for one in known:
        assert ROUTE.fullmatch(one.route)
        assert one.header == f"{one.emoji}➡️{'🇩🇪' if one.route == 'en→de' else '🇺🇸'}"
        assert one in shipped.of_route(one.route)
        source = one.route.partition("→")[0]
        assert shipped.get(shipped.language_flag(source)) is not None, f"[shown] lacks {source}"
        shown = shipped.get(shipped.language_flag(source))
        assert shown and shown.route == one.route


@given(st.text(alphabet=[*map(chr, range(0x1F1E6, 0x1F200)), "\ufe0f", "\u200d", *ENGLAND, "a"], max_size=8))
def test_only_exact_flags_are_known(text: str) -> None:
    found = Flags.parse(SMALL, "small").get(text)
    bare = text.replace("\ufe0f", "")
    assert (found is not None) == (bare in {"🇬🇧", "🇩🇪", "🇦🇹", "🇺🇸", "🇫🇷"})
    assert found is None or found.emoji == bare


# ---- what is said about them ----


def test_get_ignores_variation_selectors_only(small: Flags) -> None:
    assert small.get("🇩🇪") == small.get("🇩🇪\ufe0f") == Flag("🇩🇪", "de→en", "🇩🇪➡️🇺🇸")
    assert small.get("🇩🇪\ufe0e") is None


def test_all_arrows_mean_the_same(small: Flags) -> None:
    assert [one.emoji for one in small.of_route("de→en")] == ["🇩🇪", "🇦🇹"]
    assert [one.emoji for one in small.of_route("en→de")] == ["🇬🇧", "🇺🇸"]
    assert small.of_route("en→fr") == ()


def test_the_order_of_the_file_says_which_flag_is_usual() -> None:
    turned = SMALL.replace("🇬🇧", "?").replace('🇺🇸" = "en-de', '🇬🇧" = "en-de').replace("?", "🇺🇸")
    assert [one.emoji for one in Flags.parse(turned, "x").of_route("en→de")] == ["🇺🇸", "🇬🇧"]


def test_headers(small: Flags) -> None:
    assert small.header("de→en") == "🇩🇪➡️🇺🇸"
    assert small.header("en→de") == "🇬🇧➡️🇩🇪"
    assert small.header("tr→en") == "tr➡️🇺🇸"
    assert small.header("tr→ja") == "tr➡️ja"
    assert small.header("fr→xx") == "🇫🇷➡️xx"
    assert small.header("en→fr") == "en➡️fr"
    assert small.header("pt_BR→en") == "pt_BR➡️🇺🇸"


def test_language_flags(small: Flags, shipped: Flags) -> None:
    assert (small.language_flag("en"), small.language_flag("de")) == ("🇺🇸", "🇩🇪")
    assert (small.language_flag("fr"), small.language_flag("")) == ("fr", "")
    assert (shipped.language_flag("en"), shipped.language_flag("de")) == ("🇺🇸", "🇩🇪")


def test_describe(small: Flags) -> None:
    assert small.describe(["en→de", "de→en"]) == "🇩🇪 de→en · 🇬🇧 en→de"
    assert small.describe(iter(["tr→en", "de→en", "tr→en"])) == "🇩🇪 de→en · tr→en"
    assert small.describe([]) == ""


# ---- what is wrong with a file ----


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ('[flags]\n"🇩" = "de→en"', "'🇩'"),
        ('[flags]\n"🇩🇪🇫🇷" = "de→en"', "'🇩🇪🇫🇷'"),
        ('[flags]\n"🇩🇪🇩" = "de→en"', "'🇩🇪🇩'"),
        ('[flags]\n"🇩🇪 " = "de→en"', "'🇩🇪 '"),
        ('[flags]\n"" = "de→en"', "''"),
        ('[flags]\nDE = "de→en"', "'DE'"),
        ('[flags]\n"🏴" = "en→de"', "'🏴'"),
        ('[flags]\n"👍" = "en→de"', "'👍'"),
        (f'[flags]\n"{ENGLAND[:-1]}" = "en→de"', "'🏴"),
        (f'[flags]\n"{ENGLAND}🇩🇪" = "en→de"', "🇩🇪'"),
        ('[flags]\n"🇩🇪" = "de→en"\n"🇩🇪\ufe0f" = "de→fr"', "'🇩🇪' stands there twice"),
        ('[flags]\n"🇩🇪" = "de"', "'🇩🇪': 'de'"),
        ('[flags]\n"🇩🇪" = "de→"', "'🇩🇪': 'de→'"),
        ('[flags]\n"🇩🇪" = "de=>en"', "'🇩🇪'"),
        ('[flags]\n"🇩🇪" = "de--en"', "'🇩🇪'"),
        ('[flags]\n"🇩🇪" = "de→en→fr"', "'🇩🇪'"),
        ('[flags]\n"🇩🇪" = "DE→EN"', "'🇩🇪'"),
        ('[flags]\n"🇩🇪" = "de→en\\n"', "'🇩🇪'"),
        ('[flags]\n"🇩🇪" = ["de→en"]', "'🇩🇪'"),
        ('[flags]\n"🇩🇪" = 1', "'🇩🇪'"),
        ('[shown]\nen = "english"', "en"),
        ('[shown]\nen = "🇺🇸🇬🇧"', "en"),
        ('[shown]\nen = true', "'en'"),
        ('[shown]\nEnglish = "🇬🇧"', "'English'"),
        ('[flag]\n"🇩🇪" = "de→en"', "'flag'"),
        ('flags = "🇩🇪"', "'flags'"),
        ('"🇩🇪" = "de→en"', "'🇩🇪'"),
        ("[flags", "not valid TOML"),
        ('[flags]\n"🇩🇪" = "de→en"\n"🇩🇪" = "de→fr"', "not valid TOML"),
        ('[flags]\n🇩🇪 = "de→en"', "not valid TOML"),
    ],
)  # fmt: skip
def test_a_faulty_file_is_named_with_its_key(text: str, named: str) -> None:
    with pytest.raises(ConfigError) as raised:
        Flags.parse(text, "/etc/my flags.toml")
    said = str(raised.value)
    assert said.startswith("/etc/my flags.toml")
    assert named in said
    assert "\n" not in said


def test_tables_may_be_missing() -> None:
    empty = Flags.parse("", "x")
    assert empty.get("🇩🇪") is None
    assert empty.header("de→en") == "de➡️en"
    assert Flags.parse('[flags]\n"🇩🇪" = "de→en"', "x").header("de→en") == "🇩🇪➡️en"


@given(st.text(max_size=60))
def test_any_text_is_flags_or_a_config_error(text: str) -> None:
    try:
        Flags.parse(text, "here")
    except ConfigError as error:
        assert "here" in str(error)
