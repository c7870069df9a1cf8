"""The weather: carries out what the plan says goes wrong."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING, Final

from dolmetsch.messages import DRAIN, PURGE, REQUEUE, RESTART, RESUME, Manage
from simulation.gatewayhost import GatewayHost
from simulation.hosts import Host, Peer
from simulation.nodehost import NodeHost
from simulation.plan import Trouble

if TYPE_CHECKING:
    from simulation.world import World

FUSE: Final = 40  # steps until a crash strikes, at most: a turn has a few
MESSAGES: Final = 12  # until a connection is cut, at most: the last of them is lost
HALVES: Final = ((True, True), (True, False), (False, True), (False, False))  # who sees at once that a connection died
DIRECTIONS: Final = ((True, False), (True,), (False,))  # which way a link is shut: towards the broker or from it


class Weather:
    """Trouble, each when its time has come."""

    def __init__(self, world: World) -> None:
        self._world = world
        for one in world.plan.troubles:
            world.timeline.at(one.at, self._strike, one)

    def _strike(self, trouble: Trouble) -> None:
        world = self._world
        host: Host = world.hosts[trouble.whom]
        host.tell(f"{trouble.kind} for {trouble.for_s:.2f} s")
        rng = random.Random(trouble.how)
        match trouble.kind:
            case "crash":
                host.light(rng.randrange(FUSE))
            case "dark":
                host.crash(trouble.for_s, power_lost=True)
            case "pause":
                host.pause(trouble.for_s)
            case "slow disk":
                host.disturb(trouble.for_s)
                world.broker.slow_until = world.timeline.now + trouble.for_s
            case "stop" if host is world.broker:
                world.broker.stop()
            case _ if isinstance(host, Peer):
                self._strike_peer(host, trouble, rng)

    def _strike_peer(self, peer: Peer, trouble: Trouble, rng: random.Random) -> None:
        match trouble.kind:
            case "cut" | "half":
                peer.link.seen_by = rng.choice(HALVES[:1] if trouble.kind == "cut" else HALVES[1:])
                peer.link.fuse = 1 + rng.randrange(MESSAGES)
            case "shut":
                self._world.network.shut(peer.link, peer.wire, trouble.for_s, rng.choice(DIRECTIONS))
                peer.disturb(trouble.for_s)
            case "stop" if isinstance(peer, NodeHost):
                peer.stop()
            case "kill child" if isinstance(peer, NodeHost) and peer.children is not None:
                peer.children.kill(rng.randrange(4), peer.now)
                peer.poke(self._world.timeline.now)
            case "order":
                self._operate(Manage(action=rng.choice((DRAIN, DRAIN, RESUME, RESTART)), node=peer.name), rng)
            case "dead letters" if isinstance(peer, GatewayHost):
                peer.operate(Manage(action=rng.choice((REQUEUE, REQUEUE, PURGE))))
            case _:
                pass

    def _operate(self, manage: Manage, rng: random.Random) -> None:
        rng.choice(self._world.gateways).operate(manage)

    def clear(self) -> None:
        """No crash that was to come comes now, and no node stays drained; say so until all have heard."""
        for host in self._world.hosts.values():
            host.light_out()
            if isinstance(host, Peer):
                host.link.fuse = 0
        draining = [view.name for view in self._world.witness.watch.nodes.values() if view.draining]
        for gateway in self._world.gateways:
            for name in draining:
                gateway.operate(Manage(action=RESUME, node=name))
