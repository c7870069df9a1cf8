"""The packages that ship with the project, whatever their versions."""

from __future__ import annotations

from typing import Final

from dolmetsch.packages import EMBEDDED, open_package

(GERMAN,) = EMBEDDED.glob("translate-de_en-*")  # German to English
(ENGLISH,) = EMBEDDED.glob("translate-en_de-*")  # English to German
GERMAN_MODEL: Final = open_package(GERMAN).model_version
