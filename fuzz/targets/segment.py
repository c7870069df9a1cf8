"""Texts of people. Put back untranslated, the text is there again byte for byte; whatever a translator makes of it, all
that was protected comes out as it was, in order, and no line is added. No segment is longer than models can take.

The first byte says the language and what the translator does.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import regex

from dolmetsch.segment import MAX_SEGMENT_CHARS, STAND_INS, Document, parse

MOST_BYTES: Final = 4096
TOKENS: Final = tuple(
    part.encode()
    for part in (
        "<@1>", "<@&12>", "<#1>", "<t:1:R>", "<:a:1>", "</a:1>", "@everyone", "https://a.de/x_(y)", "discord.gg/a",
        "a@b.de", "`x`", "``", "```", "**", "__", "||", "~~", "[a](https://b.de)", "](", "\\*", ":smile:", "😀",
        "\u200d", "\ufe0f", "\u20e3", "🇩🇪", "🏴", "\U000e0067", "\U000e007f", ":)", "^^", "\n- ", "\r\n", "\x0b",
        "\u2028", "\x85", "> ", "# ", "1. ", "z. B.", "3.", "„", "“", "(", ")", "?", "e\u0301", "ß", "Hallo", " und ",
        *STAND_INS, "Maria", "日本。",
    )
)  # fmt: skip
_LANGUAGES: Final = ("de", "en", "ja", "xx")
_TRANSLATORS: Final[tuple[Callable[[str], str], ...]] = (
    lambda source: "",
    lambda source: f"{source} {source}",
    lambda source: source[::-1],
    lambda source: f"Tom\n{source}\u2028Mary **",
    lambda source: " ".join(word for word in source.split() if word not in STAND_INS),
)


def seeds() -> list[bytes]:
    """Messages as people write them."""
    texts = (
        "Hallo <@1>, schau dir https://a.de/x_(y) mal an! Kommst du?",
        "Das ist **wirklich** gut 😀 und ||geheim||\n- eins\n- zwei `code` hier",
        "```py\nx = 1\n```\n> Zitat von Tom, z. B. am 3. Mai.\n\nNutzer*innen (siehe [hier](https://b.de)) :)",
        "„Ja“, sagt Maria <t:1618953630:R> :smile: ~~nein~~ a@b.de ¯\\_(ツ)_/¯",
        "\x00\x85\u2028🇩🇪🏴\U000e0067\U000e0062\U000e007f 1️⃣ x\u200dy e\u0301",
    )
    return [bytes((number,)) + text.encode() for number, text in enumerate(texts)]


def check(data: bytes) -> None:
    text = data[1:].decode("utf-8", "replace")
    habit = data[0] if data else 0
    document = parse(text, _LANGUAGES[habit % len(_LANGUAGES)])
    for segment in document.segments:
        assert len(segment.source) <= MAX_SEGMENT_CHARS
        assert segment.source == segment.source.strip() and regex.search(r"\p{L}", segment.source)
    assert _translated(document, str) == text
    out = _translated(document, _TRANSLATORS[habit % len(_TRANSLATORS)])
    assert len(out.splitlines()) <= max(1, len(text.splitlines()))
    at = 0
    for part in document.parts:
        if isinstance(part, str):
            at = out.index(part, at) + len(part)
    for _, original in (span for segment in document.segments for span in segment.spans):
        assert out.count(original) >= 1


def _translated(document: Document, translator: Callable[[str], str]) -> str:
    """As the engine does it: restore, and where that fails translate the pieces."""
    out = []
    for segment in document.segments:
        restored = segment.restore(translator(segment.source))
        out.append(_translated(segment.pieces(), translator) if restored is None else restored)
    return document.assemble(out)
