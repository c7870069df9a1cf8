"""Ids of settled jobs, the latest of them: so that a job submitted twice is done once. Pure."""

from __future__ import annotations

from collections import deque


class SettledIds:
    """At most ``most`` ids; the oldest is forgotten first."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._order: deque[bytes] = deque()
        self._ids: set[bytes] = set()

    def add(self, job_id: bytes) -> None:
        """Remember ``job_id``."""
        if not self._most or job_id in self._ids:
            return
        if len(self._order) == self._most:
            self._ids.discard(self._order.popleft())
        self._order.append(job_id)
        self._ids.add(job_id)

    def __contains__(self, job_id: bytes) -> bool:
        return job_id in self._ids

    def __len__(self) -> int:
        return len(self._ids)
