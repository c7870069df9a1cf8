"""Pages around their translation: nothing but text changes, and tags stay on their words."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable
from html.parser import HTMLParser

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dolmetsch.html import Page, has_words, without_tags

SENTENCE = "Das ist <b>sehr</b> wichtig."


def translate(markup: str, words: dict[str, str] | Callable[[str], str]) -> str:
    page = Page(markup, "de")
    do = words.__getitem__ if isinstance(words, dict) else words
    return page.render({text: do(text) for text in page.texts})


class Tree(HTMLParser):
    """A page as an independent parser sees it: its tags with their attributes, and its words."""

    def __init__(self, markup: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, ...]] = []
        self.words = ""
        self.open: list[str] = []
        self.feed(markup)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, *(f"{name}={value}" for name, value in attrs)))
        if tag not in ("img", "br"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag, "tags are nested"

    def handle_data(self, data: str) -> None:
        self.words += data


# ---- what is asked for ----


@pytest.mark.parametrize(
    ("markup", "texts"),
    [
        ("Guten Morgen", ["Guten Morgen"]),
        ("<p>Eins\n   zwei</p><p>Drei</p>", ["Eins zwei", "Drei"]),
        ("<p>Ja</p><p>Ja</p>", ["Ja"]),
        ("a &lt; b &amp; c < d", ["a < b & c < d"]),
        ("<p>123</p><p>&nbsp;</p><p> </p>", []),
        ("<title>Ein Titel</title>", ["Ein Titel"]),
        (SENTENCE, ["Das ist sehr wichtig.", "sehr"]),
        ("Das ist <s>sehr</s> wichtig.", ["Das ist sehr wichtig.", "sehr", "Das ist", "wichtig."]),
        ("<p><b>Alles</b></p>", ["Alles"]),
        ("<b>Hinweis:</b> Er geht. Sie <i>bleibt</i>.", ["Hinweis:", "Er geht.", "Sie bleibt.", "bleibt"]),
        ("<b>Er geht. </b>Sie <i>bleibt</i>.", ["Er geht.", "Sie bleibt.", "bleibt"]),
        ("<b>Hinweis</b>: Er geht.", ["Hinweis:", "Hinweis", "Er geht."]),
        ("Siehe <code>x()</code> dort", ["Siehe `0` dort", "Siehe", "dort"]),
        ("Ein <b><i>sehr</i> guter</b> Tag", ["Ein sehr guter Tag", "sehr guter", "sehr"]),
    ],
)
def test_texts(markup: str, texts: list[str]) -> None:
    assert Page(markup, "de").texts == texts


@pytest.mark.parametrize(
    "markup",
    [
        "<script>var a = '<b>Hallo</b>';</script>", "<style>p { color: red }</style>", "<pre>Hallo <b>Welt</b></pre>",
        "<code>Hallo</code>", "<textarea>Hallo <b></textarea>", "<!-- Hallo -->", "<p title='Hallo'></p>",
        "<p translate=no>Hallo <i>Welt</i></p>", '<p TRANSLATE = "NO">Hallo</p>', "<p class='a notranslate b'>Hi</p>",
        "<div translate=no><div>Hallo</div>Welt</div>", "<svg><text>Hallo</text></svg>", "<template>Hallo</template>",
        "<!DOCTYPE html>", "<![CDATA[Hallo]]>", "<?php Hallo ?>", "<plaintext>Hallo</plaintext>", "<kbd>Hallo</kbd>",
        "<iframe>Hallo</iframe>", "<p Hallo", "<p title='Hallo", "</ Hallo>", "<script>Hallo",
    ],
)  # fmt: skip
def test_what_is_not_text_stays(markup: str) -> None:
    assert Page(markup, "de").texts == []
    page = f"<p>Eins</p>{markup}"
    assert translate(page, str.upper) == f"<p>EINS</p>{markup}"


@pytest.mark.parametrize(
    "markup", ["<p class=translate>A</p>", "<p data-translate=no>A</p>", "<p title='translate=no'>A"]
)
def test_what_only_looks_as_if_it_were_not_to_be_translated(markup: str) -> None:
    assert Page(markup, "de").texts == ["A"]


# ---- tags on their words ----


@pytest.mark.parametrize(
    ("markup", "words", "expected"),
    [
        (SENTENCE, {"Das ist sehr wichtig.": "That is very important.", "sehr": "very"},
         "That is <b>very</b> important."),
        (SENTENCE, {"Das ist sehr wichtig.": "That is very important.", "sehr": "Very."},
         "That is <b>very</b> important."),
        ("<i>Hier</i> wohnt <a href=x>Tom</a>", {"Hier wohnt Tom": "Tom lives here", "Hier": "here", "Tom": "Tom"},
         "<a href=x>Tom</a> lives <i>here</i>"),
        # Not there, or there twice: all of the sentence, and of this sentence only.
        (SENTENCE + " Wir gehen.", {"Das ist sehr wichtig.": "It matters.", "sehr": "much", "Wir gehen.": "We go."},
         "<b>It matters.</b> We go."),
        (SENTENCE, {"Das ist sehr wichtig.": "very, very much", "sehr": "very"}, "<b>very, very much</b>"),
        (SENTENCE, {"Das ist sehr wichtig.": "every one", "sehr": "very"}, "<b>every one</b>"),
        # Too much would say something else.
        ("Er <s>ging</s> lief", {"Er ging lief": "He ran", "ging": "went", "Er": "He", "lief": "ran"},
         "He <s>went</s> ran"),
        ("<a>Eins</a> und <a>zwei</a>", {"Eins und zwei": "A pair", "Eins": "one", "und": "and", "zwei": "two"},
         "<a>one</a> and <a>two</a>"),
        ("<a>Eins</a> und <b>zwei</b>", {"Eins und zwei": "a pair", "Eins": "one", "zwei": "pair"},
         "<a>a <b>pair</b></a>"),
        ("Ein <b>ganz <i>toller</i></b> Tag",
         {"Ein ganz toller Tag": "A really great day", "ganz toller": "really great", "toller": "great"},
         "A <b>really <i>great</i></b> day"),
        ("Siehe <code>x&lt;y</code> dort", {"Siehe `0` dort": "There `0` is", "Siehe": "See", "dort": "there"},
         "There <code>x&lt;y</code> is"),
        ("Siehe <code>x</code> dort", {"Siehe `0` dort": "There it is", "Siehe": "See", "dort": "there"},
         "See <code>x</code> there"),
        ("Text <a id=x></a> mehr", {"Text `0` mehr": "`0` more text", "Text": "", "mehr": ""},
         "<a id=x></a> more text"),
        ("Eins <!-- x -->zwei", {"Eins zwei": "one two"}, "<!-- x -->one two"),
        ("<b>大</b> Haus", {"大 Haus": "これは大きい家", "大": "大きい"}, "これは<b>大きい</b>家"),
        ("`x` <b>y</b>", {"x": "x", "y": "z", "`x`": "`x`"}, "`x` <b>z</b>"),
        ("<b>Eins</b> <s>2</s> drei", {"Eins 2 drei": "", "Eins": "one", "drei": "three"}, "<b>one</b> <s>2</s> three"),
        # White space and what stands around the words.
        ("<p>\n  Eins\n</p>", {"Eins": "one"}, "<p>\n  one\n</p>"),
        ("&nbsp;Eins&nbsp;", {"Eins": "one"}, "&nbsp;one&nbsp;"),
        ("<p><b>Eins</b></p>", {"Eins": "a < b & c"}, "<p><b>a &lt; b &amp; c</b></p>"),
        ("<li>Eins<li>Zwei", {"Eins": "one", "Zwei": "two"}, "<li>one<li>two"),
        ("Eins<br>Zwei", {"Eins": "one", "Zwei": "two"}, "one<br>two"),
        ("<b>Eins<p>Zwei</b>", {"Eins": "one", "Zwei": "two"}, "<b>one<p>two</b>"),
        ("<b>x<i>y</b>z</i> Haus", {"x": "1", "y": "2", "z": "3", "Haus": "house"}, "<b>1<i>2</b>3</i> house"),
    ],
)  # fmt: skip
def test_tags(markup: str, words: dict[str, str], expected: str) -> None:
    assert translate(markup, words) == expected


def test_a_text_that_is_missing_stays() -> None:
    assert Page("<p>Eins</p>", "de").render({}) == "<p>Eins</p>"


def test_the_words_of_a_page() -> None:
    assert without_tags("<p>Guten <b>Morgen</b></p><script>x</script>").split() == ["Guten", "Morgen"]
    assert [has_words(text) for text in ("", "1 2", "🙂", "a", "ß", "語")] == [False, False, False, True, True, True]


# ---- properties ----

NAMES = (
    "p",
    "b",
    "i",
    "a",
    "span",
    "code",
    "div",
    "s",
    "li",
    "pre",
    "title",
    "script",
    "svg",
    "wbr",
    "img",
    "br",
    "em",
)
PARTS = st.one_of(
    st.text(max_size=8),
    st.sampled_from(["Guten Tag. ", "das Haus ", ": ", "z.B. ", " ", "\n", "`"]),
    st.sampled_from(["&nbsp;", "&amp;", "&lt", "&#10;", "&#x20;"]),
    st.builds("<{}>".format, st.sampled_from(NAMES)),
    st.builds("</{}>".format, st.sampled_from(NAMES)),
    st.builds("<{} {}>".format, st.sampled_from(NAMES), st.text(st.sampled_from("ab='\"/ >no"), max_size=8)),
    st.sampled_from(["<!--", "-->", "<!-- x -->", "<", ">", "</", "<!", "<?", "<p translate=no>", "<b translate=no>"]),
)  # fmt: skip


@settings(max_examples=300)
@given(st.lists(PARTS, max_size=30).map("".join))
def test_an_identity_translation_changes_nothing(markup: str) -> None:
    page = Page(markup, "de")
    assert page.render({text: text for text in page.texts}) == markup
    assert len(page.texts) == len(set(page.texts))
    assert all(has_words(text) and text.strip() for text in page.texts)


@st.composite
def trees(draw: st.DrawFn, depth: int = 3) -> str:
    """Well-formed pages, without the elements that are copied."""
    out = ""
    for _ in range(draw(st.integers(0, 4))):
        kind = draw(st.sampled_from(("text", "element", "image", "code")))
        if kind == "text":
            out += draw(st.sampled_from(["Guten Tag. ", "das Haus", " sehr ", "&lt;5 ", "Tom &amp; Maria", " "]))
        elif kind == "image":
            out += "<img src='a'>"
        elif kind == "code":
            out += "<code>x</code>"
        elif depth:
            name = draw(st.sampled_from(("p", "b", "i", "a", "s", "span", "div")))
            out += f"<{name} id={draw(st.integers(0, 99))}>{draw(trees(depth - 1))}</{name}>"
    return out


WORDS = st.text(st.sampled_from("ab <>&`01\"'./"), max_size=12)


@settings(max_examples=300)
@given(trees(), st.lists(WORDS, min_size=1, max_size=8))
def test_whatever_comes_back_the_tags_are_the_same_and_nothing_else_becomes_one(markup: str, words: list[str]) -> None:
    page = Page(markup, "de")
    out = page.render({text: words[number % len(words)] for number, text in enumerate(page.texts)})
    before, after = Tree(markup), Tree(out)
    assert Counter(after.tags) == Counter(before.tags)
    assert after.open == before.open == []


@settings(max_examples=100)
@given(trees())
def test_words_that_are_only_changed_keep_their_tags(markup: str) -> None:
    """Each word's new form is its own, so every place can be decided: the tree stays as it is."""
    before = Tree(markup)
    after = Tree(translate(markup, lambda text: text.replace("Haus", "HOUSE").replace("Tag", "DAY")))
    words = before.words.replace("Haus", "HOUSE").replace("Tag", "DAY")
    assert "".join(after.words.split()) == "".join(words.split())


@pytest.mark.parametrize(
    "part",
    [
        "<", "<a ", "<a b='", "<!--", "<b>", "</b>", "<b>x", "x</b>", "<b>x</b>", "&", " x", "<b> ", "<b><i></b></i>x",
        "<svg>", "x<wbr>", "&nbsp;", "<p translate=no ", "<title>", "x. <b>y.</b> ", "`", "<b>`</b> x", ": </b>",
        "<code>x", "<p translate=no class='",
    ],
)  # fmt: skip
def test_no_page_takes_long(part: str) -> None:
    markup = part * (100_000 // len(part))
    started = time.process_time()
    page = Page(markup, "de")
    assert page.render({text: text for text in page.texts}) == markup
    page.render({text: f"{text} x" for text in page.texts})
    assert time.process_time() - started < 3.0


def test_a_deep_page_and_a_long_number() -> None:
    assert translate("<b>" * 5000 + "Eins" + "</b>" * 5000, {"Eins": "one"}) == "<b>" * 5000 + "one" + "</b>" * 5000
    assert Page(f"Eins &#{'9' * 5000};", "de").render({}) == f"Eins &#{'9' * 5000};"
