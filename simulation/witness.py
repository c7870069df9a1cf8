"""The witness: what must be true of everything that peers see, from the first message to the calm at the end."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Iterable, Sized
from typing import TYPE_CHECKING

from dolmetsch import messages as m
from dolmetsch.effects import Op, Persist, Recover
from dolmetsch.scheduler import Scheduler
from simulation.disk import MAX_SETTLED, Disk, Violation
from simulation.story import job_name
from simulation.watch import Watch

if TYPE_CHECKING:
    from simulation.gatewayhost import GatewayHost
    from simulation.nodehost import NodeHost
    from simulation.world import World


class Witness:
    """Everything that is to be remembered to judge a run."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._jobs = {one.spec.job_id: one.spec for one in world.plan.requests}
        self._shared = world.plan.shared
        self._accepted: set[bytes] = set()
        self._answers: dict[bytes, tuple[str, ...]] = {}  # as they were first delivered
        self._delivered: dict[str, set[bytes]] = {}  # by gateway: to its present process
        self._failures: Counter[bytes] = Counter()
        self._settled_in: dict[tuple[bytes, str], int] = {}  # (job, gateway): its process when the job was settled
        self._turns = 0
        self.watch = Watch(world.plan.scheduler, (), 0.0, self._failures.__getitem__)

    # ---- the broker ----

    def broker_began(self, scheduler: Scheduler, found: Recover, now: float) -> None:
        """A restarted broker must have everything that its disk has."""
        before = self.watch
        self.watch = Watch(self._world.plan.scheduler, found.records, now, self._failures.__getitem__)
        self.watch.failed_before, self.watch.retold = before.failed_before | before.failed, before.retold
        if scheduler.books.jobs.keys() != self._world.broker.disk.jobs.keys():
            lost = self._world.broker.disk.jobs.keys() - scheduler.books.jobs.keys()
            raise Violation("a restarted broker has all it had", " ".join(sorted(map(job_name, lost))))

    def turned(self, scheduler: Scheduler, now: float) -> None:
        """The end of a turn, before anything is committed or said."""
        self._turns += 1
        scheduler.books.validate()
        self._bounded("jobs", scheduler.books.jobs, self._world.plan.scheduler.max_jobs)
        self._bounded("settled ids", scheduler.books.settled, MAX_SETTLED)

    def about_to_say(self, disk: Disk, peer: bytes, message: m.Message) -> None:
        """What a peer is told must be on the disk already."""
        match message:
            case m.Accepted(jobs=states):
                bad = [one.job_id for one in states if one.state != "settled" and one.job_id not in disk.ever]
            case m.Lease(jobs=jobs):
                bad = [one.job_id for one in jobs if not _stands(disk, one.job_id, "leased", one.attempt)]
            case m.Received(jobs=leases):
                bad = [one.job_id for one in leases if _stands(disk, one.job_id, "leased", one.attempt)]
            case m.Result(jobs=answers):
                bad = [one.job_id for one in answers if not _ended(disk, one)]
            case _:
                return
        if bad:
            kind = type(message).__name__
            raise Violation("what a peer is told is on disk", f"{kind} of {job_name(bad[0])} to {peer.decode()}")

    def committed(self, changes: Iterable[Persist]) -> None:
        """These are on the disk now."""
        for change in changes:
            if change.op is Op.REMOVE:
                for gateway in self._world.gateways:
                    self._settled_in[change.row[1], gateway.name] = gateway.lives

    def found_nobody(self, peer: bytes) -> None:
        """A send told the broker that nobody is behind ``peer``: it must not count on it any more."""
        before = self.watch.gone.setdefault(peer, self._turns)
        if before != self._turns:
            raise Violation("who is gone is not talked to", peer.decode())

    # ---- nodes ----

    def blamed(self, job_id: bytes) -> None:
        """A child really failed on the job."""
        self._failures[job_id] += 1

    # ---- gateways ----

    def gateway_began(self, name: str) -> None:
        """A new process, which has been delivered nothing."""
        self._delivered[name] = set()

    def accepted(self, message: m.Accepted) -> None:
        """A gateway reads ACCEPTED."""
        self._accepted.update(one.job_id for one in message.jobs if one.state != "settled")

    def let_go(self, gateway: GatewayHost, job_id: bytes) -> None:
        """Somebody asks anew for what was answered, or cancels it: then it may come once more, in the same words."""
        self._delivered[gateway.name].discard(job_id)

    def delivered(self, gateway: GatewayHost, answer: m.Answer) -> None:
        """The outbox hands an answer to its gateway."""
        job_id, name = answer.job_id, job_name(answer.job_id)
        if job_id in self._delivered[gateway.name]:
            raise Violation("a process is delivered an answer once", f"{name} to {gateway.incarnation}")
        self._delivered[gateway.name].add(job_id)
        self._right(answer)
        if gateway.lives > self._settled_in.get((job_id, gateway.name), gateway.lives):
            raise Violation("an acked answer does not come again", f"{name} to {gateway.incarnation}")
        if answer.texts is not None and self._answers.setdefault(job_id, answer.texts) != answer.texts:
            raise Violation("no two answers differ", f"{name}: {answer.texts}, before {self._answers[job_id]}")

    def _right(self, answer: m.Answer) -> None:
        """The answer is one to this job."""
        spec = self._jobs[answer.job_id]
        good = answer.reply_to == spec.reply_to
        if answer.texts is None:
            good = good and answer.code != ""
        else:
            asked = spec.texts * (1 + spec.alternatives)
            good = good and [one.partition("#")[0] for one in answer.texts] == list(asked)
        if not good:
            raise Violation("an answer is to its question", f"{job_name(answer.job_id)}: {answer}")

    def said_settled(self, gateway: GatewayHost, job_id: bytes) -> None:
        """The broker says that this gateway had the answer before: then it must be in its book."""
        line = gateway.book.lines.get(job_id)
        if line is not None and line.end is None and job_id not in self._shared:
            raise Violation("an answer is acked when it is safe", f"{job_name(job_id)} is settled, but not answered")

    def given_up(self, gateway: GatewayHost, job_id: bytes) -> None:
        """The outbox gives a job up: only if the broker was out of reach, or had no word yet."""
        if not self._world.touch.for_long(gateway) or job_id in self._shared:
            return
        if job_id not in self._world.broker.disk.ever:
            raise Violation("a job is sent until it is answered", f"{job_name(job_id)} never came to the broker")
        entry = self.watch.jobs.get(job_id)
        if entry is not None and entry.outcome is not None and entry.gateway == gateway.name:
            age_s = self._world.broker.now - entry.ended_at
            if age_s > self._world.touch.agree_s:
                raise Violation("a result is sent until it is acked", f"{job_name(job_id)} ended {age_s:.1f} s ago")

    # ---- the end ----

    def at_rest(self) -> bool:
        """Whether everything has drained, and everybody is back."""
        world = self._world
        scheduler = world.broker.scheduler
        return (
            scheduler is not None
            and all(one.acked for one in scheduler.books.dead.values())
            and len(scheduler.books.jobs) == len(scheduler.books.dead)
            and all(_node_rests(one) for one in world.nodes)
            and all(_gateway_rests(one) for one in world.gateways)
            and all(world.touch.since(one) is not None for one in (*world.nodes, *world.gateways))
        )

    def what_is_left(self) -> str:
        """Why it is not at rest, for people."""
        world = self._world
        scheduler = world.broker.scheduler
        jobs = [] if scheduler is None else [one for one in scheduler.books.jobs.values() if not one.acked]
        left = [f"{job_name(one.id)} is {one.state.value} at {one.node}, of {one.gateway}" for one in jobs]
        left += [f"{one.name} holds {one.session.held} jobs" for one in world.nodes if one.session and one.session.held]
        left += [f"{one.name} is not there" for one in world.nodes if not _node_rests(one)]
        left += [f"{one.name} has {len(one.book.open)} open" for one in world.gateways if not _gateway_rests(one)]
        return "; ".join(left[:12])

    def verdict(self) -> None:
        """Everything is calm and has drained: now all accounts must balance."""
        world = self._world
        disk, scheduler = world.broker.disk, world.broker.scheduler
        if scheduler is None:
            raise Violation("everything drains", "there is no broker")
        scheduler.books.validate()
        for job_id in sorted(self._accepted):
            row = disk.jobs.get(job_id)
            dead = row is not None and row.state == "dead" and row.outcome is not None and row.outcome.code != ""
            if (job_id in disk.settled) == dead:
                raise Violation("an accepted job is settled or dead", job_name(job_id))
        for gateway in world.gateways:
            for line in gateway.book.lines.values():
                if line.end is None:
                    raise Violation("every request ends", f"{job_name(line.spec.job_id)} at {gateway.name}")
            if {one.route: one.model for one in gateway.routes} != scheduler.books.roster.routes():
                raise Violation("a gateway learns of routes", f"{gateway.name} knows {gateway.routes}")
        self._forgotten(scheduler)

    def _forgotten(self, scheduler: Scheduler) -> None:
        """Nobody remembers more than there is left."""
        books = scheduler.books
        world = self._world
        for what, found, most in (
            ("orphans", books.orphans, 0), ("timers", books.timers, len(books.dead)),
            ("dead letters", books.dead, world.plan.scheduler.max_dead), ("jobs in lanes", list(books.lanes), 0),
            ("nodes", books.roster.nodes, len(world.nodes)), ("gateways", books.roster.gateways, len(world.gateways)),
        ):  # fmt: skip
            self._bounded(what, found, most)
        for node in world.nodes:
            self._small(node.name, vars(node.session).items(), 4)
        for gateway in world.gateways:
            known = len(gateway.book.lines)
            self._small(gateway.name, vars(gateway.outbox).items(), known)

    def _small(self, who: str, attributes: Iterable[tuple[str, object]], most: int) -> None:
        for name, value in attributes:
            if isinstance(value, dict | list | set | deque):
                self._bounded(f"{who}'s {name}", value, most)

    def _bounded(self, what: str, found: Sized, most: int) -> None:
        if len(found) > most:
            raise Violation("memory is bounded", f"{what}: {len(found)}, at most {most}")


def _stands(disk: Disk, job_id: bytes, state: str, attempt: int) -> bool:
    row = disk.jobs.get(job_id)
    return row is not None and row.state == state and row.attempt == attempt


def _ended(disk: Disk, answer: m.Answer) -> bool:
    row = disk.jobs.get(answer.job_id)
    return row is not None and row.outcome is not None and row.outcome.texts == answer.texts


def _node_rests(node: NodeHost) -> bool:
    session, children = node.session, node.children
    return session is not None and session.up and not session.held and children is not None and not children.jobs


def _gateway_rests(gateway: GatewayHost) -> bool:
    outbox = gateway.outbox
    if outbox is None or gateway.asked or gateway.book.open:
        return False
    return outbox.idle and not vars(outbox)["_parcels"]
