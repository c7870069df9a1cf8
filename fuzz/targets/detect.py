"""Texts whose language is asked for. One to three guesses among the languages on offer, the likeliest first, each from
0 to 100; nothing is raised.

The first byte says which languages are on offer.
"""

from __future__ import annotations

import functools
from typing import Final

from dolmetsch.detect import MAX_SHOWN, NAMES, UNKNOWN, Detector

MOST_BYTES: Final = 4096
TOKENS: Final = tuple(
    part.encode()
    for part in ("https://a.de ", "a@b ", "Guten Morgen ", "good morning ", "日本語", "Привет", "\x00", "123", "\u0301")
)
_OFFERS: Final = (
    ("de", "en"), ("de",), (), ("pb", "pt", "en"), ("zh", "zt", "ja"), ("nb", "no", "nn", "da"), ("qq",), tuple(NAMES),
)  # fmt: skip


@functools.cache
def _detector() -> Detector:
    return Detector()


def seeds() -> list[bytes]:
    """A few languages."""
    texts = ("Guten Morgen, wie geht es dir?", "x", "Bom dia https://a.de", "早上好", "God morgen", "...", "1", "a b c")
    return [bytes((number,)) + text.encode() for number, text in enumerate(texts)]


def check(data: bytes) -> None:
    offer = _OFFERS[(data[0] if data else 0) % len(_OFFERS)]
    guesses = _detector().detect(data[1:].decode("utf-8", "replace"), offer)
    if guesses == [UNKNOWN]:
        return
    assert 1 <= len(guesses) <= MAX_SHOWN
    assert {guess.language for guess in guesses} <= set(offer)
    shares = [guess.confidence for guess in guesses]
    assert shares == sorted(shares, reverse=True) and all(0 <= share <= 100 for share in shares)
