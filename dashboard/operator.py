"""The operator's hands: what the dashboard asks of the broker, for the few requests that change something.

The client is made for the first of them, so that a dashboard which is only looked at has no connection to the broker
beside the telemetry it listens to. A few threads at most wait for the broker here, so that others can still read.
"""

from __future__ import annotations

import asyncio
import threading
import uuid
from collections.abc import Callable, Coroutine, Sequence
from typing import Any, Final, Protocol, TypeVar

from dolmetsch.client import INTERACTIVE, Answer, Client
from dolmetsch.errors import NoBroker
from dolmetsch.keys import Credentials
from dolmetsch.messages import Managed
from dolmetsch.threads import BlockingClient

AT_ONCE: Final = 4  # half of the threads
CONNECT_S: Final = 3.0
MANAGE_S: Final = 5.0
TRANSLATE_S: Final = 30.0
LOOK_S: Final = 0.25  # how often it is looked whether the broker is still there ...
AWAY_S: Final = 1.0  # ... and for how long it may be away: that it is takes 3 s to be noticed
LATE_S: Final = 1.0  # the client's own word comes first
TENANT: Final = "dashboard"

Value = TypeVar("Value")


class Busy(Exception):
    """Raised when so many are at it already that one more would have to wait."""


class Hands(Protocol):
    """What the routes need."""

    def manage(self, action: str, *, node: str = "", jobs: Sequence[bytes] = ()) -> Managed:
        """See ``messages.Manage``. Raises ``Busy``, ``NoBroker`` or ``RemoteError``."""

    def translate(self, text: str, route: str) -> Answer:
        """Translate. Raises ``Busy``, ``NoBroker``, ``RemoteError``, ``JobRejected`` or ``JobFailed``."""


class Operator:
    """Hands with a client behind them."""

    def __init__(self, where: str, keys: Credentials | None = None) -> None:
        self._where = where
        self._keys = keys
        self._places = threading.BoundedSemaphore(AT_ONCE)
        self._lock = threading.Lock()
        self._client: BlockingClient | None = None

    def manage(self, action: str, *, node: str = "", jobs: Sequence[bytes] = ()) -> Managed:
        """See ``Hands``."""

        async def act(client: Client) -> Managed:
            await client.wait_up(CONNECT_S)
            return await client.manage(action, node=node, jobs=jobs, within_s=MANAGE_S)

        return self._do(act, CONNECT_S + MANAGE_S)

    def translate(self, text: str, route: str) -> Answer:
        """See ``Hands``."""

        async def act(client: Client) -> Answer:
            await client.wait_up(CONNECT_S)
            job = client.translate(text, route, lane=INTERACTIVE, tenant=TENANT, deadline_s=TRANSLATE_S)
            task = asyncio.ensure_future(job)
            try:
                await _while_there(task, client, self._where)
                return await task
            finally:
                task.cancel()

        return self._do(act, CONNECT_S + TRANSLATE_S)

    def close(self) -> None:
        """Say goodbye to the broker, if it was spoken to."""
        with self._lock:
            if self._client is not None:
                self._client.__exit__(None, None, None)
                self._client = None

    def _do(self, act: Callable[[Client], Coroutine[Any, Any, Value]], within_s: float) -> Value:
        if not self._places.acquire(blocking=False):
            raise Busy
        try:
            return self._connected().call(act, within_s + LATE_S)
        finally:
            self._places.release()

    def _connected(self) -> BlockingClient:
        with self._lock:
            if self._client is None or not self._client.alive:
                # The name is this process's alone: of two with one name, the broker would give one the other's results.
                name = f"dashboard-{uuid.uuid4().hex[:12]}"
                self._client = BlockingClient(self._where, gateway=name, kind="dashboard", keys=self._keys).__enter__()
            return self._client


async def _while_there(task: asyncio.Future[Answer], client: Client, where: str) -> None:
    """Wait for ``task`` while there is a broker: nobody should look at a box for half a minute when there is none."""
    away_s = 0.0
    while not (await asyncio.wait({task}, timeout=LOOK_S))[0]:
        away_s = away_s + LOOK_S if client.trouble else 0.0
        if away_s >= AWAY_S:
            raise NoBroker(where, away_s)
