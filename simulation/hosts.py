"""What the three kinds of hosts have in common: a clock, turns of a loop, crashes between two steps, pauses."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final

from dolmetsch.messages import Message
from dolmetsch.wire import decode, encode
from simulation.disk import Violation
from simulation.network import Frames, Link, Wire
from simulation.story import describe
from simulation.timeline import Clock

if TYPE_CHECKING:
    from simulation.world import World

HURRY: Final = 20  # turns at once, one after the other


class Crash(Exception):
    """Raised when the host's process is killed at this step."""


class Host:
    """A program on a computer. ``turn`` is one turn of its loop; ``start`` begins a new process."""

    def __init__(self, world: World, name: str, clock: Clock, rng: random.Random) -> None:
        self.world = world
        self.name = name
        self.clock = clock
        self.rng = rng
        self.alive = False
        self.lives = 0  # processes so far
        self.paused_until = 0.0
        self.disturbed_at = 0.0  # when something last went wrong with it, or is to end
        self._fuse: int | None = None
        self._hurried = 0
        self._planned: float | None = None

    @property
    def now(self) -> float:
        """What its clock shows."""
        return self.clock.read(self.world.timeline.now)

    def tell(self, what: str) -> None:
        """A line for the story; costs nothing unless it is told."""
        if self.world.story.told:
            self.world.story.tell(self.world.timeline.now, self.name, what)

    # ---- life and death ----

    def start(self) -> None:
        """A new process, if none runs."""
        if not self.alive:
            self.alive = True
            self.lives += 1
            self._fuse = None
            self._hurried = 0
            self._planned = None
            self.tell(f"starts, process {self.lives}")
            self.begin()
            self.poke(self.world.timeline.now)

    def begin(self) -> None:
        """What a new process does first."""
        raise NotImplementedError

    def turn(self) -> None:
        """One turn of the loop."""
        raise NotImplementedError

    def end(self, *, power_lost: bool) -> None:
        """The process is gone."""
        raise NotImplementedError

    def crash(self, down_s: float, *, power_lost: bool = False) -> None:
        """Kill the process now, and start another after ``down_s`` seconds."""
        if self.alive:
            self.tell("loses power" if power_lost else "is killed")
            self.leave(down_s, power_lost=power_lost)

    def leave(self, down_s: float, *, power_lost: bool = False) -> None:
        """The process ends, and another starts after ``down_s`` seconds."""
        self.alive = False
        self.paused_until = 0.0
        self.disturb(down_s)
        self.end(power_lost=power_lost)
        self.world.timeline.after(down_s, self.start)

    def light(self, steps: int) -> None:
        """Have the process killed after so many more steps, wherever it is then."""
        self._fuse = steps

    def light_out(self) -> None:
        """It is not killed after all."""
        self._fuse = None

    def step(self) -> None:
        """Between any two of these the process may be killed."""
        if self._fuse is not None:
            self._fuse -= 1
            if self._fuse < 0:
                raise Crash

    def pause(self, for_s: float) -> None:
        """The process is stopped, and goes on later."""
        self.paused_until = max(self.paused_until, self.world.timeline.now + for_s)
        self.disturb(for_s)

    def disturb(self, for_s: float) -> None:
        """Something is wrong with this host for so long: nothing can be expected of it meanwhile."""
        self.disturbed_at = max(self.disturbed_at, self.world.timeline.now + for_s)

    # ---- turns ----

    def poke(self, when: float) -> None:
        """Have a turn at ``when`` at the latest."""
        when = max(when, self.world.timeline.now, self.paused_until)
        if self._planned is None or when < self._planned:
            self._planned = when
            self.world.timeline.at(when, self._wake, self.lives, when)

    def sleep(self, until_s: float) -> None:
        """Have the next turn when the clock shows ``until_s``, which is to be in the future, save now and then."""
        self._hurried = self._hurried + 1 if until_s <= self.now else 0
        if self._hurried > HURRY:
            raise Violation("a loop rests while nothing happens", f"{self.name} wants a turn at once, again and again")
        self.poke(self.clock.when(until_s))

    def _wake(self, life: int, when: float) -> None:
        if life != self.lives or when != self._planned or not self.alive:
            return
        self._planned = None
        if when < self.paused_until:
            self.poke(self.paused_until)
            return
        self.guarded(self.turn)

    def guarded(self, action: Callable[..., None], *arguments: Any) -> None:
        """Do it; a process that is killed meanwhile is started again later."""
        try:
            action(*arguments)
        except Crash:
            self.crash(self.rng.uniform(0.05, 6.0))


class Peer(Host):
    """A host with a DEALER socket to the broker."""

    kind = ""

    def __init__(self, world: World, name: str, clock: Clock, rng: random.Random) -> None:
        super().__init__(world, name, clock, rng)
        self.link = Link()
        self.wire: Wire | None = None
        self.incarnation = ""
        self._sockets = 0
        self._inbox: list[Frames] = []

    def dial(self) -> None:
        """A new socket in place of the one before."""
        if self.wire is not None:
            self.world.network.hang_up(self.wire)
        self._inbox.clear()
        self._sockets += 1
        identity = f"{self.kind}/{self.name}/{self.incarnation}/{self._sockets}".encode()
        self.wire = self.world.network.dial(self, identity)

    def incarnate(self) -> None:
        """A new process has a name of its own, and a socket."""
        self.incarnation = self.new_incarnation()
        self._sockets = 0
        self.wire = None
        self.dial()

    def new_incarnation(self) -> str:
        """A name that no process had before."""
        return f"{self.name}.{self.lives}"

    def end(self, *, power_lost: bool) -> None:
        """See ``Host``: what the kernel has of the process's messages still arrives, unless there is no power."""
        self._inbox.clear()
        wire, self.wire = self.wire, None
        if wire is not None and power_lost:
            self.world.network.peer_lost_power(wire)
        elif wire is not None:
            self.world.network.hang_up(wire)

    def arrived(self, wire: Wire, frames: Frames) -> None:
        """See ``network.Caller``."""
        if wire is self.wire:
            self._inbox.append(frames)
            self.poke(self.world.timeline.now)

    def read(self) -> list[Message]:
        """What has arrived."""
        inbox, self._inbox = self._inbox, []
        return [decode(frames) for frames in inbox]

    def send(self, message: Message) -> None:
        """Hand ``message`` to the socket."""
        if self.wire is None:
            return
        if self.world.story.told:
            self.tell(f"-> {describe(message)}")
        frames = encode(message)
        self.world.story.sent(self.world.timeline.now, self.wire.identity, frames)
        self.world.network.to_broker(self.wire, frames)

    @property
    def reachable(self) -> bool:
        """Whether nothing is wrong between this process and the broker's now."""
        now, broker = self.world.timeline.now, self.world.broker
        wire = self.wire
        return (
            self.alive
            and broker.alive
            and now >= max(self.disturbed_at, broker.disturbed_at)
            and self.link.is_open(now)
            and wire is not None
            and wire.connection is not None
            and wire.connection.sound
        )
