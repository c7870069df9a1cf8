"""Languages: their names and codes, and which of those on offer a text is in. Offline, with py3langid.

What callers see are the codes of LibreTranslate, which differ from those of Argos packages in three places.
"""

from __future__ import annotations

import copy
import re
import threading
from collections.abc import Iterable
from typing import Final, NamedTuple

from py3langid.langid import MODEL_FILE, LanguageIdentifier

MAX_CHARS: Final = 4000  # a page is enough: more makes no guess better
MAX_SETS: Final = (
    16  # sets of languages with an identifier ready; a cluster has one, and others while nodes come and go
)
MAX_SHOWN: Final = 3
LEAST_PERCENT: Final = 1.0  # what is less likely than this is not shown

NAMES: Final = {
    "ar": "Arabic", "az": "Azerbaijani", "be": "Belarusian", "bg": "Bulgarian", "bn": "Bengali", "bs": "Bosnian",
    "ca": "Catalan", "cs": "Czech", "cy": "Welsh", "da": "Danish", "de": "German", "el": "Greek", "en": "English",
    "eo": "Esperanto", "es": "Spanish", "et": "Estonian", "eu": "Basque", "fa": "Persian", "fi": "Finnish",
    "fr": "French", "ga": "Irish", "gl": "Galician", "gu": "Gujarati", "he": "Hebrew", "hi": "Hindi", "hr": "Croatian",
    "hu": "Hungarian", "hy": "Armenian", "id": "Indonesian", "is": "Icelandic", "it": "Italian", "ja": "Japanese",
    "ka": "Georgian", "kk": "Kazakh", "km": "Khmer", "ko": "Korean", "ky": "Kyrgyz", "lo": "Lao", "lt": "Lithuanian",
    "lv": "Latvian", "mk": "Macedonian", "ml": "Malayalam", "mn": "Mongolian", "mr": "Marathi", "ms": "Malay",
    "mt": "Maltese", "my": "Burmese", "nb": "Norwegian", "ne": "Nepali", "nl": "Dutch", "nn": "Norwegian Nynorsk",
    "no": "Norwegian", "pa": "Punjabi", "pb": "Portuguese (Brazil)", "pl": "Polish", "pt": "Portuguese",
    "ro": "Romanian", "ru": "Russian", "sk": "Slovak", "sl": "Slovenian", "sq": "Albanian", "sr": "Serbian",
    "sv": "Swedish", "sw": "Swahili", "ta": "Tamil", "te": "Telugu", "th": "Thai", "tl": "Tagalog", "tr": "Turkish",
    "uk": "Ukrainian", "ur": "Urdu", "uz": "Uzbek", "vi": "Vietnamese", "zh": "Chinese", "zt": "Chinese (traditional)",
}  # fmt: skip
_SHOWN_AS: Final = {"pb": "pt-BR", "zh": "zh-Hans", "zt": "zh-Hant"}  # Argos -> LibreTranslate
_LABELS: Final = {"nb": "no", "pb": "pt", "zt": "zh"}  # Argos -> py3langid, which does not tell these apart
_NOISE: Final = re.compile(r"https?://\S+|(?<!\S)\S*?@\S*|[\d_]+")


class Guess(NamedTuple):
    """A language that a text may be in, and how sure that is: 0 to 100."""

    language: str
    confidence: float


UNKNOWN: Final = Guess("en", 0.0)  # what LibreTranslate says when it cannot tell


def shown(code: str) -> str:
    """A package's code as callers see it."""
    return _SHOWN_AS.get(code, code)


def name(code: str) -> str:
    """A language in English."""
    return NAMES.get(code, code)


class Detector:
    """Loads its model once: half a second and some 100 MB, so make it at the start and share it. Threads may."""

    def __init__(self) -> None:
        self._whole = LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)
        self._known = frozenset(self._whole.labels)
        self._lock = threading.Lock()
        self._ready: dict[frozenset[str], LanguageIdentifier] = {}

    def detect(self, text: str, languages: Iterable[str]) -> list[Guess]:
        """Which of ``languages`` (packages' codes) it is, the likeliest first; ``UNKNOWN`` if that cannot be told."""
        text = _NOISE.sub(" ", text[:MAX_CHARS])
        # Where two codes share a label, the one that is a label itself stands for both.
        codes = {_LABELS.get(code, code): code for code in sorted(languages, key=lambda code: code not in _LABELS)}
        labels = self._known.intersection(codes)
        if not labels or not any(map(str.isalpha, text)):
            return [UNKNOWN]
        ranked = self._identifier(labels).rank(text)
        if len(ranked) > 1 and ranked[0][1] == ranked[-1][1]:  # nothing in it says anything
            return [UNKNOWN]
        guesses = [Guess(codes[label], round(100 * share, 1)) for label, share in ranked[:MAX_SHOWN]]
        return guesses[:1] + [guess for guess in guesses[1:] if guess.confidence >= LEAST_PERCENT]

    def _identifier(self, labels: frozenset[str]) -> LanguageIdentifier:
        """One for these languages: py3langid's own ``set_languages`` changes an identifier for all its users."""
        with self._lock:
            ready = self._ready.get(labels)
            if ready is None:
                if len(self._ready) >= MAX_SETS:
                    del self._ready[next(iter(self._ready))]
                ready = copy.copy(self._whole)  # the large tables are shared
                ready.set_languages(labels)
                self._ready[labels] = ready
            return ready
