"""A steady load: so many jobs a second through a real client, each answer counted, and the nodes watched meanwhile.

    with SteadyLoad(broker, keys) as load:
        ...                       # whatever the cluster has to bear
    load.assert_each_exactly_once()

It runs in a thread with a loop of its own. On leaving, no more jobs are sent once there were enough to mean something,
and the answers still due are waited for.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import random
import threading
import time
import uuid
from dataclasses import dataclass, field
from types import TracebackType
from typing import Final, NamedTuple, Self

from bench.throughput import sentences
from dolmetsch.client import Client
from dolmetsch.errors import DolmetschError, NoBroker
from dolmetsch.keys import Credentials
from dolmetsch.messages import BULK, Answer, JobSpec, Status
from tests.deploy.commands import LOOK_S, HostError, wait_for

START_S: Final = 20.0
DEADLINE_S: Final = 240.0  # of a job: longer than any outage that a test makes
BURST_S: Final = 0.25  # jobs come a few at a time, as people's and files' do: one by one they would all go to one node
SAMPLE_S: Final = 0.1
STATUS_S: Final = 1.0
NUMBERS: Final = itertools.count()  # of texts, in all loads: the broker's cache knows those of the loads before
LEAST: Final = 50  # jobs that a load is never shorter than: an empty one would pass every test


class Sample(NamedTuple):
    """Who could be given work at a moment, as the broker sees it."""

    at: float
    ready: frozenset[str]
    draining: frozenset[str]
    broker_up_s: float


@dataclass
class Sent:
    """A job on its way, and what came of it."""

    text: str
    at: float
    ends: list[Answer | DolmetschError] = field(default_factory=list)
    ended_at: float = 0.0


class SteadyLoad:
    """``per_s`` jobs a second, each with a text of its own, so that no cache answers for a node."""

    def __init__(self, where: str, keys: Credentials, *, per_s: float = 10.0, finish_s: float = 60.0) -> None:
        self._where, self._keys = where, keys
        self._per_s, self._finish_s = per_s, finish_s
        self.jobs: dict[bytes, Sent] = {}
        self.strays: list[Answer] = []
        self.samples: list[Sample] = []
        self.status: Status | None = None  # the latest
        self.error: BaseException | None = None
        self._watching = True
        self._started = threading.Event()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="steady load", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        if not self._started.wait(START_S + 5):
            raise HostError("the load does not start")
        if self.error is not None:
            raise HostError(f"the load does not start: {self.error}") from self.error
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is not None:
            self._finish_s = 0.0  # the test has failed already
        try:
            if kind is None and self._thread.is_alive():
                wait_for(lambda: len(self.jobs) >= LEAST, 15 + LEAST / self._per_s, f"{LEAST} jobs sent")
        finally:
            self._stop.set()
            self._thread.join(self._finish_s + 15)
        if kind is None:
            if self._thread.is_alive():
                raise HostError("the load does not end")
            if self.error is not None:
                raise self.error

    # ---- for tests ----

    @property
    def answered(self) -> int:
        """How many jobs have ended."""
        return sum(1 for job in list(self.jobs.values()) if job.ends)

    def wait_answered(self, more: int, within_s: float) -> None:
        """Wait until ``more`` jobs that are sent from now on are answered. Raises ``HostError``."""
        now = time.monotonic()

        def enough() -> bool:
            return sum(1 for job in list(self.jobs.values()) if job.at >= now and job.ends) >= more

        wait_for(enough, within_s, f"{more} more answers")

    def wait_nodes(self, *names: str, within_s: float) -> float:
        """Wait until exactly these nodes can be given work; the seconds it took. Raises ``HostError``."""
        started = time.monotonic()

        def so() -> bool:
            return bool(self.samples) and self.samples[-1].at > started and self.samples[-1].ready == set(names)

        try:
            wait_for(so, within_s, f"exactly {', '.join(names)} can be given work")
        except HostError as error:
            raise HostError(f"{error}; {self._seen()}") from self.error
        return time.monotonic() - started

    def wait_newcomer(self, within_s: float) -> str:
        """Wait until there is a node that was not there before; its name. Raises ``HostError``."""
        before = self.samples[-1].ready
        wait_for(lambda: bool(self.samples[-1].ready - before), within_s, f"a node beside {', '.join(sorted(before))}")
        return min(self.samples[-1].ready - before)

    def wait_work(self, node: str, within_s: float) -> None:
        """Wait until that node has translated something. Raises ``HostError``."""

        def worked() -> bool:
            nodes = self.status.nodes if self.status is not None else ()
            return any(one.name == node and one.jobs_done for one in nodes)

        try:
            wait_for(worked, within_s, f"work that {node} has done")
        except HostError as error:
            raise HostError(f"{error}; {self._seen()}") from self.error

    def _seen(self) -> str:
        """What there is to say when something was waited for in vain."""
        done, age_s = f"{self.answered} of {len(self.jobs)} jobs answered", time.monotonic() - self.samples[-1].at
        return f"{done}; seen {age_s:.1f} s ago: {self.samples[-1]}, {self.status}"

    def fewest_ready(self) -> int:
        """The smallest number of nodes that could be given work.

        A broker that has just been restarted knows no nodes until they have all registered again, and they work on
        meanwhile: its first five seconds do not count.
        """
        return min(len(sample.ready) for sample in self.samples if sample.broker_up_s > 5.0)

    def slowest_s(self) -> float:
        """The longest time a job took."""
        return max(job.ended_at - job.at for job in self.jobs.values())

    def assert_each_exactly_once(self) -> None:
        """Every job that was sent has one answer, with a translation, and there were ``LEAST`` at least."""
        jobs = list(self.jobs.values())
        assert len(jobs) >= LEAST
        assert [job.text for job in jobs if not job.ends] == [], "lost"
        assert [job.text for job in jobs if len(job.ends) > 1] == [], "answered twice"
        assert self.strays == []
        failed = [end for job in jobs for end in job.ends if isinstance(end, DolmetschError) or end.texts is None]
        assert failed == []

    def translations(self) -> list[tuple[str, str]]:
        """Source and result of each job."""
        return [
            (job.text, end.texts[0])
            for job in self.jobs.values()
            for end in job.ends
            if isinstance(end, Answer) and end.texts
        ]

    # ---- in the thread ----

    def _run(self) -> None:
        try:
            asyncio.run(self._work())
        except BaseException as error:
            self.error = error
        finally:
            self._started.set()

    async def _work(self) -> None:
        name = f"load-{uuid.uuid4().hex[:12]}"
        async with Client(self._where, gateway=name, on_stray=self.strays.append, keys=self._keys) as client:
            await client.wait_up(START_S)
            watch = asyncio.create_task(self._watch(client))
            try:
                self._started.set()
                await self._send(client)
            finally:
                # Not cancelled: wait_for of Python 3.11 may swallow that, and the loop would go on for ever.
                self._watching = False
                await watch

    async def _send(self, client: Client) -> None:
        texts = sentences()
        random.Random(5).shuffle(texts)
        begin = time.monotonic()
        count = 0
        while not self._stop.is_set():
            due = int((time.monotonic() - begin) * self._per_s)
            for number in range(count, due):
                self._submit(client, f"{texts[number % len(texts)]} ({next(NUMBERS)})")
            count = max(count, due)
            await asyncio.sleep(BURST_S)
        until = time.monotonic() + self._finish_s
        while self.answered < len(self.jobs) and time.monotonic() < until:
            await asyncio.sleep(LOOK_S)

    def _submit(self, client: Client, text: str) -> None:
        job_id = uuid.uuid4().bytes
        sent = self.jobs[job_id] = Sent(text, time.monotonic())

        def ending(end: Answer | DolmetschError) -> None:
            sent.ends.append(end)
            sent.ended_at = time.monotonic()
            if isinstance(end, Answer):
                client.ack(job_id)

        client.submit(JobSpec(job_id, "de→en", (text,), BULK, "load", DEADLINE_S, b""), ending)

    async def _watch(self, client: Client) -> None:
        while self._watching:
            with contextlib.suppress(NoBroker):
                status = await client.status(STATUS_S)
                self.status = status
                self.samples.append(
                    Sample(
                        time.monotonic(),
                        frozenset(node.name for node in status.nodes if node.state == "ready" and node.workers),
                        frozenset(node.name for node in status.nodes if node.state != "ready"),
                        status.uptime_s,
                    )
                )
            await asyncio.sleep(SAMPLE_S)
