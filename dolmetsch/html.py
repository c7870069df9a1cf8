"""A page of HTML around its translation: what to translate, and the same page with the translations in place. Pure.

The page is cut into its own pieces (``markup.py``), and all that is not text is copied as it stands: the output of an
identity translation is the input, byte for byte. Nothing recurses, and everything is linear in the length of the page.

Text and inline tags between two other tags are cut into sentences. A sentence with tags in it is asked for as a whole,
and each of its inline elements by itself: where an element's translation stands exactly once in the whole's, the tags
go around it there; otherwise around the whole sentence. That is what ``segment.py`` does with Markdown, for a sentence
that is translated in pieces loses a quarter of its quality. Where it would say something else (struck out, two links),
the sentence is translated in pieces after all. What must stay as it is in a sentence (``<code>``, ``<img>``,
translate="no") travels as inline code, which nodes protect and may move.
"""

from __future__ import annotations

import html
import re
from bisect import bisect_right
from collections.abc import Iterator, Mapping, Set
from dataclasses import dataclass, field
from typing import Final, NamedTuple

from dolmetsch.markup import CLOSE, OPAQUE, OPEN, OTHER, TEXT, Token, tokenize, without_opaque
from dolmetsch.sentences import sentence_ends

# These may enclose more than they did: emphasis on too much, but never on the wrong word.
WIDENABLE: Final = frozenset((
    "a", "abbr", "acronym", "b", "big", "cite", "data", "dfn", "em", "font", "i", "mark", "small", "span", "strong",
    "time", "tt", "u",
))  # fmt: skip
MAX_TAGS: Final = 40  # inline elements of a sentence; beyond that it is translated in pieces
MAX_SENTENCE_CHARS: Final = 20_000  # no sentence is cut: nodes do that

_SPACE: Final = " \t\n\f\r"
_BLANKS: Final = re.compile(r"[ \t\n\f\r]+")
_LEAD: Final = re.compile(r"(?:[ \t\n\f\r\u00a0]|&nbsp;)*+")
_NO_WORD_SPACES: Final = "\u2e80"  # from here on scripts do not put spaces between words
_SIGNS: Final = " .,;:!?…\"'“”„"
_LABEL_ENDS: Final = (":", "–")  # "<b>Note:</b> ..." is two things


@dataclass(slots=True)
class _Element:
    """An inline element in the whole of a run, or something copied (then ``close`` is empty)."""

    name: str
    start: int
    open: str
    parent: _Element | None
    close: str = ""
    text: str = ""

    @property
    def widenable(self) -> bool:
        return self.name in WIDENABLE and self.close != ""


@dataclass(slots=True)
class _Run:
    """A sentence with its tags. ``whole`` is empty where only pieces can be translated."""

    before: str
    middle: list[Token]
    after: str
    whole: str = ""
    elements: list[_Element] = field(default_factory=list)
    loose: str = ""

    def texts(self) -> Iterator[str]:
        if self.whole:
            yield self.whole
            yield from (one.text for one in self.elements if one.close and has_words(one.text))
        # Where all tags may enclose more and no two are links, the whole can be used whatever comes back.
        links = sum(one.name == "a" for one in self.elements)
        if not self.whole or links > 1 or not all(one.widenable for one in self.elements):
            for token in self.middle:
                if token.kind == TEXT and has_words(text := _plain(_edges(token.raw)[1])):
                    yield text

    def render(self, translated: Mapping[str, str]) -> str:
        new = translated.get(self.whole, self.whole)
        if self.whole and new == self.whole:  # it stays, whatever its pieces would be
            return self.before + "".join(token.raw for token in self.middle) + self.after
        inner = _place(new, self.elements, translated) if self.whole else None
        if inner is not None:
            return self.before + self.loose + inner + self.after
        pieces = [_render_piece(one.raw, translated) if one.kind == TEXT else one.raw for one in self.middle]
        return self.before + "".join(pieces) + self.after


class Page:
    """``texts`` is what to translate, each once; ``render`` puts the translations in place.

    ``language`` (ISO 639-1) is the page's: it says where sentences end.
    """

    def __init__(self, markup: str, language: str) -> None:
        self._language = language
        self._parts: list[str | _Run] = []
        run: list[Token] = []
        for token in without_opaque(tokenize(markup)):
            if token.kind == OTHER:
                self._end_run(run)
                run = []
                self._parts.append(token.raw)
            else:
                run.append(token)
        self._end_run(run)
        self.texts = list(
            dict.fromkeys(text for part in self._parts if isinstance(part, _Run) for text in part.texts())
        )

    def render(self, translated: Mapping[str, str]) -> str:
        """The page with each text replaced by what ``translated`` has for it; a text that is missing stays."""
        return "".join(part if isinstance(part, str) else part.render(translated) for part in self._parts)

    def _end_run(self, tokens: list[Token]) -> None:
        for sentence in _sentences(tokens, self._language):
            if any(token.kind == TEXT and has_words(_plain(token.raw)) for token in sentence):
                self._parts.append(_run(sentence))
            else:
                self._parts += [token.raw for token in sentence]


def has_words(text: str) -> bool:
    """Whether there is anything to translate: a letter of any script."""
    return any(map(str.isalpha, text))


def without_tags(markup: str) -> str:
    """The words of a page, for a look at their language."""
    return " ".join(_plain(token.raw) for token in tokenize(markup) if token.kind == TEXT)


# ---- a run, sentence by sentence ----


def _sentences(tokens: list[Token], language: str) -> list[list[Token]]:
    """Text and inline tags, cut where sentences and labels end, but not inside an element."""
    if not any(token.kind in (OPEN, OPAQUE) for token in tokens):
        return [tokens]  # nodes split plain text themselves
    plain = [_plain(token.raw) if token.kind == TEXT else "X" * (token.kind == OPAQUE) for token in tokens]
    ends = list(sentence_ends("".join(plain), (), language, MAX_SENTENCE_CHARS))
    after = frozenset(ends)
    sentences: list[list[Token]] = [[]]
    at = depth = 0
    last = ""
    for token, text in zip(tokens, plain, strict=True):
        parts = [token.raw]
        if token.kind == TEXT and not depth:
            cuts = {end - at for end in ends[bisect_right(ends, at) : bisect_right(ends, at + len(text))]}
            if text.startswith(": ") and last:
                cuts.add(2)
            parts = _cut(token.raw, text, sorted(cuts))
        depth = max(0, depth + (token.kind == OPEN) - (token.kind == CLOSE))
        sentences[-1].append(token._replace(raw=parts[0]))
        sentences += [[Token(TEXT, part)] if part else [] for part in parts[1:]]
        at += len(text)
        last = text.rstrip(_SPACE)[-1:] or last
        if token.kind == CLOSE and not depth and (last in _LABEL_ENDS or at in after):
            sentences.append([])
    return [sentence for sentence in sentences if sentence]


def _cut(raw: str, text: str, places: list[int]) -> list[str]:
    """``raw`` cut where its plain ``text`` has these places, behind spaces; whole where they cannot be found."""
    spaces = [found.end() for found in _BLANKS.finditer(raw)]
    if len(spaces) != text.count(" "):  # some of them are written as character references
        return [raw]
    ends = [spaces[text.count(" ", 0, place) - 1] for place in places if text[place - 1] == " "]
    return [raw[start:end] for start, end in zip([0, *ends], [*ends, len(raw)], strict=True)]


def _run(tokens: list[Token]) -> _Run:
    tokens = _join_empty(tokens)
    match = _matches(tokens)
    texts = [number for number, token in enumerate(tokens) if token.kind == TEXT and not _blank(token)]
    first, last = texts[0], texts[-1]
    start, end = 0, len(tokens)
    # What stands before the first word and after the last stays there, and so does what encloses them all.
    while start < first and not (tokens[start].kind == OPEN and start in match and match[start] <= last):
        start += 1
    while end - 1 > last and not (tokens[end - 1].kind == CLOSE and end - 1 in match and match[end - 1] >= start):
        end -= 1
    before = "".join(token.raw for token in tokens[:start])
    after = "".join(token.raw for token in tokens[end:])
    middle = tokens[start:end]
    if middle[0].kind == TEXT:
        lead, core, trail = _edges(middle[0].raw)
        before, middle[0] = before + lead, Token(TEXT, core + trail)
    if middle[-1].kind == TEXT:
        lead, core, trail = _edges(middle[-1].raw)
        middle[-1], after = Token(TEXT, lead + core), trail + after
    run = _Run(before, middle, after)
    _find_whole(run, {number - start for number in match if start <= min(number, match[number]) < end})
    return run


def _blank(token: Token) -> bool:
    return not _edges(token.raw)[1]


def _join_empty(tokens: list[Token]) -> list[Token]:
    """An inline element without text (an anchor, an icon) becomes one token that is copied."""
    joined: list[Token] = []
    opened: list[tuple[str, int]] = []  # name, place in ``joined``
    for token in tokens:
        if token.kind == CLOSE and opened and opened[-1][0] == token.name:
            place = opened.pop()[1]
            few = len(joined) - place <= MAX_TAGS
            if few and all(one.kind != TEXT or _blank(one) for one in joined[place + 1 :]):
                raw = "".join(one.raw for one in joined[place:]) + token.raw
                joined[place:] = [Token(OPAQUE, raw)]
                continue
        elif token.kind == OPEN:
            opened.append((token.name, len(joined)))
        joined.append(token)
    return joined


def _matches(tokens: list[Token]) -> dict[int, int]:
    """The place of each tag's partner; tags without one, or crossing another's, have none."""
    match: dict[int, int] = {}
    opened: list[int] = []
    for number, token in enumerate(tokens):
        if token.kind == OPEN:
            opened.append(number)
        elif token.kind == CLOSE and opened and tokens[opened[-1]].name == token.name:
            other = opened.pop()
            match[number], match[other] = other, number
    return match


def _find_whole(run: _Run, matched: Set[int]) -> None:
    """Set what is needed to translate the run as a whole, if that can be done."""
    if len(run.middle) > 4 * MAX_TAGS or any(
        number not in matched if token.kind in (OPEN, CLOSE) else token.kind == TEXT and "`" in token.raw
        for number, token in enumerate(run.middle)
    ):
        return
    whole, loose = "", ""
    elements: list[_Element] = []
    inner: _Element | None = None
    for token in run.middle:
        if token.kind == TEXT:
            text = _plain(token.raw)
            whole += text.lstrip(_SPACE) if not whole or whole.endswith(" ") else text
        elif token.kind == OPEN:
            inner = _Element(token.name, len(whole), token.raw, inner)
            elements.append(inner)
        elif token.kind == CLOSE:
            assert inner is not None  # every tag has its partner
            inner.close, inner.text = token.raw, whole[inner.start :].strip(_SPACE)
            inner = inner.parent
        elif token.kind == OPAQUE:
            sign = f"`{len(elements)}`"
            elements.append(_Element("", len(whole), token.raw, inner, text=sign))
            whole += sign
        else:
            loose += token.raw
    if len(elements) <= MAX_TAGS and all(one.text for one in elements):
        run.whole, run.elements, run.loose = whole.strip(_SPACE), elements, loose


# ---- the translation into the run ----


class _Place(NamedTuple):
    """Where in the translation an element is; ``wide`` when its tags go around all that its parent has."""

    start: int
    end: int
    element: _Element
    wide: bool = False


def _place(whole: str, elements: list[_Element], translated: Mapping[str, str]) -> str | None:
    """The translation of a sentence with all its tags; None where no place can be answered for."""
    if not whole:
        return None  # there is nothing to put tags around
    places: list[_Place] = []
    inside: dict[int, _Place] = {}
    for one in elements:
        parent = inside.get(id(one.parent))
        low, high = (parent.start, parent.end) if parent else (0, len(whole))
        found = _find(whole, low, high, one, translated)
        place = _Place(*found, one) if found else None
        if place is None or any(_clash(place, other) for other in places):
            if not one.widenable:
                return None
            place = _Place(low, high, one, True)
        if one.name == "a" and any(_link_in_link(place, other) for other in places):
            return None
        inside[id(one)] = place
        places.append(place)
    return _with_tags(whole, places)


def _find(whole: str, low: int, high: int, one: _Element, translated: Mapping[str, str]) -> tuple[int, int] | None:
    """Where in ``whole`` the element's words are, if they are there exactly once."""
    alone = translated.get(one.text, one.text).strip(_SPACE) if one.close else one.text
    for words in (alone, alone.strip(_SIGNS)):  # what stands by itself is often made a sentence
        if not words:
            continue
        left = r"(?<!\w)" if words[0] < _NO_WORD_SPACES else ""
        right = r"(?!\w)" if words[-1] < _NO_WORD_SPACES else ""
        pattern = re.compile(left + re.escape(words) + right, re.IGNORECASE)
        found = pattern.search(whole, low, high)
        if found is not None:
            return None if pattern.search(whole, found.start() + 1, high) else found.span()
    return None


def _clash(place: _Place, other: _Place) -> bool:
    """Whether ``place`` overlaps one that came before and is not around it."""
    if other.end <= place.start or place.end <= other.start or other.wide:
        return False
    return not _is_in(place.element, other.element)


def _link_in_link(place: _Place, other: _Place) -> bool:
    overlap = other.start < place.end and place.start < other.end
    return other.element.name == "a" and overlap and not _is_in(place.element, other.element)


def _is_in(inner: _Element, outer: _Element) -> bool:
    parent = inner.parent
    while parent is not None and parent is not outer:
        parent = parent.parent
    return parent is not None


def _with_tags(whole: str, places: list[_Place]) -> str:
    """Tags in place. At one place: what ends there first, inner before outer; then what begins, outer before inner."""
    begins = [(one.start, 1, one.start - one.end, number) for number, one in enumerate(places)]
    ends = [(one.end, 0, -one.start, -number) for number, one in enumerate(places) if one.element.close]
    out: list[str] = []
    at = 0
    for place, begin, _, number in sorted(begins + ends):
        one = places[abs(number)]
        out += [html.escape(whole[at:place], quote=False), one.element.open if begin else one.element.close]
        at = one.end if begin and not one.element.close else place
    return "".join([*out, html.escape(whole[at:], quote=False)])


def _render_piece(raw: str, translated: Mapping[str, str]) -> str:
    lead, core, trail = _edges(raw)
    text = _plain(core)
    new = translated.get(text, text)
    return raw if new == text else lead + html.escape(new, quote=False) + trail


def _edges(raw: str) -> tuple[str, str, str]:
    """White space around a text, spaces that do not break among it, stays as it is written."""
    found = _LEAD.match(raw)
    start = found.end() if found else 0
    end = len(raw)
    while end > start:
        if raw[end - 1] in _SPACE or raw[end - 1] == "\u00a0":
            end -= 1
        elif raw.endswith("&nbsp;", start, end):
            end -= len("&nbsp;")
        else:
            break
    return raw[:start], raw[start:end], raw[end:]


def _plain(raw: str) -> str:
    """What a reader sees: character references resolved, white space as one space."""
    try:
        text = html.unescape(raw)
    except ValueError:  # a number of thousands of digits
        text = raw
    return _BLANKS.sub(" ", text)
