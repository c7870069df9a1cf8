"""Faults planted on purpose, to see that the simulation finds them. Each takes the place of something for a while.

None of this touches the cores' files: a fault is a method put over another one, and taken away again.
"""

from __future__ import annotations

import contextlib
import functools
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Final

from msgspec import structs

from dolmetsch import messages as m
from dolmetsch.books import Books
from dolmetsch.effects import Effect, Op, Persist, Recover, Send
from dolmetsch.jobs import Job, State
from dolmetsch.lanes import Lanes
from dolmetsch.members import Members
from dolmetsch.outbox import Have, Outbox, _Phase
from dolmetsch.roster import Gateway, Node
from dolmetsch.scheduler import Scheduler
from dolmetsch.session import Session
from dolmetsch.settled import SettledIds
from simulation.brokerhost import BrokerHost
from simulation.gatewayhost import GatewayHost
from simulation.hosts import Peer

EARLY_S: Final = 0.5  # what is left of a lease that expires too early
Method = Callable[..., Any]


@dataclass(frozen=True, slots=True)
class Fault:
    """What is wrong, in a line, and the method that makes it so in place of ``owner.name``."""

    what: str
    owner: type[Any]
    name: str
    make: Callable[[Method], Any]

    @contextlib.contextmanager
    def plant(self) -> Iterator[None]:
        """Everything in this process has the fault until the end of the ``with``."""
        before = self.owner.__dict__[self.name]
        setattr(self.owner, self.name, self.make(before))
        try:
            yield
        finally:
            setattr(self.owner, self.name, before)


FAULTS: Final[dict[str, Fault]] = {}


def _fault(what: str, owner: type[Any], name: str) -> Callable[[Method], Method]:
    """Enter the decorated function, which gets the method it replaces as its first argument, in the list."""

    def enter(function: Method) -> Method:
        key = function.__name__.strip("_").replace("_", "-")

        def make(before: Method) -> Any:
            if isinstance(before, property):
                return property(functools.partial(function, before.fget))
            return functools.partialmethod(_call, function, before)

        FAULTS[key] = Fault(what, owner, name, make)
        return function

    return enter


def _call(self: Any, function: Method, before: Method, *arguments: Any, **named: Any) -> Any:
    return function(before, self, *arguments, **named)


# ---- the broker's program ----


@_fault("outcomes are not committed", BrokerHost, "commit")
def _skip_a_commit(before: Method, broker: BrokerHost, changes: list[Persist]) -> None:
    before(broker, [one for one in changes if one.op is not Op.FINISH])


@_fault("messages leave before the commit", BrokerHost, "_carry_out")
def _send_before_commit(before: Method, broker: BrokerHost, effects: list[Effect]) -> None:
    for effect in effects:
        if isinstance(effect, Send):
            broker.send(effect.peer, effect.message)
    before(broker, [one for one in effects if not isinstance(one, Send)])


@_fault("that nobody is behind a peer is not told to the scheduler", BrokerHost, "forget")
def _forget_peer_gone(before: Method, broker: BrokerHost, gone: list[bytes]) -> list[Effect]:
    return []


# ---- the scheduler ----


@_fault("a node is counted to have one lease fewer than it has", Node, "credit")
def _count_credit_wrong(before: Method, node: Node) -> int:
    return 0 if node.draining else node.capacity - max(0, len(node.leases) - 1)


@_fault("a drained node is leased to", Node, "credit")
def _lease_to_the_drained(before: Method, node: Node) -> int:
    return node.capacity - len(node.leases) if not node.draining else 1 - len(node.leases)


@_fault("a job that was settled before is taken for a new one", SettledIds, "__contains__")
def _forget_the_settled(before: Method, settled: SettledIds, job_id: bytes) -> bool:
    return False


@_fault("FAILED counts for whatever lease there is now", Scheduler, "_failed")
def _ignore_attempts(before: Method, scheduler: Scheduler, node: Node, message: m.Failed, now: float) -> None:
    jobs = scheduler.books.jobs
    present = tuple(
        [structs.replace(one, attempt=jobs[one.job_id].attempt) if one.job_id in jobs else one for one in message.jobs]
    )
    before(scheduler, node, structs.replace(message, jobs=present), now)


@_fault("leases do not expire", Books, "adopt")
def _never_expire(before: Method, books: Books, job: Job, node: Node, now: float) -> None:
    before(books, job, node, now)
    job.lease_until = math.inf


@_fault("leases expire before their time", Books, "adopt")
def _expire_too_early(before: Method, books: Books, job: Job, node: Node, now: float) -> None:
    before(books, job, node, now)
    job.lease_until = now + EARLY_S


@_fault("a heartbeat does not renew", Members, "_present")
def _renew_nothing(before: Method, members: Members, node: Node, held: tuple[m.HeldLease, ...], now: float) -> None:
    before(members, node, [one for one in held if one.job_id not in node.leases], now)


@_fault("a job is leased again under the number that it had", Books, "lease")
def _reuse_an_attempt(before: Method, books: Books, job: Job, node: Node, now: float, what: str) -> None:
    job.attempt -= job.attempt > 1 and what == "leased to"
    before(books, job, node, now, what)


@_fault("nodes are not told that a lease is not theirs", Books, "send")
def _forget_to_revoke(before: Method, books: Books, peer: bytes, message: m.Message) -> None:
    if not isinstance(message, m.Revoke):
        before(books, peer, message)


@_fault("a restarted broker forgets what was leased", Scheduler, "_recover")
def _lose_the_leased(before: Method, scheduler: Scheduler, event: Recover, now: float) -> None:
    before(scheduler, structs.replace(event, records=[one for one in event.records if one.state != State.LEASED]), now)


@_fault("a restarted broker does not wait for nodes to show what they hold", Books, "_orphan")
def _no_grace(before: Method, books: Books, job: Job, now: float) -> None:
    before(books, job, now)
    job.lease_until = now


@_fault("bulk never gets its share", Lanes, "_bulk_due")
def _lose_the_ageing(before: Method, lanes: Lanes, routes: set[str], now: float) -> bool:
    return False


@_fault("bulk goes first", Lanes, "_bulk_due")
def _lose_the_urgent_lane(before: Method, lanes: Lanes, routes: set[str], now: float) -> bool:
    return True


@_fault("a result is sent once, whether or not it is acked", Scheduler, "_deliver")
def _forget_to_resend_results(before: Method, scheduler: Scheduler, now: float) -> None:
    for gateway in scheduler.books.roster.gateways.values():
        for job_id, (job, _) in gateway.sent.items():
            gateway.sent[job_id] = (job, now)
    before(scheduler, now)


@_fault("a result is settled when it is sent", Scheduler, "_deliver_to")
def _settle_unacked(before: Method, scheduler: Scheduler, gateway: Gateway, peer: bytes, now: float) -> None:
    before(scheduler, gateway, peer, now)
    for job, _ in list(gateway.sent.values()):
        if job.state is State.DONE:
            scheduler.books.settle(job, now, "sent")


@_fault("the results of one message get mixed up", Scheduler, "_done")
def _mix_up_results(before: Method, scheduler: Scheduler, node: Node, message: m.Done, now: float) -> None:
    jobs = message.jobs
    texts = [one.texts for one in jobs[1:]] + [jobs[0].texts]
    before(scheduler, node, structs.replace(message, jobs=tuple(map(_with_texts, jobs, texts))), now)


def _with_texts(one: m.Finished, texts: tuple[str, ...]) -> m.Finished:
    return structs.replace(one, texts=texts)


@_fault("a lease that ended in a failure is the node's again when it is shown once more", Books, "gave_up")
def _show_a_failed_lease(before: Method, books: Books, job: Job, *arguments: Any, **named: Any) -> None:
    before(books, job, *arguments, **named)
    job.given_up = 0


# ---- the node ----


@_fault("outcomes are sent once, whether or not they are received", Session, "_send_outcomes")
def _forget_to_resend_outcomes(before: Method, session: Session, now: float) -> None:
    vars(session)["_resend_at"] = math.inf
    before(session, now)


@_fault("a new registration drops outcomes that were not received", Session, "_register")
def _forget_outcomes(before: Method, session: Session, *arguments: Any) -> None:
    vars(session)["_outcomes"].clear()
    before(session, *arguments)


@_fault("a restarted node has the incarnation of the one before", Peer, "new_incarnation")
def _reuse_an_incarnation(before: Method, peer: Peer) -> str:
    return peer.name


# ---- the gateway ----


@_fault("SUBMIT is sent once, whether or not it is answered", Outbox, "_look")
def _forget_to_resend_submits(before: Method, outbox: Outbox, now: float) -> None:
    unsent: dict[bytes, None] = vars(outbox)["_unsent"]
    known = set(unsent)
    before(outbox, now)
    for job_id in [one for one in unsent if one not in known]:
        del unsent[job_id]


@_fault("the second copy of a job is sent although the first was refused", Outbox, "_from_broker")
def _send_the_refused(before: Method, outbox: Outbox, message: m.Message, now: float) -> None:
    unsent: dict[bytes, None] = vars(outbox)["_unsent"]
    copies = dict(unsent)
    before(outbox, message, now)
    if isinstance(message, m.Rejected):
        unsent.update({one.job_id: None for one in message.jobs if one.job_id in copies})


@_fault("without a broker the next ping is overdue for ever", Outbox, "next_deadline")
def _hurry_without_a_broker(before: Method, outbox: Outbox) -> float:
    ping_at: float = vars(outbox)["_ping_at"]
    due: float = before(outbox)
    return min(ping_at, due)


@_fault("a copy of a result is delivered too", Outbox, "_result")
def _deliver_twice(before: Method, outbox: Outbox, answer: m.Answer) -> None:
    parcel = vars(outbox)["_parcels"].get(answer.job_id)
    if parcel is not None:
        parcel.phase = _Phase.ACCEPTED
    before(outbox, answer)


@_fault("a late copy of an acked result is taken for a stray", Outbox, "_have")
def _forget_what_was_acked(before: Method, outbox: Outbox, job_ids: tuple[bytes, ...]) -> None:
    before(outbox, job_ids)
    vars(outbox)["_acked"].clear()


@_fault("acks are not sent", Outbox, "_send_acks")
def _drop_acks(before: Method, outbox: Outbox, now: float) -> None:
    vars(outbox)["_acks"].clear()


@_fault("an answer is acked before it is in the book", GatewayHost, "_deliver")
def _ack_too_early(before: Method, gateway: GatewayHost, answer: m.Answer, stray: bool) -> None:
    before(gateway, answer, stray)
    gateway._handle(Have((answer.job_id,)))
