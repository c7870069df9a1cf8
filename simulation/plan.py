"""The plan: what a seed makes of the world. Who is in it, what they are asked for, and what goes wrong when."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Final

from dolmetsch.config import SchedulerConfig
from dolmetsch.messages import BULK, INTERACTIVE, JobSpec
from simulation.disk import MAX_SETTLED
from simulation.network import Delays
from simulation.timeline import Clock

ROUTE: Final = "de→en"
OTHER_ROUTE: Final = "fr→en"
NO_ROUTE: Final = "xx→yy"  # no node offers it
POISONS: Final = ("crash", "hang", "broken", "short")  # what a job may do to its child, told by its text's first word
SPEED: Final = 0.02  # clocks run so much too fast or too slow at most
LAN: Final = Delays(0.0002, 0.002, 0.02)
WIRELESS: Final = Delays(0.002, 0.05, 0.4)
SLOW: Final = Delays(0.02, 0.3, 1.0)


@dataclass(frozen=True, slots=True)
class NodePlan:
    """A machine with children."""

    name: str
    clock: Clock
    slots: int
    credit: int  # it asks for no more than so many jobs at a time, so that credit matters among few jobs
    chars_per_s: float
    routes: tuple[str, ...]
    crashes: float  # chance that a child dies of a sound job
    hangs: float  # chance that it is stuck


@dataclass(frozen=True, slots=True)
class GatewayPlan:
    """A program that asks, and keeps a book."""

    name: str
    clock: Clock
    patient: bool  # after a crash it first waits for strays, as the Discord gateway does


@dataclass(frozen=True, slots=True)
class Request:
    """Somebody wants something of a gateway; asked ``again`` later, or not wanted any more after a while."""

    at: float
    gateway: str
    spec: JobSpec
    again_at: float | None
    cancel_at: float | None


@dataclass(frozen=True, slots=True)
class Trouble:
    """What goes wrong, with whom, for how long; ``how`` draws further details."""

    at: float
    kind: str
    whom: str
    for_s: float
    how: int


@dataclass(frozen=True, slots=True)
class Plan:
    """All of it."""

    seed: int
    scheduler: SchedulerConfig
    broker_clock: Clock
    delays: Delays
    commit_s: float
    telemetry: bool
    nodes: tuple[NodePlan, ...]
    gateways: tuple[GatewayPlan, ...]
    requests: tuple[Request, ...]
    troubles: tuple[Trouble, ...]
    calm_at: float

    @property
    def shared(self) -> set[bytes]:
        """Jobs that more than one gateway asks for: who did so last gets the answer."""
        askers: dict[bytes, set[str]] = {}
        for one in self.requests:
            askers.setdefault(one.spec.job_id, set()).add(one.gateway)
        return {job_id for job_id, names in askers.items() if len(names) > 1}


def plan(seed: int, rng: random.Random) -> Plan:
    """The world of ``seed``, drawn from ``rng``."""
    nodes = tuple(_node(number, rng) for number in range(rng.choice((1, 2, 2, 3))))
    gateways = tuple(
        GatewayPlan(f"gateway{number}", _clock(rng), rng.random() < 0.4) for number in range(rng.choice((1, 1, 2)))
    )
    calm_at = rng.uniform(4.0, 12.0)
    hosts = ["broker", *(one.name for one in nodes), *(one.name for one in gateways)]
    return Plan(
        seed=seed,
        scheduler=_scheduler(rng),
        broker_clock=_clock(rng),
        delays=rng.choices((LAN, WIRELESS, SLOW), (5, 3, 1))[0],
        commit_s=rng.choice((0.001, 0.005, 0.05)),
        telemetry=rng.random() < 0.1,
        nodes=nodes,
        gateways=gateways,
        requests=_requests([one.name for one in gateways], calm_at, rng),
        troubles=_troubles(hosts, calm_at, rng),
        calm_at=calm_at,
    )


def _clock(rng: random.Random) -> Clock:
    return Clock(rng.uniform(0.0, 100_000.0), 1.0 + rng.uniform(-SPEED, SPEED))


def _scheduler(rng: random.Random) -> SchedulerConfig:
    return SchedulerConfig(
        max_jobs=rng.choice((10, 40, 1000, 1000)),
        cache_bytes=rng.choice((0, 1000, 100_000)),
        lease_s=rng.choice((2.5, 4.0, 6.0)),
        grace_s=rng.choice((0.0, 2.0, 5.0)),
        max_failures=rng.choice((2, 3)),
        max_attempts=rng.choice((3, 10)),
        bulk_age_s=rng.choice((0.5, 2.0, 10.0)),
        resend_s=rng.choice((1.0, 2.0)),
        max_dead=rng.choice((1, 1000)),
        max_settled=MAX_SETTLED,
    )


def _node(number: int, rng: random.Random) -> NodePlan:
    return NodePlan(
        name=f"node{number}",
        clock=_clock(rng),
        slots=rng.choice((1, 1, 2)),
        credit=rng.choice((1, 2, 4, 40)),
        chars_per_s=rng.choice((60.0, 300.0, 2000.0)),
        routes=(ROUTE,) if number and rng.random() < 0.3 else (ROUTE, OTHER_ROUTE),
        crashes=rng.choice((0.0, 0.0, 0.05)),
        hangs=rng.choice((0.0, 0.0, 0.03)),
    )


def _requests(gateways: list[str], calm_at: float, rng: random.Random) -> tuple[Request, ...]:
    count = rng.choice((5, 10, 15, 25, 40))
    burst = rng.random() < 0.4
    bulk = rng.choice((0.1, 0.5, 0.9))
    poison = rng.choice((0.0, 0.05, 0.2))
    found: list[Request] = []
    for number in range(1, count + 1):
        at = rng.uniform(0.0, 0.3 if burst and rng.random() < 0.7 else 0.8) * calm_at
        gateway = rng.choice(gateways)
        spec = _spec(number, bulk, poison, rng)
        again_at = at + rng.uniform(0.1, 8.0) if rng.random() < 0.1 else None
        cancel_at = at + rng.uniform(0.0, 4.0) if rng.random() < 0.06 else None
        found.append(Request(at, gateway, spec, again_at, cancel_at))
        if len(gateways) > 1 and rng.random() < 0.03:
            other = next(one for one in gateways if one != gateway)
            found.append(Request(at + rng.uniform(0.0, 5.0), other, spec, None, None))
    return tuple(found)


def _spec(number: int, bulk: float, poison: float, rng: random.Random) -> JobSpec:
    kind = rng.choice(POISONS) if rng.random() < poison else "sound"
    # Texts repeat, so that the cache is in play.
    size = rng.choice((1, 20, 60, 200))
    text = f"{kind} {rng.randrange(number + 2)} " + "x" * size
    return JobSpec(
        job_id=number.to_bytes(16),
        route=rng.choices((ROUTE, OTHER_ROUTE, NO_ROUTE), (80, 17, 3))[0],
        texts=(text,) * rng.choice((1, 1, 2)),
        lane=BULK if rng.random() < bulk else INTERACTIVE,
        tenant=rng.choice("abc"),
        deadline_s=rng.choice((3.0, 15.0, 30.0, 30.0)),
        reply_to=b"to %d" % number,
        alternatives=rng.choice((0, 0, 0, 0, 0, 1)),
    )


# What may go wrong with whom, and how often. "crash" strikes between two steps of a turn; "dark" takes the power.
_BROKER: Final = {"crash": 6, "dark": 2, "stop": 2, "pause": 2, "slow disk": 2}
_NODE: Final = {
    "crash": 4, "dark": 2, "stop": 1, "pause": 2, "cut": 4, "half": 4, "shut": 3, "order": 3, "kill child": 3,
}  # fmt: skip
_GATEWAY: Final = {"crash": 4, "dark": 2, "pause": 2, "cut": 3, "half": 3, "shut": 3, "dead letters": 1}


def _troubles(hosts: list[str], calm_at: float, rng: random.Random) -> tuple[Trouble, ...]:
    found: list[Trouble] = []
    for _ in range(rng.choice((0, 2, 4, 6, 10))):
        whom = rng.choice(hosts)
        kinds = _BROKER if whom == "broker" else _NODE if whom.startswith("node") else _GATEWAY
        kind = rng.choices(list(kinds), list(kinds.values()))[0]
        for_s = rng.choice((0.1, 0.5, 2.0, 4.0, 9.0)) * rng.uniform(0.5, 1.5)
        found.append(Trouble(rng.uniform(0.3, calm_at), kind, whom, for_s, rng.getrandbits(30)))
    return tuple(sorted(found, key=lambda one: one.at))
