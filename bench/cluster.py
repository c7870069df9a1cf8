"""A real cluster on this computer, for benchmarks and tests: real processes, a free port, and all is ended after."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from dolmetsch.client import Client
from dolmetsch.config import KeysConfig
from dolmetsch.errors import NoBroker
from dolmetsch.keys import Credentials, credentials, pair_at
from dolmetsch.messages import Status

HOUSE: Final = Path(__file__).resolve().parent.parent
READY_S: Final = 60.0
END_S: Final = 15.0


# Below Linux's ports for outgoing connections (from 32 768), one of which could come between the choice and its use; a
# part for each process, so that tests that run side by side do not choose the same.
PORTS: Final = 16_000
PARTS: Final = 20
_turns = itertools.count()


def free_port() -> int:
    """A port that nobody listens on now, nor on the next two: a broker's telemetry and its door."""
    for turn in itertools.islice(_turns, 200):
        port = PORTS + os.getpid() % PARTS * 600 + turn % 200 * 3
        with socket.socket() as one, socket.socket() as two, socket.socket() as three, contextlib.suppress(OSError):
            for number, each in enumerate((one, two, three)):
                each.bind(("127.0.0.1", port + number))
            return port
    raise RuntimeError("no three free ports in a row")


def leave(cores: Iterable[int]) -> None:
    """Keep this process, and all that it starts from here on, to the other cores, if there are any."""
    every = os.sched_getaffinity(0)
    os.sched_setaffinity(0, every - set(cores) or every)


class Cluster:
    """Starts programs in a folder of their own (ledger, logs, HOME) and ends each of them on exit."""

    def __init__(self, folder: Path | None = None) -> None:
        self._own = tempfile.TemporaryDirectory(prefix="dolmetsch-") if folder is None else None
        self.folder = Path(self._own.name) if self._own else folder or Path()
        self.address = f"tcp://127.0.0.1:{free_port()}"
        self.ledger = self.folder / "ledger.sqlite3"
        self._keys = KeysConfig(dir=str(self.folder / "data" / "dolmetsch" / "keys"))
        self.programs: dict[str, subprocess.Popen[bytes]] = {}
        self.environment = {
            **{name: value for name, value in os.environ.items() if not name.startswith("DOLMETSCH_")},
            "HOME": str(self.folder),
            "XDG_DATA_HOME": str(self.folder / "data"),
            "XDG_CONFIG_HOME": str(self.folder / "config"),
        }

    @property
    def keys(self) -> Credentials | None:
        """What this computer's programs use: none unless ``secure`` was called, and the broker has started since."""
        return credentials(self._keys, self.address)

    def secure(self) -> None:
        """From its next start on the broker uses keys, on loopback too."""
        pair_at(Path(self._keys.dir) / "broker.key_secret", make=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for name in reversed(list(self.programs)):
            self.end(name)
        if self._own is not None:
            self._own.cleanup()

    def start(self, name: str, *arguments: str) -> subprocess.Popen[bytes]:
        """Start one of the programs; its log is ``NAME.log``."""
        with (self.folder / f"{name}.log").open("ab") as log:
            program = subprocess.Popen(
                [sys.executable, *arguments], cwd=HOUSE, env=self.environment, stdout=log, stderr=log
            )
        self.programs[name] = program
        return program

    def broker(self, *more: str) -> subprocess.Popen[bytes]:
        """Start the broker, or start it again at the same address with the same ledger."""
        return self.start("broker", "broker.py", "--bind", self.address, "--ledger", str(self.ledger), *more)

    def node(self, name: str, *more: str) -> subprocess.Popen[bytes]:
        """Start a node called ``name``."""
        return self.start(name, "node.py", "--broker", self.address, "--name", name, *more)

    def kill(self, name: str) -> None:
        """``kill -9``, as a power cut would."""
        program = self.programs.pop(name)
        program.kill()
        program.wait(END_S)

    def end(self, name: str) -> int:
        """End a program as a person would (SIGTERM), by force if it takes too long; its exit status."""
        program = self.programs.pop(name)
        if program.poll() is None:
            program.send_signal(signal.SIGTERM)
        try:
            return program.wait(END_S)
        except subprocess.TimeoutExpired:
            program.kill()
            return program.wait(END_S)

    def log(self, name: str) -> str:
        """What a program has said so far."""
        return (self.folder / f"{name}.log").read_text(errors="replace")

    def status(self, within_s: float = 10.0) -> Status:
        """Ask the broker."""

        async def ask() -> Status:
            async with Client(self.address, gateway="status", keys=self.keys) as client:
                return await client.status(within_s)

        return asyncio.run(ask())

    def wait_listening(self) -> None:
        """Wait until the broker listens. Raises ``NoBroker``, and ``RuntimeError`` when it has ended."""
        until = time.monotonic() + READY_S
        while "listening" not in self.log("broker"):
            if time.monotonic() > until:
                raise NoBroker(self.address, READY_S)
            if self.programs["broker"].poll() is not None:
                raise RuntimeError(f"the broker has ended: {self.log('broker')[-1000:]}")
            time.sleep(0.02)

    def wait_ready(self, nodes: int, workers: int | None = None) -> Status:
        """Wait until so many nodes, with so many workers, can translate. Raises ``NoBroker``."""
        until = time.monotonic() + READY_S
        while time.monotonic() < until:
            with contextlib.suppress(NoBroker):
                status = self.status(2.0)
                if len(status.nodes) >= nodes and (
                    workers is None or sum(node.workers for node in status.nodes) >= workers
                ):
                    return status
            for name, program in self.programs.items():
                if program.poll() is not None:
                    raise RuntimeError(f"{name} ended with {program.returncode}:\n{self.log(name)[-2000:]}")
            time.sleep(0.05)
        raise NoBroker(self.address, READY_S)


def command(*arguments: str, cluster: Cluster, timeout_s: float = 60.0) -> subprocess.CompletedProcess[str]:
    """Run one of the programs to its end, as a person at a terminal would."""
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=HOUSE,
        env=cluster.environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=timeout_s,
        check=False,
    )


__all__: Sequence[str] = ("HOUSE", "Cluster", "command", "free_port")
