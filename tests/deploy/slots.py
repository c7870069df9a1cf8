"""Slots: numbers with a lock, from which the names and the subnet of a few hosts come, so that several uses go beside
each other. A lock ends with its process; what a killed process left behind is removed by the next one.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
from pathlib import Path
from typing import Final

from tests.deploy.commands import HostError, run, wait_for

NETWORK: Final = "10.213.{slot}"  # a /24 for each slot: .1 is this computer, hosts begin at .11
SLOTS: Final = 100
RUN: Final = Path("/run/dolmetsch-hosts")  # short: the paths of ssh's control sockets must fit into 108 bytes
END_S: Final = 15.0


class Slot:
    """A number that nobody else on this computer uses now, and all the names that come from it."""

    def __init__(self) -> None:
        RUN.mkdir(parents=True, exist_ok=True)
        taken = -1
        for number in range(SLOTS):
            descriptor = os.open(RUN / f"{number}.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                os.close(descriptor)  # its process lives
                continue
            self._name(number)
            self.clear()
            # Beyond the one that is kept, look only at slots that a killed process may have left.
            if taken < 0 and not self._subnet_in_use():
                taken, self._descriptor = number, descriptor
            else:
                os.close(descriptor)
            if taken >= 0 and not (RUN / f"{number + 1}.lock").exists():
                break
        if taken < 0:
            raise HostError(f"all {SLOTS} slots are in use")
        self._name(taken)

    def _name(self, number: int) -> None:
        self.number = number
        self.bridge = f"dolm{number}"
        self.subnet = NETWORK.format(slot=number)
        self.folder = RUN / str(number)
        self.disks = self.folder / "disks"  # a link to where there is room

    def _subnet_in_use(self) -> bool:
        return bool(run("ip", "route", "show", "root", f"{self.subnet}.0/24").stdout.strip())

    def machine(self, host: str) -> str:
        """The container's name, of which nspawn makes the name of its network interface here: 15 letters at most."""
        return f"{self.bridge}-{host}"

    def release(self) -> None:
        """Remove everything and give the number back."""
        self.clear()
        os.close(self._descriptor)

    def clear(self) -> None:
        """Remove whatever bears this slot's names, whoever made it."""
        end_machines(f"{self.bridge}-*")
        end_masters(self.folder / "ssh")
        # A veth pair goes with its container's namespace, which may take the kernel a moment after the last process.
        if Path("/sys/class/net", self.bridge).exists():
            run("ip", "link", "delete", self.bridge, check=False)
        for machine in Path("/run/systemd/nspawn/propagate").glob(f"{self.bridge}-*"):
            shutil.rmtree(machine, ignore_errors=True)
        with contextlib.suppress(OSError):
            shutil.rmtree(self.disks.resolve(strict=True))
        shutil.rmtree(self.folder, ignore_errors=True)


def cgroups() -> tuple[Path, ...]:
    """Where systemd's hierarchies of control groups are mounted: the unified one, and on some computers an old one."""
    unified, old = [], []
    for line in Path("/proc/mounts").read_text().splitlines():
        _, where, kind, options, *_ = line.split()
        if kind == "cgroup2":
            unified.append(Path(where))
        elif kind == "cgroup" and "name=systemd" in options.split(","):
            old.append(Path(where))
    if not unified:
        raise HostError("this computer has no unified control groups (cgroup2)")
    return (unified[0], *old)


def end_machines(pattern: str) -> None:
    """Kill everything in the control groups of that name at once and remove them."""
    groups = [group for hierarchy in cgroups() for group in hierarchy.glob(pattern)]
    for group in groups:
        with contextlib.suppress(OSError):  # gone meanwhile; or an old hierarchy, where nspawn only mirrors ours
            (group / "cgroup.kill").write_text("1")

    def gone() -> bool:
        for group in groups:
            for folder, _, _ in os.walk(group, topdown=False):
                with contextlib.suppress(OSError):  # busy until the kernel has buried its processes
                    os.rmdir(folder)
        return not any(group.exists() for group in groups)

    wait_for(gone, END_S, f"the end of the processes in {pattern}")


def end_masters(sockets: Path) -> None:
    """End the ssh processes that keep connections open for the next command."""
    for control in sockets.glob("*"):
        with contextlib.suppress(HostError):
            run("ssh", "-o", f"ControlPath={control}", "-O", "exit", "any", check=False, timeout_s=5)
        control.unlink(missing_ok=True)
