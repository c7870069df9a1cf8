"""Replies: what the bot says in Discord, cut into messages that Discord takes. Pure.

A text that does not fit into one message is cut where it reads best: between paragraphs, else lines, else sentences,
else words. Mentions, emoji, links, inline code and spoilers stay whole as long as one message can hold them. A code
fence that is cut is closed and opened again; other Markdown around a cut (bold, a quote) is not carried over.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import accumulate
from typing import Final

import regex

from dolmetsch.errors import LocalError
from dolmetsch.spans import find_spans

LIMIT: Final = 2000  # of one message of a bot
MOST: Final = 3  # messages in a row: more would push everything else out of sight
IN_FILE: Final = "The translation is long: it is in the file."

_ROOM: Final = 100  # units beside the header: IN_FILE fits, and so does a fence with something in it
_MAX_LANGUAGE_CHARS: Final = 24  # a fence opened again costs at most 28 units, and its end 4
_FENCE_END: Final = "\n```"
# How full a message must be before it may end. The fuller, the fewer borders to choose from: first what reads best.
_FILLS: Final = (0.5, 0.8, 0.95)

# How good a place is for a cut: the higher the better, and the later of two equal ones.
_NOWHERE, _ATOM, _ANYWHERE, _WORD, _SENTENCE, _CODE_LINE, _LINE, _PARAGRAPH = range(8)

_BLANK: Final = r"[\s\x1c-\x1f]"  # what str.isspace takes for white space
_BLANKS: Final = regex.compile(rf"{_BLANK}++")
_CLOSERS: Final = r"[\p{Pe}\p{Pf}\p{Pi}\"'*_~|]*+"
_SENTENCE_END: Final = regex.compile(rf"(?<![.!?…])[.!?…]++{_CLOSERS}(?={_BLANK}++[^\p{{Ll}}\s])|[。！？]++{_CLOSERS}")
# One grapheme. Pairs of regional indicators come first: \X counts them from the start of their run each time.
_GRAPHEME: Final = regex.compile(r"\p{RI}{2}[\p{M}\u200D]*+|\X")
_LINE_START: Final = regex.compile(r"(?:>>>|>|[-*+•]|-\#|\#{1,3}|\d{1,9}[.)])[ \t]|```")
_FENCE: Final = regex.compile(rf"```(?:([A-Za-z0-9_+\-.\#]{{1,{_MAX_LANGUAGE_CHARS}}}+)\n)?\s*+")
# Half a spoiler would hide nothing. In code || is something else.
_SPOILER: Final = regex.compile(r"```[\s\S]+?```|(?P<spoiler>\|\|[\s\S]+?\|\|)")


@dataclass(frozen=True, slots=True)
class Reply:
    """``messages`` to send one after the other; with ``file``, the whole text to attach to the only message."""

    messages: tuple[str, ...]
    file: str | None


def source_text(content: str, embed_title: str | None, embed_description: str | None) -> str:
    """What there is to translate in a message: its parts that are not blank, with a blank line between them."""
    parts = (part.strip() for part in (content, embed_title, embed_description) if part)
    return "\n\n".join(filter(None, parts))


def reply(header: str, text: str, *, limit: int = LIMIT, most: int = MOST) -> Reply:
    """``text`` behind ``header``: one to ``most`` messages of at most ``limit`` units, or one with a file. Linear time.

    A unit is one of UTF-16. Discord's server counts code points (discord-api-docs, issue 1315) and some clients count
    units; units are never fewer. White space at the cuts is dropped. Raises LocalError when ``limit`` leaves too little
    room beside the header.
    """
    if limit < units(header) + _ROOM:
        raise LocalError(f"a limit of {limit} leaves no room beside a header of {units(header)} units")
    body = text.strip()
    lead = header + ("\n" if _LINE_START.match(body) else " ")
    if units(lead) + units(body) <= limit:
        return Reply(((lead + body).rstrip(),), None)
    # Longer than this is too long in any case, so that nobody has to look for places to cut.
    if units(body) <= limit * most:
        cuts = _Cuts(body)
        for fill in _FILLS:
            messages = tuple(cuts.messages(lead, limit, most, fill))
            if len(messages) <= most:
                return Reply(messages, None)
    return Reply((f"{header} {IN_FILE}",), text)


def units(text: str) -> int:
    """The length of ``text`` in UTF-16 code units."""
    return len(text) + sum(char > "\uffff" for char in text)


@dataclass(frozen=True, slots=True)
class _Fence:
    """A code block: its code is ``text[start:end]``; ``opening`` is what begins it anew."""

    start: int
    end: int
    opening: str


class _Cuts:
    """Where a text can be cut, and how well: ``_ranks[i]`` for a cut before character i."""

    def __init__(self, text: str) -> None:
        self._text = text
        self._before = [0, *accumulate(1 + (char > "\uffff") for char in text)]  # units before each character
        self._ranks = bytearray(len(text) + 1)
        self._fences: list[_Fence] = []
        for match in _GRAPHEME.finditer(text):
            self._ranks[match.end()] = _ANYWHERE
        self._rank_borders()
        self._protect()

    def messages(self, lead: str, limit: int, most: int, fill: float) -> Iterator[str]:
        """The messages, the first behind ``lead``; ends after one more than ``most``."""
        start = 0
        for _ in range(most + 1):
            fence = self._fence_at(start)
            opening = lead + (fence.opening if fence else "")
            end = self._end(start, limit - units(opening), fill)
            yield opening + self._text[start:end] + (_FENCE_END if self._fence_at(end) else "")
            start, lead = self._skip(end), ""
            if start == len(self._text):
                return

    def _rank_borders(self) -> None:
        for match in _SENTENCE_END.finditer(self._text):
            self._raise(match.end(), _SENTENCE)
        for match in _BLANKS.finditer(self._text):
            lines = match[0].count("\n")
            self._raise(match.start(), _PARAGRAPH if lines > 1 else _LINE if lines else _WORD)
            self._protect_inside(match.start(), match.end() + 1)  # a cut behind white space would keep it

    def _protect(self) -> None:
        """Keep spans whole; inside a fence the best that a cut can be is one between two lines."""
        label = -1  # where a link's label begins
        for span in find_spans(self._text):
            piece = self._text[span.start : span.end]
            if span.kind == "cut" and piece.startswith("```"):
                self._add_fence(span.start, span.end)
            elif piece == "[":
                label = span.start
            elif label >= 0 and piece.startswith("]("):
                self._protect_inside(label, span.end)
                label = -1
            else:  # of a line end with a prefix after it, only the prefix
                self._protect_inside(span.start + piece.rfind("\n") + 1, span.end)
        for match in _SPOILER.finditer(self._text):
            if match["spoiler"]:
                self._protect_inside(match.start(), match.end())

    def _add_fence(self, start: int, end: int) -> None:
        head = _FENCE.match(self._text, start, end - 3)
        code = head.end() if head else end
        stop = end - 3
        while stop > code and self._text[stop - 1].isspace():
            stop -= 1
        self._protect_inside(start, code + 1)
        self._protect_inside(stop - 1, end)
        for at in range(code + 1, stop):
            self._ranks[at] = min(self._ranks[at], _CODE_LINE)
        language = head[1] if head else None
        self._fences.append(_Fence(code, stop, f"```{language or ''}\n"))

    def _raise(self, at: int, rank: int) -> None:
        """Make ``at`` as good as ``rank``, unless a grapheme would be torn there."""
        if self._ranks[at]:
            self._ranks[at] = max(self._ranks[at], rank)

    def _protect_inside(self, start: int, end: int) -> None:
        for at in range(start + 1, end):
            self._ranks[at] = min(self._ranks[at], _ATOM)

    def _fence_at(self, at: int) -> _Fence | None:
        """The fence whose code goes on at ``at``."""
        index = bisect_right(self._fences, at, key=lambda fence: fence.start) - 1
        return self._fences[index] if index >= 0 and self._fences[index].start < at < self._fences[index].end else None

    def _end(self, start: int, room: int, fill: float) -> int:
        """Where a message that begins at ``start`` and has ``room`` units ends."""
        most = self._before[start] + room
        if self._before[-1] <= most:
            return len(self._text)
        if self._fences:  # one may have to be closed
            most -= len(_FENCE_END)
        last = bisect_right(self._before, most) - 1
        first = bisect_right(self._before, most - round((1 - fill) * room))
        best = self._best(first, last)
        for rank in (_ANYWHERE, _ATOM):
            if self._ranks[best] >= rank:
                return best
            # What must stay whole begins before ``first``: end before it. If it fills the message, cut it.
            before = next((at for at in range(first, start, -1) if self._ranks[at] >= rank), None)
            if before is not None:
                return before
        return last

    def _best(self, first: int, last: int) -> int:
        return max(range(first, last + 1), key=lambda at: (self._ranks[at], at))

    def _skip(self, at: int) -> int:
        """Where the next message begins after a cut at ``at``: behind white space, but code keeps its indentation."""
        blank = _BLANKS.match(self._text, at)
        if blank is None:
            return at
        lines = blank[0].rfind("\n") + 1
        return at + lines if lines and self._fence_at(at) else int(blank.end())


def unavailable(flag: str, route: str, there: str) -> str:
    """Nobody translates ``route``; ``there`` lists what is translated, empty when no node is connected.

    ``flag`` is empty where nobody reacted with one.
    """
    if not there:
        return "No translator is connected right now. Try again in a minute."
    return f"{flag} {route} is not available here. There is: {there}.".lstrip()


def overloaded(retry_after_s: float) -> str:
    """The cluster takes no more for now."""
    return f"Overloaded: try again in {_seconds(retry_after_s)}."


def slow_down(retry_after_s: float) -> str:
    """One member or server asks for too much."""
    return f"Slow down: try again in {_seconds(retry_after_s)}."


def too_long(chars: int, limit: int) -> str:
    """The text has more characters than a job may have."""
    return f"The text is too long: it has {_count(chars, 'character')}, and at most {_number(limit)} can be translated."


def no_text() -> str:
    """There is nothing in the message, or only pictures."""
    return "There is no text to translate in this message."


def unreachable() -> str:
    """No broker answered in time."""
    return "The translators could not be reached in time. Try again in a minute."


def failed(code: str) -> str:
    """Why a translation did not come, in one sentence, for a code of docs/protocol.md; other codes say nothing more."""
    return _FAILED.get(code, "The translation failed.")


def cluster(nodes: int, workers: int, queued: int, median_ms: float, translations: int) -> str:
    """The answer to ``/cluster``, four lines; a median of 0 ms means that nothing was translated yet."""
    median = f"{_number(max(1, round(median_ms)))} ms" if median_ms > 0 else "not known yet"
    return "\n".join(
        (
            f"Connected: {_count(nodes, 'Pi')} with {_count(workers, 'worker')}",
            f"Waiting: {_count(queued, 'text')}",
            f"Median time: {median}",
            f"Done: {_count(translations, 'translation')}",
        )
    )


def presence(nodes: int, translations: int) -> str:
    """The bot's status line: "3 Pis · 1 234 translations"."""
    return f"{_count(nodes, 'Pi')} · {_count(translations, 'translation')}"


_TOO_LONG: Final = "The text is too long to translate."
_NO_ROUTE: Final = "No translator here knows this language."
_FAILED: Final = {
    "attempts": "The translators that worked on this were lost. Try again in a minute.",
    "bad_deadline": "The translation was not ready in time. Try again in a minute.",
    "child_crashed": "The translator crashed on this text.",
    "child_timeout": "The translator got stuck on this text.",
    "deadline": "The translation was not ready in time. Try again in a minute.",
    "degenerate_output": "The model found no sensible translation of this text.",
    "draining": "The translators are about to restart. Try again in a minute.",
    "empty_text": no_text(),
    "engine_error": "The translator could not work on this text.",
    "no_route": _NO_ROUTE,
    "overloaded": "Overloaded: try again in a minute.",
    "too_large": _TOO_LONG,
    "too_long": _TOO_LONG,
    "unknown_route": _NO_ROUTE,
}


def _seconds(wait_s: float) -> str:
    """Rounded up, so that whoever waits that long is not told to wait again."""
    return f"{_number(max(1, math.ceil(wait_s)))} s"


def _count(number: int, noun: str) -> str:
    return f"{_number(number) if number else 'no'} {noun}{'' if number == 1 else 's'}"


def _number(number: int) -> str:
    """With a narrow no-break space between thousands."""
    return f"{number:,}".replace(",", "\u202f")
