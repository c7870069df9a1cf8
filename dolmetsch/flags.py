"""Flags: which language a flag that somebody reacts with stands for, and which flags a reply shows. Pure.

A flag names the language of the message; its route says what that is translated to. The tables are a TOML text that
the caller has read (``flags.toml``, which describes the format). Only whole flags count: what looks like one in a
picker, but is another pair of letters, is another flag with an entry of its own.
"""

from __future__ import annotations

import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final

import regex

from dolmetsch.admission import ROUTE
from dolmetsch.errors import ConfigError

ARROW: Final = "➡️"
MAX_DESCRIBED: Final = 100  # routes in one line for people: some 1 300 characters

_SELECTOR: Final = "\ufe0f"  # asks for the coloured picture; some clients send it after a flag, and it means nothing
# Two regional indicators, or the black flag with a region's code in tag characters (UTS #51).
_FLAG: Final = regex.compile(r"\p{RI}{2}|\U0001F3F4[\U000E0030-\U000E0039\U000E0061-\U000E007A]{3,6}\U000E007F")
_LANGUAGE: Final = regex.compile(r"[a-z]{2,3}(?:_[A-Za-z]{2,4})?")
_TABLES: Final = ("flags", "shown")


@dataclass(frozen=True, slots=True)
class Flag:
    """A flag and what it means; ``header`` opens the reply: the flag, an arrow, the target's flag ("🇩🇪➡️🇺🇸")."""

    emoji: str
    route: str
    header: str


@dataclass(frozen=True, slots=True)
class Flags:
    """All flags that mean something, in the order of the file, and the flag shown for each language."""

    _flags: Mapping[str, Flag]
    _shown: Mapping[str, str]

    @classmethod
    def parse(cls, text: str, source: str) -> Flags:
        """The tables in ``text``. Raises ``ConfigError`` that names ``source`` and the key that cannot be used."""
        tables = _tables(text, source)
        shown: dict[str, str] = {}
        for code, emoji in tables["shown"].items():
            if _LANGUAGE.fullmatch(code) is None:
                raise ConfigError(f"{source}: [shown] {code!r} is not a language's code")
            shown[code] = _flag(emoji, f"{source}: [shown] {code}:")
        flags: dict[str, Flag] = {}
        for key, written in tables["flags"].items():
            emoji = _flag(key, f"{source}: [flags]")
            if emoji in flags:
                raise ConfigError(f"{source}: [flags] {emoji!r} stands there twice")
            route = _route(written, f"{source}: [flags] {emoji!r}")
            flags[emoji] = Flag(emoji, route, _header(emoji, route, shown))
        return cls(flags, shown)

    def get(self, emoji: str) -> Flag | None:
        """The flag ``emoji``, just as Discord sends it; None for whatever else it is."""
        return self._flags.get(emoji.replace(_SELECTOR, ""))

    def of_route(self, route: str) -> tuple[Flag, ...]:
        """All flags that mean ``route`` ("de→en"), the usual one first."""
        return tuple(flag for flag in self._flags.values() if flag.route == route)

    def header(self, route: str) -> str:
        """What opens a translation that nobody reacted for: as with the usual flag, or else with the code ("tr➡️🇺🇸")."""
        usual = self.of_route(route)
        return usual[0].header if usual else _header(route.partition("→")[0], route, self._shown)

    def language_flag(self, code: str) -> str:
        """The flag shown for a language that is translated to; without one, ``code`` itself."""
        return self._shown.get(code, code)

    def describe(self, routes: Iterable[str]) -> str:
        """``routes`` in one line, sorted, each once, with its usual flag if it has one: "🇩🇪 de→en · 🇬🇧 en→de".

        At most MAX_DESCRIBED of them, so that it fits into a message.
        """
        known = sorted({*routes})
        named = [" ".join([*(flag.emoji for flag in self.of_route(one)[:1]), one]) for one in known[:MAX_DESCRIBED]]
        return " · ".join([*named, "…"] if len(known) > MAX_DESCRIBED else named)


def _tables(text: str, source: str) -> dict[str, dict[str, str]]:
    """The two tables of the file, empty where one is missing; nothing else may stand there."""
    try:
        document: dict[str, Any] = tomllib.loads(text)
    except (ValueError, RecursionError) as error:  # endless numbers and nesting have errors of their own
        raise ConfigError(f"{source} is not valid TOML: {error}") from error
    for name, table in document.items():
        if name not in _TABLES or not isinstance(table, dict):
            raise ConfigError(f"{source}: {name!r} is neither [flags] nor [shown]")
        for key, value in table.items():
            if not isinstance(value, str):
                raise ConfigError(f"{source}: [{name}] {key!r} must be a text in quotes")
    return {name: document.get(name, {}) for name in _TABLES}


def _flag(emoji: str, where: str) -> str:
    bare = emoji.replace(_SELECTOR, "")
    if _FLAG.fullmatch(bare) is None:
        raise ConfigError(f"{where} {emoji!r} is not exactly one flag")
    return bare


def _route(written: str, where: str) -> str:
    route = written.replace("->", "→").replace("-", "→")
    if ROUTE.fullmatch(route) is None:
        raise ConfigError(f"{where}: {written!r} is no route; one looks like de→en")
    return route


def _header(start: str, route: str, shown: Mapping[str, str]) -> str:
    target = route.partition("→")[2]
    return f"{start}{ARROW}{shown.get(target, target)}"
