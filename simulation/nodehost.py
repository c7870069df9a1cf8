"""A node: the session, its children and its socket, joined as ``node.py`` joins them."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING, Final

from msgspec import structs

from dolmetsch.messages import Done, Failed, Heartbeat, LeasedJob, Message, Register
from dolmetsch.reports import Route
from dolmetsch.session import (
    Beat,
    Drain,
    Effect,
    Event,
    FromBroker,
    Health,
    Joined,
    Leave,
    Offer,
    Reconnect,
    Renew,
    Send,
    Session,
    Start,
    Stop,
    Tick,
)
from simulation.children import MODEL, Children
from simulation.hosts import Peer
from simulation.plan import NodePlan
from simulation.story import job_name

if TYPE_CHECKING:
    from simulation.world import World

BEAT_S: Final = 1.0  # until the broker says otherwise
DRAIN_S: Final = 4.0
NEVER: Final = float("inf")


class NodeHost(Peer):
    """One machine that translates."""

    kind = "node"

    def __init__(self, world: World, plan: NodePlan, rng: random.Random) -> None:
        super().__init__(world, plan.name, plan.clock, rng)
        self.plan = plan
        self.session: Session | None = None
        self.children: Children | None = None
        self.suspicious: dict[bytes, float] = {}  # jobs held here that the broker thinks elsewhere, and since when
        self._started: set[tuple[bytes, int]] = set()  # leases
        self._offer_at: float | None = None
        self._beat_at = 0.0
        self._beat_s = BEAT_S

    def begin(self) -> None:
        """See ``Host``."""
        self.incarnate()
        now = self.now
        self.session = Session(
            name=self.name, incarnation=self.incarnation, engine="simulated",
            rng=random.Random(self.rng.getrandbits(64)), now=now,
        )  # fmt: skip
        self.children = Children(self.plan, self.rng, self.world.count, self.world.witness.blamed)
        self.suspicious = {}
        self._started = set()
        self._offer_at = now + self.rng.uniform(0.05, 1.0)  # a child reads its model
        self._beat_at = now
        self._beat_s = BEAT_S

    def end(self, *, power_lost: bool) -> None:
        """See ``Host``."""
        super().end(power_lost=power_lost)
        self.session = self.children = None

    def stop(self) -> None:
        """SIGTERM."""
        if self.session is not None:
            self.tell("is told to stop")
            self.disturb(DRAIN_S)
            self.guarded(self._handle, Drain(self.now + DRAIN_S))
            self.poke(self.world.timeline.now)

    def turn(self) -> None:
        """See ``Host``."""
        session, children, now = self.session, self.children, self.now
        if session is None or children is None:
            return
        for message in self.read():
            self._handle(FromBroker(message))
            if not self.alive:
                return
        if now >= self._beat_at:
            self._beat_at = now + self._beat_s
            self._handle(Beat(self._health(children)))
            self.world.touch.look(self)
        if self._offer_at is not None and now >= self._offer_at:
            self._offer_at = None
            self._handle(Offer(tuple([Route(route, MODEL) for route in self.plan.routes]), self.plan.slots))
        ended = children.tick(now)
        if ended is not None:
            self._handle(ended)
        self._handle(Tick())
        if self.alive:
            self.sleep(self._due(session, children))

    def _due(self, session: Session, children: Children) -> float:
        times = (self._beat_at, self._offer_at, session.next_deadline(), children.next_deadline())
        return min([one for one in times if one is not None], default=NEVER)

    def _health(self, children: Children) -> Health:
        return Health(
            workers=self.plan.slots, slots=self.plan.slots, queued=children.queued, in_flight=children.in_flight,
            jobs_per_s=1.0, chars_per_s=self.plan.chars_per_s, cpu_percent=1.0, core_percent=(), ram_percent=1.0,
            ram_used_bytes=1, temperature_c=None, throttled=False, children=(),
        )  # fmt: skip

    def _handle(self, event: Event) -> None:
        if self.session is None:
            return
        self.step()
        for effect in self.session.handle(event, self.now):
            self.step()
            self._carry_out(effect)
            if not self.alive:
                return

    def _carry_out(self, effect: Effect) -> None:
        children = self.children
        if children is None:
            return
        match effect:
            case Send(message):
                self._notice(message)
                self.send(self._modest(message))
            case Start(jobs):
                self._start(children, jobs)
            case Stop(job_ids):
                children.cancel(job_ids, self.now)
            case Renew():
                self.tell("starts its children anew")  # one by one, when their hands are empty: nobody notices
            case Reconnect():
                self.tell("makes a new connection")
                self.dial()
            case Joined(_, heartbeat_s):
                self._beat_s = heartbeat_s
                self._beat_at = self.now
                self.poke(self.world.timeline.now)
            case Leave(why):
                self.tell(f"leaves: {why}")
                self.leave(self.rng.uniform(0.2, 3.0))  # systemd starts it again

    def _start(self, children: Children, jobs: tuple[LeasedJob, ...]) -> None:
        self.tell(f"starts {' '.join(job_name(job.job_id) for job in jobs)}")
        self._started |= {(job.job_id, job.attempt) for job in jobs}
        children.submit(jobs, self.now)

    def _notice(self, message: Message) -> None:
        """Known: an outcome that is told under an attempt for which nothing was done; a failure may count twice."""
        if isinstance(message, Done | Failed):
            told = {(one.job_id, one.attempt) for one in message.jobs}
            self.world.witness.watch.retold |= {job_id for job_id, _ in told - self._started}

    def _modest(self, message: Message) -> Message:
        """The session asks for hundreds of jobs, and runs have tens: so ask for less, and credit matters."""
        if isinstance(message, Register | Heartbeat):
            return structs.replace(message, capacity=min(message.capacity, self.plan.credit))
        return message
