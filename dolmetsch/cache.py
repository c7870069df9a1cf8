"""The result cache: what was translated lately, bounded by bytes. Pure.

Keys are hashes of route, model and text: a new model never serves an old model's words, and no text is kept as a key.
They are Python's own, of 64 bits with a secret of the process (SipHash): with a million results, one lookup in 10^13
would find another text's, nobody can look for such a text, and a cryptographic hash would cost eight times as much.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import Final

ENTRY_BYTES: Final = 200  # measured: key, dictionary entry and string header of one result


class ResultCache:
    """Least recently used results, at most ``max_bytes`` of them; 0 turns it off."""

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._results: OrderedDict[int, str] = OrderedDict()
        self.bytes = 0
        self.hits = 0

    def put(self, route: str, model: str, texts: tuple[str, ...], results: tuple[str, ...]) -> None:
        """Remember the result of each text."""
        if not self._max_bytes:
            return
        kept = self._results
        for text, result in zip(texts, results, strict=True):
            key = hash((route, model, text))
            if key in kept:
                self.bytes -= _size(kept.pop(key))
            kept[key] = result
            self.bytes += _size(result)
        while self.bytes > self._max_bytes:
            self.bytes -= _size(self._results.popitem(last=False)[1])

    def get(self, route: str, model: str, texts: tuple[str, ...]) -> tuple[str, ...] | None:
        """The results of all ``texts``, or None when one of them is not here."""
        if not self._results:
            return None
        found: list[str] = []
        for text in texts:
            key = hash((route, model, text))
            result = self._results.get(key)
            if result is None:
                return None
            self._results.move_to_end(key)
            found.append(result)
        self.hits += 1
        return tuple(found)


def _size(result: str) -> int:
    return ENTRY_BYTES + 2 * len(result)
