"""Spans: the parts of a text that must not be translated as prose, found in one pass.

* *cut* spans end a run of prose and are copied: line ends with the list, quote and heading prefixes after
  them, code fences, emoji, emoticons;
* *word* spans are copied too, but a sentence may go on around them: mentions, timestamps, URLs, e-mail
  addresses, inline code;
* *mark* spans are Markdown's paired markers and links.

As on Discord, a fence that is never closed is not code: its backticks are copied, its lines are translated.
Inline code ends with its line, so that a stray backtick (often a mistyped apostrophe) swallows no paragraph.
An emoji ends a clause more often than it stands for a word: cutting there gains 8 chrF at the end of a clause
and loses 5 elsewhere, so emoji cut.

Sources: Discord's developer documentation, "Message Formatting"; the emoji pattern of UTS #51, "EBNF
and Regex"; trailing punctuation of URLs after GitHub Flavored Markdown, "Autolinks (extension)".
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

import regex

_MAX_LABEL_CHARS: Final = 600  # a link's label: a longer one would not fit into a segment

_LINE_END: Final = r"\n\r\x0b\x0c\x1c-\x1e\x85\u2028\u2029"  # what str.splitlines takes for one
_PREFIX: Final = r"(?:(?:>>>|>|[-*+•]|-\#|\#{1,3}|\d{1,9}[.)])[ \t]++)"
_EMOJI_ELEMENT: Final = r"\p{Emoji}(?:\p{EMod}|[\uFE0E\uFE0F]\u20E3?|\u20E3|[\U000E0020-\U000E007E]++\U000E007F)?+"
_SPAN_PATTERN: Final = rf"""
      (?P<cut>
        (?:\A|[{_LINE_END}]) (?:[^\S{_LINE_END}]*+[{_LINE_END}])*+ [ \t]*+ {_PREFIX}++
      | [{_LINE_END}]\s*+
      | ```[\s\S]+?```
      # UTS #51; digits, #, *, and the signs below are emoji only when a selector or a keycap says so.
      | \p{{RI}}\p{{RI}}
      | (?![0-9\#*©®™](?!\uFE0F?\u20E3)(?![©®™]?\uFE0F)) {_EMOJI_ELEMENT} (?:\u200D{_EMOJI_ELEMENT})*+
      | <a?:\w{{1,64}}+:\d{{1,20}}+>
      | (?<!\w):[A-Za-z0-9_+-]{{2,64}}+:(?!\w)
      | [:;=][-'^]?[)(]++(?!\w)
      | (?<!\S)(?:[:;=][-'^]?(?:[/\\|*]|[DPpOo3])(?![\w/])|[xX]D++(?!\w)|<3++|\^\^++)
      | ¯\\++_\(ツ\)_/¯
      )
    | (?P<word>
        (?<!`)`(?!`)(?:[^`{_LINE_END}]++|``++)++`(?!`)
      | (?<!`)``(?!`)(?:[^`{_LINE_END}]++|`(?!`)|```++)++``(?!`)
      | <(?:@[!&]?|\#)\d{{1,20}}+>
      | <t:-?\d{{1,20}}+(?::[A-Za-z])?>
      | </[^<>:{_LINE_END}]{{1,128}}+:\d{{1,20}}+>
      | <id:[\w:-]{{1,64}}+>
      | <(?i:https?)://[^\s<>{_LINE_END}]++>
      | @(?:everyone|here)(?!\w)
      )
    | (?P<url>
        (?:(?i:https?)://|(?<![\w.@/-])(?i:www\.|discord\.gg/|discord(?:app)?\.com/))(?=[\p{{L}}\p{{N}}\[])
        (?:(?!\]\()[^\s<>|`"{_LINE_END}])++
      )
    | (?P<mark>
        \\[*_~|`\\<>\#\[\]]
      | \[(?=[^\[\]{_LINE_END}]{{1,{_MAX_LABEL_CHARS}}}+\]\(<?(?i:https?)://)
      | \]\((?:<(?i:https?)://[^\s<>{_LINE_END}]++>
            |(?i:https?)://(?:[^\s()<>{_LINE_END}]++|\([^\s()<>{_LINE_END}]*+\))++)
        (?:[ \t]++"[^"{_LINE_END}]*+")?\)
      # A single * or _ between two letters is spelling (Nutzer*innen, snake_case).
      | \*\*++|(?<!\w)\*|\*(?!\w)|(?<!\w)_++|_++(?!\w)|~~++|\|++|``++
      )
    """
_SPAN: Final = regex.compile(_SPAN_PATTERN, regex.VERBOSE | regex.VERSION1)
# Looking for an address at every word costs twice as much as all the rest: only when there may be one.
_ADDRESS_SIGN: Final = regex.compile(r"\w@\w")
_SPAN_OR_ADDRESS: Final = regex.compile(
    r"(?P<address>(?<![\w.+%-])[\w.+%-]{1,64}+@[\w-]++(?:\.[\w-]++)++) |" + _SPAN_PATTERN,
    regex.VERBOSE | regex.VERSION1,
)
# One of these stands at or near the start of every span: a text without them needs no closer look.
_HINT: Final = regex.compile(
    rf"[{_LINE_END}<@`*_~|\\\[\]:;=^¯\uFE0F\u20E3]|\A[ \t]*+(?:[-+•>\#]|\d++[.)])|(?i:www\.|discord|xd)"
    r"|[[\p{Emoji}]--[\p{ASCII}©®™]]",
    regex.VERSION1,
)
_URL_TAIL: Final = frozenset("?!.,:;*_~'\"]}“”„«»‘’‚…")


@dataclass(frozen=True, slots=True)
class Span:
    """Where a span is, in characters; ``kind`` is cut, word or mark."""

    start: int
    end: int
    kind: str

    def moved(self, by: int) -> Span:
        return Span(self.start + by, self.end + by, self.kind)


def find_spans(text: str) -> Iterator[Span]:
    """The spans of ``text``, in order; linear time."""
    if _HINT.search(text) is None:
        return
    at = 0
    pattern = _SPAN_OR_ADDRESS if _ADDRESS_SIGN.search(text) else _SPAN
    while match := pattern.search(text, at):
        kind, start, end = match.lastgroup or "", match.start(), match.end()
        if kind == "url":
            end = _url_end(text, start, end)
        yield Span(start, end, kind if kind in ("cut", "mark") else "word")
        at = end


def _url_end(text: str, start: int, end: int) -> int:
    """Where a URL ends without trailing punctuation and unbalanced ")"."""
    surplus = text.count(")", start, end) - text.count("(", start, end)
    while end > start:
        last = text[end - 1]
        if last == ")" and surplus > 0:
            surplus -= 1
        elif last not in _URL_TAIL:
            break
        end -= 1
    return end
