"""Random interleavings of every event: the invariants hold at each step, no accepted job is lost, all of it drains."""

from __future__ import annotations

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from dolmetsch import messages as m
from dolmetsch.config import SchedulerConfig
from dolmetsch.effects import Beat, Drain, FromPeer, PeerGone, Persist, Publish, Send, Tick
from dolmetsch.ledger import MemoryLedger
from dolmetsch.reports import BrokerHealth
from dolmetsch.scheduler import Scheduler
from dolmetsch.wire import decode, encode
from tests.scheduling import key

NODES = [b"n1", b"n2", b"n3"]
GATEWAYS = {b"g1": "one", b"g1b": "one", b"g2": "two"}
ROUTES = ["de→en", "fr→en"]
CONFIG = SchedulerConfig(max_jobs=40, max_dead=3, max_settled=500, max_failures=2, max_attempts=4, bulk_age_s=2.0)

HEALTH = BrokerHealth("host", "0", 1, 0.0, 0, 0, 0)

nodes = st.sampled_from(NODES)
gateways = st.sampled_from(sorted(GATEWAYS))


def _finished(one: m.LeasedJob) -> m.Finished:
    return m.Finished(one.job_id, one.attempt, one.texts * (1 + one.alternatives), "v1", 3, 40)


class Machine(RuleBasedStateMachine):
    """Peers that say anything at any time, and a broker that may be killed between two ticks."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0
        self.ledger = MemoryLedger(max_settled=500)
        self.next_job = 0
        self.open: set[bytes] = set()  # accepted, and not answered, cancelled or dead yet
        self.answered: dict[bytes, object] = {}
        self.acked: set[bytes] = set()
        self.known: dict[bytes, tuple[int, tuple[m.Route, ...]]] = {}  # which routes each gateway was told
        self.held: dict[bytes, dict[bytes, m.LeasedJob]] = {peer: {} for peer in NODES}
        self.start()

    def start(self) -> None:
        self.scheduler = Scheduler(CONFIG, incarnation="b", now=self.now)
        self.carry_out(self.scheduler.handle(self.ledger.load(self.now), self.now))

    def carry_out(self, effects: list[Persist | Send]) -> None:
        self.ledger.commit([one for one in effects if isinstance(one, Persist)])
        for one in effects:
            if isinstance(one, Send):
                self.take(one.peer, one.message)

    def take(self, peer: bytes, message: m.Message) -> None:
        match message:
            case m.Lease(jobs=jobs):
                assert len(jobs) <= m.MAX_JOBS
                self.held[peer].update({one.job_id: one for one in jobs})
            case m.Revoke(jobs=leases):
                for one in leases:
                    self.held[peer].pop(one.job_id, None)
            case m.Welcome(edition=edition, routes=routes) | m.Routes(edition=edition, routes=routes):
                self.known[peer] = (edition, routes)
            case m.Accepted(jobs=states):
                for state in states:
                    if state.state == "settled":
                        self.open.discard(state.job_id)
                    elif state.job_id not in self.answered:
                        self.open.add(state.job_id)
            case m.Result(jobs=answers):
                for one in answers:
                    before = self.answered.setdefault(one.job_id, one.texts)
                    assert before is None or before == one.texts, "two different replies"
                    self.answered[one.job_id] = one.texts
                    self.open.discard(one.job_id)
            case _:
                pass

    def say(self, peer: bytes, message: m.Message) -> None:
        self.carry_out(self.scheduler.handle(FromPeer(peer, message), self.now))

    @rule(peer=gateways)
    def hello(self, peer: bytes) -> None:
        self.say(peer, m.Hello(gateway=GATEWAYS[peer], incarnation="x"))

    @rule(peer=gateways, heard=st.booleans())
    def ping(self, peer: bytes, heard: bool) -> None:
        if not heard:  # what was said since the last ping was lost: it is said again
            self.known.pop(peer, None)
        self.say(peer, m.Ping(edition=self.known.get(peer, (0, ()))[0]))
        if self.scheduler.books.roster.gateway_at(peer) is not None:
            told = {one.route: one.model for one in self.known.get(peer, (0, ()))[1]}
            assert told == self.scheduler.books.roster.routes()

    @rule(peer=st.sampled_from([*NODES, *GATEWAYS, b"stranger"]), number=st.integers(0, 9))
    def report(self, peer: bytes, number: int) -> None:
        self.say(peer, m.Report(kind="x", servers=number, latency_ms=1.0, queued=0, answered=number, failed=number))
        gateway = self.scheduler.books.roster.gateway_at(peer)
        shown = {one.name: one.servers for one in self.scheduler.status(self.now).gateways}
        assert gateway is None or shown[gateway.name] == number

    @rule(
        peer=gateways, count=st.integers(1, 8), lane=st.integers(0, 1), tenant=st.sampled_from("abc"),
        route=st.sampled_from([*ROUTES, "xx→yy"]), size=st.sampled_from([1, 30, 700]),
        deadline_s=st.sampled_from([1.0, 30.0]), more=st.sampled_from([0, 0, 0, 2]),
    )  # fmt: skip
    def submit(
        self, peer: bytes, count: int, lane: int, tenant: str, route: str, size: int, deadline_s: float, more: int
    ) -> None:
        specs = []
        for _ in range(count):
            self.next_job += 1
            text = f"{self.next_job % 7}" * size  # texts repeat, so that the cache is in play
            specs.append(m.JobSpec(key(self.next_job), route, (text,), lane, tenant, deadline_s, b"", more))
        self.say(peer, m.Submit(jobs=tuple(specs)))

    @rule(peer=gateways, data=st.data())
    def submit_again(self, peer: bytes, data: st.DataObject) -> None:
        if self.next_job:
            number = data.draw(st.integers(1, self.next_job))
            spec = m.JobSpec(key(number), ROUTES[0], ("again",), 0, "a", 5.0, b"")
            self.say(peer, m.Submit(jobs=(spec,)))

    @rule(peer=gateways, data=st.data())
    def ack(self, peer: bytes, data: st.DataObject) -> None:
        if self.answered:
            ids = data.draw(st.lists(st.sampled_from(sorted(self.answered)), max_size=5))
            self.say(peer, m.Ack(jobs=tuple(ids)))

    @rule(peer=gateways, data=st.data())
    def cancel(self, peer: bytes, data: st.DataObject) -> None:
        if self.next_job:
            self.say(peer, m.Cancel(jobs=(key(data.draw(st.integers(1, self.next_job))),)))

    @rule(peer=gateways)
    def requeue(self, peer: bytes) -> None:
        self.answered = {job_id: texts for job_id, texts in self.answered.items() if texts is not None}
        self.say(peer, m.Manage(action=m.REQUEUE))

    @rule(peer=gateways)
    def purge(self, peer: bytes) -> None:
        self.say(peer, m.Manage(action=m.PURGE))

    @rule(peer=gateways, action=st.sampled_from([m.DRAIN, m.RESUME, m.RESTART, "dance"]), node=nodes)
    def manage(self, peer: bytes, action: str, node: bytes) -> None:
        self.say(peer, m.Manage(action=action, node=node.decode()))

    @rule()
    def publish(self) -> None:
        (told,) = self.scheduler.handle(Beat(HEALTH), self.now)
        assert isinstance(told, Publish)
        assert decode(encode(told.message)) == told.message

    @rule(
        peer=nodes, routes=st.lists(st.sampled_from(ROUTES), min_size=1, unique=True), capacity=st.integers(0, 5),
        incarnation=st.sampled_from("12"), remembers=st.booleans(), name=st.sampled_from(["", "shared"]),
    )  # fmt: skip
    def register(
        self, peer: bytes, routes: list[str], capacity: int, incarnation: str, remembers: bool, name: str
    ) -> None:
        if not remembers:
            self.held[peer].clear()
        held = tuple(m.HeldLease(one.job_id, one.attempt) for one in self.held[peer].values())
        offered = tuple(m.Route(one, "v1") for one in routes)
        self.say(
            peer,
            m.Register(
                node=name or peer.decode(), incarnation=incarnation, routes=offered, capacity=capacity, engine="echo",
                held=held,
            ),
        )  # fmt: skip

    @rule(peer=nodes, part=st.floats(0, 1), draining=st.booleans(), capacity=st.integers(0, 5))
    def heartbeat(self, peer: bytes, part: float, draining: bool, capacity: int) -> None:
        leases = [m.HeldLease(one.job_id, one.attempt) for one in self.held[peer].values()]
        self.say(
            peer,
            m.Heartbeat(
                held=tuple(leases[: int(len(leases) * part + 0.5)]), capacity=capacity, draining=draining, workers=1,
                queued=0, in_flight=0, chars_per_s=50.0, cpu_percent=0.0, core_percent=(), ram_percent=0.0,
                ram_used_bytes=0, temperature_c=-300.0, throttled=False, children=(),
            ),
        )  # fmt: skip

    @rule(peer=nodes, data=st.data(), twice=st.booleans())
    def done(self, peer: bytes, data: st.DataObject, twice: bool) -> None:
        self._end_some(peer, data, twice, _finished)

    @rule(peer=nodes, data=st.data())
    def done_with_the_wrong_number_of_texts(self, peer: bytes, data: st.DataObject) -> None:
        self._end_some(peer, data, False, lambda one: m.Finished(one.job_id, one.attempt, (), "v1"))

    def _end_some(self, peer: bytes, data: st.DataObject, twice: bool, end) -> None:  # type: ignore[no-untyped-def]
        if self.held[peer]:
            ids = data.draw(st.lists(st.sampled_from(sorted(self.held[peer])), min_size=1, unique=True))
            items = tuple(end(self.held[peer].pop(job_id)) for job_id in ids)
            for _ in range(1 + twice):
                self.say(peer, m.Done(jobs=items))

    @rule(
        peer=nodes, data=st.data(), retry=st.booleans(),
        code=st.sampled_from(["child_crashed", "given_back", "degenerate_output"]),
    )  # fmt: skip
    def failed(self, peer: bytes, data: st.DataObject, retry: bool, code: str) -> None:
        if self.held[peer]:
            one = self.held[peer].pop(data.draw(st.sampled_from(sorted(self.held[peer]))))
            self.say(peer, m.Failed(jobs=(m.Failure(one.job_id, one.attempt, code, "why", retry),)))

    @rule(peer=nodes)
    def goodbye(self, peer: bytes) -> None:
        self.say(peer, m.Goodbye())

    @rule(peer=st.sampled_from([*NODES, *GATEWAYS]))
    def gone(self, peer: bytes) -> None:
        self.carry_out(self.scheduler.handle(PeerGone(peer), self.now))

    @rule(peer=st.sampled_from([*NODES, *GATEWAYS, b"stranger"]))
    def ask_and_nonsense(self, peer: bytes) -> None:
        self.say(peer, m.Ask())
        self.say(peer, m.Pong())
        self.say(peer, m.Welcome(broker="x", heartbeat_s=1.0, edition=1, routes=()))

    @rule(seconds=st.sampled_from([0.0, 0.0, 0.3, 1.0, 4.0, 12.0]))
    def tick(self, seconds: float) -> None:
        self.now += seconds
        self.carry_out(self.scheduler.handle(Tick(), self.now))

    @rule()
    def kill_the_broker(self) -> None:
        self.start()

    @precondition(lambda self: self.scheduler.draining is False)
    @rule()
    def drain_and_restart(self) -> None:
        self.carry_out(self.scheduler.handle(Drain(), self.now))
        self.carry_out(self.scheduler.handle(Tick(), self.now))
        self.start()

    @invariant()
    def the_books_are_right(self) -> None:
        self.scheduler.books.validate()

    @invariant()
    def no_accepted_job_is_lost(self) -> None:
        assert self.open <= set(self.scheduler.books.jobs)

    @invariant()
    def everything_is_bounded(self) -> None:
        assert len(self.scheduler.books.jobs) <= CONFIG.max_jobs
        assert len(self.scheduler.books.settled) <= CONFIG.max_settled
        assert {one.name for one in self.scheduler.status(self.now).gateways} <= {"one", "two"}

    def teardown(self) -> None:
        """Whatever happened: with a node that works and gateways that listen, every job gets its end."""
        self.start()
        for peer in ("g1", "g2"):
            self.hello(peer.encode())
        for _ in range(400):
            if not self.scheduler.books.jobs:
                break
            worker = b"n1"
            self.say(worker, m.Ping())
            if worker not in self.scheduler.books.roster.nodes:
                self.held[worker].clear()
                offered = tuple(m.Route(one, "v1") for one in [*ROUTES, "xx→yy"])
                name = f"last-{self.now}"
                self.say(
                    worker,
                    m.Register(node=name, incarnation="9", routes=offered, capacity=9, engine="echo", held=()),
                )
            self.tick(0.3)
            items = tuple(map(_finished, self.held[worker].values()))
            self.held[worker].clear()
            self.say(worker, m.Done(jobs=items))
            self.tick(0.0)
            for peer in ("g1", "g2"):
                self.say(peer.encode(), m.Ack(jobs=tuple(sorted(self.answered))[-m.MAX_JOBS :]))
            if set(self.scheduler.books.jobs) <= set(self.scheduler.books.dead):
                break
        self.scheduler.books.validate()
        assert not self.open
        assert set(self.scheduler.books.jobs) <= set(self.scheduler.books.dead)


Machine.TestCase.settings = settings(
    max_examples=300, stateful_step_count=50, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck)
)
TestInterleavings = Machine.TestCase
