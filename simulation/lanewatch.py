"""The lanes: interactive goes first, and bulk is not starved. Judged by the order in which jobs are leased."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, Protocol

from dolmetsch.lanes import BULK_SHARE
from dolmetsch.messages import BULK, INTERACTIVE
from simulation.disk import Violation
from simulation.story import job_name

EPS: Final = 1e-6


class Eligible(Protocol):
    """A job that waits."""

    job_id: bytes
    lane: int
    route: str
    chars: int
    queued_at: float


class LaneWatch:
    """What was served since the last bulk job, in all and while every waiting bulk job was old enough for its share."""

    def __init__(self, bulk_age_s: float) -> None:
        self._age_s = bulk_age_s
        self._served = 0
        self._starved = 0

    def dispatched(self, job: Eligible, could: Sequence[Eligible], now: float) -> None:
        """``job`` was chosen among ``could``, those that its node can do."""
        bulk = [one for one in could if one.lane == BULK]
        if job.lane == BULK:
            aged = [one.chars for one in bulk if now - one.queued_at >= self._age_s - EPS]
            if any(one.lane == INTERACTIVE for one in could) and (
                not aged or self._served < (BULK_SHARE - 1) * min(aged)
            ):
                raise Violation("interactive goes first", f"{job_name(job.job_id)} overtook, {self._served} served")
            self._served = self._starved = 0
            return
        if bulk and all(now - one.queued_at >= self._age_s for one in bulk):
            if self._starved >= (BULK_SHARE - 1) * max(one.chars for one in bulk):
                raise Violation("bulk is not starved", f"{self._starved} characters before {job_name(bulk[0].job_id)}")
            self._starved += job.chars
        else:
            self._starved = 0
        self._served += job.chars
