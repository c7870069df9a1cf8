"""A snapshot: the cluster at one moment, which nothing changes any more, with the pages that show it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from dashboard.pages import Page
from dolmetsch.messages import Telemetry

OPEN: Final = "open"  # actions are allowed without a token: from this computer only
TOKEN: Final = "token"  # actions need the token
OFF: Final = "off"  # no actions
MODES: Final = (OPEN, TOKEN, OFF)


@dataclass(frozen=True, slots=True, kw_only=True)
class Snapshot:
    """Threads that answer requests share it without a lock.

    ``at`` is when the broker spoke last (Unix seconds, None: never); while ``alive`` is False it has been silent since
    ``since``. ``unready`` says why nothing can be translated. ``cluster`` has a page for each mode of actions, ``jobs``
    one for each kind of list.
    """

    at: float | None
    now: float
    alive: bool
    since: float | None
    telemetry: Telemetry | None
    totals: Mapping[str, Any]
    nodes: Mapping[str, Mapping[str, Any]]
    stats: Mapping[str, Any]
    unready: str
    cluster: Mapping[str, Page]
    jobs: Mapping[str, Page]
    all_nodes: Page
    waiting: Page
    metrics: Page
