"""Sentences: where those of one line of prose end.

sentencex splits; what it gets wrong in chats and in German is put right around it. The figures are chrF or shares
measured with the embedded de->en model on Tatoeba sentences.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Final

import regex
import sentencex

from dolmetsch.spans import Span

# sentencex takes quadratic time on some texts (50 000 backticks: 0.7 s), so it is fed this much at a time.
_MAX_RUN_CHARS: Final = 4000

# Writers on Discord often drop capitals, and sentencex takes a capital for the start of a sentence: so it is
# shown capitals. Splitting such text gains 5 chrF; its own list of abbreviations still decides.
_LOWER_START: Final = regex.compile(r"(?<=(?:\p{L}\p{L}\.|[!?])\s{1,3})\p{Ll}")
# Most chat messages are one sentence, and look it: sentencex takes ten times as long to find that out.
_ONE_SENTENCE: Final = regex.compile(r"[\p{Latin}\p{M}\p{Nd} ,'’\"„“”–-]*+[.!?]?+\s*+")
_ORDINAL_LANGUAGES: Final = frozenset(
    ("de", "da", "nb", "no", "fi", "et", "cs", "sk", "sl", "hr", "sr", "hu", "pl", "lv", "is", "tr")
)
_WIDE_SPACE: Final = regex.compile(r"[^\S\x00-\x7f]")  # white space of more than one byte in UTF-8
# "der 2. Weltkrieg": in Tatoeba 33 of 34 such splits after one or two digits were wrong.
_ORDINAL: Final = regex.compile(r"(?<![\w.,:])\d{1,2}\.\s++\Z")
# German abbreviations that sentencex does not know.
_ABBREVIATION: Final = regex.compile(
    r"(?i)(?<![\w.])(?:abb|abs|ab?zgl|allg|ausschl|bes|betr|bspw?|dt|ehem|eigt?l?|einschl|engl|entspr|exkl|frz|"
    r"gem|ggü|inkl|insb|insbes|jhd?|kap|(?-i:max)|mind?|sek|std|tel|urspr|verm|vermutl|vmtl|zzgl|m\.e|m\.m\.n)\.\s++\Z"
)


def sentence_ends(text: str, spans: Sequence[Span], language: str, most_chars: int) -> Iterator[int]:
    """Offsets at which the sentences of ``text`` end; the last is its length, none is longer than ``most_chars``.

    Nothing in ``spans`` ends a sentence.
    """
    if not spans and len(text) <= most_chars and _ONE_SENTENCE.fullmatch(text):
        yield len(text)
        return
    done = 0
    for run in _chunks(_shadow(text, spans), _MAX_RUN_CHARS):
        capitals = _LOWER_START.sub(_upper, run)
        at = begin = 0
        for length in _lengths(language, capitals):
            at += length
            if at < len(run) and _goes_on(run[begin:at], language):
                continue
            yield from _ends(run[begin:at], most_chars, done + begin)
            begin = min(at, len(run))
        if begin < len(run):  # sentencex lost something: keep the rest as it is
            yield from _ends(run[begin:], most_chars, done + begin)
        done += len(run)


def _lengths(language: str, run: str) -> list[int]:
    """Lengths of the sentences of ``run`` as sentencex sees them; it may lose some of the end.

    Its Rust panics where it cuts inside a character, as it does between a capital, such white space and a period. A
    panic is no ``Exception``: one message would end every process that it is given to.
    """
    try:
        return [len(sentence) for sentence in sentencex.segment(language, _WIDE_SPACE.sub(" ", run))]
    except BaseException as error:
        if type(error).__name__ != "PanicException":
            raise
        return [len(run)]


def _shadow(text: str, spans: Sequence[Span]) -> str:
    """``text``, as long as it was, with nothing in its spans that could look like the end of a sentence."""
    out: list[str] = []
    at = 0
    for span in spans:
        out += text[at : span.start], (" " if span.kind == "mark" else "X") * (span.end - span.start)
        at = span.end
    return "".join([*out, text[at:]])


def _upper(match: regex.Match[str]) -> str:
    letter: str = match[0]
    capital = letter.upper()
    return capital if len(capital) == 1 else letter


def _goes_on(sentence: str, language: str) -> bool:
    """Whether sentencex split after an ordinal number or a German abbreviation."""
    if language in _ORDINAL_LANGUAGES and _ORDINAL.search(sentence[-16:]):
        return True
    return language == "de" and _ABBREVIATION.search(sentence[-16:]) is not None


def _ends(sentence: str, limit: int, start: int) -> Iterator[int]:
    """Where the chunks of ``sentence``, which begins at ``start``, end."""
    for chunk in _chunks(sentence, limit):
        start += len(chunk)
        yield start


def _chunks(text: str, limit: int) -> Iterator[str]:
    """``text`` in parts of at most ``limit`` characters, cut after a clause, else a space, else anywhere."""
    start = 0
    while len(text) - start > limit:
        window = text[start : start + limit]
        clause = max(window.rfind(mark) for mark in (". ", "; ", ": ", ", ", "– ", "! ", "? ")) + 2
        space = window.rfind(" ") + 1
        cut = next((cut for cut in (clause, space) if cut > limit // 3), limit)
        yield window[:cut]
        start += cut
    yield text[start:]
