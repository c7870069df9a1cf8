"""A gateway: the outbox and its socket, joined as ``client.py`` joins them, with a book that survives a crash."""

from __future__ import annotations

import random
from collections.abc import Iterable
from typing import TYPE_CHECKING, Final

from msgspec.structs import replace

from dolmetsch.messages import Accepted, Answer, JobSpec, Manage, Refusal
from dolmetsch.outbox import (
    Deliver,
    Effect,
    Event,
    FromBroker,
    GiveUp,
    Have,
    Offered,
    Operate,
    Outbox,
    Post,
    Reconnect,
    Refuse,
    Send,
    Settled,
    Tick,
    Up,
    Withdraw,
)
from dolmetsch.reports import Route
from simulation.disk import Book, End, Line
from simulation.hosts import Peer
from simulation.plan import GatewayPlan
from simulation.story import job_name

if TYPE_CHECKING:
    from simulation.world import World

PATIENCE_S: Final = 4.0  # a patient gateway waits so long for strays before it asks again
TRIES: Final = 4  # of a job that is refused for now
MOST_WAIT_S: Final = 4.0  # before such a try: shorter than in life, as runs are


class GatewayHost(Peer):
    """One program that asks for translations and replies to people."""

    kind = "gateway"

    def __init__(self, world: World, plan: GatewayPlan, rng: random.Random) -> None:
        super().__init__(world, plan.name, plan.clock, rng)
        self.plan = plan
        self.book = Book()
        self.outbox: Outbox | None = None
        self.routes: tuple[Route, ...] = ()
        self.asked: list[JobSpec] = []  # by people, while nobody was there

    def begin(self) -> None:
        """See ``Host``."""
        self.incarnate()
        self.outbox = Outbox(
            gateway=self.name, incarnation=self.incarnation, rng=random.Random(self.rng.getrandbits(64)), now=self.now
        )
        self.routes = ()
        self.world.witness.gateway_began(self.name)
        self.world.timeline.after(PATIENCE_S if self.plan.patient else 0.0, self._resume, self.lives)

    def end(self, *, power_lost: bool) -> None:
        """See ``Host``."""
        super().end(power_lost=power_lost)
        self.outbox = None

    def _resume(self, life: int) -> None:
        """Ask again for what the book says is open, and for what people wanted meanwhile."""
        if life != self.lives or not self.alive:
            return
        specs = [line.spec for line in self.book.open] + self.asked
        self.asked = []
        for spec in specs:
            self.ask(spec)

    # ---- people ----

    def ask(self, spec: JobSpec) -> None:
        """Somebody wants it; asked for twice it is the same request."""
        if not self.alive:
            self.asked.append(spec)
            return
        line = self.book.lines.get(spec.job_id)
        if line is None:
            line = self.book.lines[spec.job_id] = Line(spec, self.world.timeline.now + spec.deadline_s)
        elif line.end is End.ANSWERED:
            self.world.witness.let_go(self, spec.job_id)
        elif line.end is not None:
            return
        self._post(line)

    def _post(self, line: Line) -> None:
        left_s = line.by - self.world.timeline.now
        if left_s <= 0:
            line.end = line.end or End.GIVEN_UP
            return
        self.guarded(self._handle, Post((replace(line.spec, deadline_s=min(left_s, line.spec.deadline_s)),)))
        self.poke(self.world.timeline.now)

    def cancel(self, job_id: bytes) -> None:
        """Nobody wants it any more."""
        line = self.book.lines.get(job_id)
        if self.alive and line is not None and line.end is None:
            self.tell(f"cancels {job_name(job_id)}")
            line.end = End.CANCELLED
            self.world.witness.let_go(self, job_id)
            self.guarded(self._handle, Withdraw((job_id,)))
            self.poke(self.world.timeline.now)

    def operate(self, manage: Manage) -> None:
        """An operator sits at this gateway."""
        if self.alive:
            self.guarded(self._handle, Operate(manage))
            self.poke(self.world.timeline.now)

    # ---- the loop ----

    def turn(self) -> None:
        """See ``Host``."""
        for message in self.read():
            if isinstance(message, Accepted):
                self.world.witness.accepted(message)
            self._handle(FromBroker(message))
        self._handle(Tick())
        if self.outbox is not None:
            self.sleep(self.outbox.next_deadline())

    def _handle(self, event: Event) -> None:
        if self.outbox is None:
            return
        self.step()
        for effect in self.outbox.handle(event, self.now):
            self.step()
            self._carry_out(effect)

    def _carry_out(self, effect: Effect) -> None:
        match effect:
            case Send(message):
                self.send(message)
            case Deliver(answer, stray):
                self._deliver(answer, stray)
            case Refuse(refusal):
                self._refused(refusal)
            case Settled(job_id):
                self.world.witness.said_settled(self, job_id)
                self._end([job_id], End.SETTLED)
            case GiveUp(job_id):
                self.tell(f"gives {job_name(job_id)} up")
                self.world.witness.given_up(self, job_id)
                self._end([job_id], End.GIVEN_UP)
            case Reconnect():
                self.tell("makes a new connection")
                self.dial()
            case Up(routes) | Offered(routes):
                self.routes = routes
            case _:
                pass

    def _end(self, job_ids: Iterable[bytes], end: End) -> None:
        for job_id in job_ids:
            line = self.book.lines.get(job_id)
            if line is not None and line.end is None:
                line.end = end

    def _refused(self, refusal: Refusal) -> None:
        line = self.book.lines[refusal.job_id]
        line.tries += 1
        if refusal.retry_after_s and line.tries < TRIES and line.end is None:
            wait_s = min(refusal.retry_after_s, MOST_WAIT_S)
            self.world.timeline.after(wait_s, self._retry, self.lives, line)
        else:
            self._end([refusal.job_id], End.REFUSED)

    def _retry(self, life: int, line: Line) -> None:
        if life == self.lives and self.alive and line.end is None:
            self._post(line)

    def _deliver(self, answer: Answer, stray: bool) -> None:
        self.tell(f"has {job_name(answer.job_id)}: {answer.code or 'done'}{' (a stray)' if stray else ''}")
        self.world.witness.delivered(self, answer)
        wait_s = 0.0 if self.rng.random() < 0.5 else self.rng.uniform(0.0, 0.5)
        self.world.timeline.after(wait_s, self._reply, self.lives, answer)

    def _reply(self, life: int, answer: Answer) -> None:
        """Reply and write it in the book, which is one step here; only then is the answer safe, and acked."""
        if life != self.lives or not self.alive:
            return
        if self.world.timeline.now < self.paused_until:
            self.world.timeline.at(self.paused_until, self._reply, life, answer)
            return
        line = self.book.lines.get(answer.job_id)
        if line is not None and line.end is None:
            line.end, line.answer = End.ANSWERED, answer
        self.guarded(self._handle, Have((answer.job_id,)))
        self.poke(self.world.timeline.now)
