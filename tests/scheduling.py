"""A scheduler with its ledger and clock, for a test that speaks to it as its peers do."""

from __future__ import annotations

from collections.abc import Iterable

import pytest

from dolmetsch import messages as m
from dolmetsch.config import SchedulerConfig
from dolmetsch.effects import Effect, FromPeer, Persist, Send, Tick
from dolmetsch.jobs import State
from dolmetsch.ledger import MemoryLedger
from dolmetsch.scheduler import Scheduler

G, N1, N2 = b"gateway", b"node-1", b"node-2"


LOOKS_S = 0.5


class Cluster:
    """A scheduler with its ledger and clock; ``say`` speaks as a peer and returns what was sent, by peer."""

    def __init__(self, ledger: MemoryLedger | None = None, **settings: float) -> None:
        self.now = 1000.0
        self.ledger = ledger or MemoryLedger()
        self.scheduler = Scheduler(SchedulerConfig(**settings), incarnation="b", now=self.now)
        self.persisted: list[Persist] = []
        self._carry_out(self.scheduler.handle(self.ledger.load(self.now), self.now))

    def _carry_out(self, effects: Iterable[Effect]) -> list[Send]:
        effects = list(effects)
        changes = [one for one in effects if isinstance(one, Persist)]
        self.ledger.commit(changes)
        self.persisted += changes
        self.scheduler.books.validate()
        return [one for one in effects if isinstance(one, Send)]

    def say(self, peer: bytes, message: m.Message) -> list[Send]:
        sends = self._carry_out(self.scheduler.handle(FromPeer(peer, message), self.now))
        return sends + self.tick()

    def tick(self, after_s: float = 0.0) -> list[Send]:
        """Let ``after_s`` seconds go by, in which the broker looks now and then, as it does."""
        until, sends = self.now + after_s, []
        while until - self.now > LOOKS_S:
            sends += self.sleep(LOOKS_S)
        return sends + self.sleep(until - self.now)

    def sleep(self, for_s: float) -> list[Send]:
        """Let ``for_s`` seconds go by in which the broker does not look at anything."""
        self.now += for_s
        return self._carry_out(self.scheduler.handle(Tick(), self.now))

    def restart(self) -> Cluster:
        again = Cluster(self.ledger)
        again.now = self.now
        return again

    def gateway(self, name: str = "g", peer: bytes = G) -> None:
        (send,) = [one for one in self.say(peer, m.Hello(gateway=name, incarnation="1")) if one.peer == peer][:1]
        assert isinstance(send.message, m.Welcome)

    def node(
        self, peer: bytes = N1, *, capacity: int = 4, routes: tuple[str, ...] = ("de→en",),
        held: tuple[m.HeldLease, ...] = (), name: str | None = None, incarnation: str = "1",
    ) -> list[Send]:  # fmt: skip
        offered = tuple(m.Route(route, "v1") for route in routes)
        name = name or peer.decode()
        return self.say(
            peer,
            m.Register(node=name, incarnation=incarnation, routes=offered, capacity=capacity, engine="echo", held=held),
        )

    def beat(self, peer: bytes, held: tuple[m.HeldLease, ...] = (), **changes: object) -> list[Send]:
        fields: dict[str, object] = {
            "held": held, "capacity": 4, "draining": False, "workers": 1, "queued": 0, "in_flight": 0,
            "chars_per_s": 0.0, "cpu_percent": 0.0, "core_percent": (), "ram_percent": 0.0, "ram_used_bytes": 0,
            "temperature_c": -300.0, "throttled": False, "children": (),
        }  # fmt: skip
        return self.say(peer, m.Heartbeat(**{**fields, **changes}))  # type: ignore[arg-type]

    def submit(self, *specs: m.JobSpec, peer: bytes = G) -> list[Send]:
        return self.say(peer, m.Submit(jobs=specs))

    def done(self, peer: bytes, *leases: m.LeasedJob) -> list[Send]:
        items = tuple(m.Finished(one.job_id, one.attempt, one.texts, "v1") for one in leases)
        return self.say(peer, m.Done(jobs=items))

    def state(self, number: int) -> State | None:
        job = self.scheduler.books.jobs.get(key(number))
        return job.state if job else None


def key(number: int) -> bytes:
    return number.to_bytes(16, "big")


def spec(
    number: int, text: str = "Hallo", *, lane: int = m.INTERACTIVE, tenant: str = "t", route: str = "de→en",
    deadline_s: float = 60.0,
) -> m.JobSpec:  # fmt: skip
    return m.JobSpec(key(number), route, (text,), lane, tenant, deadline_s, b"r%d" % number)


def sent(sends: Iterable[Send], kind: type, peer: bytes | None = None) -> list:  # type: ignore[type-arg]
    """All entries of messages of one kind, flattened where they are lists of jobs."""
    found = [one.message for one in sends if isinstance(one.message, kind) and peer in (None, one.peer)]
    if found and hasattr(found[0], "jobs"):
        return [entry for message in found for entry in message.jobs]
    return found


@pytest.fixture
def cluster() -> Cluster:
    made = Cluster()
    made.gateway()
    return made


def lease_one(cluster: Cluster, number: int = 1, peer: bytes = N1) -> m.LeasedJob:
    cluster.node(peer)
    (lease,) = sent(cluster.submit(spec(number)), m.Lease, peer)
    assert isinstance(lease, m.LeasedJob)
    return lease
