"""The job book: the latest, the slowest and the dead jobs, as the page shows them. Pure.

TELEMETRY carries a sample of the jobs that ended, none with a text. What is kept of it here is bounded by number.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from typing import Any, Final

from dolmetsch.messages import LANES, Telemetry
from dolmetsch.reports import JobReport

SHOWN: Final = 100  # of each kind
SLOW_S: Final = 3600.0  # the slowest of the last hour
SAME_S: Final = 2.0  # two times of one job's end that differ by less are the same
KINDS: Final = ("recent", "slow", "dead")
STAGES: Final = ("gateway", "queue", "wire", "batch", "decode", "reply")

Shown = dict[str, Any]


class JobBook:
    """``edition`` is another one whenever a list is."""

    def __init__(self) -> None:
        self.edition = 0
        self._recent: deque[Shown] = deque(maxlen=SHOWN)
        self._slow: list[tuple[float, Shown]] = []  # when it was told, slowest first
        self._dead: dict[bytes, Shown] = {}

    def take(self, telemetry: Telemetry, now: float, wall: float) -> None:
        """The broker has spoken, at ``now`` by the monotonic clock and ``wall`` by the other one."""
        ended = [(report.ended_s_ago, _shown(report, wall)) for report in telemetry.jobs]
        ended.sort(key=lambda one: -one[0])
        self._recent.extendleft([shown for _, shown in ended])
        known = {shown["id"]: (at, shown) for at, shown in self._slow if now - at < SLOW_S}
        slow = [*(known | {shown["id"]: (now, shown) for _, shown in ended}).values()]
        slow.sort(key=lambda one: -int(one[1]["total_ms"]))
        dead = {report.job_id: self._of_dead(report, wall) for report in telemetry.dead}
        if ended or len(slow) < len(self._slow) or dead != self._dead:
            self.edition += 1
        self._slow = slow[:SHOWN]
        self._dead = dead

    def lists(self) -> Mapping[str, list[Shown]]:
        """By kind: recent and dead with the newest first, slow with the slowest."""
        dead = sorted(self._dead.values(), key=lambda one: -float(one["ended_at"]))
        return {"recent": list(self._recent), "slow": [shown for _, shown in self._slow], "dead": dead[:SHOWN]}

    def _of_dead(self, report: JobReport, wall: float) -> Shown:
        """A dead letter is told every second; its time is taken once, or it would move with each message's delay."""
        shown = _shown(report, wall)
        known = self._dead.get(report.job_id)
        if known is None or abs(shown["ended_at"] - known["ended_at"]) > SAME_S:
            return shown
        return shown | {"ended_at": known["ended_at"]}


def _shown(report: JobReport, wall: float) -> Shown:
    stages = {name: int(getattr(report, f"{name}_ms")) for name in STAGES}
    return {
        "id": report.job_id.hex(),
        "state": report.state,
        "gateway": report.gateway,
        "lane": LANES[report.lane],
        "route": report.route,
        "chars": report.chars,
        "node": report.node,
        "model": report.model,
        "attempts": report.attempts,
        "cached": report.cached,
        "code": report.code,
        "detail": report.detail,
        "ended_at": round(wall - report.ended_s_ago, 3),
        "total_ms": sum(stages.values()),
        "stages": stages,
        "story": [{"at_ms": line.at_ms, "what": line.what} for line in report.story],
    }
