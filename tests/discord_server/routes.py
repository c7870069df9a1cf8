"""The table of REST routes: which function answers which method and path."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from tests.discord_server.world import Json

NO_CONTENT: Final = 204


@dataclass(slots=True)
class Call:
    """One request, read: the parts of its path, its query, its JSON and its files."""

    args: dict[str, str]
    query: Mapping[str, str]
    json: Any
    files: dict[str, tuple[str, bytes]] = field(default_factory=dict)

    def number(self, name: str) -> int:
        """An id in the path; what is no number is an id of nothing."""
        value = self.args[name]
        return int(value) if value.isdecimal() else 0

    @property
    def form(self) -> Json:
        return self.json if isinstance(self.json, dict) else {}


@dataclass(slots=True)
class Answer:
    status: int
    body: Any = None


Handler = Callable[[Call], Answer]


@dataclass(slots=True, frozen=True)
class Route:
    method: str
    template: str
    open: bool  # whether it answers without the bot's token in the header
    pattern: re.Pattern[str]
    name: str


def _compiled(template: str) -> re.Pattern[str]:
    return re.compile(re.sub(r"\{(\w+)\}", r"(?P<\1>[^/]+)", template))


class Routes:
    """Routes by method and number of parts, so that few are tried."""

    def __init__(self) -> None:
        self._routes: dict[tuple[str, int], list[Route]] = {}

    def add(self, method: str, template: str, open: bool = False) -> Callable[[Any], Any]:
        """The decorated method of ``Rest`` answers this route."""

        def register(function: Any) -> Any:
            route = Route(method, template, open, _compiled(template), function.__name__)
            self._routes.setdefault((method, template.count("/")), []).append(route)
            return function

        return register

    def find(self, method: str, path: str) -> tuple[Route, dict[str, str]] | None:
        for route in self._routes.get((method, path.count("/")), ()):
            match = route.pattern.fullmatch(path)
            if match:
                return route, match.groupdict()
        return None
