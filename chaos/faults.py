"""The faults: how each is brought about, how it is healed, and what must be so before its target has recovered."""

from __future__ import annotations

import os
import resource
import signal
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Protocol

import psutil

from chaos import ground
from chaos.ground import Ground
from chaos.programs import Programs
from chaos.watch import Poison, Watch
from dolmetsch.messages import Answer

HOUR_S: Final = 3600
ROOM_BYTES: Final = 48 * 2**20  # memory that a child gets beyond what it has, before it has eaten too much
SEEN_S: Final = 2.0  # a ready node was heard of so lately
DISK_FULL: Final = "is the disk full?"
_FAKETIME: Final = "*/faketime/libfaketimeMT.so.1"


class NotNow(Exception):
    """Raised when a fault cannot strike at this moment: there is no child to kill, for instance."""


@dataclass
class Stage:
    """Who is there to be struck."""

    ground: Ground
    programs: Programs
    watch: Watch
    struck: set[str] = field(default_factory=set)  # targets of faults that are not over
    excused: set[str] = field(default_factory=set)  # programs that may end by themselves now

    def node_well(self, name: str, since: float) -> bool:
        """Whether the broker, asked after ``since``, says that the node can be given work."""
        sample = self.watch.latest
        return sample is not None and sample.asked_at > since and any(
            node.name == name and node.state == "ready" and node.workers > 0 and node.seen_s_ago < SEEN_S
            for node in sample.status.nodes
        )  # fmt: skip

    def broker_well(self, since: float) -> bool:
        """Whether the broker, asked after ``since``, has all nodes that are in no trouble of their own."""
        nodes = self.ground.addresses.keys() - self.struck
        answered = self.watch.latest is not None and self.watch.latest.asked_at > since
        return answered and all(self.node_well(name, since) for name in nodes)

    def child(self, name: str) -> int:
        """The node's oldest child, which has a model loaded. Raises ``NotNow``."""
        children = self.programs.children(name)
        if not children or not self.node_well(name, 0.0):
            raise NotNow
        return children[0]


class Fault(Protocol):
    """One fault on one target."""

    def apply(self) -> None:
        """Bring it about. Raises ``NotNow`` when that must wait."""

    def turn(self) -> None:
        """Called again and again while it lasts."""

    def heal(self) -> None:
        """Make an end of it."""

    def well(self, since: float) -> bool:
        """Whether its target is as it was, seen after ``since``, the moment of healing."""


class OfTarget:
    """What most faults share: a target that is a node, or else the broker or a gateway."""

    def __init__(self, stage: Stage, target: str) -> None:
        self.stage, self.target = stage, target

    def apply(self) -> None:
        """See ``Fault``."""

    def turn(self) -> None:
        """See ``Fault``."""

    def heal(self) -> None:
        """See ``Fault``."""

    def well(self, since: float) -> bool:
        """See ``Fault``."""
        if self.target in self.stage.ground.addresses:
            return self.stage.node_well(self.target, since)
        return self.stage.broker_well(since)


class Kill(OfTarget):
    """``kill -9``, and a start."""

    def apply(self) -> None:
        if not self.stage.programs.all[self.target].pid:
            raise NotNow
        self.stage.programs.kill(self.target)

    def heal(self) -> None:
        self.stage.programs.start(self.target)


class Stop(OfTarget):
    """SIGSTOP and SIGCONT."""

    def apply(self) -> None:
        if not self.stage.programs.all[self.target].pid:
            raise NotNow
        self.stage.programs.signal(self.target, signal.SIGSTOP)

    def heal(self) -> None:
        self.stage.programs.signal(self.target, signal.SIGCONT)


class OfChild(OfTarget):
    """What strikes a node's child. It is over when the node has one again, and that is not the one that died."""

    victim = 0

    def apply(self) -> None:
        self.victim = self.stage.child(self.target)
        self.strike(self.victim)

    def strike(self, pid: int) -> None:
        """Do it."""
        os.kill(pid, signal.SIGKILL)

    def well(self, since: float) -> bool:
        children = self.stage.programs.children(self.target)
        return bool(children) and self.victim not in children and super().well(since)


class StopChild(OfChild):
    """SIGSTOP and SIGCONT to a child; a longer one costs it its life, as it makes no progress."""

    def strike(self, pid: int) -> None:
        os.kill(pid, signal.SIGSTOP)

    def heal(self) -> None:
        if self.victim in self.stage.programs.children(self.target):
            ground.resume(self.victim)

    def well(self, since: float) -> bool:
        return bool(self.stage.programs.children(self.target)) and OfTarget.well(self, since)


class EatMemory(OfChild):
    """A child with a leak, in a memory control group: the kernel's out-of-memory killer ends it."""

    def strike(self, pid: int) -> None:
        ground.cage(pid, ROOM_BYTES)
        os.kill(pid, signal.SIGUSR1)


class StarveChild(OfChild):
    """A child with a leak and a limit: what it asks for is refused. It may live on, of no use; then it is killed."""

    def strike(self, pid: int) -> None:
        limit = psutil.Process(pid).memory_info().vms + ROOM_BYTES
        resource.prlimit(pid, resource.RLIMIT_AS, (limit, limit))
        os.kill(pid, signal.SIGUSR1)

    def heal(self) -> None:
        if self.victim in self.stage.programs.children(self.target):
            os.kill(self.victim, signal.SIGKILL)


class FullDisk(OfTarget):
    """The ledger's disk is full, whatever the broker gives back; it may end, with a line that says so."""

    def apply(self) -> None:
        self.stage.excused.add(self.target)
        self.turn()

    def turn(self) -> None:
        self.stage.ground.fill()

    def heal(self) -> None:
        self.stage.ground.free()

    def well(self, since: float) -> bool:
        well = super().well(since)
        if well:
            self.stage.excused.discard(self.target)
        return well


class CutLink(OfTarget):
    """The cable is out."""

    def apply(self) -> None:
        self.stage.ground.cut(self.target)

    def heal(self) -> None:
        self.stage.ground.mend(self.target)


class MuteLink(OfTarget):
    """The cable is out somewhere else."""

    def apply(self) -> None:
        self.stage.ground.mute(self.target)

    def heal(self) -> None:
        self.stage.ground.unmute(self.target)


class BadLink(OfTarget):
    """The cable is bad."""

    def apply(self) -> None:
        self.stage.ground.disturb(self.target)

    def heal(self) -> None:
        self.stage.ground.calm(self.target)


class ClockBack(OfTarget):
    """The node's wall clock is set, and its monotonic clock is not, as when somebody or NTP sets a computer's."""

    def apply(self) -> None:
        set_clock(clock_file(self.stage.ground.folder, self.target), -HOUR_S)

    def heal(self) -> None:
        set_clock(clock_file(self.stage.ground.folder, self.target), 0)


class Poisoned(OfTarget):
    """A poisoned job: a dead letter in the end, after as many children as the broker allows."""

    def apply(self) -> None:
        self.poison: Poison = self.stage.watch.poison()

    def well(self, since: float) -> bool:
        return bool(self.poison.ends) and super().well(since)


def verdict(poison: Poison) -> str:
    """What is wrong with the end of a poisoned job; empty when nothing."""
    match poison.ends:
        case [Answer(texts=None, code="child_crashed", attempts=3)]:
            return ""
        case _:
            return f"the poisoned job {poison.job_id.hex()} should be a dead letter after 3 attempts: {poison.ends}"


FAULTS: Final[dict[str, type[OfTarget]]] = {
    "kill-node": Kill,
    "kill-broker": Kill,
    "kill-gateway": Kill,
    "kill-child": OfChild,
    "stop-node": Stop,
    "stop-broker": Stop,
    "stop-child": StopChild,
    "full-disk": FullDisk,
    "cut-link": CutLink,
    "mute-link": MuteLink,
    "bad-link": BadLink,
    "clock-back": ClockBack,
    "eat-memory": EatMemory,
    "starve-child": StarveChild,
    "poison": Poisoned,
}


# ---- clocks ----


def faketime() -> Path | None:
    """The library that gives a process a clock of its own, where it is installed."""
    return next(iter(sorted(Path("/usr/lib").glob(_FAKETIME))), None)


def clock_file(folder: Path, name: str) -> Path:
    """Where the node's clock is set."""
    return folder / f"{name}.clock"


def set_clock(path: Path, offset_s: int) -> None:
    """Set it, in one step."""
    new = path.with_suffix(".new")
    new.write_text(f"{offset_s:+d}\n")
    new.rename(path)


def with_clock(path: Path) -> dict[str, str]:
    """What a program's environment needs so that its wall clock, and no other, is off by what ``path`` says."""
    library = faketime()
    if library is None:
        return {}
    set_clock(path, 0)
    return {
        "LD_PRELOAD": str(library),
        "FAKETIME_TIMESTAMP_FILE": str(path),
        "FAKETIME_NO_CACHE": "1",
        "FAKETIME_DONT_FAKE_MONOTONIC": "1",
    }


def lacking() -> dict[str, str]:
    """Faults that cannot be brought about on this computer, and why."""
    found = {}
    if faketime() is None:
        found["clock-back"] = "on Debian: apt install faketime"
    if not ground.cages():
        found["eat-memory"] = "there are no memory control groups that can be written to"
    return found
