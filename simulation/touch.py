"""What can be expected while nothing is wrong between a peer and the broker: that within seconds both agree."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from simulation.disk import Violation
from simulation.story import job_name

if TYPE_CHECKING:
    from simulation.hosts import Peer
    from simulation.nodehost import NodeHost
    from simulation.world import World

AGREE_S: Final = 6.0  # a heartbeat or two resends, and the answer; in a slow network some times its delay more
DELAYS: Final = 6


class Touch:
    """Since when each peer has been in touch with the broker."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._since: dict[str, tuple[bytes, int, float]] = {}  # by peer: socket, broker's process, virtual seconds
        self.agree_s = AGREE_S + DELAYS * world.plan.delays.rare_s

    def since(self, peer: Peer) -> float | None:
        """Since when ``peer`` and the broker know each other and nothing was wrong; None: something is, now."""
        broker, wire = self._world.broker, peer.wire
        known = wire is not None and self._knows(wire.identity)
        if wire is None or not known or not peer.reachable:
            self._since.pop(peer.name, None)
            return None
        now = self._world.timeline.now
        identity, life, began = self._since.get(peer.name, (wire.identity, broker.lives, now))
        shut = max(peer.link.disturbed_at, *peer.link.shut_until.values())
        if identity != wire.identity or life != broker.lives:
            began = now
        began = max(began, peer.disturbed_at, broker.disturbed_at, shut)
        self._since[peer.name] = (wire.identity, broker.lives, began)
        return began

    def _knows(self, identity: bytes) -> bool:
        watch = self._world.witness.watch
        return identity in watch.nodes or identity in watch.gateways

    def for_long(self, peer: Peer) -> bool:
        """Whether they have been in touch for so long that they must agree."""
        since = self.since(peer)
        return since is not None and self._world.timeline.now - since >= self.agree_s

    def look(self, node: NodeHost) -> None:
        """A job that the node works on, and the broker thinks elsewhere, must not stay there."""
        since = self.since(node)
        children, wire, now = node.children, node.wire, self._world.timeline.now
        if since is None or children is None or wire is None:
            node.suspicious.clear()
            return
        self._holds_for_a_reason(node, set(children.jobs))
        loans = self._world.witness.watch.loans
        odd = [one for one in children.jobs if (loan := loans.get(one)) is None or loan.peer != wire.identity]
        node.suspicious = {job_id: node.suspicious.get(job_id, now) for job_id in odd}
        for job_id, at in node.suspicious.items():
            if now - max(at, since) > self.agree_s:
                raise Violation("a node lets go of what is not its own", f"{node.name} works on {job_name(job_id)}")

    def _holds_for_a_reason(self, node: NodeHost, working: set[bytes]) -> None:
        """A lease that a node renews is one that it works on, or has the outcome of."""
        session = vars(node.session)
        idle = session["_held"].keys() - session["_outcomes"].keys() - working
        if idle:
            raise Violation("a node works on what it holds", f"{node.name} only renews {job_name(min(idle))}")
