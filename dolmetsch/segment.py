"""Segments: protect what must not be translated -> split into sentences -> (somebody translates) -> restore.

The room of pure text work: no model, no I/O, no clock. ``parse`` finds the spans of a text (``spans.py``): *cut* spans
are copied and end a run of prose; *word* spans are cut off at the edge of a sentence and become stand-ins inside it;
*mark* spans are Markdown's markers. Everything else is prose, split into sentences (``sentences.py``). A document is
then a row of literals and segments; with each segment's own source put back it is the text again, byte for byte.

The figures in this file are chrF or shares measured with the embedded de->en model on Tatoeba sentences.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

import regex
from msgspec import Struct

from dolmetsch.errors import LocalError
from dolmetsch.sentences import sentence_ends
from dolmetsch.spans import Span, find_spans

MAX_SEGMENT_CHARS: Final = 600
"""Characters of the longest source: beyond about this length the models drop or repeat clauses."""

STAND_INS: Final = ("Tom", "Mary", "John", "Paris", "Tokyo", "London", "Boston", "Chicago", "Google", "Sami")
"""Words put in place of inner spans, best first. In place of a name or noun of 229 sentences they were in the
translation exactly once in 95 92 86 84 84 84 77 74 73 68 %; rare names, codes like X7, "URL": under 7 %."""

# Stand-ins can be longer than the shortest spans, so the raw text of a segment is kept this much shorter.
_MAX_RAW_CHARS: Final = MAX_SEGMENT_CHARS - 8 * len(STAND_INS)

# Most chat messages are one sentence that begins with a letter and has nothing in it to look at more closely (but
# "xD"); in a child of a node, which parses beside its model, looking cost as much as the tokenizer.
_PLAIN: Final = regex.compile(
    r"[\p{Latin}&&\p{L}][\p{Latin}[\p{M}--[\uFE0F\u20E3]]\p{Nd} ,'’\"„“”–-]*+(?<! )[.!?]?", regex.VERSION1
)
_LAUGHS: Final = ("xD", "XD")

_LETTER: Final = regex.compile(r"\p{L}")
_SOLID: Final = regex.compile(r"[\p{L}\p{N}]")
_GLUE: Final = regex.compile(r"[\w\p{M}]")
# What a sentence begins with: a letter, a digit, an opening quote or bracket, or a sign that belongs to them.
_START: Final = regex.compile(r"[\p{L}\p{N}\p{Ps}\p{Pi}\p{Pf}\p{Sc}\"'§¿¡]|[@\#&](?=[\p{L}\p{N}])|[%+\-−](?=\p{N})")
_SOFT_TAIL: Final = regex.compile(r"[\s,;:\p{Pd}\p{Ps}]")
# A full stop or an exclamation mark of the model's own, behind a word: not the dot of "a.m.", nor the last of three.
_ADDED_STOP: Final = regex.compile(r"(?<=[\p{L}\p{M}\p{N}])(?<!\.\p{L})[.!]\s*\Z")
_STAND_IN: Final = regex.compile(rf"(?<![\w\p{{M}}])(?:{'|'.join(STAND_INS)})(?![\w\p{{M}}])")
_WIDENABLE: Final = frozenset({"*", "**", "***", "_", "__", "___", "||"})

# What wraps a whole sentence is left out of it: that gains 11 chrF with quotes, 15 with parentheses.
_WRAPPERS: Final = {"„": "“”", "“": "”", '"': '"', "»": "«", "«": "»", "‚": "‘’", "(": ")", "[": "]"}

# A mention that opens a sentence mostly calls somebody (cut: 76 chrF, stand-in: 56), but before one of these
# it is the subject, and without it the verb would get a wrong one (stand-in: 75, cut: 55).
_GERMAN_AFTER_SUBJECT: Final = regex.compile(
    r"[ \t](?:darf|geht|hat|hatte|ist|kann|kommt|macht|mag|meint|meinte|muss|sagt|sagte|schreibt|soll|und|"
    r"war|will|wird|wurde)\b"
)
# After a greeting a mention calls somebody too.
_GERMAN_GREETING: Final = regex.compile(
    r"(?i)\s*(?:danke|guten (?:abend|morgen|tag)|hallo|hey|hi|huhu|moin|na|ok|servus|sorry)[,!]?\s*"
)
# The German names that the models turn into a stand-in.
_GERMAN_NAMES: Final = {"maria": "mary", "tokio": "tokyo"}
_NAME: Final = regex.compile(rf"(?i)(?<!\p{{L}})(?:{'|'.join([*STAND_INS, *_GERMAN_NAMES])})")


class Segment(Struct, frozen=True, gc=False):
    """One sentence as it goes to the model: ``source`` has a letter, at most MAX_SEGMENT_CHARS in all."""

    source: str
    spans: tuple[tuple[str, str], ...] = ()
    """(stand-in, original) for each inner span, in the order of the source."""

    def restore(self, translation: str) -> str | None:
        """``translation`` with the original spans; None when a stand-in is missing or in it twice.

        It ends as the source does: models put a mark behind a greeting, a heading, or what stands before a link.
        """
        end = self.source[-1]
        if end.isalnum() or end in ",;:":
            translation = _ADDED_STOP.sub("" if end.isalnum() else end, translation)
        if not self.spans:
            return translation
        originals = dict(self.spans)
        seen: list[str] = []

        def original(match: regex.Match[str]) -> str:
            word: str = match[0]
            if word not in originals:
                return word
            seen.append(word)
            return originals[word]

        restored: str = _STAND_IN.sub(original, translation)
        return restored if sorted(seen) == sorted(originals) else None

    def pieces(self) -> Document:
        """The same sentence cut at its spans, which become literals; no segment of it has a stand-in."""
        originals = dict(self.spans)
        builder = _Builder()
        at = 0
        for match in _STAND_IN.finditer(self.source):
            if match[0] in originals:
                builder.prose(self.source[at : match.start()])
                builder.literal(originals[match[0]])
                at = match.end()
        builder.prose(self.source[at:])
        return builder.document()


class Emphasis(Struct, frozen=True, gc=False):
    """A sentence with one marker pair inside: segment ``whole`` without the markers, and what they enclose.

    ``inner`` is a segment's number, or the enclosed text itself when it has no letter.
    """

    whole: int
    inner: int | str
    opening: str
    closing: str

    def mark(self, whole: str, inner: str) -> str:
        """``whole`` with the markers around its only occurrence of ``inner``, or else around all of it."""
        found = _only(inner, whole)
        start, end = found or (0, len(whole))
        return f"{whole[:start]}{self.opening}{whole[start:end]}{self.closing}{whole[end:]}"


class Document(Struct, frozen=True, gc=False):
    """A text as literals (str), segments (their numbers) and emphasised sentences, in order."""

    segments: tuple[Segment, ...]
    parts: tuple[str | int | Emphasis, ...]

    def assemble(self, translations: Sequence[str]) -> str:
        """The translated text; ``translations[i]`` is the restored translation of ``segments[i]``.

        Literals come out byte for byte. A translation adds no line: its line ends become spaces.
        Raises LocalError when there is not exactly one translation for each segment.
        """
        if len(translations) != len(self.segments):
            raise LocalError(f"{len(self.segments)} segments, but {len(translations)} translations")
        lines = [_one_line(translation) for translation in translations]
        if self.parts == _WHOLE:
            return lines[0]
        out: list[str] = []
        for part in self.parts:
            if isinstance(part, str):
                out.append(part)
            elif isinstance(part, int):
                out.append(lines[part])
            else:
                inner = part.inner if isinstance(part.inner, str) else lines[part.inner]
                out.append(part.mark(lines[part.whole], inner))
        return "".join(out)


_WHOLE: Final[tuple[str | int | Emphasis, ...]] = (0,)


def parse(text: str, language: str) -> Document:
    """Split ``text`` (no lone surrogates) of ``language`` (ISO 639-1: "de") into a document; linear time."""
    if len(text) <= _MAX_RAW_CHARS and _PLAIN.fullmatch(text) and not any(laugh in text for laugh in _LAUGHS):
        return Document((Segment(text),), _WHOLE)
    return _parse(text, language)


def _parse(text: str, language: str) -> Document:
    builder = _Builder()
    start = 0
    run: list[Span] = []
    for span in find_spans(text):
        if span.kind == "cut":
            _add_run(builder, text[start : span.start], run, language)
            builder.literal(text[span.start : span.end])
            start, run = span.end, []
        else:
            run.append(span.moved(-start))
    _add_run(builder, text[start:], run, language)
    return builder.document()


@dataclass(slots=True)
class _Builder:
    segments: list[Segment] = field(default_factory=list)
    parts: list[str | int | Emphasis] = field(default_factory=list)

    def literal(self, text: str) -> None:
        if text:
            self.parts.append(text)

    def segment(self, segment: Segment) -> int:
        self.segments.append(segment)
        return len(self.segments) - 1

    def prose(self, text: str) -> None:
        """Add text without spans: its edges as literals, the rest as one segment if it has a letter."""
        lead, core, tail = _trim(text)
        self.literal(lead)
        if core:
            self.parts.append(self.segment(Segment(core)))
        self.literal(tail)

    def document(self) -> Document:
        return Document(tuple(self.segments), tuple(self.parts))


def _add_run(builder: _Builder, text: str, spans: list[Span], language: str) -> None:
    """Add prose of one line, with its word and mark spans, sentence by sentence."""
    if _LETTER.search(text) is None:
        builder.literal(text)
        return
    start = at = 0
    for end in sentence_ends(text, spans, language, _MAX_RAW_CHARS):
        first = at
        while at < len(spans) and spans[at].start < end:
            at += 1
        if at > first:
            last = spans[at - 1]
            end = max(end, last.end)
            # An opening marker belongs to what follows it.
            if last.kind == "mark" and last.end == end < len(text):
                at -= 1
                end = last.start
        if end > start:
            _add_sentence(builder, text[start:end], [span.moved(-start) for span in spans[first:at]], language)
            start = end


def _add_sentence(builder: _Builder, text: str, spans: list[Span], language: str) -> None:
    if not spans:
        builder.prose(text)
        return
    marks = [span for span in spans if span.kind == "mark"]
    if len(spans) == len(marks) == 2 and _add_emphasis(builder, text, *marks):
        return
    words: list[Span] = []
    start = 0
    for span in [*spans, Span(len(text), len(text), "mark")]:
        if span.kind == "word":
            words.append(span.moved(-start))
            continue
        _add_clause(builder, _alternate(text[start : span.start], words), language)
        builder.literal(text[span.start : span.end])
        words, start = [], span.end


def _add_emphasis(builder: _Builder, text: str, opening: Span, closing: Span) -> bool:
    """Add a sentence with one marker pair inside it; False when it must be cut at its markers.

    Cutting breaks the grammar (38 chrF against 50 for the whole sentence), and the model knows no markers.
    So the sentence is translated whole and its emphasised words once more by themselves: found in it exactly
    once, they get the markers; otherwise the whole sentence does: emphasis on too much but never on the wrong
    word, and a spoiler hides all. Struck-out words are cut: striking too much would say something else.
    """
    marks = text[opening.start : opening.end], text[closing.start : closing.end]
    if not (marks[0] == marks[1] in _WIDENABLE or (marks[0] == "[" and marks[1].startswith("]("))):
        return False
    before, enclosed, after = text[: opening.start], text[opening.end : closing.start], text[closing.end :]
    label = enclosed.endswith((":", "–")) or after.startswith((":", " –"))
    if label or not (_SOLID.search(before) or _SOLID.search(after)):
        return False
    lead, whole, tail = _trim(before + enclosed + after)
    inner = _trim(enclosed)[1]
    emphasis = Emphasis(len(builder.segments), len(builder.segments) + 1 if inner else enclosed, *marks)
    if lead + emphasis.mark(whole, inner or enclosed) + tail != text:
        return False
    builder.literal(lead)
    builder.segments.append(Segment(whole))
    if inner:
        builder.segments.append(Segment(inner))
    builder.parts.append(emphasis)
    builder.literal(tail)
    return True


def _alternate(text: str, words: list[Span]) -> list[str]:
    """``text`` as prose, span, prose, ... prose; spans with only spaces between them are taken as one."""
    out = [""]
    at = 0
    for word in words:
        between = text[at : word.start]
        if len(out) > 1 and not between.strip():
            out[-2] += between + text[word.start : word.end]
        else:
            out[-1] = between
            out += text[word.start : word.end], ""
        at = word.end
    out[-1] = text[at:]
    return out


def _add_clause(builder: _Builder, row: list[str], language: str) -> None:
    """Add prose, span, prose, ... prose: spans at the edges as literals, those inside as stand-ins."""
    first, last = 0, len(row) - 1
    while first < last and not _SOLID.search(row[first]):
        if language == "de" and row[first + 1][0] in "<@" and _GERMAN_AFTER_SUBJECT.match(row[first + 2]):
            break
        first += 2
    if language == "de" and last > first and _GERMAN_GREETING.fullmatch(row[first]):
        builder.literal("".join(row[:first]))
        builder.prose(row[first])
        builder.literal(row[first + 1])
        row, first, last = row[first + 2 :], 0, last - first - 2
    # Without its question mark a question becomes a statement, so a span before one counts as inside: 4 chrF.
    while last > first and not _SOLID.search(row[last]) and "?" not in row[last]:
        last -= 2
    builder.literal("".join(row[:first]))
    core = row[first : last + 1]
    if len(core) > 1:
        _add_with_stand_ins(builder, core)
    else:
        # A comma, dash or colon before a span that was cut off would be left hanging.
        end = len(core[0])
        while last + 1 < len(row) and end and _SOFT_TAIL.match(core[0], end - 1):
            end -= 1
        builder.prose(core[0][:end])
        builder.literal(core[0][end:])
    builder.literal("".join(row[last + 1 :]))


def _add_with_stand_ins(builder: _Builder, row: list[str]) -> None:
    """Add prose, span, prose, ... prose as one segment, or cut at the spans where that cannot be undone."""
    names = _free_stand_ins(row[::2])
    spans = tuple(zip(names, row[1::2], strict=False))
    if len(spans) == len(row) // 2 and _LETTER.search("".join(row[::2])):
        replaced = row.copy()
        replaced[1::2] = names[: len(spans)]
        lead, core, tail = _trim("".join(replaced))
        segment = Segment(core, spans)
        # None when a span touches a letter or digit, so that its stand-in is not a word of its own.
        if segment.restore(core) is not None:
            builder.literal(lead)
            builder.parts.append(builder.segment(segment))
            builder.literal(tail)
            return
    for index, text in enumerate(row):
        builder.literal(text) if index % 2 else builder.prose(text)


def _free_stand_ins(prose: list[str]) -> list[str]:
    """The stand-ins that no word of ``prose`` begins with, best first."""
    found = {name.lower() for name in _NAME.findall(" ".join(prose))}
    taken = {_GERMAN_NAMES.get(name, name) for name in found}
    return [name for name in STAND_INS if name.lower() not in taken]


def _trim(text: str) -> tuple[str, str, str]:
    """``text`` as (lead, core, tail): the core is what is worth translating, or empty."""
    if _LETTER.search(text) is None:
        return text, "", ""
    begin = _START.search(text)
    start, end = begin.start() if begin else 0, len(text)
    while text[end - 1].isspace() or not (text[end - 1].isprintable() or _GLUE.match(text[end - 1])):
        end -= 1
    closers = _WRAPPERS.get(text[start], "")
    if text[end - 1] in closers and not any(sign in text[start + 1 : end - 1] for sign in text[start] + closers):
        lead, core, tail = _trim(text[start + 1 : end - 1])
        return text[: start + 1] + lead, core, tail + text[end - 1 :]
    return text[:start], text[start:end], text[end:]


def _only(inner: str, whole: str) -> tuple[int, int] | None:
    """Where ``inner``, with or without its punctuation, is in ``whole`` as words; None unless once."""
    folded = whole.lower()
    if len(folded) != len(whole):
        folded = whole
    for words in (inner.lower(), inner.lower().strip(" .,;:!?\"'“”")):
        start = folded.find(words) if words else -1
        end = start + len(words)
        glued = _GLUE.match(folded[start - 1 : start]) or _GLUE.match(folded[end : end + 1])
        if start >= 0 and not glued and folded.find(words, start + 1) < 0:
            return start, end
    return None


def _one_line(text: str) -> str:
    lines = text.splitlines()
    if len(lines) == 1:
        return lines[0].strip()
    return " ".join([part for line in lines if (part := line.strip())])
