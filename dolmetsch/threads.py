"""The client for threads: one loop and one client in a thread of their own, calls from all the others.

with BlockingClient("tcp://127.0.0.1:5570", gateway="my-program", kind="dashboard") as client:
    status = client.call(lambda one: one.status(5.0), within_s=6.0)
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import logging
import queue
import threading
from collections.abc import Callable, Coroutine
from types import TracebackType
from typing import Any, Final, Self, TypeVar

from dolmetsch import logs
from dolmetsch.calls import Calls
from dolmetsch.client import Client
from dolmetsch.errors import JobFailed, LocalError, NoBroker
from dolmetsch.keys import Credentials

START_S: Final = 5.0  # making a thread, a loop and a socket
CLOSE_S: Final = 5.0  # the client's own goodbye takes at most a second

log = logging.getLogger("client")

Value = TypeVar("Value")


class BlockingClient:
    """What threads share. Raises ``TransportError`` for an address that is none."""

    def __init__(self, where: str, *, gateway: str, kind: str, keys: Credentials | None = None) -> None:
        self._where = where
        self._calls = Calls(where, gateway=gateway, kind=kind, keys=keys)
        self._started: queue.SimpleQueue[BaseException | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="client", daemon=True)

    def __enter__(self) -> Self:
        """Start the thread; the broker need not be there."""
        self._thread.start()
        try:
            error = self._started.get(timeout=START_S)
        except queue.Empty:
            error = LocalError(f"the client's thread did not start within {START_S:g} s")
        if error is not None:
            raise error
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End the thread; whoever still waits gets ``JobFailed`` with the code ``draining``."""
        with contextlib.suppress(RuntimeError):  # it has ended by itself
            self._loop.call_soon_threadsafe(self._task.cancel)
        self._thread.join(CLOSE_S)

    @property
    def alive(self) -> bool:
        """Whether the thread runs; when it does not, nothing can be asked any more."""
        return self._thread.is_alive()

    def call(self, act: Callable[[Client], Coroutine[Any, Any, Value]], within_s: float) -> Value:
        """Have the loop run ``act``; what it returns or raises. Past ``within_s`` it is cancelled: ``NoBroker``."""
        coroutine = act(self._calls.client)
        try:
            future = asyncio.run_coroutine_threadsafe(coroutine, self._loop)
        except RuntimeError as error:
            coroutine.close()
            raise _stopped() from error
        try:
            return future.result(within_s)
        except TimeoutError:
            future.cancel()
            raise NoBroker(self._where, within_s) from None
        except concurrent.futures.CancelledError:
            raise _stopped() from None

    # ---- the loop's thread ----

    def _run(self) -> None:
        try:
            asyncio.run(self._serve())
        except BaseException as error:
            self._started.put(error)  # after the start nobody reads it; ``alive`` says the rest
            log.error("the client's thread has ended: %s", logs.trace(error))

    async def _serve(self) -> None:
        self._loop = asyncio.get_running_loop()
        task = asyncio.current_task()
        assert task is not None
        self._task = task
        async with self._calls:
            self._started.put(None)
            with contextlib.suppress(asyncio.CancelledError):  # that is how __exit__ says stop
                await self._calls.report()


def _stopped() -> JobFailed:
    return JobFailed("draining", "this program is being stopped", 0)
