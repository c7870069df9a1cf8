"""Two computers and a switch between them, for a test: namespaces of this one, which end with the processes in them.

What is unplugged at the switch keeps its carrier, so that neither side is told: packets are lost without a word, as
beyond a router or when the other computer loses its power. Needs root and Debian's iproute2 and util-linux.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import Final, TypeVar

import msgspec

from bench.cluster import HOUSE, Cluster
from dolmetsch.keys import pair_at
from tests.conftest import wait_until

NEEDS: Final = ("ip", "unshare", "nsenter")
CLONE_NEWNET: Final = 0x40000000
ANSWER_S: Final = 10.0

Value = TypeVar("Value")


def missing() -> str:
    """Why there can be no such computers here; empty when there can."""
    absent = [name for name in NEEDS if shutil.which(name) is None]
    if absent:
        return f"there is no {absent[0]}"
    if os.geteuid() != 0:
        return "namespaces of the network need root"
    try:
        subprocess.run(["unshare", "--net", "--mount", "true"], check=True, capture_output=True, timeout=ANSWER_S)
    except subprocess.SubprocessError:
        return "this system gives out no namespaces"
    return ""


class Computer:
    """A network and an /etc/hosts of its own. ``do`` runs a function whose sockets are on that network."""

    def __init__(self, name: str, folder: Path) -> None:
        self.hosts = folder / f"{name}.hosts"
        self.hosts.write_text("127.0.0.1 localhost\n")
        self._holder = subprocess.Popen(["unshare", "--net", "--mount", "sleep", "infinity"])
        wait_until(self._ready, ANSWER_S, "a namespace")
        self.pid = self._holder.pid
        self._thread: ThreadPoolExecutor | None = None
        self.run("mount", "--bind", str(self.hosts), "/etc/hosts")
        self.run("ip", "link", "set", "lo", "up")

    def _ready(self) -> bool:
        with contextlib.suppress(OSError):
            return os.readlink(f"/proc/{self._holder.pid}/exe") == os.path.realpath(shutil.which("sleep") or "")
        return False

    def enter(self, *command: str) -> list[str]:
        """The command line that runs ``command`` there."""
        return ["nsenter", f"--target={self.pid}", "--net", "--mount", f"--wd={HOUSE}", *command]

    def run(self, *command: str) -> None:
        """Run it to its end, which must be a good one."""
        subprocess.run(self.enter(*command), check=True, timeout=ANSWER_S)

    def do(self, action: Callable[[], Value]) -> Value:
        """What ``action`` returns, called in a thread that is there, as are the threads that it starts."""
        if self._thread is None:
            self._thread = ThreadPoolExecutor(1, initializer=self._move)
        return self._thread.submit(action).result()

    def _move(self) -> None:
        with open(f"/proc/{self.pid}/ns/net") as namespace:
            if ctypes.CDLL(None, use_errno=True).setns(namespace.fileno(), CLONE_NEWNET) != 0:
                raise OSError(ctypes.get_errno(), "setns")

    def close(self) -> None:
        """Its network is gone once no process is left in it."""
        if self._thread is not None:
            self._thread.shutdown()
        self._holder.kill()
        self._holder.wait(ANSWER_S)


class Computers(Cluster):
    """A cluster whose broker is on one computer and everything else on another; they know each other by ``hosts``."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self._stack = contextlib.ExitStack()
        self._switch = self._computer("switch")
        self._switch.run("ip", "link", "add", "switch", "up", "type", "bridge")
        self.there, self.here = self._computer("there"), self._computer("here")
        for computer, port in ((self.there, "there"), (self.here, "here")):
            self._switch.run(
                "ip", "link", "add", port, "up", "master", "switch", "type", "veth", "peer", "lan", "netns",
                str(computer.pid),
            )  # fmt: skip
            computer.run("ip", "link", "set", "lan", "up")

    def _computer(self, name: str) -> Computer:
        computer = Computer(name, self.folder)
        self._stack.callback(computer.close)
        return computer

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        super().__exit__(kind, error, trace)
        self._stack.close()

    def secure(self) -> None:
        """See ``Cluster``; all programs have the same keys and know the broker's."""
        super().secure()
        pair = pair_at(Path(self._keys.dir) / "broker.key_secret", make=False)
        self._keys = msgspec.structs.replace(self._keys, broker=pair.public.decode())
        self.environment |= {"DOLMETSCH_KEYS_BROKER": pair.public.decode(), "DOLMETSCH_BROKER_ANNOUNCE": "false"}

    def start(self, name: str, *arguments: str) -> subprocess.Popen[bytes]:
        """See ``Cluster``."""
        computer = self.there if name == "broker" else self.here
        with (self.folder / f"{name}.log").open("ab") as log:
            program = subprocess.Popen(
                computer.enter(sys.executable, *arguments), cwd=HOUSE, env=self.environment, stdout=log, stderr=log
            )
        self.programs[name] = program
        return program

    def plug(self, port: str, into: bool) -> None:
        """Put the cable of ``here`` or ``there`` into the switch, or pull it out."""
        self._switch.run("ip", "link", "set", port, *(("master", "switch") if into else ("nomaster",)))
