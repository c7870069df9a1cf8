"""Pages. An identity translation gives the page back byte for byte; under any translation the markup that comes out is
that which went in: each tag, comment and copied part as often as before. Nothing is raised, and no page takes long.

The first byte says what the translator does.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Final

from dolmetsch.html import Page, without_tags
from dolmetsch.markup import TEXT, tokenize

MOST_BYTES: Final = 4096
TOKENS: Final = tuple(
    part.encode()
    for part in (
        "<b>", "</b>", "<i>", "</i>", "<a href=x>", "</a>", "<s>", "<p>", "</p>", "<br>", "<code>", "</code>", "<img>",
        "<!--", "-->", "<script>", "</script>", "<svg>", "<svg/>", "</svg>", "<title>", "</title", "<textarea>",
        "<pre>", "<p translate=no>", "class='notranslate'", "<![CDATA[", "<?", "&nbsp;", "&#", "&lt;", "`", "`0`", "'",
        '"', "=",
        "<wbr>", "<plaintext>", "/>", ": ", ". ", "\u00a0", "\u2028", "ß",
    )
)  # fmt: skip
_TRANSLATORS: Final[tuple[Callable[[str], str], ...]] = (
    lambda text: f"{text} {text}",
    lambda text: text[::-1],
    lambda text: "",
    lambda text: "<b>& `0` </b><script>x",
    lambda text: "".join(text.split()[:1]),
    str.upper,
)


def seeds() -> list[bytes]:
    """Pages with everything that is treated apart."""
    pages = (
        "<p>Guten Tag. Das ist <b>sehr</b> wichtig.</p>",
        "<ul><li>Eins<li>Zwei <a href='x'>hier</a> und <a id=y>dort</a></ul>",
        "<p>Siehe <code>x &lt; y</code>, <img src=a> und <s>nicht</s> <em>das <i>hier</i></em>.</p>",
        "<!DOCTYPE html><title>Ein Titel</title><script>a<b</script><!-- x --><pre>y</pre>",
        "<div translate=no>nein <b>x</b></div>ja<br>&nbsp;z.B. 3 &#60; 4<svg><text>t</text></svg>",
        "<b>Hinweis:</b> Er geht. <span class=notranslate>Tom</span> bleibt <wbr>da",
    )
    return [bytes((number,)) + page.encode() for number, page in enumerate(pages)]


def check(data: bytes) -> None:
    markup = data[1:].decode("utf-8", "replace")
    page = Page(markup, "de")
    assert page.render({text: text for text in page.texts}) == markup
    assert page.render({}) == markup
    without_tags(markup)
    translator = _TRANSLATORS[(data[0] if data else 0) % len(_TRANSLATORS)]
    out = page.render({text: translator(text) for text in page.texts})
    assert _markup(out) == _markup(markup), out


def _markup(page: str) -> Counter[str]:
    return Counter(token.raw for token in tokenize(page) if token.kind != TEXT and token.raw)
