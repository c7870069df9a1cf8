"""A flags.toml of somebody's own. Only ``ConfigError`` leaves, in one line; a table that is taken finds each of its
flags, with a route that the broker takes and a header that begins with the flag.
"""

from __future__ import annotations

from typing import Final

from dolmetsch.admission import ROUTE
from dolmetsch.errors import ConfigError
from dolmetsch.flags import ARROW, Flags
from fuzz.targets.config import one_line

MOST_BYTES: Final = 8192
TOKENS: Final = tuple(
    part.encode()
    for part in (
        "[flags]\n", "[shown]\n", '"🇩🇪"', '"🇦🇹"', " = ", '"de→en"', '"de->en"', '"en-de"', '"pb→pt_BR"', "\ufe0f",
        "🏴\U000e0067\U000e0062\U000e0065\U000e006e\U000e0067\U000e007f", "de", "[[flags]]\n", "flags.x = 1\n", "'",
        '"""', "[" * 300, "9" * 300, "\\u0000", "1979-05-27",
    )
)  # fmt: skip


def seeds() -> list[bytes]:
    """A short table, and one with everything."""
    small = '[flags]\n"🇩🇪" = "de→en"\n"🇬🇧" = "en->de"\n[shown]\nen = "🇺🇸"\n'
    flag = "🏴\U000e0067\U000e0062\U000e0065\U000e006e\U000e0067\U000e007f"
    large = f'# a table\n[flags]\n"{flag}" = "en-de"\n"🇧🇷\ufe0f" = "pb→en"\n[shown]\npt_BR = "🇧🇷"\n'
    return [small.encode(), large.encode()]


def check(data: bytes) -> None:
    text = data.decode("utf-8", "replace")
    try:
        flags = Flags.parse(text, "flags.toml")
    except ConfigError as error:
        assert one_line(str(error)), str(error)
        return
    routes = {flag.route for flag in flags._flags.values()}
    for emoji, flag in flags._flags.items():
        assert flags.get(emoji) is flag and flags.get(emoji + "\ufe0f") is flag
        assert ROUTE.fullmatch(flag.route) and flag in flags.of_route(flag.route)
        assert flag.header.startswith(emoji + ARROW)
    assert flags.get(text) is None or text.replace("\ufe0f", "") in flags._flags
    assert one_line(flags.describe(routes) or "-")
