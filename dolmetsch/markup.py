"""A page of HTML cut into its own pieces: text, tags, comments, and what is copied whatever is in it. Pure.

Where they begin and end follows the tokenizer of the HTML Standard, 13.2.5 (tags, attributes, comments, raw text). The
pieces, one after the other, are the page.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Final, NamedTuple

TEXT, OPEN, CLOSE, OPAQUE, COMMENT, OTHER = "text", "open", "close", "opaque", "comment", "other"

# Elements that a sentence may go on through; all others end a run.
INLINE: Final = frozenset((
    "a", "abbr", "acronym", "b", "bdi", "bdo", "big", "cite", "data", "del", "dfn", "em", "font", "i", "ins", "label",
    "mark", "q", "s", "small", "span", "strike", "strong", "sub", "sup", "time", "tt", "u",
))  # fmt: skip
KEPT: Final = frozenset(("code", "kbd", "math", "samp", "svg", "var"))  # likewise, but copied with all that is in them
KEPT_APART: Final = frozenset(("pre", "template"))  # copied too, and end a run
FOREIGN: Final = frozenset(("math", "svg"))  # here "/>" ends an element
RAW: Final = frozenset(("iframe", "noembed", "noframes", "script", "style", "textarea", "xmp"))  # copied: no tags in it
LOOSE: Final = frozenset(("wbr",))  # no content, no place that matters: like comments
VOID: Final = frozenset((
    "area", "base", "br", "col", "embed", "hr", "img", "input", "link", "meta", "param", "source", "track", "wbr",
))  # fmt: skip

_TAG_START: Final = re.compile(r"<[A-Za-z!?/]")
_NAME: Final = re.compile(r"</?([A-Za-z][^ \t\n\f\r/>]*+)")
# The rest of a tag. An open quote runs to its end or to the end of the page, as browsers read it.
_ATTRIBUTES: Final = re.compile(
    r"""(?:[ \t\n\f\r/]++
         |(?:=[^ \t\n\f\r/>=]*+|[^ \t\n\f\r/>=]++)
          (?:[ \t\n\f\r]*+=[ \t\n\f\r]*+(?:"[^"]*+(?:"|\Z)|'[^']*+(?:'|\Z)|[^ \t\n\f\r>"'][^ \t\n\f\r>]*+|(?=>)))?+
        )*+>""",
    re.VERBOSE,
)
_COMMENT: Final = re.compile(r"<!--(?:-?>|.*?(?:--!?>|\Z))", re.DOTALL)
_BOGUS: Final = re.compile(r"<[!?/][^>]*+>?")
_ATTRIBUTE: Final = re.compile(
    r"""(=[^ \t\n\f\r/>=]*+|[^ \t\n\f\r/>=]++)
        (?:[ \t\n\f\r]*+=[ \t\n\f\r]*+(?:"([^"]*+)"?|'([^']*+)'?|([^ \t\n\f\r>"'][^ \t\n\f\r>]*+)))?+""",
    re.VERBOSE,
)


class Token(NamedTuple):
    """A piece of the page as it stands in it; ``name`` is a tag's, in small letters."""

    kind: str
    raw: str
    name: str = ""


def tokenize(markup: str) -> Iterator[Token]:
    """Every piece of the page."""
    at, end = 0, len(markup)
    while at < end:
        start = markup.find("<", at)
        if start < 0:
            start = end
        following = markup[start + 1 : start + 2]
        if start < end and not (following.isascii() and (following.isalpha() or following in ("!", "?", "/"))):
            start = _next_tag(markup, start)
        if start > at:
            yield Token(TEXT, markup[at:start])
            at = start
        if at < end:
            for token in _markup(markup, at):
                yield token
                at += len(token.raw)


def _next_tag(markup: str, at: int) -> int:
    """A ``<`` that begins no tag is text; so is all up to the next one that does."""
    found = _TAG_START.search(markup, at)
    return found.start() if found else len(markup)


def _markup(markup: str, at: int) -> Iterator[Token]:
    """The tag or comment at ``at``; with an element of raw text comes its content."""
    name = _NAME.match(markup, at)
    if name is None:
        found = _COMMENT.match(markup, at) or _BOGUS.match(markup, at)
        assert found is not None  # _BOGUS matches whatever _TAG_START does, unless a letter follows
        comment = found[0].startswith(("<!--", "<?", "</"))
        yield Token(COMMENT if comment else OTHER, found[0])
        return
    rest = _ATTRIBUTES.match(markup, name.end())
    if rest is None:  # the page ends in the middle of a tag
        yield Token(OTHER, markup[at:])
        return
    raw, lower = markup[at : rest.end()], name[1].lower()
    if raw[1] == "/":
        yield Token(CLOSE, raw, lower)
        return
    yield Token(OPEN, raw, lower)
    if lower == "plaintext":
        yield Token(OTHER, markup[rest.end() :])
    elif lower in RAW or lower == "title":
        closing = re.compile(rf"</{lower}(?=[ \t\n\f\r/>])", re.IGNORECASE).search(markup, rest.end())
        content = markup[rest.end() : closing.start() if closing else len(markup)]
        yield Token(TEXT if lower == "title" else OTHER, content)


def without_opaque(tokens: Iterator[Token]) -> Iterator[Token]:
    """Tokens of what is copied become one; tags that end a run become OTHER, so that runs see only inline ones."""
    kept: list[str] = []
    name, depth = "", 0
    for token in tokens:
        if depth:
            kept.append(token.raw)
            if token.name == name:
                depth += _opens(token) - (token.kind == CLOSE)
            if not depth:
                yield Token(OPAQUE if name in INLINE or name in KEPT else OTHER, "".join(kept))
        elif _opens(token) and _is_kept(token):
            kept, name, depth = [token.raw], token.name, 1
        else:
            yield _simple(token)
    if depth:
        yield Token(OTHER, "".join(kept))


def _simple(token: Token) -> Token:
    if token.kind not in (OPEN, CLOSE) or token.name in INLINE:
        return token
    if token.name in LOOSE:
        return Token(COMMENT, token.raw)
    copied = token.name == "img" or token.name in FOREIGN
    return Token(OPAQUE if copied and token.kind == OPEN else OTHER, token.raw)


def _opens(token: Token) -> bool:
    """Whether there is content behind this tag."""
    if token.kind != OPEN or token.name in VOID:
        return False
    return not (token.name in FOREIGN and token.raw.endswith("/>"))


def _is_kept(token: Token) -> bool:
    if token.name in KEPT or token.name in KEPT_APART:
        return True
    if "translate" not in token.raw.lower():
        return False
    values: dict[str, str] = {}
    for found in _ATTRIBUTE.finditer(token.raw, len(token.name) + 1):
        values.setdefault(found[1].lower(), found[2] or found[3] or found[4] or "")
    return values.get("translate", "").lower() == "no" or "notranslate" in values.get("class", "").split()
