"""Replies: messages that Discord takes, cut where it reads best, with nothing of the text lost."""

from __future__ import annotations

import re
import time
from itertools import combinations, pairwise, product

import pytest
import regex
from hypothesis import example, given
from hypothesis import strategies as st

from dolmetsch import replies
from dolmetsch.errors import LocalError
from dolmetsch.replies import IN_FILE, Reply, reply, source_text, units

HEADER = "🇩🇪➡️🇺🇸"
WORD = "Wort "


def utf16(text: str) -> int:
    return len(text.encode("utf-16-le", "surrogatepass")) // 2


def bodies(text: str, made: Reply, header: str = HEADER) -> list[str]:
    """The messages without the header, after what holds for all of them was checked."""
    assert made.file is None
    first = made.messages[0]
    assert first.startswith(header + " ") or first.startswith(header + "\n")
    return [first[len(header) + 1 :], *made.messages[1:]]


def whole(parts: list[str], text: str) -> bool:
    """Whether ``parts`` are ``text``: but for white space at the cuts, and fences closed and opened again there."""
    cuts = [
        (False, True) if before.endswith("\n```") and after.startswith("```") else (False,)
        for before, after in pairwise(parts)
    ]
    for choice in product(*cuts):
        row = list(parts)
        for number, fenced in enumerate(choice):
            if fenced:
                row[number] = row[number].removesuffix("\n```")
                row[number + 1] = regex.sub(r"\A```[A-Za-z0-9+.#_-]*\n", "", row[number + 1])
        if re.fullmatch(r"\s*".join(map(re.escape, row)), text.strip()):
            return True
    return False


def check(text: str, limit: int, most: int, header: str = HEADER) -> list[str]:
    """Everything that is true of every reply; its bodies, or none where the text is in a file."""
    made = reply(header, text, limit=limit, most=most)
    assert 1 <= len(made.messages) <= most
    for message in made.messages:
        assert message.strip()
        assert utf16(message) <= limit
    if made.file is not None:
        assert made == Reply((f"{header} {IN_FILE}",), text)
        assert utf16(text.strip()) + utf16(header) + 1 > limit
        return []
    if not text.strip():
        assert made.messages == (header,)
        return []
    return bodies(text, made, header)


# ---- the text to translate ----


@pytest.mark.parametrize(
    ("parts", "expected"),
    [
        (("a", None, None), "a"),
        (("", "b", None), "b"),
        (("", None, "c"), "c"),
        ((" a\n", " b", "c\n\n"), "a\n\nb\n\nc"),
        (("a", "  ", "c"), "a\n\nc"),
        (("a\n\nb", "", "\n"), "a\n\nb"),
        (("", None, None), ""),
        ((" \n", "", "\t"), ""),
    ],
)
def test_source_text(parts: tuple[str, str | None, str | None], expected: str) -> None:
    assert source_text(*parts) == expected


# ---- one message ----


def test_a_short_text_is_one_message_behind_its_header() -> None:
    assert reply(HEADER, "Hello") == Reply((f"{HEADER} Hello",), None)
    assert reply(HEADER, "\n Hello\n\n- there \n") == Reply((f"{HEADER} Hello\n\n- there",), None)
    assert reply(HEADER, "  ") == Reply((HEADER,), None)


@pytest.mark.parametrize(
    "text",
    [
        "- a", "* a", "+ a", "• a", "1. a", "12) a", "> a", ">>> a", "# a", "## a", "### a", "-# a", "```py\na\n```",
        "```a```", "\n- a",
    ],
)  # fmt: skip
def test_what_must_begin_a_line_does(text: str) -> None:
    assert reply(HEADER, text).messages == (f"{HEADER}\n{text.strip()}",)
    long = reply(HEADER, text + "\n" + WORD * 500).messages
    assert long[0].startswith(f"{HEADER}\n{text.strip()}\n")


@pytest.mark.parametrize(
    "text", ["-a", "*a*", "**a**", "1.5", "#a", "####### a", ">a", "`a`", "a - b", "<@1> a", "2 a"]
)
def test_what_need_not_begin_a_line_does_not(text: str) -> None:
    assert reply(HEADER, text).messages == (f"{HEADER} {text}",)


def test_the_limit_is_kept_to_the_unit() -> None:
    room = 2000 - utf16(HEADER) - 1
    assert len(reply(HEADER, "x" * room).messages) == 1
    assert len(reply(HEADER, "x" * (room + 1)).messages) == 2
    assert len(reply(HEADER, "😀" * (room // 2)).messages) == 1
    assert len(reply(HEADER, "😀" * (room // 2 + 1)).messages) == 2
    most = "x" * (room + 4000)
    assert [utf16(one) for one in reply(HEADER, most).messages] == [2000, 2000, 2000]
    assert reply(HEADER, most + "x") == Reply((f"{HEADER} {IN_FILE}",), most + "x")


def test_units_are_those_of_utf_16() -> None:
    for text in ("", "a", "ä€", "😀", HEADER, "\uffff\U00010000", "\ud800"):
        assert units(text) == utf16(text)


def test_a_limit_without_room_is_a_bug() -> None:
    with pytest.raises(LocalError):
        reply(HEADER, "x", limit=utf16(HEADER) + 99)
    assert reply(HEADER, "x", limit=utf16(HEADER) + 100).messages == (f"{HEADER} x",)


# ---- where it is cut ----


def test_too_long_for_messages_goes_into_a_file_as_it_was() -> None:
    text = "\n" + "Ein Satz. " * 700 + "\n"
    assert reply(HEADER, text) == Reply((f"{HEADER} {IN_FILE}",), text)
    assert reply(HEADER, "x" * 2000, most=1) == Reply((f"{HEADER} {IN_FILE}",), "x" * 2000)


BORDERS = ("\n\n", "\n", ". ", " ")


@pytest.mark.parametrize(("better", "worse"), [*combinations(BORDERS, 2), *zip(BORDERS, BORDERS, strict=True)])
def test_paragraphs_come_before_lines_lines_before_sentences_sentences_before_words(better: str, worse: str) -> None:
    long, short, rest = (WORD * 250).strip(), (WORD * 60).strip(), WORD * 300
    parts = check(long + better + short + worse + rest, 2000, 3)
    if better != worse:
        assert parts[0] == (long + better).strip()
    elif better != " ":  # of two equal ones the later
        assert parts[0] == (long + better + short + worse).strip()
    else:
        assert parts[0].endswith("Wort") and len(parts[0]) > 1980
    assert whole(parts, long + better + short + worse + rest)


def test_a_text_without_borders_is_cut_where_the_message_is_full() -> None:
    assert check("x" * 2500, 2000, 3) == ["x" * (2000 - utf16(HEADER) - 1), "x" * (500 + utf16(HEADER) + 1)]


def test_a_border_is_taken_only_in_the_second_half_of_a_message() -> None:
    parts = check("Kurz.\n\n" + WORD * 450, 2000, 3)
    assert len(parts) == 2 and len(parts[0]) > 1980


def test_a_sentence_ends_where_the_next_begins() -> None:
    start = WORD * 250
    for end in (". Und", "! Und", "? Und", "… Und", '." Und', ".“ Und", ".) Und", ".** Und", ". „Und", ". 3"):
        assert check(f"{start}Ende{end} {WORD * 300}", 2000, 3)[0].endswith("Ende" + end.rpartition(" ")[0])
    for no_end in (". und", ".5 Und", ", Und", " Und"):
        assert not check(f"{start}Ende{no_end} {WORD * 300}", 2000, 3)[0].endswith("Ende" + no_end.rpartition(" ")[0])
    assert check("字" * 1500 + "。" + "字" * 1000, 2000, 3) == ["字" * 1500 + "。", "字" * 1000]


def test_messages_are_filled_more_where_they_would_not_suffice() -> None:
    paragraphs = [(WORD * 230).strip()] * 5
    text = "\n\n".join(paragraphs)
    assert check(text, 2000, 5) == paragraphs
    assert len(check(text, 2000, 3)) == 3
    assert whole(check(text, 2000, 3), text)
    assert all(part.startswith("Wort") and part.endswith("Wort") for part in check(text, 2000, 3))


@pytest.mark.parametrize(
    "atom",
    [
        "<@123456789012345678>", "<@!1>", "<@&1>", "<#1>", "<:mmLol:216154654256398347>",
        "<a:b1nzy:392938283556143104>",
        "<t:1618953630:R>", "</admin ban user:1>", "https://example.org/" + "a-b." * 30 + "x", "`inline code. With it`",
        "[a label of words](https://example.org/" + "x" * 60 + ")", "||hidden words. And more||",
        "🇩🇪", "👨‍👩‍👧‍👦", "👍🏽",
        "e\u0301\u0302\u0323", "mail@example.org", "🏴\U000e0067\U000e0062\U000e0065\U000e006e\U000e0067\U000e007f",
    ],
)  # fmt: skip
@pytest.mark.parametrize("around", ["x", " ", "字"])
def test_what_belongs_together_stays_so(atom: str, around: str) -> None:
    """Wherever the end of the message falls in it."""
    if atom.startswith(("mail", "http")):  # their ends are not seen otherwise
        around = " "
    for before in range(1999 - utf16(HEADER) - utf16(atom) - 2, 2001 - utf16(HEADER)):
        filling = (around * before)[:before] if around != " " else ("xyz " * 600)[: before - 1] + " "
        text = f"{filling}{atom}{around}{'Ende ' * 100}"
        parts = check(text, 2000, 3)
        assert len(parts) == 2
        assert whole(parts, text)
        assert sum(atom in part for part in parts) == 1


def test_flags_in_a_row_are_not_torn_apart() -> None:
    for shift in range(4):
        text = "x" * shift + "🇩🇪🇫🇷" * 400
        for part in check(text, 2000, 3):
            assert regex.fullmatch(r"x*(?:🇩🇪|🇫🇷)+", part)
            assert part.count("\U0001f1e9") == part.count("\U0001f1ea")


def test_a_long_link_begins_a_message_rather_than_being_cut() -> None:
    link = "https://example.org/" + "x" * 1975
    for before in (WORD, WORD * 60, WORD * 180):
        assert check(before + link, 2000, 3) == [before.strip(), link]


def test_a_grapheme_is_whole_even_in_what_must_be_cut() -> None:
    grapheme = "a" + "\u0301" * 300
    text = "||" + "x" * 1800 + grapheme + "x" * 1000 + "||"
    parts = check(text, 2000, 3)
    assert whole(parts, text)
    assert sum(grapheme in part for part in parts) == 1


def test_what_no_message_can_hold_is_cut() -> None:
    link = "https://example.org/" + "x" * 2500
    assert check(link, 2000, 3) == [link[: 2000 - utf16(HEADER) - 1], link[2000 - utf16(HEADER) - 1 :]]
    huge = "a" + "\u0301" * 3000  # one grapheme
    assert "".join(check(huge, 2000, 3)) == huge
    text = "So: " + link
    assert whole(check(text, 2000, 3), text)


def test_a_bullet_stays_with_its_text() -> None:
    for before in range(1970, 2000):
        text = "x" * before + "\n- item\n" + WORD * 100
        parts = check(text, 2000, 3)
        assert not any(part.endswith("-") for part in parts)
        assert whole(parts, text)


# ---- code ----


def test_a_fence_that_is_cut_is_closed_and_opened_again() -> None:
    code = "".join(f"  line {number}\n" for number in range(400))
    text = f"Before\n```py\n{code}```\nAfter"
    parts = check(text, 2000, 3)
    assert len(parts) == 3
    for part in parts:
        assert part.count("```") == 2
        inside = part.split("```")[1].removeprefix("py\n").removesuffix("\n")
        assert all(re.fullmatch(r"  line \d+", line) for line in inside.split("\n"))
    assert parts[1].startswith("```py\n  line ")
    assert whole(parts, text)


@pytest.mark.parametrize("opening", ["```", "```\n", "```py\n", "```c++\n", "```py print\n", "```" + "l" * 40 + "\n"])
def test_a_fence_keeps_its_language(opening: str) -> None:
    text = opening + "first\n" + "a = 1\n" * 500 + "```"
    parts = check(text, 2000, 3)
    assert len(parts) == 2
    language = {"```py\n": "py", "```c++\n": "c++", "```": "first"}.get(opening, "")
    assert parts[0].startswith(opening) and parts[0].endswith("a = 1\n```")
    assert parts[1].startswith(f"```{language}\na = 1\n") and parts[1].endswith("a = 1\n```")
    assert whole(parts, text)


def test_a_fence_that_fits_is_not_cut() -> None:
    code = "```py\n" + "a = 1\n\n" * 100 + "```"
    text = f"{WORD * 260}\n{code}\n{WORD * 50}"
    parts = check(text, 2000, 3)
    assert sum(code in part for part in parts) == 1
    assert whole(parts, text)


def test_a_fence_is_closed_within_the_limit() -> None:
    for before in range(40):
        text = "y" * before + "\n```js\n" + "x" * 3000 + "\n```"
        parts = check(text, 2000, 3)
        assert whole(parts, text)
        assert all(part.count("```") % 2 == 0 for part in parts)


def test_no_message_ends_between_code_and_its_end() -> None:
    for before in range(40):
        text = "y" * before + "\n```js\n" + "x = 1\n" * 327 + "\n```\n" + WORD * 100
        parts = check(text, 2000, 3)
        assert whole(parts, text)
        assert all(part.count("```") % 2 == 0 for part in parts)
        assert not any(regex.search(r"```(?:js)?\s*```", part) for part in parts)


def test_a_fence_that_is_never_closed_is_no_code() -> None:
    text = "```py\n" + WORD * 700
    parts = check(text, 2000, 3)
    assert [part.count("```") for part in parts] == [1, 0]
    assert whole(parts, text)


def test_bars_in_code_are_no_spoiler() -> None:
    text = "```sh\n" + "a || b\n" * 500 + "```"
    parts = check(text, 2000, 3)
    assert all(line in ("```sh", "```", "a || b") for part in parts for line in part.split("\n"))


# ---- nothing is lost, whatever the text ----

words = st.text("abcdeäß", min_size=1, max_size=12)
atoms = st.sampled_from(
    ["<@123456>", "<:x:1>", "https://a.de/bcd", "🇩🇪", "🇩🇪🇫🇷", "👍🏽", "`c d`", "e\u0301", "😀", "字字。字"]
)
gaps = st.sampled_from([" ", " ", " ", "\n", "\n\n", ". A", "\n- ", "  \n \n", "", "! "])
prose = st.lists(st.tuples(words | words | atoms, gaps).map("".join), max_size=60).map("".join)
code = st.lists(st.text("abc =\n(|", min_size=1, max_size=30), min_size=1, max_size=15).map("".join)
fences = st.tuples(st.sampled_from(["```py\n", "```\n", "```"]), code.filter(str.strip)).map(
    lambda fence: f"{fence[0]}z{fence[1]}```"
)
texts = st.lists(prose | prose | fences, max_size=5).map("\n".join)
limits = st.integers(130, 300)


@given(prose, limits, st.integers(1, 6))
def test_prose_is_whole_again(text: str, limit: int, most: int) -> None:
    parts = check(text, limit, most)
    assert not parts or whole(parts, text)


@given(texts, limits, st.integers(1, 6))
def test_prose_and_code_are_whole_again(text: str, limit: int, most: int) -> None:
    parts = check(text, limit, most)
    if parts:
        assert whole(parts, text)
        assert all(part.count("```") % 2 == 0 for part in parts)


@given(prose, limits)
def test_atoms_are_whole_again(text: str, limit: int) -> None:
    parts = check(text, limit, 10)
    for atom in ("<@123456>", "<:x:1>", "https://a.de/bcd", "👍🏽", "`c d`"):
        assert not parts or sum(part.count(atom) for part in parts) == text.count(atom)


hostile = st.sampled_from(
    ["```", "```py\n", "`", "||", "[", "](https://a.de)", "\U0001f1e9", "\u200d", "\u0301", "😀", "\r\n"]
)


@example([" " * 400, "a"], 150, 3)
@example(["```", " " * 400, "a```"], 150, 4)
@example(["```py\n", "\u0301" * 400, "```"], 150, 4)
@example(["a", "\x1c" * 300, "b"], 150, 4)
@given(
    st.lists(st.text(max_size=30) | hostile | st.text(" \n.a<@1>:`|*", max_size=80), max_size=30),
    limits,
    st.integers(1, 6),
)
def test_anything_is_whole_again(row: list[str], limit: int, most: int) -> None:
    text = "".join(row)
    parts = check(text, limit, most)
    assert not parts or whole(parts, text)


@pytest.mark.parametrize(
    "piece",
    [
        ".", "🇩", "🇩🇪", " ", "`", "[", "<", "||", "|", ". ", "a\n", "```a```", "x", "\u0301", ".)", "*", "```\n",
        "a `b` <@1> 🇩🇪. X\n",
    ],
)  # fmt: skip
def test_long_texts_take_linear_time(piece: str) -> None:
    text = "a" + piece * (100_000 // len(piece)) + "b"
    started = time.process_time()
    check(text, 2000, 1000)
    assert time.process_time() - started < 3  # measured: 0.2 s; in quadratic time it would be minutes


# ---- the sentences ----


def test_seconds_are_rounded_up_to_at_least_one() -> None:
    assert replies.overloaded(12) == "Overloaded: try again in 12 s."
    assert replies.overloaded(12.01) == "Overloaded: try again in 13 s."
    assert replies.overloaded(0) == replies.overloaded(-3) == "Overloaded: try again in 1 s."
    assert replies.slow_down(4.2) == "Slow down: try again in 5 s."
    assert replies.slow_down(0.2) == "Slow down: try again in 1 s."


def test_unavailable() -> None:
    there = "🇩🇪 de→en"
    assert replies.unavailable("🇫🇷", "fr→en", there) == "🇫🇷 fr→en is not available here. There is: 🇩🇪 de→en."
    assert replies.unavailable("", "fr→en", there) == "fr→en is not available here. There is: 🇩🇪 de→en."
    assert replies.unavailable("🇫🇷", "fr→en", "") == "No translator is connected right now. Try again in a minute."


def test_presence() -> None:
    assert replies.presence(3, 1234) == "3 Pis · 1\u202f234 translations"
    assert replies.presence(1, 1) == "1 Pi · 1 translation"
    assert replies.presence(0, 0) == "no Pis · no translations"
    assert replies.presence(2, 999) == "2 Pis · 999 translations"
    assert replies.presence(1000, 1234567) == "1\u202f000 Pis · 1\u202f234\u202f567 translations"


def test_cluster() -> None:
    assert replies.cluster(3, 9, 12, 230.4, 12345).split("\n") == [
        "Connected: 3 Pis with 9 workers",
        "Waiting: 12 texts",
        "Median time: 230 ms",
        "Done: 12\u202f345 translations",
    ]
    assert replies.cluster(1, 1, 1, 0.2, 1).split("\n") == [
        "Connected: 1 Pi with 1 worker",
        "Waiting: 1 text",
        "Median time: 1 ms",
        "Done: 1 translation",
    ]
    assert replies.cluster(0, 0, 0, 0.0, 0).split("\n") == [
        "Connected: no Pis with no workers",
        "Waiting: no texts",
        "Median time: not known yet",
        "Done: no translations",
    ]


def test_too_long() -> None:
    assert replies.too_long(20001, 20000) == (
        "The text is too long: it has 20\u202f001 characters, and at most 20\u202f000 can be translated."
    )


CODES = (
    "degenerate_output", "deadline", "engine_error", "child_timeout", "child_crashed", "no_route", "too_long",
    "too_large",
    "attempts", "empty_text", "unknown_route", "draining", "overloaded", "bad_deadline",
)  # fmt: skip


def test_every_code_has_a_sentence_of_its_own() -> None:
    unknown = replies.failed("something_new")
    assert unknown == replies.failed("") == "The translation failed."
    said = {code: replies.failed(code) for code in CODES}
    assert unknown not in said.values()
    kinds = ("degenerate_output", "deadline", "engine_error", "child_timeout", "child_crashed", "no_route", "too_long")
    assert len({said[code] for code in kinds}) == len(kinds)
    assert all(code not in sentence for code, sentence in said.items() if "_" in code)


def test_the_bot_speaks_calmly() -> None:
    every = [
        replies.unavailable("🇫🇷", "fr→en", "x"), replies.unavailable("", "", ""), replies.overloaded(1),
        replies.too_long(2, 1), replies.no_text(), replies.unreachable(), replies.slow_down(1),
        *map(replies.failed, (*CODES, "?")), IN_FILE,
    ]  # fmt: skip
    for sentence in every:
        assert "!" not in sentence and "\n" not in sentence
        assert sentence.endswith(".") and len(sentence) < 120
