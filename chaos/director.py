"""The director: sets the stage, keeps the load going, lets each trouble of the plan happen, and counts at the end."""

from __future__ import annotations

import contextlib
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from chaos import faults
from chaos.faults import DISK_FULL, FAULTS, Fault, NotNow, OfTarget, Stage
from chaos.files import Files
from chaos.ground import BROKER_ADDRESS, HOUSE, Ground
from chaos.journal import Tally
from chaos.plan import CLOCKED, NODES, Trouble
from chaos.programs import Programs, plain_environment
from chaos.watch import Watch
from dolmetsch import config, keys
from dolmetsch.ledger import SqliteLedger
from dolmetsch.packages import EMBEDDED

WHERE: Final = f"tcp://{BROKER_ADDRESS}:5570"
TURN_S: Final = 0.05
RECOVER_S: Final = 90.0  # whoever has not recovered within this has not recovered
READY_S: Final = 60.0
DRAIN_S: Final = 120.0
STALL_S: Final = 1.0  # a turn takes a twentieth of that; whatever takes longer has held up everything on this computer
AWAY_S: Final = 10.0  # after the broker is back: what began to wait for it before gives up within this
JOB_LIMIT_S: Final = 10  # so that a stopped child is given up in our time
GREMLIN: Final = HOUSE / "chaos" / "gremlin"


class Unwell(Exception):
    """Raised when going on makes no sense: something did not start, or has not recovered."""


@dataclass
class Act:
    """One trouble as it happened; times are monotonic seconds."""

    trouble: Trouble
    fault: Fault
    begun_at: float = 0.0
    healed_at: float | None = None
    over_at: float | None = None
    longest_s: float = 0.0  # that a job took which was sent during it

    @property
    def recovered_s(self) -> float:
        """From healing to well again."""
        return 0.0 if self.over_at is None or self.healed_at is None else self.over_at - self.healed_at


class Director:
    """``with Director(...) as director: director.play(plan)``, then ``director.count()``."""

    def __init__(self, folder: Path, per_s: float) -> None:
        self.folder, self._per_s = folder, per_s
        self.tally = Tally(folder / "journal")
        self.complaints: list[str] = []
        self.acts: list[Act] = []
        self.stalls_s: list[float] = []  # how long this computer itself stood still, each time
        self._active: list[Act] = []
        self._turned_at = self._stalled_at = 0.0
        self._stack = contextlib.ExitStack()

    def __enter__(self) -> Director:
        with self._stack as stack:
            self._set(stack)
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *error: object) -> None:
        self._stack.close()

    # ---- the stage ----

    def _set(self, stack: contextlib.ExitStack) -> None:
        ground = stack.enter_context(Ground(self.folder, NODES))
        programs = stack.enter_context(Programs(self.folder))
        self._ledger = ground.disk / "ledger.sqlite3"
        owner = plain_environment(self.folder / "owner")
        broker = ("broker.py", "--bind", WHERE, "--ledger", str(self._ledger))
        programs.add("broker", broker, owner, on_end=self._broker_ended)
        load = ("-m", "chaos.gateway", str(self.folder / "journal"), "--broker", WHERE, "--per-s", str(self._per_s))
        programs.add("load", load, owner)
        self._files = Files(self.folder / "files", WHERE, self._broker_away)
        programs.add("file", (), owner, on_end=self._file_ended)
        _command(owner, *broker, "init")
        for name in NODES:
            invitation = _command(owner, *broker, "invite")
            self._add_node(programs, ground, name, invitation)
        programs.start("broker")
        programs.wait_says("broker", "listening")
        for name in NODES:
            programs.start(name)
        home = config.KeysConfig(dir=str(self.folder / "owner" / ".local" / "share" / "dolmetsch" / "keys"))
        watch = stack.enter_context(Watch(WHERE, keys.credentials(home, WHERE)))
        self.stage = Stage(ground, programs, watch)
        self._until(lambda: all(self.stage.node_well(name, 0.0) for name in NODES), READY_S, "three nodes are ready")

    def _add_node(self, programs: Programs, ground: Ground, name: str, invitation: str) -> None:
        environment = plain_environment(self.folder / name)
        environment |= {"PYTHONPATH": str(GREMLIN), "DOLMETSCH_POOL_JOB_LIMIT_S": str(JOB_LIMIT_S)}
        if name in CLOCKED:
            environment |= faults.with_clock(faults.clock_file(self.folder, name))
        command = ("node.py", "--join", invitation, "--name", name, "--packages", str(EMBEDDED), "--max-workers", "2")
        programs.add(name, command, environment, ground.within(name))

    def _broker_ended(self, status: int, words: str) -> str | None:
        if "broker" in self.stage.excused and status == 1 and DISK_FULL in words.splitlines()[-1]:
            return None
        return f"ended by itself with {status}: {words}"

    def _broker_away(self) -> bool:
        """Whether a program that waits some seconds for the broker may not have found it, or stood still itself."""
        lately = time.monotonic() - AWAY_S
        ours = [act for act in self.acts if act.trouble.target == "broker"]
        return any(act.over_at is None or act.over_at > lately for act in ours) or self._stalled_at > lately

    def _file_ended(self, status: int, words: str) -> str | None:
        complaint = self._files.on_end(status, words)
        self.stage.programs.all["file"].wanted = self._files.running
        return complaint

    # ---- the play ----

    def play(self, plan: Sequence[Trouble], seconds: float) -> None:
        """All of the plan, under load. Raises ``Unwell``."""
        self.stage.programs.start("load")
        begin = self._turned_at = time.monotonic()
        waiting = list(plan)
        while waiting or self._active or time.monotonic() - begin < seconds:
            now = time.monotonic()
            due = waiting and now - begin >= waiting[0].at and waiting[0].target not in self.stage.struck
            if due and self._strike(waiting[0], now):
                waiting.pop(0)
            self._turn(now)
            time.sleep(TURN_S)

    def _strike(self, trouble: Trouble, now: float) -> bool:
        fault: OfTarget = FAULTS[trouble.fault](self.stage, trouble.target)
        try:
            fault.apply()
        except NotNow:
            return False
        self.stage.struck.add(trouble.target)
        act = Act(trouble, fault, now)
        self.acts.append(act)
        self._active.append(act)
        print(f"{trouble}", flush=True)
        return True

    def _turn(self, now: float) -> None:
        if now - self._turned_at > STALL_S:
            self.stalls_s.append(now - self._turned_at)
            self._stalled_at = now
        self._turned_at = now
        self.complaints += self.stage.programs.tend(now)
        self.tally.read()
        if (command := self._files.begin()) is not None:
            self.stage.programs.all["file"].command = command
            self.stage.programs.start("file")
        if self.stage.watch.error is not None:
            raise Unwell(f"the watch: {self.stage.watch.error!r}")
        for act in list(self._active):
            self._go_on(act, now)

    def _go_on(self, act: Act, now: float) -> None:
        if act.healed_at is None:
            act.fault.turn()
            if now - act.begun_at >= act.trouble.for_s:
                act.fault.heal()
                act.healed_at = time.monotonic()
            return
        if act.fault.well(act.healed_at) and self.tally.all_before(act.healed_at):
            act.over_at = now
            act.longest_s = self.tally.longest_s(act.begun_at, act.healed_at + 1.0)
            self._active.remove(act)
            self.stage.struck.discard(act.trouble.target)
            print(f"    {act.trouble.fault} of {act.trouble.target}: recovered in {act.recovered_s:.1f} s", flush=True)
        elif now - act.healed_at > RECOVER_S:
            raise Unwell(f"not recovered within {RECOVER_S:g} s: {act.trouble}\n{self._state()}")

    def _state(self) -> str:
        latest = self.stage.watch.latest
        if latest is None:
            return "the broker has never answered"
        seen = f"{time.monotonic() - latest.asked_at:.1f} s ago: {latest.status}"
        return f"waiting: {dict(list(self.tally.waiting.items())[:5])} ...; the broker, {seen}"

    def _until(self, true: Callable[[], bool], within_s: float, what: str) -> None:
        until = time.monotonic() + within_s
        while not true():
            if time.monotonic() > until:
                raise Unwell(f"not within {within_s:g} s: {what}\n{self._state()}")
            self.complaints += self.stage.programs.tend(time.monotonic())
            self.tally.read()
            time.sleep(TURN_S)

    # ---- the end ----

    def drain(self) -> None:
        """No more load: everything comes to its end, and the broker has nothing left but dead letters."""
        programs = self.stage.programs
        try:
            status = programs.end("load", DRAIN_S)
        except subprocess.TimeoutExpired:
            self.tally.read()
            raise Unwell(f"the load has not got all of its answers after {DRAIN_S:g} s\n{self._state()}") from None
        if status:
            self.complaints.append(f"load ended with {status}: {programs.tail('load')}")
        self._until(lambda: not self._files.running, DRAIN_S, "the last file is done")
        self._until(self._empty, DRAIN_S, "the broker has settled everything")
        for name in (*NODES, "broker"):
            status = programs.end(name)
            if status:
                self.complaints.append(f"{name} ended with {status} at SIGTERM: {programs.tail(name)}")
        with contextlib.closing(SqliteLedger(self._ledger)) as ledger:
            states = Counter(one.state for one in ledger.load(0.0).records)
        dead = len(self.stage.watch.poisons)
        if states != Counter(dead=dead):
            self.complaints.append(f"the ledger should hold {dead} dead letters and nothing else: {states}")

    def _empty(self) -> bool:
        if self.stage.watch.latest is None:
            return False
        status = self.stage.watch.latest.status
        dead = len(self.stage.watch.poisons)
        left = (status.queued_interactive, status.queued_bulk, status.leased, status.undelivered, status.dead_letters)
        return left == (0, 0, 0, 0, dead)

    @property
    def line_count(self) -> int:
        """Lines of files that came out right."""
        return self._files.lines

    @property
    def dead_count(self) -> int:
        """Poisoned jobs that became dead letters, as they should."""
        return sum(not faults.verdict(poison) for poison in self.stage.watch.poisons)

    def findings(self) -> Iterator[str]:
        """Everything that should not be so."""
        yield from self.complaints
        self.tally.read()
        yield from (f"lost: job {number}" for number in self.tally.waiting)
        yield from (f"doubled: job {number}" for number in self.tally.doubled)
        yield from (f"wrong: job {number}: {text!r}" for number, text in self.tally.wrong)
        yield from (f"failed: job {number}: {why}" for number, why in self.tally.failed)
        yield from filter(None, map(faults.verdict, self.stage.watch.poisons))
        yield from (f"a traceback in the log of {name}" for name in self.stage.programs.tracebacks())


def _command(environment: dict[str, str], *arguments: str) -> str:
    ended = subprocess.run(
        [sys.executable, *arguments],
        cwd=HOUSE,
        env=environment,
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    if ended.returncode != 0:
        raise Unwell(f"{' '.join(arguments)}: {ended.stderr}")
    return ended.stdout.strip()
