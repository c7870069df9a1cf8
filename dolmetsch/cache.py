"""The result cache: what was translated lately, bounded by bytes. Pure.

Keys are hashes of route, model and text: a new model never serves an old model's words, and no text is kept as a key.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from typing import Final

ENTRY_BYTES: Final = 200  # measured: key, dictionary entry and string header of one result


def _key(route: str, model: str, text: str) -> bytes:
    return hashlib.blake2b(f"{route}\0{model}\0{text}".encode(), digest_size=16).digest()


class ResultCache:
    """Least recently used results, at most ``max_bytes`` of them; 0 turns it off."""

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._results: OrderedDict[bytes, str] = OrderedDict()
        self.bytes = 0
        self.hits = 0

    def put(self, route: str, model: str, texts: tuple[str, ...], results: tuple[str, ...]) -> None:
        """Remember the result of each text."""
        if not self._max_bytes:
            return
        for text, result in zip(texts, results, strict=True):
            key = _key(route, model, text)
            old = self._results.pop(key, None)
            if old is not None:
                self.bytes -= _size(old)
            self._results[key] = result
            self.bytes += _size(result)
        while self.bytes > self._max_bytes:
            self.bytes -= _size(self._results.popitem(last=False)[1])

    def get(self, route: str, model: str, texts: tuple[str, ...]) -> tuple[str, ...] | None:
        """The results of all ``texts``, or None when one of them is not here."""
        if not self._results:
            return None
        found: list[str] = []
        for text in texts:
            key = _key(route, model, text)
            result = self._results.get(key)
            if result is None:
                return None
            self._results.move_to_end(key)
            found.append(result)
        self.hits += 1
        return tuple(found)


def _size(result: str) -> int:
    return ENTRY_BYTES + 2 * len(result)
