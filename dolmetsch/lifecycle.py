"""How a program starts and ends, under systemd or in a terminal: signals, sd_notify, the watchdog."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
from types import FrameType, TracebackType
from typing import Any, Final, Self

STOP_SIGNALS: Final = (signal.SIGTERM, signal.SIGINT)
WAKEUP_READ_BYTES: Final = 4096  # one byte waits for each signal


class Signals:
    """SIGTERM and SIGINT as two flags and a descriptor to poll; to be entered in the main thread.

    The first signal sets ``stop`` (drain, then end), the second ``force`` (end now). The handler does nothing
    else: Python writes a byte for each signal to ``fd``'s other end, so a poller wakes up and the loop looks
    at the flags.
    """

    def __init__(self) -> None:
        self.stop = False
        self.force = False
        self._pipe: tuple[int, int] | None = None
        self._before: dict[int, Any] = {}
        self._wakeup_before = -1

    @property
    def fd(self) -> int:
        """The descriptor that becomes readable at a signal; -1 outside the ``with`` block."""
        return self._pipe[0] if self._pipe is not None else -1

    def drain(self) -> None:
        """Empty the pipe, so that the poller can wait again."""
        if self._pipe is not None:
            with contextlib.suppress(BlockingIOError):
                while os.read(self._pipe[0], WAKEUP_READ_BYTES):
                    pass

    def __enter__(self) -> Self:
        self._pipe = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        # A full pipe needs no warning: the byte already in it wakes the poller.
        self._wakeup_before = signal.set_wakeup_fd(self._pipe[1], warn_on_full_buffer=False)
        self._before = {number: signal.signal(number, self._handle) for number in STOP_SIGNALS}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            # None: a handler that was not set from Python cannot be put back.
            signal.signal(number, handler if handler is not None else signal.SIG_DFL)
        signal.set_wakeup_fd(self._wakeup_before)
        if self._pipe is not None:
            for fd in self._pipe:
                os.close(fd)
            self._pipe = None

    def _handle(self, number: int, frame: FrameType | None) -> None:
        self.force = self.stop
        self.stop = True


# systemd's notification protocol, sd_notify(3): one datagram of KEY=value lines to the socket in
# $NOTIFY_SOCKET. Twenty lines of our own: the packages that exist need systemd's headers, or add a dependency for
# that one datagram.


def sd_notify(state: str) -> bool:
    """Tell systemd ``state``: READY=1, STOPPING=1, WATCHDOG=1, STATUS=...; return whether it was sent.

    Nothing happens where no systemd listens. Never waits and never raises: a service must not fail over its
    report.
    """
    address = os.environ.get("NOTIFY_SOCKET", "")
    if not address.startswith(("/", "@")):
        return False
    if address.startswith("@"):
        address = "\0" + address[1:]  # the abstract name space of unix(7)
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK) as sock:
            sock.connect(address)
            sock.send(state.encode())
    except OSError:
        return False
    return True


def watchdog_interval_s() -> float | None:
    """Return every how many seconds to send WATCHDOG=1: half of what systemd allows.

    That half is what sd_watchdog_enabled(3) advises. None where no watchdog is set for this process.
    """
    pid = os.environ.get("WATCHDOG_PID")
    try:
        if pid is not None and int(pid) != os.getpid():
            return None
        limit_us = int(os.environ.get("WATCHDOG_USEC", "0"))
    except ValueError:
        return None
    return limit_us / 2e6 if limit_us > 0 else None


async def feed_watchdog() -> None:
    """For as long as the loop turns: whatever blocks it blocks the program."""
    import asyncio  # not above: broker and node, which have no such loop, would start later and take 3 MiB more

    while (pause_s := watchdog_interval_s()) is not None:
        sd_notify("WATCHDOG=1")
        await asyncio.sleep(pause_s)
