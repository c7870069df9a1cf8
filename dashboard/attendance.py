"""Attendance: the nodes that are here, and those that were and are missed. Pure.

TELEMETRY lists the nodes that the broker knows now, and says of some that are no more whether they left or were lost.
Who vanishes without such a word, as over the broker's restart, counts as lost too.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from typing import Final

from dolmetsch.messages import Telemetry
from dolmetsch.reports import NO_TEMPERATURE_C, NOTHING_KNOWN, NodeReport

MAX_NODES: Final = 256  # remembered beyond those that are here
LEFT_S: Final = 600.0  # a node that left is shown so long
LOST_S: Final = 86_400.0  # one that was lost
GRACE_S: Final = 6.0  # a restarted broker is found by its nodes within this
RESTARTS_S: Final = 60.0  # restarts of children are counted over this

LOST: Final = "lost"
LEFT: Final = "left"


@dataclass(slots=True)
class Sight:
    """A node as it was when it was seen last, at ``at``; ``state`` is ready, draining, lost or left."""

    report: NodeReport
    state: str
    why: str
    at: float
    gone_at: float | None = None
    restarts: deque[tuple[float, int]] = field(default_factory=deque)

    @property
    def here(self) -> bool:
        """Whether the broker knows it now."""
        return self.gone_at is None

    def seen_s_ago(self, now: float) -> float:
        """Seconds since the broker heard it last."""
        return self.report.seen_s_ago + now - self.at

    def restarts_lately(self) -> int:
        """How many of its children were started anew in the last minute."""
        return max(0, self.restarts[-1][1] - self.restarts[0][1]) if self.restarts else 0


class Attendance:
    """Every node seen, by name."""

    def __init__(self) -> None:
        self._sights: dict[str, Sight] = {}

    def take(self, telemetry: Telemetry, now: float) -> None:
        """The broker has spoken."""
        for report in telemetry.nodes:
            self._present(report, now)
        here = {report.name for report in telemetry.nodes}
        told = {gone.name: gone for gone in telemetry.departed if gone.name not in here}
        for name, gone in told.items():
            sight = self._sights.get(name)
            if sight is None:
                sight = self._sights[name] = Sight(_unknown(name), LOST, "", now - gone.gone_s_ago)
            sight.state, sight.why = (LEFT if gone.how == LEFT else LOST), gone.why
            sight.gone_at = now - gone.gone_s_ago
        for name, sight in self._sights.items():
            if sight.here and name not in here and telemetry.up_s >= GRACE_S:
                sight.state, sight.why, sight.gone_at = LOST, "", now
        self._forget(now)

    def sights(self) -> list[Sight]:
        """All of them, by name."""
        return [sight for _, sight in sorted(self._sights.items())]

    def _present(self, report: NodeReport, now: float) -> None:
        sight = self._sights.get(report.name)
        restarts = sum([child.restarts for child in report.children])
        if sight is None or not sight.here or sight.report.incarnation != report.incarnation:
            sight = self._sights[report.name] = Sight(report, report.state, "", now)
        sight.report, sight.state, sight.at = report, report.state, now
        sight.restarts.append((now, restarts))
        while sight.restarts[0][0] < now - RESTARTS_S:
            sight.restarts.popleft()

    def _forget(self, now: float) -> None:
        for name, sight in list(self._sights.items()):
            keep_s = LEFT_S if sight.state == LEFT else LOST_S
            if sight.gone_at is not None and now - sight.gone_at > keep_s:
                del self._sights[name]
        gone = sorted([(sight.gone_at, name) for name, sight in self._sights.items() if sight.gone_at is not None])
        for _, name in gone[: max(0, len(gone) - MAX_NODES)]:
            del self._sights[name]


def _unknown(name: str) -> NodeReport:
    """A node that was gone before this program began to listen."""
    return NodeReport(
        name=name, incarnation="", state="", engine="", about=NOTHING_KNOWN, up_s=0.0, joined_s_ago=0.0, seen_s_ago=0.0,
        routes=(), capacity=0, leased=0, jobs_done=0, workers=0, queued=0, in_flight=0, chars_per_s=0.0,
        cpu_percent=0.0, core_percent=(), ram_percent=0.0, ram_used_bytes=0, temperature_c=NO_TEMPERATURE_C,
        throttled=False, children=(),
    )  # fmt: skip
