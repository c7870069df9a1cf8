"""One world: all that ``plan.py`` says, joined, and run until it is calm and has drained, or something is wrong."""

from __future__ import annotations

import itertools
import random
import traceback
from dataclasses import dataclass
from typing import Final

from dolmetsch.errors import DolmetschError
from simulation.brokerhost import BrokerHost
from simulation.disk import Violation
from simulation.gatewayhost import GatewayHost
from simulation.hosts import Host
from simulation.network import Network
from simulation.nodehost import NodeHost
from simulation.plan import Plan, Request, plan
from simulation.story import Story
from simulation.timeline import Timeline
from simulation.touch import Touch
from simulation.weather import Weather
from simulation.witness import Witness

LOOK_S: Final = 0.5
QUIET_S: Final = 1.5  # calm and drained for so long, and a slow network's delays more: then the accounts are closed
DRAIN_S: Final = 330.0  # until everything must have drained: a dead letter that is requeued has 300 s
MOST_STEPS: Final = 200_000  # far more than any run needs: so a loop that never ends is found too


@dataclass(frozen=True, slots=True)
class Verdict:
    """What became of a run; ``rule`` is empty when everything was as it must be."""

    seed: int
    rule: str
    what: str
    digest: str
    virtual_s: float
    story: str


class World:
    """Hosts, their network and their troubles, in virtual time."""

    def __init__(self, seed: int, *, told: bool = False) -> None:
        rng = random.Random(seed)
        self.plan: Plan = plan(seed, rng)
        self.story = Story(told)
        self.timeline = Timeline()
        self.network = Network(self.timeline, random.Random(rng.getrandbits(64)), self.plan.delays)
        self._numbers = itertools.count(1)
        self.broker = BrokerHost(self, self.plan.broker_clock, random.Random(rng.getrandbits(64)))
        self.nodes = [NodeHost(self, one, random.Random(rng.getrandbits(64))) for one in self.plan.nodes]
        self.gateways = [GatewayHost(self, one, random.Random(rng.getrandbits(64))) for one in self.plan.gateways]
        self.hosts: dict[str, Host] = {one.name: one for one in (self.broker, *self.nodes, *self.gateways)}
        self.witness = Witness(self)
        self.touch = Touch(self)
        self._weather = Weather(self)
        self._rested_at: float | None = None
        self._over = False
        self.network.listen(self.broker)
        for host in self.hosts.values():
            self.timeline.at(rng.uniform(0.0, 0.5), host.start)
        for request in self.plan.requests:
            self._plan_request(request)
        self.timeline.at(self.plan.calm_at, self._look)

    def count(self) -> int:
        """A number that nobody had before."""
        return next(self._numbers)

    def _plan_request(self, request: Request) -> None:
        gateway = next(one for one in self.gateways if one.name == request.gateway)
        for at in (request.at, request.again_at):
            if at is not None:
                self.timeline.at(at, gateway.ask, request.spec)
        if request.cancel_at is not None:
            self.timeline.at(request.cancel_at, gateway.cancel, request.spec.job_id)

    def run(self) -> None:
        """Until it is over. Raises ``Violation``, or whatever a core raises."""
        while not self._over:
            self.timeline.step()
            if self.network.reused is not None:
                raise Violation("an identity is used once", self.network.reused.decode())
            if self.timeline.steps > MOST_STEPS:
                raise Violation("everything drains", f"{MOST_STEPS} steps: {self.witness.what_is_left()}")
        self.witness.verdict()

    def _look(self) -> None:
        """After the last trouble: is it at rest, and for long enough?"""
        now = self.timeline.now
        self._weather.clear()
        if not self.witness.at_rest():
            self._rested_at = None
            if now > self.plan.calm_at + DRAIN_S:
                raise Violation("everything drains", self.witness.what_is_left())
        elif self._rested_at is None:
            self._rested_at = now
        self._over = self._rested_at is not None and now - self._rested_at >= QUIET_S + 4 * self.plan.delays.rare_s
        self.timeline.after(LOOK_S, self._look)


def simulate(seed: int, *, told: bool = False) -> Verdict:
    """Run the world of ``seed``; ``told``: with its story."""
    world = World(seed, told=told)
    rule, what = "", ""
    try:
        world.run()
    except Violation as violation:
        rule, what = violation.rule, violation.what
    except DolmetschError as error:
        rule, what = "the cores keep their own rules", f"{type(error).__name__}: {error}"
    except Exception as error:  # whatever a core does that it should not: the seed is what matters
        rule, what = "the cores do not fail", "".join(traceback.format_exception(error)[-3:])
    return Verdict(seed, rule, what, world.story.digest, world.timeline.now, str(world.story))
