"""The ground: a network of namespaces on a bridge, a small disk, cages for memory. All of it goes with its process.

This process must be in network and mount namespaces of its own (``enter``). The others have no names, only a process
that sleeps in each, and the kernel kills that one when this process dies, in whatever way. So nothing is ever left but
an empty control group, which the next run removes.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Final, Self

HOUSE: Final = Path(__file__).resolve().parent.parent
NEEDS: Final = {
    "ip": "iproute2",
    "tc": "iproute2",
    "unshare": "util-linux",
    "nsenter": "util-linux",
    "setpriv": "util-linux",
}
INSIDE: Final = "DOLMETSCH_CHAOS_INSIDE"
BROKER_ADDRESS: Final = "10.77.0.1"  # nobody else is in this network, whatever else there is on this computer
DISK_MB: Final = 24
DELAY: Final = ("delay", "200ms", "100ms", "loss", "5%")
WITH_PARENT: Final = ("setpriv", "--pdeathsig", "KILL")  # the kernel kills what was begun so when we die
START_S: Final = 10.0
END_S: Final = 10.0
GROUP: Final = "dolmetsch-chaos-"


class GroundError(Exception):
    """Raised when this computer does not do what chaos needs; says what was seen."""


def missing() -> str:
    """What this computer lacks for chaos, as a sentence; empty when nothing."""
    if sys.platform != "linux" or os.geteuid() != 0:
        return "chaos has networks of its own: this needs Linux and root"
    search = os.environ.get("PATH", os.defpath) + ":/usr/sbin:/sbin"
    packages = {package for program, package in NEEDS.items() if shutil.which(program, path=search) is None}
    if packages:
        return f"on Debian: apt install {' '.join(sorted(packages))}"
    tried = subprocess.run(["unshare", "--net", "--mount", "true"], capture_output=True, text=True, check=False)
    return "" if tried.returncode == 0 else f"no namespaces can be made here: {tried.stderr.strip()}"


def enter(argv: Sequence[str]) -> None:
    """Start this program anew in namespaces of its own, unless it is there already; the process stays the same."""
    if os.environ.get(INSIDE) != str(os.getpid()):
        os.environ[INSIDE] = str(os.getpid())
        again = [sys.executable, "-m", "chaos", *argv]
        os.execvp("unshare", ["unshare", "--net", "--mount", "--propagation", "private", *again])


def run(*command: str) -> str:
    """Run a command to its end; what it said. Raises ``GroundError``."""
    ended = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=30, check=False)
    if ended.returncode != 0:
        raise GroundError(f"exit status {ended.returncode}: {' '.join(command)}: {ended.stderr.strip()}")
    return ended.stdout


class Ground:
    """``with Ground(folder, names)``: a host for each of ``names``, on one bridge with this process's own namespace."""

    def __init__(self, folder: Path, names: Sequence[str]) -> None:
        self.folder = folder
        self.disk = folder / "disk"
        self.addresses = {name: f"10.77.0.{11 + number}" for number, name in enumerate(names)}
        self.netem = False  # whether the kernel has it
        self._sleepers: dict[str, subprocess.Popen[bytes]] = {}
        self._cables: dict[str, subprocess.Popen[bytes]] = {}

    def __enter__(self) -> Self:
        try:
            self._make()
        except BaseException:
            self.__exit__(None, None, None)
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for process in (*self._cables.values(), *self._sleepers.values()):
            process.kill()
            process.wait(END_S)
        if os.path.ismount(self.disk):
            run("umount", "--lazy", str(self.disk))
        sweep()

    def _make(self) -> None:
        sweep()
        self.disk.mkdir(parents=True)
        run("mount", "-t", "tmpfs", "-o", f"size={DISK_MB}m", "chaos", str(self.disk))
        run("mount", "-t", "tmpfs", "chaos", "/dev/shm")  # libfaketime leaves things there when it is killed
        run("ip", "link", "set", "lo", "up")
        self._sleep("hub")
        self._hub("ip", "link", "add", "lan", "type", "bridge")
        self._hub("ip", "link", "set", "lan", "up")
        self._plug("broker", os.getpid(), [], BROKER_ADDRESS)
        for name, address in self.addresses.items():
            self._sleep(name)
            self._plug(name, self._sleepers[name].pid, self.within(name), address)
        probe = [*self.within("hub"), "tc", "qdisc", "add", "dev", "lo", "root", "netem", *DELAY]
        self.netem = subprocess.run(probe, capture_output=True, check=False).returncode == 0

    def _sleep(self, name: str) -> None:
        process = subprocess.Popen([*WITH_PARENT, "unshare", "--net", "sleep", "infinity"])
        self._sleepers[name] = process
        until = time.monotonic() + START_S
        while _namespace(process.pid) in ("", _namespace(os.getpid())):
            if time.monotonic() > until or process.poll() is not None:
                raise GroundError(f"no namespace for {name}")
            time.sleep(0.01)
        run(*self.within(name), "ip", "link", "set", "lo", "up")

    def within(self, name: str) -> list[str]:
        """What stands before a command so that it runs on host ``name``; the broker's host is where we are."""
        return [] if name == "broker" else ["nsenter", f"--net=/proc/{self._sleepers[name].pid}/ns/net", "--"]

    def _hub(self, *command: str) -> None:
        run(*self.within("hub"), *command)

    def _plug(self, name: str, pid: int, within: list[str], address: str) -> None:
        self._hub("ip", "link", "add", name, "type", "veth", "peer", "name", "eth0", "netns", str(pid))
        self._hub("ip", "link", "set", name, "up", "master", "lan")
        run(*within, "ip", "address", "add", f"{address}/24", "dev", "eth0")
        run(*within, "ip", "link", "set", "eth0", "up")

    # ---- cables ----

    def cut(self, name: str) -> None:
        """Pull the cable out, at the hub's end: both ends see no carrier, as with a real one."""
        self._hub("ip", "link", "set", name, "down")

    def mend(self, name: str) -> None:
        """Put it back."""
        self._hub("ip", "link", "set", name, "up")

    def mute(self, name: str) -> None:
        """Unplug it beyond a switch: its end keeps its carrier, and packets vanish without a word."""
        self._hub("ip", "link", "set", name, "nomaster")

    def unmute(self, name: str) -> None:
        """Plug it in again."""
        self._hub("ip", "link", "set", name, "master", "lan")

    def disturb(self, name: str) -> None:
        """A bad cable, both ways: by netem where the kernel has it, else by ``cable.py``, which does the same."""
        if self.netem:
            self._hub("tc", "qdisc", "add", "dev", name, "root", "netem", *DELAY)
            run(*self.within(name), "tc", "qdisc", "add", "dev", "eth0", "root", "netem", *DELAY)
            return
        patch = f"{name}-far"
        self._hub("ip", "link", "add", patch, "type", "veth", "peer", "name", f"{name}-lan")
        self._hub("ip", "link", "set", f"{name}-lan", "up", "master", "lan")
        self._hub("ip", "link", "set", patch, "up")
        self.mute(name)
        command = [*self.within("hub"), *WITH_PARENT, sys.executable, "-m", "chaos.cable", name, patch]
        self._cables[name] = subprocess.Popen(command, cwd=HOUSE)

    def calm(self, name: str) -> None:
        """A good one again."""
        if self.netem:
            self._hub("tc", "qdisc", "del", "dev", name, "root")
            run(*self.within(name), "tc", "qdisc", "del", "dev", "eth0", "root")
            return
        process = self._cables.pop(name)
        ended = process.poll()
        process.kill()
        process.wait(END_S)
        self._hub("ip", "link", "del", f"{name}-far")
        self.unmute(name)
        if ended is not None:
            raise GroundError(f"the bad cable of {name} broke by itself: exit status {ended}")

    # ---- the disk ----

    def fill(self) -> None:
        """Leave no byte free on the ledger's disk."""
        with (self.disk / "filler").open("ab", buffering=0) as file, contextlib.suppress(OSError):
            while True:
                file.write(b"\0" * 4096)

    def free(self) -> None:
        """Take the filler away."""
        (self.disk / "filler").unlink(missing_ok=True)


def _namespace(pid: int) -> str:
    with contextlib.suppress(OSError):
        return os.readlink(f"/proc/{pid}/ns/net")
    return ""


# ---- cages ----


def _memory_groups() -> tuple[Path, bool] | None:
    """Where memory control groups are made, and whether those of the second version; None: not here."""
    for line in Path("/proc/mounts").read_text().splitlines():
        _, where, kind, options, *_ = line.split()
        folder = Path(where)
        if kind == "cgroup" and "memory" in options.split(","):
            return folder, False
        with contextlib.suppress(OSError):
            if kind == "cgroup2" and "memory" in (folder / "cgroup.subtree_control").read_text().split():
                return folder, True
    return None


def cages() -> bool:
    """Whether a process can be put into a memory control group."""
    found = _memory_groups()
    return found is not None and os.access(found[0], os.W_OK)


def cage(pid: int, room_bytes: int) -> None:
    """From now on process ``pid`` gets ``room_bytes`` more memory, and dies by the kernel's hand when it wants more."""
    found = _memory_groups()
    if found is None:
        raise GroundError("there are no memory control groups here")
    folder, second = found
    group = folder / f"{GROUP}{os.getpid()}-{pid}"
    group.mkdir()
    limits = ("memory.max", "memory.swap.max") if second else ("memory.limit_in_bytes", "memory.memsw.limit_in_bytes")
    (group / limits[0]).write_text(str(room_bytes))
    with contextlib.suppress(OSError):  # where there is no swap there is no such file
        (group / limits[1]).write_text("0" if second else str(room_bytes))
    (group / "cgroup.procs").write_text(str(pid))


def groups() -> list[Path]:
    """The control groups of this run and of others."""
    found = _memory_groups()
    return [] if found is None else sorted(found[0].glob(f"{GROUP}*"))


def sweep() -> None:
    """Remove the control groups of this and earlier runs that nobody is in any more."""
    until = time.monotonic() + END_S
    for group in groups():
        while group.exists():
            with contextlib.suppress(OSError):
                group.rmdir()
            if not group.exists() or _alive(int(group.name.split("-")[2])) or time.monotonic() > until:
                break  # of a run beside this one, perhaps
            time.sleep(0.05)


def _alive(pid: int) -> bool:
    if pid == os.getpid():
        return False
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, 0)
        return True
    return False


def resume(pid: int) -> None:
    """SIGCONT to ``pid``, if there still is such a process."""
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGCONT)
