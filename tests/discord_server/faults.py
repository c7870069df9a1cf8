"""What goes wrong on purpose: answers that fail, answers that take long, and limits on the rate."""

from __future__ import annotations

import math
import re
import time
from collections import OrderedDict
from dataclasses import dataclass
from typing import Final

from tests.discord_server.world import Json

WIDE: Final = (1_000_000, 1.0)  # (requests, seconds): a limit that never bites
KEPT_WINDOWS: Final = 4096

RATE_LIMITED: Final = "You are being rate limited."


@dataclass(slots=True)
class Fault:
    """The next ``left`` matching requests are answered with ``status``; 0 is a connection that breaks.

    ``carried_out``: the request has its effect all the same, and only the answer is lost.
    """

    method: str
    path: re.Pattern[str]
    status: int
    left: int
    retry_after: float
    is_global: bool
    carried_out: bool
    body: Json | None
    hits: int = 0

    def take(self, method: str, path: str) -> bool:
        """Whether this request is one to fail; if so it is counted."""
        if self.left <= 0 or method != self.method or not self.path.fullmatch(path):
            return False
        self.left -= 1
        self.hits += 1
        return True


@dataclass(slots=True)
class Delay:
    method: str
    path: re.Pattern[str]
    seconds: float
    late: bool  # the answer is, not what was asked for


class Faults:
    def __init__(self) -> None:
        self._faults: list[Fault] = []
        self._delays: list[Delay] = []

    def add(self, fault: Fault) -> Fault:
        self._faults = [one for one in self._faults if one.left > 0]
        self._faults.append(fault)
        return fault

    def delay(self, method: str, path: str, seconds: float, late: bool) -> None:
        """The latest word on the same requests counts."""
        pattern = re.compile(path)
        self._delays = [one for one in self._delays if (one.method, one.path) != (method, pattern)]
        if seconds > 0:
            self._delays.append(Delay(method, pattern, seconds, late))

    def delay_of(self, method: str, path: str, *, late: bool = False) -> float:
        matching = [one for one in self._delays if one.method == method and one.path.fullmatch(path)]
        return max((one.seconds for one in matching if one.late == late), default=0.0)

    def take(self, method: str, path: str) -> Fault | None:
        return next((one for one in self._faults if one.take(method, path)), None)


@dataclass(slots=True)
class Window:
    """A limit's state after a request was counted."""

    limit: int
    remaining: int
    reset_after: float
    exceeded: bool


class Limits:
    """Fixed windows, one for each route and channel, as Discord has them."""

    def __init__(self) -> None:
        self._limits: dict[tuple[str, str], tuple[int, float]] = {}
        self._open: OrderedDict[tuple[str, str, str], tuple[float, int]] = OrderedDict()

    def set(self, method: str, template: str, limit: int, per_s: float) -> None:
        self._limits[method, template] = (limit, per_s)

    def count(self, method: str, template: str, major: str) -> Window:
        limit, per_s = self._limits.get((method, template), WIDE)
        if (limit, per_s) == WIDE:
            return Window(limit, limit - 1, per_s, False)
        now = time.monotonic()
        key = (method, template, major)
        began, used = self._open.get(key, (now, 0))
        if now - began >= per_s:
            began, used = now, 0
        self._open[key] = (began, used + 1)
        if len(self._open) > KEPT_WINDOWS:
            self._open.popitem(last=False)
        return Window(limit, max(0, limit - used - 1), began + per_s - now, used >= limit)


def rate_limited_body(retry_after: float, is_global: bool) -> Json:
    return {"message": RATE_LIMITED, "retry_after": round(retry_after, 3), "global": is_global}


def rate_limited_headers(retry_after: float, is_global: bool) -> dict[str, str]:
    headers = {"Retry-After": str(math.ceil(retry_after)), "X-RateLimit-Scope": "global" if is_global else "user"}
    return headers | ({"X-RateLimit-Global": "true"} if is_global else {})
