"""What waits at a node, and which of its children gets what of it.

A child has a small window of work in hand: so work spreads evenly, and nothing urgent waits behind much. Towards the
end of a backlog it gets less than a window, so that all children are done at the same time.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence, Set
from typing import Final

from dolmetsch.child import Child, PoolJob

CHARS_PER_TOKEN: Final = 3  # German SentencePiece tokens are 3 to 4 characters long
WINDOW_BATCHES: Final = 24  # in a child's hands: the more, the more alike in length are the sentences of its batches
WINDOW_JOBS: Final = 256  # as many batches of short messages; enough for an engine that does thousands a second
FAIR_PART: Final = 0.75  # of its share of all the work a child gets at once, so that children end together ...
LAST_BATCHES: Final = 2  # ... but not less than these
URGENT_WINDOWS: Final = 1.5  # an urgent job may go on top of a full window: it waits for one batch, not for the window


class Queue:
    """Jobs that no child has yet, of ``batch_tokens`` a batch; there may be ``workers`` children."""

    def __init__(self, batch_tokens: int, workers: int) -> None:
        self.chars = 0
        self._urgent: OrderedDict[bytes, PoolJob] = OrderedDict()
        self._bulk: OrderedDict[bytes, PoolJob] = OrderedDict()
        self._window_chars = WINDOW_BATCHES * batch_tokens * CHARS_PER_TOKEN
        self._workers = workers

    def __len__(self) -> int:
        return len(self._urgent) + len(self._bulk)

    def __contains__(self, key: bytes) -> bool:
        return key in self._urgent or key in self._bulk

    @property
    def urgent(self) -> int:
        """Urgent jobs that wait."""
        return len(self._urgent)

    def add(self, job: PoolJob, *, front: bool = False) -> None:
        """``job`` waits; in ``front``: it has waited before."""
        lane = self._urgent if job.urgent else self._bulk
        lane[job.key] = job
        if front:
            lane.move_to_end(job.key, last=False)
        self.chars += job.chars

    def drop(self, keys: Set[bytes]) -> None:
        """Forget those of ``keys`` that wait."""
        for lane in (self._urgent, self._bulk):
            for key in lane.keys() & keys:
                self.chars -= lane.pop(key).chars

    def clear(self) -> list[bytes]:
        """Forget all; their keys, the urgent ones first."""
        keys = [*self._urgent, *self._bulk]
        self._urgent.clear()
        self._bulk.clear()
        self.chars = 0
        return keys

    def hand_out(self, children: Sequence[Child], now: float) -> dict[Child, list[PoolJob]]:
        """Put jobs into hands, the urgent first: those evenly, and each other job to the child with the most room."""
        given: dict[Child, list[PoolJob]] = {}
        if not children or not self:
            return given
        for lane, windows in ((self._urgent, URGENT_WINDOWS), (self._bulk, self._portion(children))):
            while lane:
                child = min(children, key=self._fullness if lane is self._bulk else self._urgency)
                if self._fullness(child) >= windows:
                    break
                _, job = lane.popitem(last=False)
                self.chars -= job.chars
                child.hold(job, now)
                given.setdefault(child, []).append(job)
        return given

    def _portion(self, children: Sequence[Child]) -> float:
        """How many windows of bulk a child may have in hand.

        Guided self-scheduling (Polychronopoulos and Kuck, 1987): portions shrink as the work comes to its end. There is
        a share for each child that may yet be started: what another has in hand would keep it without work.
        """
        queue = max(self.chars / self._window_chars, len(self) / WINDOW_JOBS)
        work = queue + sum(map(self._fullness, children))
        share = work if self._workers == 1 else FAIR_PART * work / self._workers
        return min(1.0, max(LAST_BATCHES / WINDOW_BATCHES, share))

    def _fullness(self, child: Child) -> float:
        """How much of its window a child has in hand, in characters or in jobs, whichever is more."""
        return max(child.hand_chars / self._window_chars, len(child.hand) / WINDOW_JOBS)

    def _urgency(self, child: Child) -> tuple[int, float]:
        """What an urgent job would wait for there: urgent ones before it, then the batch whose core it shares."""
        return child.urgent, self._fullness(child)
