"""The broker: the scheduler, the ledger and the ROUTER socket, joined as ``broker.py`` joins them."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING, Final

from dolmetsch.effects import Beat, Drain, Effect, Event, FromPeer, PeerGone, Persist, Publish, Send, Tick
from dolmetsch.messages import Message
from dolmetsch.reports import BrokerHealth
from dolmetsch.scheduler import Scheduler
from dolmetsch.timers import Timers
from dolmetsch.wire import decode, encode
from simulation.disk import Disk
from simulation.hosts import Host
from simulation.network import Frames
from simulation.story import describe
from simulation.timeline import Clock

if TYPE_CHECKING:
    from simulation.world import World

TICK_MESSAGES: Final = 256
PUBLISH_S: Final = 1.0
DRAIN_S: Final = 3.0
NEVER: Final = float("inf")
HEALTH: Final = BrokerHealth("host", "0", 1, 0.0, 0, 0, 0)


class OrderedTimers(Timers[bytes]):
    """Keys that are due together come in their own order: that of a set of bytes differs from process to process."""

    def due(self, now: float) -> list[bytes]:
        """See ``Timers``."""
        return sorted(super().due(now))


class BrokerHost(Host):
    """The one broker, and the disk that outlives it."""

    def __init__(self, world: World, clock: Clock, rng: random.Random) -> None:
        super().__init__(world, "broker", clock, rng)
        self.disk = Disk()
        self.scheduler: Scheduler | None = None
        self.commit_s = world.plan.commit_s
        self.slow_until = 0.0
        self._inbox: list[tuple[bytes, Frames]] = []
        self._busy = False
        self._rebooted = False
        self._publish_at = 0.0
        self._stop_at: float | None = None

    # ---- life and death ----

    def begin(self) -> None:
        """See ``Host``."""
        now = self.now
        self._stop_at = None
        self._busy = False
        self.scheduler = Scheduler(self.world.plan.scheduler, incarnation=f"broker.{self.lives}", now=now)
        self.scheduler.books.timers = OrderedTimers()
        found = self.disk.load(now, rebooted=self._rebooted)
        self._rebooted = False
        effects = self.scheduler.handle(found, now)
        self.world.witness.broker_began(self.scheduler, found, now)
        self._carry_out(effects)

    def end(self, *, power_lost: bool) -> None:
        """See ``Host``: what was read and not committed is lost."""
        self.scheduler = None
        self._inbox.clear()
        self.world.network.broker_died(power_lost=power_lost)
        if power_lost:
            self._rebooted = True
            speed = self.clock.speed  # the clock that a computer counts from its start begins anew
            self.clock = Clock(self.rng.uniform(0.0, 1000.0) - self.world.timeline.now * speed, speed)

    def stop(self) -> None:
        """SIGTERM."""
        if self.scheduler is not None and self._stop_at is None:
            self.tell("is told to stop")
            self.disturb(DRAIN_S)
            self._stop_at = self.now + DRAIN_S
            self._handle(Drain(), self.now)
            self.poke(self.world.timeline.now)

    # ---- turns ----

    def arrived(self, peer: bytes, frames: Frames) -> None:
        """See ``network.Listener``."""
        self._inbox.append((peer, frames))
        self._poke_unless_busy(self.world.timeline.now)

    def _poke_unless_busy(self, when: float) -> None:
        if not self._busy:
            self.poke(when)

    def turn(self) -> None:
        """See ``Host``: collect; the commit and the sends are events of their own, after the disk's time."""
        if self._busy or self.scheduler is None:
            return
        now = self.now
        effects: list[Effect] = []
        taken, self._inbox = self._inbox[:TICK_MESSAGES], self._inbox[TICK_MESSAGES:]
        for peer, frames in taken:
            self.step()
            effects += self._handle(FromPeer(peer, decode(frames)), now)
        self.step()
        effects += self._handle(Tick(), now)
        if self.world.plan.telemetry and now >= self._publish_at:
            self._publish_at = now + PUBLISH_S
            effects += self._handle(Beat(HEALTH), now)
        self.world.witness.turned(self.scheduler, now)
        if effects:
            self._busy = True
            self.world.timeline.after(self._disk_s(effects), self._finish, self.lives, effects)
        else:
            self._rest()

    def _disk_s(self, effects: list[Effect]) -> float:
        if not any(isinstance(one, Persist) for one in effects):
            return 0.0002
        slow_s = self.rng.uniform(0.2, 1.0) if self.world.timeline.now < self.slow_until else 0.0
        return slow_s + self.commit_s * self.rng.uniform(0.5, 2.0)

    def _finish(self, life: int, effects: list[Effect]) -> None:
        if life != self.lives or not self.alive:
            return
        if self.world.timeline.now < self.paused_until:
            self.world.timeline.at(self.paused_until, self._finish, life, effects)
            return
        self.guarded(self._carry_out_and_rest, effects)

    def _carry_out_and_rest(self, effects: list[Effect]) -> None:
        self._carry_out(effects)
        self._busy = False
        self._rest()

    def _rest(self) -> None:
        if self.scheduler is None:
            return
        if self._stop_at is not None and (self.now >= self._stop_at or not self.scheduler.leased):
            self.tell("stops")
            self.leave(self.rng.uniform(0.1, 3.0))
            return
        if self._inbox:
            self.poke(self.world.timeline.now)
        times = (self.scheduler.next_deadline(), self._stop_at)
        self.sleep(min([one for one in times if one is not None], default=NEVER))

    def _handle(self, event: Event, now: float) -> list[Effect]:
        if self.scheduler is None:
            return []
        effects = self.scheduler.handle(event, now)
        self.world.witness.watch.handled(event, effects, now)
        return effects

    def _carry_out(self, effects: list[Effect]) -> None:
        """Commit, then send; what the sends reveal calls for another round."""
        while effects:
            changes = [one for one in effects if isinstance(one, Persist)]
            if changes:
                self.step()
                self.commit(changes)
            gone: dict[bytes, None] = {}
            for effect in effects:
                if isinstance(effect, Send) and not self.send(effect.peer, effect.message):
                    self.world.witness.found_nobody(effect.peer)
                    gone[effect.peer] = None
                elif isinstance(effect, Publish):
                    decode(encode(effect.message))
            effects = self.forget(list(gone))

    def commit(self, changes: list[Persist]) -> None:
        """On the disk, all of it."""
        self.disk.commit(changes)
        self.world.witness.committed(changes)

    def forget(self, gone: list[bytes]) -> list[Effect]:
        """The socket says that nobody is behind these any more."""
        now = self.now
        return [effect for peer in gone for effect in self._handle(PeerGone(peer), now)]

    def send(self, peer: bytes, message: Message) -> bool:
        """Send; False: nobody is there."""
        self.step()
        self.world.witness.about_to_say(self.disk, peer, message)
        if self.world.story.told:
            self.tell(f"-> {peer.decode()} {describe(message)}")
        frames = encode(message)
        self.world.story.sent(self.world.timeline.now, peer, frames)
        return self.world.network.to_peer(peer, frames)
