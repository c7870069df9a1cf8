"""The watch: what was heard of the cluster so far, and snapshots of it. Pure but for the pages it hands out.

``now`` is monotonic and decides; ``wall`` (Unix seconds) is only shown, for a Pi has no clock battery.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Any, Final

from msgspec.structs import asdict

from dashboard import picture
from dashboard.attendance import Attendance
from dashboard.charts import Sample
from dashboard.jobbook import JobBook
from dashboard.metrics import exposition
from dashboard.pages import Page, encode_json, json_page
from dashboard.problems import View, problems
from dashboard.rates import Change, Window, reading
from dashboard.snapshot import MODES, Snapshot
from dolmetsch.messages import Telemetry
from dolmetsch.reports import NO_TEMPERATURE_C

SILENCE_S: Final = 3.0  # the broker speaks every second
ASSUMED_S: Final = 1.0  # what a first reading stands for


class Watch:
    """``address`` is the broker's; the watch begins at ``now`` and ``wall``."""

    def __init__(self, address: str, now: float, wall: float) -> None:
        self._address = address
        self._heard = now
        self._since = wall  # of the silence, should there be one
        self._at: float | None = None
        self._telemetry: Telemetry | None = None
        self._minute: Change | None = None
        self._window = Window()
        self._attendance = Attendance()
        self._jobs = JobBook()
        self._job_pages: tuple[int, Mapping[str, Page]] = (-1, {})
        self._misunderstood = ""
        self.telemetries = 0
        self.refused = 0

    def take(self, telemetry: Telemetry, now: float, wall: float) -> Sample:
        """The broker has spoken; what of it goes into the history."""
        change = self._window.add(reading(telemetry))
        self._minute = self._window.change()
        self._heard, self._at, self._since, self._telemetry = now, wall, wall, telemetry
        self._misunderstood = ""
        self.telemetries += 1
        self._attendance.take(telemetry, now)
        self._jobs.take(telemetry, now, wall)
        return _sample(telemetry, change, wall)

    def refuse(self, why: str) -> None:
        """Something came that is not understood."""
        self.refused += 1
        self._misunderstood = why

    def silent_s(self, now: float) -> float:
        """For how long nothing has been heard."""
        return now - self._heard

    def snapshot(self, now: float, wall: float, history: str = "") -> Snapshot:
        """The cluster as far as it is known; ``history`` says why that is not written."""
        alive = self._telemetry is not None and now - self._heard <= SILENCE_S
        telemetry, minute = self._telemetry, self._minute if alive else None
        sights = self._attendance.sights()
        totals = picture.totals(telemetry, sights, minute)
        nodes = {sight.report.name: picture.node(sight, now) for sight in sights}
        waiting = picture.waiting(telemetry)
        view = View(
            alive=alive, address=self._address, telemetry=telemetry, sights=sights, minute=minute, now=now,
            misunderstood="" if alive else self._misunderstood, history=history,
        )  # fmt: skip
        cluster = {
            "at": _ms(self._at),
            "now": _ms(wall),
            "alive": alive,
            "since": None if alive else _ms(self._since),
            "broker": picture.broker(telemetry, self._address),
            "totals": totals,
            "problems": [problem._asdict() for problem in problems(view)],
            "waiting": waiting,
            "nodes": list(nodes.values()),
            "gateways": [picture.gateway(one) for one in telemetry.gateways] if telemetry else [],
            "routes": [asdict(route) for route in telemetry.routes] if telemetry else [],
            "jobs_edition": self._jobs.edition,
        }
        states = {sight.report.name: sight.state for sight in sights}
        iso = datetime.fromtimestamp(wall, UTC).isoformat(timespec="seconds")
        heard = (self.telemetries, self.refused)
        return Snapshot(
            at=self._at,
            now=wall,
            alive=alive,
            since=None if alive else self._since,
            telemetry=telemetry,
            totals=totals,
            nodes=nodes,
            stats=picture.first_bot_stats(telemetry, totals, minute, iso),
            unready=picture.unready(telemetry, alive),
            cluster={mode: Page(_with_mode(cluster, mode)) for mode in MODES},
            jobs=self._pages_of_jobs(),
            all_nodes=json_page({"nodes": list(nodes.values())}),
            waiting=json_page({"waiting": waiting}),
            metrics=Page(
                lambda: exposition(telemetry if alive else None, states, *heard),
                "text/plain; version=0.0.4; charset=utf-8",
            ),
        )

    def _pages_of_jobs(self) -> Mapping[str, Page]:
        """Made anew only when a list is another one, so that who has them is told so."""
        if self._job_pages[0] != self._jobs.edition:
            lists = self._jobs.lists()
            pages = {kind: json_page({"kind": kind, "jobs": jobs}) for kind, jobs in lists.items()}
            self._job_pages = (self._jobs.edition, pages)
        return self._job_pages[1]


def _with_mode(cluster: Mapping[str, Any], mode: str) -> Callable[[], bytes]:
    return lambda: encode_json({**cluster, "actions": mode})


def _sample(telemetry: Telemetry, change: Change | None, wall: float) -> Sample:
    counts, unknown = telemetry.counts, float("nan")
    return Sample(
        at=wall,
        seconds=change.seconds if change else ASSUMED_S,
        translations_per_s=change.translations_per_s if change else unknown,
        failed_per_s=change.failed_per_s if change else unknown,
        latency=tuple([lane.counts for lane in change.latency]) if change else (),
        queued=counts.queued_interactive + counts.queued_bulk,
        in_flight=counts.leased,
        nodes_up=sum([node.state == "ready" for node in telemetry.nodes]),
        workers=sum([node.workers for node in telemetry.nodes]),
        nodes={
            node.name: (
                node.cpu_percent,
                node.ram_percent,
                unknown if node.temperature_c <= NO_TEMPERATURE_C else node.temperature_c,
                node.chars_per_s,
            )
            for node in telemetry.nodes
        },
    )


def _ms(seconds: float | None) -> float | None:
    return None if seconds is None else round(seconds, 3)
