"""At the door: whether a submitted job may come in, and the one line that says why not. Pure."""

from __future__ import annotations

import re
from collections.abc import Collection
from functools import lru_cache
from typing import Final

from dolmetsch.config import SchedulerConfig
from dolmetsch.messages import BULK, MAX_JOB_CHARS, MAX_TEXT_CHARS, JobSpec, Refusal

BULK_OF_QUEUE: Final = 0.9  # the rest is kept for the interactive lane, so that a bulk flood cannot shut people out
RETRY_MIN_S: Final = 1.0
RETRY_MAX_S: Final = 60.0
FREED: Final = 0.1  # a refused sender should come back when this part of the queue has drained
ROUTES: Final = 512  # names remembered as good or bad
ROUTE: Final = re.compile(r"[a-z]{2,3}(?:_[A-Za-z]{2,4})?→[a-z]{2,3}(?:_[A-Za-z]{2,4})?")


def faulty(spec: JobSpec) -> Refusal | None:
    """What is wrong with the job itself; no retry will help."""
    total = sum(map(len, spec.texts))
    if total > MAX_TEXT_CHARS and (total > MAX_JOB_CHARS or max(map(len, spec.texts)) > MAX_TEXT_CHARS):
        return _refuse(
            spec, "too_large",
            f"the text has {total} characters; at most {MAX_TEXT_CHARS} in one text and {MAX_JOB_CHARS} in one job: "
            "cut it into parts",
        )  # fmt: skip
    if not any(map(str.strip, spec.texts)):
        return _refuse(spec, "empty_text", "there is no text to translate")
    if spec.deadline_s <= 0:
        return _refuse(spec, "bad_deadline", "the deadline has already passed")
    if not _is_route(spec.route):
        return _refuse(spec, "unknown_route", "a route looks like de→en")
    return None


@lru_cache(ROUTES)
def _is_route(name: str) -> bool:
    return ROUTE.fullmatch(name) is not None


def unknown_route(spec: JobSpec, known: Collection[str]) -> Refusal:
    """No node has offered this route, and others were offered."""
    return _refuse(spec, "unknown_route", f"no node offers {spec.route}; there is {', '.join(sorted(known))[:300]}")


def draining(spec: JobSpec) -> Refusal:
    """The broker is about to stop."""
    return _refuse(spec, "draining", "the broker is about to stop: try again in a moment", 5.0)


def has_room(spec: JobSpec, config: SchedulerConfig, jobs: int, held_bytes: int) -> bool:
    """Whether one more job of its lane may be held."""
    share = BULK_OF_QUEUE if spec.lane == BULK else 1.0
    return jobs < config.max_jobs * share and held_bytes < config.max_bytes * share


def overloaded(spec: JobSpec, queued_chars: int, chars_per_s: float) -> Refusal:
    """There is no room left; when there will be some."""
    wait_s = FREED * queued_chars / chars_per_s if chars_per_s else RETRY_MAX_S
    wait_s = round(min(RETRY_MAX_S, max(RETRY_MIN_S, wait_s)), 1)
    return _refuse(spec, "overloaded", f"overloaded: try again in {wait_s:g} s", wait_s)


def _refuse(spec: JobSpec, code: str, detail: str, retry_after_s: float = 0.0) -> Refusal:
    return Refusal(spec.job_id, code, detail, retry_after_s)
