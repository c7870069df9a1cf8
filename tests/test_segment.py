"""Segments: what is protected, where sentences end, and that nothing of a text is ever lost.

A document is written as one string: literals as they are, each segment's source in ⟦ ⟧, an emphasised
sentence as its opening marker, ⟦whole|inner⟧, and its closing marker.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
import regex
from hypothesis import given, settings
from hypothesis import strategies as st

from dolmetsch import sentences
from dolmetsch.errors import LocalError
from dolmetsch.segment import MAX_SEGMENT_CHARS, STAND_INS, Document, Emphasis, Segment, parse
from dolmetsch.sentences import sentence_ends

SPANS = (
    "<@1>",
    "<@!80351110224678912>",
    "<@&165511591545143296>",
    "<#103735883630395392>",
    "<t:1618953630>",
    "<t:1618953630:R>",
    "<t:-1:d>",
    "</airhorn:816437322781949972>",
    "</admin ban user:1>",
    "<id:customize>",
    "<id:linked-roles:7>",
    "@everyone",
    "@here",
    "https://example.org",
    "HTTP://example.org/a?b=c&d=1#e",
    "https://de.wikipedia.org/wiki/Bank_(Möbel)",
    "https://example.org/straße/ä",
    "www.example.org/x",
    "<https://example.org/a,b.>",
    "discord.gg/abc",
    "discord.com/invite/abc",
    "max.muster+x@mail.example.org",
    "`code`",
    "`a b. C d!`",
    "``a`b``",
    "`<@1> **x**`",
)
CUTS = (
    "<:mmLol:216154654256398347>",
    "<a:b1nzy:392938283556143104>",
    ":smile:",
    ":+1:",
    ":100:",
    "😀",
    "❤",
    "❤️",
    "👍🏽",
    "👨‍👩‍👧‍👦",
    "🏳️‍🌈",
    "❤️‍🔥",
    "🇩🇪",
    "1️⃣",
    "#️⃣",
    "🏴\U000e0067\U000e0062\U000e0065\U000e006e\U000e0067\U000e007f",
    "™️",
    "😀😎",
    "```x```",
    "```py\nx = 1\n\n  y\n```",
    ":)",
    ";-)",
    ":D",
    "xD",
    "<3",
    "^^",
    "¯\\_(ツ)_/¯",
)


def shape(document: Document) -> str:
    def show(part: str | int | Emphasis) -> str:
        if isinstance(part, str):
            return part
        if isinstance(part, int):
            return f"⟦{document.segments[part].source}⟧"
        inner = part.inner if isinstance(part.inner, str) else document.segments[part.inner].source
        return f"{part.opening}⟦{document.segments[part.whole].source}|{inner}⟧{part.closing}"

    return "".join(show(part) for part in document.parts)


def translate(document: Document, translator: Callable[[str], str]) -> str:
    """What the caller does: restore, and where that fails translate the pieces instead."""
    out = []
    for segment in document.segments:
        restored = segment.restore(translator(segment.source))
        out.append(translate(segment.pieces(), translator) if restored is None else restored)
    return document.assemble(out)


def check(text: str, expected: str, language: str = "de") -> None:
    document = parse(text, language)
    assert shape(document) == expected
    assert translate(document, str) == text


@pytest.mark.parametrize("span", SPANS)
def test_a_span_inside_a_sentence_is_a_stand_in_and_is_cut_off_at_its_edges(span: str) -> None:
    check(f"Schau dir {span} mal an.", "⟦Schau dir Tom mal an.⟧")
    check(f"{span} schau mal.", f"{span} ⟦schau mal.⟧")
    check(f"Schau mal: {span}!", f"⟦Schau mal⟧: {span}!")
    check(f"Schau dir ({span}) an.", "⟦Schau dir (Tom) an.⟧")
    check(span, span)


@pytest.mark.parametrize("cut", CUTS)
def test_emoji_emoticons_and_fences_cut(cut: str) -> None:
    check(f"das ist gut {cut} kommst du?", f"⟦das ist gut⟧ {cut} ⟦kommst du?⟧")
    check(f"{cut} Gut", f"{cut} ⟦Gut⟧")
    check(f"Gut. {cut}", f"⟦Gut.⟧ {cut}")
    check(cut, cut)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Auf https://a.de/x. Gut.", "⟦Auf⟧ https://a.de/x. ⟦Gut.⟧"),
        ("Geh (siehe https://a.de/x) nach.", "⟦Geh (siehe Tom) nach.⟧"),
        ("Geh auf https://a.de/(x), bitte.", "⟦Geh auf Tom, bitte.⟧"),
        ("||https://a.de|| und ja", "||https://a.de|| ⟦und ja⟧"),
        ("**https://a.de** und ja", "**https://a.de** ⟦und ja⟧"),
        ("kein http:// hier", "⟦kein http:// hier⟧"),
        ("Der Wert a@b ist falsch", "⟦Der Wert a@b ist falsch⟧"),
        ("C++, std::vector und 12:30:45 Uhr", "⟦C++, std::vector und 12:30:45 Uhr⟧"),
        ("Microsoft® 5 * 3", "⟦Microsoft® 5⟧ * 3"),
        ("<@abc> ist keine", "<⟦@abc> ist keine⟧"),
        ("@heretisch ist ein Wort", "⟦@heretisch ist ein Wort⟧"),
    ],
)
def test_what_is_a_span_and_where_it_ends(text: str, expected: str) -> None:
    document = parse(text, "de")
    assert shape(document) == expected
    assert translate(document, str) == text


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("<@1> hat das gesagt.", "⟦Tom hat das gesagt.⟧"),
        ("<@1>, hat das Zeit?", "<@1>, ⟦hat das Zeit?⟧"),
        ("Hey <@1> kannst du helfen?", "⟦Hey⟧ <@1> ⟦kannst du helfen?⟧"),
        ("Danke, <@1>!", "⟦Danke,⟧ <@1>!"),
        ("Kommst du, <@1>?", "⟦Kommst du, Tom?⟧"),
        ("Ja, <@1> <@2> und <@3> kommen.", "⟦Ja, Tom und Mary kommen.⟧"),
        ("Tom und MARIA sehen <@1> heute.", "⟦Tom und MARIA sehen John heute.⟧"),
        ("Automatisch sieht das <@1> heute.", "⟦Automatisch sieht das Tom heute.⟧"),
        ("Hallo<@1>du da", "⟦Hallo⟧<@1>⟦du da⟧"),
        ("Ein <@1>-Fan und <@2>s Hund", "⟦Ein⟧ <@1>-⟦Fan und⟧ <@2>⟦s Hund⟧"),
        ("Ein <@1>-Fan ist da", "⟦Ein Tom-Fan ist da⟧"),
    ],
)
def test_stand_ins(text: str, expected: str) -> None:
    check(text, expected)


def test_more_spans_than_stand_ins_are_cut() -> None:
    text = "eins" + "".join(f" <@{n}> und" for n in range(len(STAND_INS) + 1)) + " Ende"
    assert all(not segment.spans for segment in parse(text, "de").segments)
    fewer = "eins" + "".join(f" <@{n}> und" for n in range(len(STAND_INS))) + " Ende"
    (segment,) = parse(fewer, "de").segments
    assert [stand_in for stand_in, _ in segment.spans] == list(STAND_INS)
    assert translate(parse(text, "de"), str) == text


@pytest.mark.parametrize(
    ("source", "made", "kept"),
    [
        ("Guten Morgen", "Good morning.", "Good morning"),
        ("Guten Morgen.", "Good morning.", "Good morning."),
        ("Hallo", "Hello!", "Hello"),
        ("Hallo,", "Hello!", "Hello,"),
        ("Hallo!", "Hello!", "Hello!"),
        ("Es ist 7 Uhr", "It's 7. ", "It's 7"),
        ("Kommst du mit", "Are you coming?", "Are you coming?"),
        ("Wichtig:", "It's important.", "It's important:"),
        ("Um 8 Uhr", "At 8 a.m.", "At 8 a.m."),
        ("Na ja", "Well...", "Well..."),
        ("„Guten Morgen“, sagte er (leise)", "He said.", "He said."),
    ],
)
def test_a_mark_of_the_models_own_is_taken_off(source: str, made: str, kept: str) -> None:
    assert Segment(source).restore(made) == kept


def test_a_full_stop_is_taken_off_before_a_span() -> None:
    assert Segment("Das ist für Tom", (("Tom", "<@1>"),)).restore("It's for Tom.") == "It's for <@1>"


def test_restore_wants_every_stand_in_exactly_once() -> None:
    (segment,) = parse("Zeig <@1> mal <https://a.de>, bitte.", "de").segments
    assert segment.source == "Zeig Tom mal Mary, bitte."
    assert segment.restore("Show Mary to Tom, please.") == "Show <https://a.de> to <@1>, please."
    assert segment.restore("Show Tom's Mary.") == "Show <@1>'s <https://a.de>."
    assert segment.restore("Show Tom, please.") is None
    assert segment.restore("Show Mary to Tom, Tom.") is None
    assert segment.restore("Show Mary to Tomas.") is None
    assert segment.restore("Show John Mary, Tom.") == "Show John <https://a.de>, <@1>."
    assert shape(segment.pieces()) == "⟦Zeig⟧ <@1> ⟦mal⟧ <https://a.de>, ⟦bitte.⟧"
    assert all(piece.restore("anything") == "anything" for piece in segment.pieces().segments)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Das ist z. B. gut. Dr. Müller kommt.", "⟦Das ist z. B. gut.⟧ ⟦Dr. Müller kommt.⟧"),
        ("Äpfel, Birnen usw. sind da. Gut.", "⟦Äpfel, Birnen usw. sind da.⟧ ⟦Gut.⟧"),
        ("Wir sehen uns am 3. Mai. Bis dann!", "⟦Wir sehen uns am 3. Mai.⟧ ⟦Bis dann!⟧"),
        ("Im 2. Weltkrieg und im 19. Jh. War das?", "⟦Im 2. Weltkrieg und im 19. Jh. War das?⟧"),
        ("Das war 1990. Dann kam er.", "⟦Das war 1990.⟧ ⟦Dann kam er.⟧"),
        ("Das ist Version 1.2.3. Klar.", "⟦Das ist Version 1.2.3.⟧ ⟦Klar.⟧"),
        ("Das ist inkl. Versand. Gut.", "⟦Das ist inkl. Versand.⟧ ⟦Gut.⟧"),
        ("jo alles gut. bin gleich da! und du? ja", "⟦jo alles gut.⟧ ⟦bin gleich da!⟧ ⟦und du?⟧ ⟦ja⟧"),
        ("das geht evtl. morgen bzw. am 4. um 5", "⟦das geht evtl. morgen bzw. am 4. um 5⟧"),
        ("na ja... und dann", "⟦na ja... und dann⟧"),
        ("„Komm her!“ Er ging.", "„⟦Komm her!⟧“ ⟦Er ging.⟧"),
        ('Er sagte: "Gut." Dann ging er.', '⟦Er sagte: "Gut."⟧ ⟦Dann ging er.⟧'),
        ("(Er kam spät.)", "(⟦Er kam spät.⟧)"),
        ("(Ja) und (nein)", "⟦(Ja) und (nein)⟧"),
        ("Siehe https://a.b/X.Y?Z!Q oder nicht", "⟦Siehe Tom oder nicht⟧"),
        ("Sag `x. Y` laut. Ja.", "⟦Sag Tom laut.⟧ ⟦Ja.⟧"),
    ],
)
def test_sentences(text: str, expected: str) -> None:
    document = parse(text, "de")
    assert shape(document) == expected
    assert translate(document, str) == text


def test_only_languages_that_write_ordinals_with_a_dot_join_them() -> None:
    check("He is 25. Then he left.", "⟦He is 25.⟧ ⟦Then he left.⟧", "en")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("eins\nzwei\r\n\r\n drei  \n", "⟦eins⟧\n⟦zwei⟧\r\n\r\n ⟦drei⟧  \n"),
        ("eins\rzwei\u2028drei\x85vier", "⟦eins⟧\r⟦zwei⟧\u2028⟦drei⟧\x85⟦vier⟧"),
        ("- Äpfel\n* Birnen\n  + Kirschen", "- ⟦Äpfel⟧\n* ⟦Birnen⟧\n  + ⟦Kirschen⟧"),
        ("1. Anfang\n2) Ende\n12. Rest", "1. ⟦Anfang⟧\n2) ⟦Ende⟧\n12. ⟦Rest⟧"),
        ("> Zitat\n> > - tief\n>>> alles\nweiter", "> ⟦Zitat⟧\n> > - ⟦tief⟧\n>>> ⟦alles⟧\n⟦weiter⟧"),
        ("# Titel\n### Klein\n-# Fußnote", "# ⟦Titel⟧\n### ⟦Klein⟧\n-# ⟦Fußnote⟧"),
        ("\t  eingerückt", "\t  ⟦eingerückt⟧"),
        ("   ", "   "),
        ("", ""),
        ("2024\n--- !!!\n😀 5 %\n10:30", "2024\n--- !!!\n😀 5 %\n10:30"),
        ("5 Äpfel kosten 3 €", "⟦5 Äpfel kosten 3 €⟧"),
        ("vor ```py\nx. Y\n``` nach", "⟦vor⟧ ```py\nx. Y\n``` ⟦nach⟧"),
        ("```py\ndas ist offen", "```⟦py⟧\n⟦das ist offen⟧"),
        ("ein ` Strich\nnoch ` einer", "⟦ein ` Strich⟧\n⟦noch ` einer⟧"),
    ],
)
def test_lines_and_their_prefixes_are_literal(text: str, expected: str) -> None:
    check(text, expected)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("**Hallo zusammen.**", "**⟦Hallo zusammen.⟧**"),
        ("**Ja. Gut.** ||Nein.||", "**⟦Ja.⟧ ⟦Gut.⟧** ||⟦Nein.⟧||"),
        ("> **__Achtung__**", "> **__⟦Achtung⟧__**"),
        ("**Achtung:** nicht öffnen!", "**⟦Achtung:⟧** ⟦nicht öffnen!⟧"),
        ("Das ist **sehr** gut.", "**⟦Das ist sehr gut.|sehr⟧**"),
        ("Das ist ||geheim||!", "||⟦Das ist geheim!|geheim⟧||"),
        ("Ja. Um **20:15** geht es los.", "⟦Ja.⟧ **⟦Um 20:15 geht es los.|20:15⟧**"),
        ("Lies [das hier](https://a.de/x_(y)) bitte", "[⟦Lies das hier bitte|das hier⟧](https://a.de/x_(y))"),
        ("[Hier](<https://a.de>)", "[⟦Hier⟧](<https://a.de>)"),
        ("Das ist ~~falsch~~ gut.", "⟦Das ist⟧ ~~⟦falsch⟧~~ ⟦gut.⟧"),
        ("Das **a** und **b** ja", "⟦Das⟧ **⟦a⟧** ⟦und⟧ **⟦b⟧** ⟦ja⟧"),
        ("so **so** so", "⟦so⟧ **⟦so⟧** ⟦so⟧"),
        ("Nimm **bitte** <@1> mit", "⟦Nimm⟧ **⟦bitte⟧** <@1> ⟦mit⟧"),
        ("Nutzer*innen mit snake_case_name", "⟦Nutzer*innen mit snake_case_name⟧"),
        (r"nicht \*fett\* gedruckt", r"⟦nicht⟧ \*⟦fett⟧\* ⟦gedruckt⟧"),
    ],
)
def test_emphasis(text: str, expected: str) -> None:
    check(text, expected)


def test_emphasis_follows_its_words_or_else_takes_the_whole_sentence() -> None:
    document = parse("Das ist **wirklich wichtig** heute.", "de")
    assert document.assemble(["That is really important today.", "Really important."]) == (
        "That is **really important** today."
    )
    assert document.assemble(["That matters today.", "Really important."]) == "**That matters today.**"
    assert document.assemble(["It is, it is.", "It is"]) == "**It is, it is.**"
    assert document.assemble(["Thistle is.", "this"]) == "**Thistle is.**"


def test_a_translation_adds_no_line() -> None:
    document = parse("eins\nzwei", "de")
    assert document.assemble(["o\nn \r\n\u2028 e\n", "two"]) == "o n e\ntwo"


def test_assemble_wants_one_translation_for_each_segment() -> None:
    with pytest.raises(LocalError, match="2 segments, but 1 translations"):
        parse("eins\nzwei", "de").assemble(["one"])


def test_long_sentences_are_cut_at_clauses_and_long_words_anywhere() -> None:
    clause = "und dann geht es immer so weiter, "
    for text in (clause * 60, "Donaudampf" * 200, "wort " * 500, clause * 10 + "<@1> " + clause * 20):
        document = parse(text, "de")
        assert len(document.segments) > 1
        assert all(len(segment.source) <= MAX_SEGMENT_CHARS for segment in document.segments)
        assert translate(document, str) == text
    assert all(segment.source.endswith("weiter,") for segment in parse(clause * 60, "de").segments)


NASTIES = (
    "`",
    "<@",
    "http://",
    "*",
    "(",
    '"',
    "„a",
    "a. ",
    "<@1> x ",
    "a**b ",
    "\n",
    "\n \n ",
    "- ",
    "a",
    "a@",
)
MORE_NASTIES = (
    ":a",
    "[a](http://b",
    "` `` ",
    "<:a",
    "</a",
    "\u200d😀",
    "😀\U000e0061",
    "1. ",
    "_a ",
    "\\",
    "xD ",
    "``a`",
)


@pytest.mark.timeout(10)
@pytest.mark.parametrize("nasty", NASTIES + MORE_NASTIES)
def test_time_is_linear(nasty: str) -> None:
    text = nasty * (50_000 // len(nasty))
    document = parse(text, "de")
    assert all(len(segment.source) <= MAX_SEGMENT_CHARS for segment in document.segments)
    assert translate(document, str) == text


WORDS = (
    "Hallo",
    "Tom",
    "maria",
    "das ist gut",
    "Ja.",
    "geht's?",
    "z. B.",
    "3.",
    "ß",
    "e\u0301",
    "日本。",
    "İ",
)
SIGNS = (
    " ",
    " ",
    " ",
    ", ",
    ". ",
    "\n",
    "\r",
    "\x00",
    "\x1c",
    "\xa0",
    "**",
    "_",
    "`",
    "```",
    "||",
    "~~",
    "[",
    "(",
)
MORE_SIGNS = (
    "](https://x.y)",
    ")",
    "„",
    "“",
    '"',
    "> ",
    "- ",
    "# ",
    "<",
    "@",
    ":",
    "\\",
    "\u200d",
    "\ufe0f",
    "\u20e3",
)
texts = st.lists(st.sampled_from(WORDS + SIGNS + MORE_SIGNS + SPANS + CUTS) | st.text(max_size=8), max_size=30).map(
    "".join
)
languages = st.sampled_from(["de", "en", "ja", "xx"])
moderate = settings(max_examples=200, deadline=None, derandomize=True)


@moderate
@given(st.text(max_size=200) | texts, languages)
def test_identity_gives_the_text_back(text: str, language: str) -> None:
    document = parse(text, language)
    for segment in document.segments:
        assert segment.restore(segment.source) is not None
        assert any(character.isalpha() for character in segment.source)
        assert segment.source == segment.source.strip()
    assert translate(document, str) == text
    assert document.assemble([translate(segment.pieces(), str) for segment in document.segments]) == text


@moderate
@given(
    st.lists(st.tuples(st.sampled_from(WORDS[:6]), st.sampled_from(SPANS + CUTS)), min_size=1, max_size=8),
    st.lists(st.text(max_size=30) | st.sampled_from(STAND_INS), min_size=1, max_size=8),
    st.sampled_from(["arbitrary", "drop", "double"]),
)
def test_spans_survive_any_translator(row: list[tuple[str, str]], noise: list[str], habit: str) -> None:
    calls = iter(range(1_000_000))

    def translator(source: str) -> str:
        if habit == "drop":
            return " ".join(word for word in source.split() if word not in STAND_INS)
        if habit == "double":
            return f"{source} {source}"
        return noise[next(calls) % len(noise)]

    text = " ".join(f"{word} {span}" for word, span in row)
    translated = translate(parse(text, "de"), translator)
    for span in {span for _, span in row}:
        assert translated.count(span) >= sum(span == other for _, other in row)


@moderate
@given(st.lists(st.sampled_from(WORDS + SPANS), min_size=1, max_size=12), st.text(max_size=40))
def test_lines_survive_any_translator(words: list[str], noise: str) -> None:
    prefixes = ("", "- ", "> ", "1. ", "  * ", "# ")
    lines = [f"{prefixes[index % len(prefixes)]}{word} ja" for index, word in enumerate(words)]
    translated = translate(parse("\n".join(lines), "de"), lambda source: f"{noise}\nx\r{source}").split("\n")
    assert len(translated) == len(lines)
    for index, line in enumerate(translated):
        assert line.startswith(prefixes[index % len(prefixes)])


@moderate
@given(texts, st.text(max_size=30))
def test_literals_come_out_in_order_and_nothing_raises(text: str, noise: str) -> None:
    document = parse(text, "de")
    translated = translate(document, lambda _: noise)
    at = 0
    for literal in (part for part in document.parts if isinstance(part, str)):
        at = translated.index(literal, at) + len(literal)


@settings(max_examples=300)
@given(st.text(alphabet="abzÄß ,'-–„“.!?…:3é", min_size=1, max_size=80), st.sampled_from(("de", "en")))
def test_what_looks_like_one_sentence_is_one_for_the_splitter_too(text: str, language: str) -> None:
    quick = list(sentence_ends(text, (), language, 600))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sentences, "_ONE_SENTENCE", regex.compile(r"(?!)"))
        assert quick == list(sentence_ends(text, (), language, 600))


@settings(max_examples=1000)
@given(
    st.text(alphabet="abxXDdÄßªⅧ ,'’-–„“\".!?…:13é\ufe0f\u20e3\u0308\u0600", min_size=1, max_size=40)
    | st.lists(st.sampled_from(WORDS + MORE_SIGNS + CUTS + (" ",)), min_size=1, max_size=5).map("".join),
    st.sampled_from(("de", "en")),
)
def test_what_looks_plain_is_plain_to_a_closer_look_too(text: str, language: str) -> None:
    quick = parse(text, language)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("dolmetsch.segment._PLAIN", regex.compile(r"(?!)"))
        assert quick == parse(text, language)


@pytest.mark.parametrize("space", "\xa0\x85\u2009\u202f\u3000\u2028")
def test_wide_white_space_between_a_capital_and_a_period_ends_no_process(space: str) -> None:
    """sentencex 1.0.32 panics there, which is no Exception: one message ended child after child."""
    text = f"Das ist T{space}. Und weiter."
    assert list(sentence_ends(text, (), "de", 600))[-1] == len(text)


def test_a_panic_of_sentencex_makes_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dolmetsch.sentences._WIDE_SPACE", regex.compile(r"(?!)"))  # as if nothing stood before it
    text = "Das ist T\xa0. Und weiter."
    assert list(sentence_ends(text, (), "de", 600)) == [len(text)]
