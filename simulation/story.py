"""The story of a run: who did what when, in virtual time; its beginning and its latest lines."""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Sequence
from typing import Any, Final

from dolmetsch import messages as m

FIRST_LINES: Final = 400
LAST_LINES: Final = 1600
SHOWN_JOBS: Final = 8  # of a message


class Story:
    """Lines, if anybody wants to read them, and in any case a digest of everything that went over the wire."""

    def __init__(self, told: bool) -> None:
        self.told = told
        self._first: list[str] = []
        self._last: deque[str] = deque(maxlen=LAST_LINES)
        self._left_out = 0
        self._digest = hashlib.blake2b(digest_size=16)

    def tell(self, now: float, who: str, what: str) -> None:
        """Add a line; call it only when the story is ``told``, for making the words takes time."""
        line = f"{now:9.4f} {who:<10} {what}"
        if len(self._first) < FIRST_LINES:
            self._first.append(line)
            return
        self._left_out += len(self._last) == LAST_LINES
        self._last.append(line)

    def sent(self, now: float, peer: bytes, frames: Sequence[bytes]) -> None:
        """A message was handed to the network."""
        self._digest.update(b"%.6f" % now + peer + frames[1] + frames[2])

    @property
    def digest(self) -> str:
        """Two runs with the same digest were the same run."""
        return self._digest.hexdigest()

    def __str__(self) -> str:
        gap = [f"... {self._left_out} lines ..."] if self._left_out else []
        return "\n".join([*self._first, *gap, *self._last])


def job_name(job_id: bytes) -> str:
    """Job ids of the simulation are numbers."""
    return f"j{int.from_bytes(job_id)}"


def describe(message: m.Message) -> str:
    """A message in a few words."""
    kind = type(message).__name__.upper()
    match message:
        case m.Register() | m.Heartbeat():
            return f"{kind} holds {_jobs(message.held)}, wants {message.capacity}"
        case m.Welcome():
            return f"{kind} from {message.broker}"
        case m.Order() | m.Manage() | m.Managed():
            return f"{kind} {message.action}"
        case m.Error():
            return f"{kind} {message.code}"
        case _:
            return f"{kind} {_jobs(message.jobs)}" if hasattr(message, "jobs") else kind


def _jobs(jobs: Sequence[Any]) -> str:
    shown = [_job(job) for job in jobs[:SHOWN_JOBS]]
    return (" ".join(shown) or "nothing") + (f" and {len(jobs) - SHOWN_JOBS} more" if len(jobs) > SHOWN_JOBS else "")


def _job(job: Any) -> str:
    if isinstance(job, bytes):
        return job_name(job)
    match job:
        case m.JobState():
            return f"{job_name(job.job_id)}:{job.state}"
        case m.LeasedJob() | m.HeldLease() | m.Finished():
            return f"{job_name(job.job_id)}/{job.attempt}"
        case m.Failure():
            return f"{job_name(job.job_id)}/{job.attempt}:{job.code}"
        case m.Answer() | m.Refusal():
            return f"{job_name(job.job_id)}:{job.code or 'done'}"
        case _:
            return job_name(job.job_id)
