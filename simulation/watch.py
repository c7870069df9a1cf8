"""The watch: a second, plain opinion of what the scheduler may do, from what it is told and what it does.

Each event goes by with its effects. From these alone the watch keeps the jobs, who may work on each, and what every
node asked for; then no lease may be taken back without a reason, given twice, or given beyond credit; no outcome may be
made up; and no job may end without a word that explains it. It knows nothing of how the scheduler decides.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Final

from dolmetsch import messages as m
from dolmetsch.config import SchedulerConfig
from dolmetsch.effects import Effect, Event, FromPeer, Op, PeerGone, Persist, Record, Send, Tick
from dolmetsch.jobs import Outcome
from dolmetsch.scheduler import CHECK_S, FORGIVEN_S
from simulation.disk import Violation
from simulation.lanewatch import Eligible, LaneWatch
from simulation.story import job_name

EPS: Final = 1e-6
SLEEPS: Final = 64  # of the broker, remembered: far more than fit into a lease


@dataclass(slots=True)
class Entry:
    """A live job."""

    seq: int
    job_id: bytes
    gateway: str
    lane: int
    route: str
    chars: int
    texts: tuple[str, ...]
    wanted: int
    reply_to: bytes
    deadline: float
    queued_at: float
    state: str = "queued"
    attempt: int = 0
    failures: int = 0
    losses: int = 0
    outcome: Outcome | None = None
    ended_at: float = 0.0


@dataclass(slots=True)
class Loan:
    """Who may work on a job: the node behind ``peer``, or, after a restart, whoever shows it."""

    peer: bytes | None
    attempt: int
    since: float  # when it was last renewed


@dataclass(slots=True)
class NodeView:
    """A registered node."""

    name: str
    incarnation: str
    capacity: int
    routes: frozenset[str]
    seen: float
    draining: bool = False


class Watch:
    """One broker process, from its start."""

    def __init__(
        self, config: SchedulerConfig, records: Sequence[Record], now: float, failures: Callable[[bytes], int]
    ) -> None:
        self._config = config
        self._failures = failures  # how often children really failed a job
        self.failed: set[tuple[bytes, int]] = set()  # leases that ended in a failure
        self.failed_before: set[tuple[bytes, int]] = set()  # likewise, in earlier processes
        self.retold: set[bytes] = set()  # jobs of which a failure may have counted twice; likewise
        self.entries: dict[int, Entry] = {}
        self.jobs: dict[bytes, Entry] = {}
        self.loans: dict[bytes, Loan] = {}
        self.nodes: dict[bytes, NodeView] = {}
        self.gateways: dict[bytes, str] = {}
        self.gone: dict[bytes, int] = {}  # peers that a send did not find, and in which turn; until they say something
        self._ticked = now
        self._slept: deque[tuple[float, float]] = deque(maxlen=SLEEPS)  # until when, for how long
        self._displaced: set[bytes] = set()  # by the REGISTER that is looked at
        self._dispatched: dict[bytes, bytes] = {}  # job -> peer, in the tick that is looked at
        self.lanes = LaneWatch(config.bulk_age_s)
        for one in records:
            entry = Entry(
                one.seq, one.job_id, one.gateway, one.lane, one.route, sum(map(len, one.texts)), one.texts,
                len(one.texts) * (1 + one.alternatives), one.reply_to, one.deadline, now, one.state, one.attempt,
                one.failures, 0, one.outcome, now,
            )  # fmt: skip
            self.entries[one.seq] = self.jobs[one.job_id] = entry
            if one.state == "leased":
                self.loans[one.job_id] = Loan(None, one.attempt, now)

    # ---- an event and its effects ----

    def handled(self, event: Event, effects: Sequence[Effect], now: float) -> None:
        """Look at one event."""
        self._displaced = set()
        self._dispatched = {}
        if isinstance(event, FromPeer):
            self.gone.pop(event.peer, None)
            self._heard(event.peer, event.message, effects, now)
        elif isinstance(event, Tick):  # the sleep that ends with it is forgiven before it leases anything
            if now - self._ticked > FORGIVEN_S:
                self._slept.append((now, now - self._ticked))
            self._ticked = now
        for effect in effects:
            if isinstance(effect, Persist):
                self._changed(event, effect, now)
            elif isinstance(effect, Send):
                self._said(effect.peer, effect.message, now)
        if self._dispatched:
            raise Violation("a lease is sent", f"{_names(self._dispatched)} leased, and no node is told")
        if isinstance(event, PeerGone):
            self.nodes.pop(event.peer, None)
            self.gateways.pop(event.peer, None)
        elif isinstance(event, FromPeer) and isinstance(event.message, m.Goodbye):
            self.nodes.pop(event.peer, None)
        elif isinstance(event, Tick):
            self._overdue(now)

    def _slept_since(self, when: float) -> float:
        """Seconds that the broker did not look: it does not take them for the silence of others."""
        return sum(length_s for end, length_s in self._slept if end > when)

    def _heard(self, peer: bytes, message: m.Message, effects: Sequence[Effect], now: float) -> None:
        told = [one.message for one in effects if isinstance(one, Send) and one.peer == peer]
        if any(isinstance(one, m.Reregister) for one in told):
            if isinstance(message, m.Heartbeat | m.Done | m.Failed | m.Goodbye):
                self.nodes.pop(peer, None)
            return
        view = self.nodes.get(peer)
        if view is not None:
            view.seen = now
        if isinstance(message, m.Hello) and any(isinstance(one, m.Welcome) for one in told):
            self.gateways = {one: name for one, name in self.gateways.items() if name != message.gateway}
            self.gateways[peer] = message.gateway
        elif isinstance(message, m.Register) and any(isinstance(one, m.Welcome) for one in told):
            self._registered(peer, message, told, now)
        elif isinstance(message, m.Heartbeat) and view is not None:
            view.capacity, view.draining = message.capacity, message.draining
            self._shown(peer, message.held, told, now)

    def _registered(self, peer: bytes, message: m.Register, told: Sequence[m.Message], now: float) -> None:
        shown = set(message.held)
        for other, view in list(self.nodes.items()):
            if other != peer and view.name != message.node:
                continue
            same = view.incarnation == message.incarnation
            for job_id, loan in self.loans.items():
                if loan.peer == other and same and m.HeldLease(job_id, loan.attempt) in shown:
                    loan.peer, loan.since = None, now  # about to be shown from another connection
            self._displaced.add(other)
            del self.nodes[other]
        routes = frozenset(one.route for one in message.routes)
        self.nodes[peer] = NodeView(message.node, message.incarnation, message.capacity, routes, now)
        self._shown(peer, message.held, told, now)

    def _shown(self, peer: bytes, held: Iterable[m.HeldLease], told: Sequence[m.Message], now: float) -> None:
        revoked = {lease for one in told if isinstance(one, m.Revoke) for lease in one.jobs}
        for lease in held:
            loan = self.loans.get(lease.job_id)
            if lease in revoked:
                if loan is not None and loan.peer == peer and loan.attempt == lease.attempt:
                    raise Violation("a renewed lease is kept", f"{job_name(lease.job_id)} was revoked from its holder")
            elif loan is None:
                self.loans[lease.job_id] = Loan(peer, lease.attempt, now)
            elif loan.peer in (peer, None) and loan.attempt == lease.attempt:
                loan.peer, loan.since = peer, now
            else:
                raise Violation(
                    "a lease is held by one node", f"{job_name(lease.job_id)} is another's, and was not revoked"
                )

    # ---- changes ----

    def _changed(self, event: Event, change: Persist, now: float) -> None:
        match change:
            case Persist(Op.INSERT, row):
                self._insert(row, now)
            case Persist(Op.LEASE, (seq, attempt, node)):
                self._leased(event, self.entries[seq], attempt, node, now)
            case Persist(Op.QUEUE, (seq, failures, deadline)):
                self._queued(event, self.entries[seq], failures, deadline, now)
            case Persist(Op.OWN, (seq, gateway)):
                self.entries[seq].gateway = gateway
            case Persist(Op.FINISH, (seq, state, outcome)):
                self._finished(event, self.entries[seq], state, outcome, now)
            case Persist(Op.REMOVE, (seq, _)):
                self._removed(event, self.entries[seq])

    def _insert(self, row: tuple[Any, ...], now: float) -> None:
        seq, job_id, gateway, _, lane, route, texts, reply_to, deadline, _, more = row
        if seq in self.entries or job_id in self.jobs:
            raise Violation("an accepted job is done once", f"{job_name(job_id)} was entered a second time")
        entry = Entry(
            seq, job_id, gateway, lane, route, sum(map(len, texts)), texts, len(texts) * (1 + more), reply_to, deadline,
            now,
        )  # fmt: skip
        self.entries[seq] = self.jobs[job_id] = entry

    def _leased(self, event: Event, entry: Entry, attempt: int, node: str, now: float) -> None:
        peer = next((peer for peer, view in self.nodes.items() if view.name == node), None)
        if entry.state != "queued" or peer is None:
            raise Violation("only a queued job is leased", f"{job_name(entry.job_id)} is {entry.state}; to {node}")
        if isinstance(event, Tick):
            if attempt != entry.attempt + 1:
                raise Violation("a lease has a number of its own", f"{job_name(entry.job_id)}/{attempt} again")
            if entry.job_id in self.loans:
                raise Violation("a lease is held by one node", f"{job_name(entry.job_id)} is leased already")
            self.loans[entry.job_id] = Loan(peer, attempt, now)
            self._dispatched[entry.job_id] = peer
            routes = self.nodes[peer].routes
            self.lanes.dispatched(entry, [one for one in self._waiting() if one.route in routes], now)
        elif (entry.job_id, attempt) in self.failed:
            raise Violation("a failed lease is not shown again", f"{job_name(entry.job_id)}/{attempt}")
        elif (entry.job_id, attempt) in self.failed_before:
            # Known: which attempt failed is not in the ledger, so a restarted broker may count it once more.
            self.retold.add(entry.job_id)
        entry.state, entry.attempt = "leased", attempt

    def _waiting(self) -> list[Eligible]:
        return [one for one in self.entries.values() if one.state == "queued"]

    def _queued(self, event: Event, entry: Entry, failures: int, deadline: float, now: float) -> None:
        if entry.state == "dead":
            if not (isinstance(event, FromPeer) and isinstance(event.message, m.Manage)):
                raise Violation("a dead letter stays dead", f"{job_name(entry.job_id)} is queued again")
            entry.state, entry.failures, entry.losses, entry.outcome = "queued", 0, 0, None
            entry.queued_at, entry.deadline = now, deadline
            return
        reason = self._reason(event, entry, now)
        blame = reason == "failed"
        if blame:
            self.failed.add((entry.job_id, entry.attempt))
        if failures != entry.failures + blame:
            raise Violation("a failure counts once", f"{job_name(entry.job_id)} has {failures} after {entry.failures}")
        entry.state, entry.failures = "queued", failures
        entry.losses += reason == "lost"
        del self.loans[entry.job_id]

    def _reason(self, event: Event, entry: Entry, now: float) -> str:
        """Why a lease may be taken back: ``failed``, ``lost`` or ``left``."""
        loan = self.loans.get(entry.job_id)
        if loan is None or entry.state != "leased":
            raise Violation("only a leased job comes back", f"{job_name(entry.job_id)} is {entry.state}")
        match event:
            case Tick():
                if self._is_over(loan, now):
                    return "left" if loan.peer is None else "lost"
            case PeerGone(peer) if peer == loan.peer:
                return "lost"
            case FromPeer(peer, m.Goodbye()) if peer == loan.peer:
                return "left"
            case FromPeer(_, m.Register()) if loan.peer in self._displaced:
                return "lost"
            case FromPeer(peer, m.Failed(jobs=jobs)) if peer == loan.peer:
                for one in jobs:
                    if one.job_id == entry.job_id and one.attempt == loan.attempt:
                        return "left" if one.code == m.GIVEN_BACK else "failed"
            case FromPeer(peer, m.Done(jobs=jobs)) if peer == loan.peer:
                if any(one.job_id == entry.job_id and len(one.texts) != entry.wanted for one in jobs):
                    return "failed"
            case _:
                pass
        what = f"{job_name(entry.job_id)} after {now - loan.since:.3f} s, at {_kind(event)}"
        raise Violation("a lease is taken back for a reason", what)

    def _is_over(self, loan: Loan, now: float) -> bool:
        if loan.peer is None:
            return now >= loan.since + self._config.grace_s - EPS
        view = self.nodes.get(loan.peer)
        silent = view is None or now >= view.seen + self._config.lost_after_s - EPS
        return silent or now >= loan.since + self._config.lease_s - EPS

    # ---- ends ----

    def _finished(self, event: Event, entry: Entry, state: str, outcome: Outcome, now: float) -> None:
        if entry.state not in ("queued", "leased"):
            raise Violation("a job ends once", f"{job_name(entry.job_id)} is {entry.state}, and now {state}")
        if state == "done":
            self._really_done(event, entry, outcome)
        else:
            self._really_dead(event, entry, outcome, now)
        entry.state, entry.outcome, entry.ended_at = state, outcome, now
        self.loans.pop(entry.job_id, None)

    def _really_done(self, event: Event, entry: Entry, outcome: Outcome) -> None:
        match event:
            case FromPeer(_, m.Done(jobs=jobs)):
                good = any(one.job_id == entry.job_id and one.texts == outcome.texts for one in jobs)
            case FromPeer(_, m.Submit()):
                good = outcome.cached
            case _:
                good = False
        if not good or outcome.texts is None or len(outcome.texts) != entry.wanted:
            raise Violation("a result is what a node said", f"{job_name(entry.job_id)}: {outcome.texts}")

    def _really_dead(self, event: Event, entry: Entry, outcome: Outcome, now: float) -> None:
        name = f"{job_name(entry.job_id)}: {outcome.code}, {outcome.detail}"
        if not outcome.code or not outcome.detail or outcome.texts is not None:
            raise Violation("a dead letter has a reason", name)
        if outcome.code == "deadline":
            if not isinstance(event, Tick) or now < entry.deadline - EPS:
                raise Violation("a dead letter has a reason", f"{name}, {entry.deadline - now:.3f} s too early")
        elif outcome.code == "attempts":
            if self._reason(event, entry, now) != "lost" or entry.losses + 1 < self._config.max_attempts:
                raise Violation("a dead letter has a reason", f"{name}, and only {entry.losses + 1} losses")
        elif self._reason(event, entry, now) != "failed":
            raise Violation("a dead letter has a reason", name)
        elif not self._said_final(event, entry.job_id):
            self._blamed_rightly(entry, name)

    def _said_final(self, event: Event, job_id: bytes) -> bool:
        match event:
            case FromPeer(_, m.Failed(jobs=jobs)):
                return any(one.job_id == job_id and not one.retry for one in jobs)
            case _:
                return False

    def _blamed_rightly(self, entry: Entry, name: str) -> None:
        if entry.failures + 1 < self._config.max_failures:
            raise Violation("a dead letter has a reason", f"{name}, after {entry.failures + 1} failures")
        if entry.job_id not in self.retold and self._failures(entry.job_id) < self._config.max_failures:
            raise Violation("a failure counts once", f"{name}; children failed {self._failures(entry.job_id)} times")

    def _removed(self, event: Event, entry: Entry) -> None:
        match event:
            case FromPeer(peer, m.Ack(jobs=jobs)):
                mine = self.gateways.get(peer) == entry.gateway and entry.job_id in jobs
                good = (entry.state == "done" and mine) or entry.state == "dead"
            case FromPeer(peer, m.Cancel(jobs=jobs)):
                good = self.gateways.get(peer) == entry.gateway and entry.job_id in jobs
            case FromPeer(_, m.Manage(action=m.PURGE)):
                good = entry.state == "dead"
            case _:
                good = False
        if not good:
            what = f"{job_name(entry.job_id)} is {entry.state}, at {_kind(event)}"
            raise Violation("a job is forgotten for a reason", what)
        self.loans.pop(entry.job_id, None)
        del self.entries[entry.seq], self.jobs[entry.job_id]

    # ---- what is said ----

    def _said(self, peer: bytes, message: m.Message, now: float) -> None:
        match message:
            case m.Lease(jobs=jobs):
                self._lease_said(peer, jobs, now)
            case m.Result(jobs=answers):
                for answer in answers:
                    self._result_said(peer, answer)
            case m.Rejected(jobs=refusals) if live := [one.job_id for one in refusals if one.job_id in self.jobs]:
                raise Violation("an accepted job is not refused", _names(live))
            case _:
                pass

    def _lease_said(self, peer: bytes, jobs: Sequence[m.LeasedJob], now: float) -> None:
        view = self.nodes.get(peer)
        if view is None or now > view.seen + self._slept_since(view.seen) + self._config.lost_after_s + CHECK_S + EPS:
            raise Violation("only a node that is there is leased to", f"{peer.decode()} is gone")
        for job in jobs:
            entry = self.jobs.get(job.job_id)
            if self._dispatched.pop(job.job_id, None) != peer or entry is None or entry.attempt != job.attempt:
                raise Violation("a lease is sent", f"{job_name(job.job_id)}/{job.attempt} to {peer.decode()}")
            if job.texts != entry.texts or job.route not in view.routes:
                raise Violation("a lease is sent", f"{job_name(job.job_id)} as something else")
        held = sum(loan.peer == peer for loan in self.loans.values())
        if held > view.capacity or view.draining:
            raise Violation("credit is not exceeded", f"{view.name} wants {view.capacity}, has {held}")

    def _result_said(self, peer: bytes, answer: m.Answer) -> None:
        entry = self.jobs.get(answer.job_id)
        if entry is None or entry.outcome is None or self.gateways.get(peer) != entry.gateway:
            raise Violation("a result goes to its owner", f"{job_name(answer.job_id)} to {peer.decode()}")
        if answer.texts != entry.outcome.texts or answer.reply_to != entry.reply_to:
            raise Violation("a result is what a node said", f"{job_name(answer.job_id)} as something else")

    def _overdue(self, now: float) -> None:
        for job_id, loan in self.loans.items():
            life_s = self._config.grace_s if loan.peer is None else self._config.lease_s
            if now > loan.since + self._slept_since(loan.since) + life_s + CHECK_S + EPS:
                raise Violation("a lease ends unless renewed", f"{job_name(job_id)} is {now - loan.since:.3f} s old")


def _kind(event: Event) -> str:
    return type(event.message if isinstance(event, FromPeer) else event).__name__


def _names(job_ids: Iterable[bytes]) -> str:
    return " ".join(map(job_name, job_ids))
