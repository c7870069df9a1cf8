"""The scheduler: the broker's whole judgement, and no I/O at all. Pure.

One door: ``handle(event, now)`` takes an event and returns effects. ``now`` is monotonic seconds. The program around it
keeps one rule: collect a tick's events, end the tick with ``Tick()``, commit every ``Persist`` in one transaction, and
only then carry out each ``Send``. So whatever a peer is told is on disk already.

The rules that everything else follows from:

1. A job is in exactly one state (the table stands in ``jobs.py``), and each move is persisted.
2. A lease is (job id, attempt). A heartbeat renews the leases it lists; a lease that nobody renews expires, and the job
   is queued again in front. Delivery to nodes is therefore at least once.
3. The first valid result wins, whoever sends it: what comes later for the same job is thanked for and dropped.
4. A gateway is sent each result until it acks; then the job is settled, its text forgotten, its id remembered.
   The same id submitted again finds the job in its present state. So a user gets one reply.
5. Credit is capacity minus leases, computed when it is needed: there is no counter that a lost message could spoil.
6. Everything has an end: a deadline for a job, a time to live for its result or its dead letter, a cap for the rest.

Where to read on: ``_submit`` lets jobs in, ``_dispatch`` chooses a node, ``_done`` and ``_failed`` take outcomes,
``_check`` is what time does, ``_deliver`` sends results. ``members.py`` is about nodes and gateways that come and go;
``lanes.py`` decides whose job is next; ``books.py`` carries a decision out, and its ``validate`` says what is always
true.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any, Final

from dolmetsch import admission
from dolmetsch.books import Books
from dolmetsch.config import SchedulerConfig
from dolmetsch.effects import Beat, Drain, Effect, Event, FromPeer, PeerGone, Publish, Recover, Tick
from dolmetsch.errors import LocalError
from dolmetsch.jobs import Job, Outcome, State, Times
from dolmetsch.members import Members
from dolmetsch.messages import (
    BULK,
    DRAIN,
    GIVEN_BACK,
    INTERACTIVE,
    MAX_DETAIL_CHARS,
    PURGE,
    REQUEUE,
    RESTART,
    RESUME,
    Accepted,
    Ack,
    Answer,
    Ask,
    Cancel,
    Done,
    Error,
    Failed,
    Failure,
    Finished,
    Goodbye,
    Heartbeat,
    HeldLease,
    Hello,
    JobSpec,
    JobState,
    Lease,
    LeasedJob,
    Manage,
    Managed,
    Message,
    Order,
    Ping,
    Received,
    Refusal,
    Register,
    Rejected,
    Report,
    Reregister,
    Result,
    Status,
    Submit,
    batches,
    text_bytes,
)  # fmt: skip
from dolmetsch.roster import Gateway, Node, OpenRoutes, Portion
from dolmetsch.views import Views

CHECK_S: Final = 0.25  # how often leases and peers are looked at; a loss is seen at most this much late
FORGIVEN_S: Final = 1.0  # a check that comes later than this found the broker itself asleep
RESULT_WINDOW: Final = 2048  # results a gateway may have unacked: far below the socket's high-water mark
MANY_NODES: Final = 64  # above that a message for each job would cost more than the jobs, ...
LEASES_A_TURN: Final = {INTERACTIVE: 64, BULK: 16}  # ... and a turn gives jobs to about so many nodes
REPEATS: Final = 3  # times that a gateway's results are sent again before it has acked any


class Scheduler:
    """Jobs, leases, credit, lanes, tenants, retries and dead letters."""

    def __init__(self, config: SchedulerConfig, *, incarnation: str, now: float) -> None:
        self._config = config
        self.books = Books(config)
        self.members = Members(self.books, config, incarnation)
        self.draining = False
        self._roster = self.books.roster
        self._views = Views(self, incarnation, now)
        self._next_check = now
        self._doors: dict[type[Any], Callable[[Gateway, Any, float], None]] = {
            Submit: self._submit, Ack: self._ack, Cancel: self._cancel, Manage: self._manage,
            Ping: self.members.ping, Report: self.books.report,
        }  # fmt: skip
        self._node_doors: dict[type[Any], Callable[[Node, Any, float], None]] = {
            Heartbeat: self.members.heartbeat, Done: self._done, Failed: self._failed, Goodbye: self.members.goodbye,
        }  # fmt: skip

    # ---- the door ----

    def handle(self, event: Event, now: float) -> list[Effect]:
        """Take one event; the effects are to be carried out in order, every Persist before any Send."""
        match event:
            case FromPeer(peer, message):
                self._from_peer(peer, message, now)
            case Tick():
                self._check(now)
                if not self.draining:
                    self._dispatch(now)
                self._deliver(now)
            case PeerGone(peer):
                self.members.peer_gone(peer, now)
            case Recover():
                self._recover(event, now)
            case Drain():
                self.draining = True
            case Beat(health):
                self.books.effects.append(Publish(self._views.telemetry(health, now)))
            case _:
                raise LocalError(f"unknown event {event!r}")
        effects, self.books.effects = self.books.effects, []
        return effects

    def next_deadline(self) -> float | None:
        """When ``Tick`` has something to do even if nothing arrives; None: never."""
        due = self.books.timers.next()
        if self._roster.nodes or self._roster.gateways or self.books.orphans:
            due = self._next_check if due is None else min(due, self._next_check)
        return due

    @property
    def leased(self) -> int:
        """Jobs that nodes hold now."""
        return self.books.leased

    def status(self, now: float) -> Status:
        """The cluster at a glance."""
        return self._views.status(now)

    def _from_peer(self, peer: bytes, message: Message, now: float) -> None:
        kind = type(message)
        node_door = self._node_doors.get(kind)
        if node_door is not None:
            node = self._roster.nodes.get(peer)
            if node is None:
                self.books.send(peer, Reregister())
                return
            node.last_seen = now
            node_door(node, message, now)
            return
        gateway = self._roster.gateway_at(peer)
        if gateway is not None:
            gateway.last_seen = now
        door = self._doors.get(kind)
        if door is not None:
            if gateway is None:
                self.books.send(peer, Reregister())
            else:
                door(gateway, message, now)
        elif isinstance(message, Hello):
            self.members.hello(peer, message, now)
        elif isinstance(message, Register):
            self.members.register(peer, message, now)
        elif isinstance(message, Ask):
            self.books.send(peer, self.status(now))
        else:
            self.books.send(peer, Error(code="bad_message", detail="a broker does not take this kind of message"))

    # ---- gateways ----

    def _submit(self, gateway: Gateway, message: Submit, now: float) -> None:
        accepted: list[JobState] = []
        refused: list[Refusal] = []
        for spec in message.jobs:
            job = self.books.jobs.get(spec.job_id)
            if job is not None:
                self.books.own(gateway, job)
                accepted.append(JobState(job.id, job.state))
            elif spec.job_id in self.books.settled:
                accepted.append(JobState(spec.job_id, State.SETTLED))
            elif (refusal := self._refusal(spec)) is not None:
                refused.append(refusal)
            else:
                accepted.append(JobState(spec.job_id, self._admit(gateway, spec, now).state))
        if accepted and gateway.peer is not None:
            self.books.send(gateway.peer, Accepted(jobs=tuple(accepted)))
        if refused and gateway.peer is not None:
            self.books.tally.rejected += len(refused)
            self.books.send(gateway.peer, Rejected(jobs=tuple(refused)))

    def _refusal(self, spec: JobSpec) -> Refusal | None:
        fault = admission.faulty(spec)
        if fault is not None:
            return fault
        if self.draining:
            return admission.draining(spec)
        # With no node seen yet the cluster is still starting, and the job may wait for its node.
        if self.members.known_routes and spec.route not in self.members.known_routes:
            return admission.unknown_route(spec, self.members.known_routes)
        if admission.has_room(spec, self._config, len(self.books.jobs), self.books.bytes):
            return None
        rate = sum(node.chars_per_s for node in self._roster.nodes.values())
        return admission.overloaded(spec, self.books.lanes.chars, rate)

    def _admit(self, gateway: Gateway, spec: JobSpec, now: float) -> Job:
        self.books.tally.accepted += 1
        job = self.books.admit(gateway, spec, now)
        model = self.members.models.get(job.route)
        texts = None
        if model is not None and not job.alternatives:  # the cache knows the best translation only
            texts = self.books.cache.get(job.route, model, job.texts)
        if texts is None or model is None:
            self.books.lanes.push(job)
        else:
            self.books.finish(job, Outcome(texts, "", "", model, True, 0), now)
        return job

    def _ack(self, gateway: Gateway, message: Ack, now: float) -> None:
        for job_id in message.jobs:
            job = self.books.jobs.get(job_id)
            if job is None or job.gateway != gateway.name or job.outcome is None:
                continue
            gateway.repeats = 0
            if job.state is State.DONE:
                self.books.settle(job, now, "acked")
            else:
                gateway.sent.pop(job_id, None)
                gateway.ready.pop(job_id, None)
                job.acked = True
                self.books.trim_dead(now)

    def _cancel(self, gateway: Gateway, message: Cancel, now: float) -> None:
        settled: list[JobState] = []
        for job_id in message.jobs:
            job = self.books.jobs.get(job_id)
            if job is not None and job.gateway == gateway.name:
                self.books.settle(job, now, "cancelled")
            settled.append(JobState(job_id, State.SETTLED))
        if settled and gateway.peer is not None:
            self.books.send(gateway.peer, Accepted(jobs=tuple(settled)))

    # ---- operators ----

    def _manage(self, gateway: Gateway, message: Manage, now: float) -> None:
        count, problem = 0, ""
        if message.action in (DRAIN, RESUME, RESTART):
            node = self._roster.node_named(message.node)
            if node is None:
                problem = f"there is no node called {message.node!r} now"
            else:
                self.books.send(node.peer, Order(action=message.action))
                count = 1
        elif message.action in (REQUEUE, PURGE):
            count, problem = self._manage_dead(message, now)
        else:
            problem = f"unknown action {message.action!r}"
        if gateway.peer is not None:
            answer = Managed(action=message.action, node=message.node, count=count, problem=problem[:MAX_DETAIL_CHARS])
            self.books.send(gateway.peer, answer)

    def _manage_dead(self, message: Manage, now: float) -> tuple[int, str]:
        wanted = message.jobs or tuple(self.books.dead)
        jobs = [job for job in map(self.books.dead.get, dict.fromkeys(wanted)) if job is not None]
        if message.action == REQUEUE:
            for job in jobs:
                self.books.revive(job, now)
            return len(jobs), ""
        told = [job for job in jobs if job.acked]
        for job in told:
            self.books.settle(job, now, "purged by an operator")
        left = len(jobs) - len(told)
        return len(told), f"{left} not purged: their gateways have not been told yet" if left else ""

    # ---- nodes ----

    def _done(self, node: Node, message: Done, now: float) -> None:
        self._receive(node, message.jobs)
        for item in message.jobs:
            job = self.books.jobs.get(item.job_id)
            if job is None or job.outcome is not None:
                continue  # settled, or another attempt was first
            if len(item.texts) != job.wanted:
                if job.id in node.leases and job.attempt == item.attempt:
                    self.books.gave_up(job, now, "engine_error", "the node sent another number of texts", blame=True)
                continue
            took_ms = int((now - job.queued_at) * 1000)
            self.books.took_ms.append(took_ms)
            node.jobs_done += 1
            job.times = Times(item.wait_ms, item.work_ms)
            if not job.alternatives:
                self.books.cache.put(job.route, item.model, job.texts, item.texts)
            self.books.finish(job, Outcome(item.texts, "", "", item.model, False, took_ms), now, by=node.name)

    def _failed(self, node: Node, message: Failed, now: float) -> None:
        self._receive(node, message.jobs)
        for item in message.jobs:
            job = self.books.jobs.get(item.job_id)
            if job is None or job.attempt != item.attempt or item.job_id not in node.leases:
                continue  # about a lease that is no more
            if item.retry:
                self.books.gave_up(job, now, item.code, item.detail, blame=item.code != GIVEN_BACK)
            else:
                self.books.kill(job, item.code, item.detail, now)

    def _receive(self, node: Node, outcomes: Iterable[Finished | Failure]) -> None:
        self.books.send(node.peer, Received(jobs=tuple([HeldLease(item.job_id, item.attempt) for item in outcomes])))

    # ---- what time does ----

    def _check(self, now: float) -> None:
        for job_id in self.books.timers.due(now):
            self._expire(self.books.jobs[job_id], now)
        if now < self._next_check:
            return
        if now - self._next_check > FORGIVEN_S:
            self.members.forgive(now - self._next_check, now)
        self._next_check = now + CHECK_S
        self.members.check(now)
        for node in self._roster.nodes.values():
            for job in [job for job in node.leases.values() if job.lease_until <= now]:
                self.books.lose(job, now, f"{node.name} did not renew its lease")
        for job in [job for job in self.books.orphans.values() if job.lease_until <= now]:
            self.books.queue_again(job, now, "no node showed it after the restart")
        self.books.forget_idle()

    def _expire(self, job: Job, now: float) -> None:
        if job.state is State.DONE:
            self.books.settle(job, now, "its gateway never came for the result")
        elif job.state is State.DEAD:
            self.books.settle(job, now, "kept long enough")
        else:
            held = f"at {job.node}" if job.state is State.LEASED else "in the queue"
            if job.route not in self.members.models:
                held += f": no node offers {job.route}"
            self.books.kill(job, "deadline", f"not translated before its deadline, {held}", now)

    # ---- dispatch ----

    def _dispatch(self, now: float) -> None:
        leases: dict[bytes, list[Job]] = {}
        while self.books.lanes.waiting:
            routes = self._roster.open_routes()
            if not any(routes) or not self._dispatch_until_full(routes, leases, now):
                break
        for peer, jobs in leases.items():
            for part in batches([_leased_job(job) for job in jobs], weigh=_lease_bytes):
                self.books.send(peer, Lease(jobs=part))

    def _dispatch_until_full(self, routes: OpenRoutes, leases: dict[bytes, list[Job]], now: float) -> bool:
        """Lease until a node has no room left (True), or nothing waits for ``routes``, which are open (False).

        The earliest node gets a portion. With few nodes that is one job, or what takes it no time to speak of.
        """
        waiting = 0 if len(self._roster.nodes) <= MANY_NODES else self.books.lanes.waiting_for(routes)
        portion: Portion | None = None
        while (job := self.books.lanes.pop(routes, now)) is not None:
            if portion is None or not portion.takes(job):
                node = self._roster.earliest(job)
                if not node.has_time_for(job):  # nor has a better one: bulk of its route waits with it for a next turn
                    self.books.lanes.give_back(job)
                    routes = routes[INTERACTIVE], routes[BULK] - {job.route}
                    continue
                portion = Portion(node, math.ceil(waiting / LEASES_A_TURN[job.lane]), job)
            node = portion.node
            job.attempt += 1
            self.books.lease(job, node, now, "leased to")
            leases.setdefault(node.peer, []).append(job)
            if node.room(job.lane) <= 0:
                return True
        return False

    # ---- results ----

    def _deliver(self, now: float) -> None:
        for gateway in self._roster.gateways.values():
            if gateway.peer is None:
                continue
            if gateway.sent and now >= gateway.repeat_at and gateway.repeats < REPEATS:
                self._repeat(gateway, now)
            if gateway.ready:
                self._deliver_to(gateway, gateway.peer, now)

    def _repeat(self, gateway: Gateway, now: float) -> None:
        """Have sent again what is not acked. One that acks nothing may read nothing: each copy would stay in memory."""
        due: list[bytes] = []
        for job_id, (_, sent_at) in gateway.sent.items():
            if now - sent_at < self._config.resend_s:
                break
            due.append(job_id)
        for job_id in due:
            gateway.again(job_id)
        if due:
            gateway.repeats += 1
            gateway.repeat_at = now + self._config.resend_s

    def _deliver_to(self, gateway: Gateway, peer: bytes, now: float) -> None:
        answers: list[Answer] = []
        while gateway.ready and len(gateway.sent) < RESULT_WINDOW:
            job_id, job = gateway.ready.popitem(last=False)
            gateway.sent[job_id] = (job, now)
            answers.append(_answer(job))
        for part in batches(answers, weigh=_answer_bytes):
            self.books.send(peer, Result(jobs=part))

    # ---- recovery ----

    def _recover(self, event: Recover, now: float) -> None:
        for job_id in event.settled:
            self.books.settled.add(job_id)
        for record in event.records:
            self.books.recover(record, now)


def _leased_job(job: Job) -> LeasedJob:
    return LeasedJob(job.id, job.attempt, job.route, job.texts, job.lane, job.failures > 0, job.alternatives)


def _lease_bytes(job: LeasedJob) -> int:
    return text_bytes(job.texts)


def _answer_bytes(answer: Answer) -> int:
    return text_bytes(answer.texts) + len(answer.reply_to)


def _answer(job: Job) -> Answer:
    outcome = job.outcome
    if outcome is None:
        raise LocalError(f"job {job.id.hex()} has not ended\n{job.tell()}")
    return Answer(
        job.id, outcome.texts, outcome.code, outcome.detail, outcome.model, job.attempt, outcome.cached,
        outcome.took_ms, job.reply_to,
    )  # fmt: skip
