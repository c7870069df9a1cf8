"""The books: every job that lives, and its legal moves. Pure.

The scheduler decides; here a decision becomes a change of state, with everything that must change along with it: the
lane or the lease the job leaves, its timer, its size, the gateway's list of results, the line in the ledger.
``validate`` says what is always true of all of these together.

Beside the jobs stand the gateways' reports, each as long as its gateway is known.
"""

from __future__ import annotations

from collections import Counter, deque
from dataclasses import dataclass
from typing import Final, NamedTuple

from dolmetsch.cache import ResultCache
from dolmetsch.chronicle import Chronicle
from dolmetsch.config import SchedulerConfig
from dolmetsch.effects import Effect, Op, Persist, Record, Send
from dolmetsch.errors import LocalError
from dolmetsch.jobs import Job, Outcome, State
from dolmetsch.lanes import Lanes
from dolmetsch.messages import BULK, INTERACTIVE, HeldLease, JobSpec, Message, Report, Revoke
from dolmetsch.roster import Gateway, Node, Roster
from dolmetsch.settled import SettledIds
from dolmetsch.timers import Timers

REVIVED_S: Final = 300.0  # what a requeued dead letter has: its first deadline was made for somebody who waited
TOOK: Final = 512  # jobs that the median is of
ROUTE_NAMES: Final = 512  # route strings shared between jobs


class Reported(NamedTuple):
    """A gateway's last report, and when it came."""

    report: Report
    at: float


@dataclass(slots=True)
class Tally:
    """What happened since the broker started. ``bad_frames`` are counted by the program that decodes."""

    accepted: int = 0
    rejected: int = 0
    done: int = 0
    failed: int = 0
    requeued: int = 0
    chars_done: int = 0
    bad_frames: int = 0


class Books:
    """Jobs by id, and who holds, awaits or has buried them. ``effects`` collects what the moves cause."""

    def __init__(self, config: SchedulerConfig) -> None:
        self._config = config
        self.jobs: dict[bytes, Job] = {}
        self.lanes = Lanes(config.bulk_age_s)
        self.roster = Roster()
        self.cache = ResultCache(config.cache_bytes)
        self.settled = SettledIds(config.max_settled)
        self.timers: Timers[bytes] = Timers()
        self.dead: dict[bytes, Job] = {}
        self.orphans: dict[bytes, Job] = {}  # leased, but to no node that is here: claimed soon or queued again
        self.reports: dict[str, Reported] = {}  # by the gateway's name, the latest at the end
        self.leased = 0  # jobs that nodes hold now, or are to show after a restart
        self.bytes = 0
        self.chronicle = Chronicle()
        self.tally = Tally()
        self.took_ms: deque[int] = deque(maxlen=TOOK)  # of the latest jobs that a node translated
        self.effects: list[Effect] = []
        self._seq = 0
        self._names: dict[str, str] = {}
        self._last_deadline = (0.0, 0.0, 0.0)

    def send(self, peer: bytes, message: Message) -> None:
        """Have ``message`` sent once everything is committed."""
        self.effects.append(Send(peer, message))

    # ---- gateways ----

    def report(self, gateway: Gateway, report: Report, now: float) -> None:
        """Keep ``report`` in place of the one before."""
        self.reports.pop(gateway.name, None)
        self.reports[gateway.name] = Reported(report, now)

    def forget_idle(self) -> None:
        """Forget gateways that are gone and own nothing, and what they reported."""
        self.roster.forget_idle()
        for name in self.reports.keys() - self.roster.gateways.keys():
            del self.reports[name]

    def unanswered(self) -> dict[str, int]:
        """By gateway, the jobs that it has not acked yet: what waits, what is at nodes, what is to be told."""
        told = Counter(job.gateway for job in self.dead.values() if job.acked)
        return {one.name: one.jobs - told[one.name] for one in self.roster.gateways.values()}

    # ---- a job comes ----

    def admit(self, gateway: Gateway, spec: JobSpec, now: float) -> Job:
        """Enter a new job; it is QUEUED but stands in no lane yet."""
        self._seq += 1
        job = Job(
            seq=self._seq,
            id=spec.job_id,
            gateway=gateway.name,
            tenant=self._shared(spec.tenant),
            lane=spec.lane,
            route=self._shared(spec.route),
            texts=spec.texts,
            reply_to=spec.reply_to,
            deadline=self._deadline(now, spec.deadline_s),
            queued_at=now,
            alternatives=spec.alternatives,
            waited_ms=spec.waited_ms,
        )
        self._enter(job, gateway)
        row = (
            job.seq, job.id, job.gateway, job.tenant, job.lane, job.route, job.texts, job.reply_to, job.deadline, now,
            job.alternatives,
        )  # fmt: skip
        self.effects.append(Persist(Op.INSERT, row))
        return job

    def recover(self, record: Record, now: float) -> None:
        """Enter a job that the ledger held; one that was leased waits a grace period for its node to show it."""
        job = Job(
            seq=record.seq,
            id=record.job_id,
            gateway=record.gateway,
            tenant=self._shared(record.tenant),
            lane=record.lane,
            route=self._shared(record.route),
            texts=record.texts,
            reply_to=record.reply_to,
            deadline=record.deadline,
            queued_at=now,
            leased_at=now,
            alternatives=record.alternatives,
            state=State(record.state),
            attempt=record.attempt,
            failures=record.failures,
            outcome=record.outcome,
        )
        self._seq = max(self._seq, job.seq)
        gateway = self.roster.gateway_named(job.gateway, now)
        self._enter(job, gateway)
        if job.state is State.QUEUED:
            self.lanes.push(job)
        elif job.state is State.LEASED:
            self.leased += 1
            self._orphan(job, now)
        else:
            self._keep_until(job, now)
            gateway.ready[job.id] = job
            if job.state is State.DEAD:
                self.dead[job.id] = job

    def own(self, gateway: Gateway, job: Job) -> None:
        """``gateway`` submitted the job too, and gets its result from now on."""
        if job.gateway != gateway.name:
            before = self.roster.gateways[job.gateway]
            before.jobs -= 1
            before.ready.pop(job.id, None)
            before.sent.pop(job.id, None)
            gateway.jobs += 1
            job.gateway = gateway.name
            self.effects.append(Persist(Op.OWN, (job.seq, gateway.name)))
        if job.outcome is not None:
            job.acked = False
            gateway.sent.pop(job.id, None)
            gateway.ready[job.id] = job

    def _enter(self, job: Job, gateway: Gateway) -> None:
        self.jobs[job.id] = job
        self.bytes += job.measure()
        gateway.jobs += 1
        job.timer = self.timers.add(job.id, job.deadline)

    def _deadline(self, now: float, after_s: float) -> float:
        # The jobs of one message mostly share their deadline: one number for all of them.
        if self._last_deadline[:2] != (now, after_s):
            self._last_deadline = (now, after_s, now + after_s)
        return self._last_deadline[2]

    def _shared(self, name: str) -> str:
        # Jobs of one route or tenant share one string instead of holding one each.
        if len(self._names) >= ROUTE_NAMES:
            self._names.clear()
        return self._names.setdefault(name, name)

    # ---- it is leased, and comes back ----

    def lease(self, job: Job, node: Node, now: float, what: str) -> None:
        """QUEUED -> LEASED; the caller has taken the job out of its lane."""
        job.move(State.LEASED, now, f"{what} {node.name}")
        self.leased += 1
        self.adopt(job, node, now)
        self.effects.append(Persist(Op.LEASE, (job.seq, job.attempt, node.name)))

    def adopt(self, job: Job, node: Node, now: float) -> None:
        """``node`` holds the LEASED job from now on."""
        self.orphans.pop(job.id, None)
        job.node = node.name
        job.leased_at = now
        job.lease_until = now + self._config.lease_s
        node.lend(job)

    def orphan(self, job: Job, node: Node, now: float) -> None:
        """The node that holds the job is about to show it again from another connection."""
        node.release(job)
        self._orphan(job, now)

    def _orphan(self, job: Job, now: float) -> None:
        job.node = None
        job.lease_until = now + self._config.grace_s
        self.orphans[job.id] = job

    def queue_again(self, job: Job, now: float, why: str) -> None:
        """LEASED -> QUEUED, in front."""
        self._release(job)
        job.move(State.QUEUED, now, why)
        self.lanes.push(job, front=True)
        self.effects.append(Persist(Op.QUEUE, (job.seq, job.failures, job.deadline)))

    def gave_up(self, job: Job, now: float, code: str, detail: str, *, blame: bool) -> None:
        """A node gave the job back: queue it again, or bury it when it has failed too often."""
        job.failures += blame
        job.given_up = job.attempt
        if job.failures >= self._config.max_failures:
            self.kill(job, code, f"{detail} (failed {job.failures} times)"[:400], now)
        else:
            self.queue_again(job, now, f"given back by {job.node}: {code} {detail}"[:200])

    def lose(self, job: Job, now: float, why: str, *, blame: bool = True) -> None:
        """Its node is gone or keeps silent about it: queue it again, or bury it when that happened too often."""
        job.losses += blame
        if job.losses >= self._config.max_attempts:
            self.kill(job, "attempts", f"given to {job.losses} nodes and never finished: {why}", now)
        else:
            self.queue_again(job, now, why)

    def _release(self, job: Job) -> Node | None:
        """Whoever holds the LEASED job holds it no longer; the node, if one did."""
        self.leased -= 1
        self.orphans.pop(job.id, None)
        node = self.roster.node_named(job.node)
        if node is not None:
            node.release(job)
        return node

    # ---- it ends ----

    def finish(self, job: Job, outcome: Outcome, now: float, *, by: str | None = None) -> None:
        """-> DONE: its gateway is to be told, its text is not needed any more; a holder other than ``by`` may stop."""
        if job.state is State.LEASED and job.node != by:
            self._revoke(job, job.node)
        self._end(job, State.DONE, outcome, now, "answered from the cache" if outcome.cached else "done")
        self.tally.done += 1
        self.tally.chars_done += job.chars
        self.chronicle.done(job.lane, outcome.took_ms)

    def kill(self, job: Job, code: str, detail: str, now: float) -> None:
        """-> DEAD: its gateway is to be told, its text stays for an operator."""
        holder = job.node if job.state is State.LEASED else None
        took_ms = int((now - job.queued_at) * 1000)
        self._end(job, State.DEAD, Outcome(None, code, detail, "", False, took_ms), now, f"dead: {code} {detail}"[:200])
        self._revoke(job, holder)
        self.tally.failed += 1
        self.dead[job.id] = job
        self.chronicle.ended(job, now)

    def _end(self, job: Job, state: State, outcome: Outcome, now: float, what: str) -> None:
        was = job.state
        job.move(state, now, what)
        if was is State.LEASED:
            self._release(job)
        elif not outcome.cached:  # what the cache answers never stood in a lane
            self.lanes.discard(job)
        self.bytes -= job.measure()
        job.outcome = outcome
        if state is State.DONE:
            job.texts = ()
        self.bytes += job.measure()
        self._keep_until(job, now)
        self.roster.gateways[job.gateway].ready[job.id] = job
        self.effects.append(Persist(Op.FINISH, (job.seq, state, outcome)))

    def settle(self, job: Job, now: float, what: str) -> None:
        """-> SETTLED: forget everything but the id."""
        was, holder = job.state, job.node
        job.move(State.SETTLED, now, what)
        if was is State.DONE:
            self.chronicle.ended(job, now)
        if was is State.QUEUED:
            self.lanes.discard(job)
        elif was is State.LEASED:
            self._release(job)
            self._revoke(job, holder)
        gateway = self.roster.gateways[job.gateway]
        gateway.ready.pop(job.id, None)
        gateway.sent.pop(job.id, None)
        gateway.jobs -= 1
        self.dead.pop(job.id, None)
        self._untime(job)
        self.bytes -= job.measure()
        del self.jobs[job.id]
        self.settled.add(job.id)
        self.effects.append(Persist(Op.REMOVE, (job.seq, job.id)))

    def revive(self, job: Job, now: float) -> None:
        """DEAD -> QUEUED, with a new deadline and a clean record."""
        owner = self.roster.gateways[job.gateway]
        owner.ready.pop(job.id, None)
        owner.sent.pop(job.id, None)
        del self.dead[job.id]
        job.deadline = now + REVIVED_S
        job.queued_at = now
        job.failures = job.losses = 0
        self.bytes -= job.measure()
        job.outcome, job.acked = None, False
        self.bytes += job.measure()
        job.move(State.QUEUED, now, "requeued by an operator")
        job.times = None
        self.tally.requeued += 1
        self._retime(job, job.deadline)
        self.lanes.push(job)
        self.effects.append(Persist(Op.QUEUE, (job.seq, 0, job.deadline)))

    def trim_dead(self, now: float) -> None:
        """Keep the dead letters within their cap; those that a gateway is still to be told of stay."""
        surplus = len(self.dead) - self._config.max_dead
        if surplus > 0:
            for job in [job for job in self.dead.values() if job.acked][:surplus]:
                self.settle(job, now, "more dead letters than are kept")

    def _revoke(self, job: Job, holder: str | None) -> None:
        node = self.roster.node_named(holder)
        if node is not None:
            self.send(node.peer, Revoke(jobs=(HeldLease(job.id, job.attempt),)))

    def _keep_until(self, job: Job, now: float) -> None:
        ttl_s = self._config.result_ttl_s if job.state is State.DONE else self._config.dead_ttl_s
        self._retime(job, now + ttl_s)

    def _retime(self, job: Job, when: float) -> None:
        self._untime(job)
        job.timer = self.timers.add(job.id, when)

    def _untime(self, job: Job) -> None:
        if job.timer is not None:
            self.timers.cancel(job.id, job.timer)

    # ---- what is always true ----

    def validate(self) -> None:
        """Raise ``LocalError`` unless every job is where its state says, and nowhere else."""
        by_state: dict[State, set[bytes]] = {state: set() for state in State}
        for job in self.jobs.values():
            by_state[job.state].add(job.id)
        queued = [job.id for job in self.lanes]
        leased = [job_id for node in self.roster.nodes.values() for job_id in node.leases]
        owed = [job_id for one in self.roster.gateways.values() for job_id in (*one.ready, *one.sent)]
        ended = by_state[State.DONE] | by_state[State.DEAD]
        told = {job.id for job in self.dead.values() if job.acked}
        chars = sum(self.jobs[job_id].chars for job_id in by_state[State.QUEUED])
        rules = {
            "a queued job stands in its lane once": sorted(queued) == sorted(by_state[State.QUEUED]),
            "the lanes count what waits": self.lanes.count(0) + self.lanes.count(1) == len(queued)
            and self.lanes.chars == chars,
            "a leased job has one holder": sorted([*leased, *self.orphans]) == sorted(by_state[State.LEASED]),
            "the leased are counted": self.leased == len(by_state[State.LEASED]),
            "a holder is named in its job": all(
                job.node == node.name for node in self.roster.nodes.values() for job in node.leases.values()
            ),
            "a node knows how much it holds": all(
                (node.ahead(BULK), node.ahead(INTERACTIVE), node.bulk_leases)
                == (
                    sum(job.chars for job in node.leases.values()),
                    sum(job.chars for job in node.leases.values() if job.lane == INTERACTIVE),
                    sum(job.lane == BULK for job in node.leases.values()),
                )
                for node in self.roster.nodes.values()
            ),
            "an ended job is owed to its gateway once": sorted(owed) == sorted(ended - told),
            "a job has an outcome when it has ended": all(
                (job.outcome is not None) == (job.id in ended) for job in self.jobs.values()
            ),
            "dead letters are the dead": set(self.dead) == by_state[State.DEAD],
            "no settled job lives": not by_state[State.SETTLED] and not any(one in self.settled for one in self.jobs),
            "a gateway knows how many jobs it owns": all(
                one.jobs == sum(job.gateway == one.name for job in self.jobs.values())
                for one in self.roster.gateways.values()
            ),
            "a report is of a gateway that is known": self.reports.keys() <= self.roster.gateways.keys(),
            "every job has a timer": len(self.timers) == len(self.jobs),
            "bytes add up": self.bytes == sum(job.measure() for job in self.jobs.values()),
        }
        broken = [rule for rule, holds in rules.items() if not holds]
        if broken:
            stories = "\n".join(f"{job.id.hex()} {job.state.value}\n{job.tell()}" for job in self.jobs.values())
            raise LocalError(f"broken: {'; '.join(broken)}\n{stories[:4000]}")
