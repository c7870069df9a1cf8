"""What waits: two lanes, fair between tenants. Pure.

Inside a lane, tenants share by deficit round robin (Shreedhar and Varghese, 1995), counted in characters: a guild that
sends books gets no more of the cluster than one that sends greetings. Between the lanes, interactive goes first; but
once the next bulk job has waited ``bulk_age_s``, bulk gets a quarter of the characters until it has caught up.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Set
from typing import Final

from dolmetsch.jobs import Job, State
from dolmetsch.messages import BULK, INTERACTIVE

QUANTUM_CHARS: Final = 500  # a tenant's turn: a long Discord message, so that turns are short and rounds few
BULK_SHARE: Final = 4  # an aged bulk job comes after three times its length of interactive text


class _Flow:
    """One tenant's jobs in one queue."""

    __slots__ = ("deficit", "jobs", "tenant")

    def __init__(self, tenant: str) -> None:
        self.tenant = tenant
        self.jobs: deque[Job] = deque()
        self.deficit = 0


class FairQueue:
    """The jobs of one lane and route, by tenant.

    A job that is cancelled or expires is only counted out, and its place skipped when its turn comes; when such places
    outnumber the jobs, they are swept, so the queue stays proportional to what really waits.
    """

    def __init__(self) -> None:
        self._flows: dict[str, _Flow] = {}
        self._ring: deque[_Flow] = deque()
        self._places = 0
        self.jobs = 0
        self.chars = 0

    def push(self, job: Job, *, front: bool = False) -> None:
        """Add ``job``, at the ``front`` of its tenant's jobs when it had already been served once."""
        flow = self._flows.get(job.tenant)
        if flow is None:
            flow = self._flows[job.tenant] = _Flow(job.tenant)
            self._ring.append(flow)
        if front:
            flow.jobs.appendleft(job)
        else:
            flow.jobs.append(job)
        self._places += 1
        self.jobs += 1
        self.chars += job.chars

    def give_back(self, job: Job) -> None:
        """Let ``job``, just popped, be the next again, as if it had not been."""
        self.push(job, front=True)
        flow = self._flows[job.tenant]
        flow.deficit += job.chars
        self._ring.remove(flow)
        self._ring.appendleft(flow)

    def discard(self, job: Job) -> None:
        """Count ``job`` out; its state must have left QUEUED."""
        self.jobs -= 1
        self.chars -= job.chars
        if self._places > 2 * self.jobs + 64:
            self._sweep()

    def head(self) -> Job | None:
        """The job that is next if its tenant's turn is long enough: good enough to see how long the queue waits."""
        while self._ring:
            flow = self._ring[0]
            while flow.jobs:
                if flow.jobs[0].state is State.QUEUED:
                    return flow.jobs[0]
                flow.jobs.popleft()
                self._places -= 1
            self._drop_first()
        return None

    def pop(self) -> Job | None:
        """Take the next job in fair order; None when nothing waits."""
        while (job := self.head()) is not None:
            flow = self._ring[0]
            if flow.deficit >= job.chars:
                flow.deficit -= job.chars
                flow.jobs.popleft()
                self._places -= 1
                self.jobs -= 1
                self.chars -= job.chars
                if not flow.jobs:
                    self._drop_first()
                return job
            flow.deficit += QUANTUM_CHARS
            self._ring.rotate(-1)
        return None

    def __iter__(self) -> Iterator[Job]:
        seen: set[bytes] = set()
        for flow in self._flows.values():
            for job in flow.jobs:
                if job.state is State.QUEUED and job.id not in seen:
                    seen.add(job.id)
                    yield job

    def _drop_first(self) -> None:
        # An empty flow gives its deficit up: saved-up turns would let a quiet tenant burst past the others.
        del self._flows[self._ring.popleft().tenant]

    def _sweep(self) -> None:
        self._places = 0
        for flow in list(self._flows.values()):
            # dict.fromkeys: a job that was leased and came back may still have its old place too
            flow.jobs = deque(dict.fromkeys(job for job in flow.jobs if job.state is State.QUEUED))
            self._places += len(flow.jobs)
            if not flow.jobs:
                del self._flows[flow.tenant]
                self._ring.remove(flow)


class Lanes:
    """Every queued job, by lane and route."""

    def __init__(self, bulk_age_s: float) -> None:
        self._bulk_age_s = bulk_age_s
        self._queues: tuple[dict[str, FairQueue], dict[str, FairQueue]] = ({}, {})
        self._interactive_chars = 0  # served since the last bulk job, ...
        self._before = 0  # ... and before the last pop

    def push(self, job: Job, *, front: bool = False) -> None:
        """Add a queued job."""
        self._queue(job).push(job, front=front)

    def _queue(self, job: Job) -> FairQueue:
        queues = self._queues[job.lane]
        queue = queues.get(job.route)
        if queue is None:
            queue = queues[job.route] = FairQueue()
        return queue

    def give_back(self, job: Job) -> None:
        """Let ``job``, just popped, be the next of its queue again; bulk that was due is due still."""
        self._queue(job).give_back(job)
        self._interactive_chars = self._before

    def discard(self, job: Job) -> None:
        """Count out a job that has just left QUEUED other than by ``pop``."""
        self._queues[job.lane][job.route].discard(job)

    def pop(self, routes: tuple[Set[str], Set[str]], now: float) -> Job | None:
        """The next job among those that need one of ``routes``, which are open to each lane."""
        bulk_first = bool(self._queues[INTERACTIVE]) and self._bulk_due(routes[BULK], now)
        for lane in (BULK, INTERACTIVE) if bulk_first else (INTERACTIVE, BULK):
            job = self._pop_lane(lane, routes[lane])
            if job is not None:
                self._before = self._interactive_chars
                self._interactive_chars = 0 if lane == BULK else self._interactive_chars + job.chars
                return job
        return None

    def _pop_lane(self, lane: int, routes: Set[str]) -> Job | None:
        queues = self._queues[lane]
        for route in list(queues):
            if route in routes:
                queue = queues[route]
                job = queue.pop()
                if not queue.jobs:
                    del queues[route]
                elif len(queues) > 1:
                    queues[route] = queues.pop(route)  # to the end: routes take turns
                if job is not None:
                    return job
        return None

    def _bulk_due(self, routes: Set[str], now: float) -> bool:
        for route, queue in self._queues[BULK].items():
            if route in routes:
                job = queue.head()
                if job is not None and now - job.queued_at >= self._bulk_age_s:
                    return self._interactive_chars >= (BULK_SHARE - 1) * job.chars
        return False

    @property
    def waiting(self) -> bool:
        """Whether anything waits; after a job was counted out perhaps wrongly, until the next ``pop``."""
        return bool(self._queues[INTERACTIVE] or self._queues[BULK])

    def waiting_for(self, routes: tuple[Set[str], Set[str]]) -> int:
        """Jobs waiting that need one of ``routes``, which are open to each lane."""
        return sum(
            queue.jobs
            for queues, wanted in zip(self._queues, routes, strict=True)
            for route, queue in queues.items()
            if route in wanted
        )

    def count(self, lane: int) -> int:
        """Jobs waiting in ``lane``."""
        return sum(queue.jobs for queue in self._queues[lane].values())

    @property
    def chars(self) -> int:
        """Characters waiting in all lanes."""
        return sum(queue.chars for queues in self._queues for queue in queues.values())

    def __iter__(self) -> Iterator[Job]:
        for queues in self._queues:
            for queue in queues.values():
                yield from queue
