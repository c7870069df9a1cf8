"""What the broker says of itself, again and again, from a thread; and the jobs that are poisoned."""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
import uuid
from types import TracebackType
from typing import Final, NamedTuple, Self

from dolmetsch.client import BULK, Answer, Client
from dolmetsch.errors import DolmetschError, NoBroker
from dolmetsch.keys import Credentials
from dolmetsch.messages import JobSpec, Status

LOOK_S: Final = 0.2
PATIENCE_S: Final = 1.0
POISON: Final = "`poison`"  # as gremlin/sitecustomize.py has it
DEADLINE_S: Final = 900.0
END_S: Final = 10.0


class Sample(NamedTuple):
    """The cluster as it was at ``asked_at`` or later."""

    asked_at: float
    status: Status


class Poison:
    """A poisoned job and what came of it."""

    def __init__(self) -> None:
        self.job_id = uuid.uuid4().bytes
        self.ends: list[Answer | DolmetschError] = []


class Watch:
    """``with Watch(where, keys) as watch``: ``watch.latest`` is at most a second or so old while there is a broker."""

    def __init__(self, where: str, keys: Credentials | None) -> None:
        self._where, self._keys = where, keys
        self.latest: Sample | None = None
        self.poisons: list[Poison] = []
        self.error: BaseException | None = None
        self._stop = False
        self._started = threading.Event()
        self._thread = threading.Thread(target=self._run, name="watch", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        self._started.wait(END_S)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop = True
        self._thread.join(END_S)

    def poison(self) -> Poison:
        """Submit a poisoned job."""
        poison = Poison()
        self.poisons.append(poison)
        self._loop.call_soon_threadsafe(self._submit, poison)
        return poison

    def _submit(self, poison: Poison) -> None:
        def ending(end: Answer | DolmetschError) -> None:
            poison.ends.append(end)
            if isinstance(end, Answer):
                self._client.ack(poison.job_id)

        text = f"Das ist {POISON} für {len(self.poisons)}."
        self._client.submit(JobSpec(poison.job_id, "de→en", (text,), BULK, "poisoner", DEADLINE_S, b""), ending)

    def _run(self) -> None:
        try:
            asyncio.run(self._look())
        except BaseException as error:
            self.error = error

    async def _look(self) -> None:
        self._loop = asyncio.get_running_loop()
        async with Client(self._where, gateway="chaos-watch", keys=self._keys) as self._client:
            self._started.set()
            while not self._stop:
                asked_at = time.monotonic()
                with contextlib.suppress(NoBroker):
                    self.latest = Sample(asked_at, await self._client.status(PATIENCE_S))
                await asyncio.sleep(LOOK_S)
