"""Silence: a day of it by an injected clock, a connection that dies without a word, a broker that moves elsewhere."""

from __future__ import annotations

import asyncio
import gc
import json
import random
import subprocess
import sys
import urllib.request
import uuid
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from itertools import permutations
from pathlib import Path
from types import FunctionType, ModuleType
from typing import Any, Final, NamedTuple

import psutil
import pytest

from dolmetsch import messages as m
from dolmetsch import outbox as o
from dolmetsch import session as s
from dolmetsch import transport
from dolmetsch.client import Client
from dolmetsch.config import SchedulerConfig
from dolmetsch.effects import Beat, FromPeer, PeerGone, Persist, Publish, Send, Tick
from dolmetsch.link import SILENCE_S
from dolmetsch.reports import BrokerHealth
from dolmetsch.scheduler import Scheduler
from tests.computers import Computer, Computers, missing
from tests.conftest import wait_until
from tests.scheduling import spec
from tests.test_session import ROUTES, health

DAY_S: Final = 86_400.0
PUBLISH_S: Final = 60.0  # a real broker's second is too dear for days
HEALTH: Final = BrokerHealth("host", "0", 1, 0.0, 0, 0, 0)
# libzmq tries again within this, and asks for the address of the broker's name each time.
AGAIN_S: Final = (transport.CONNECT_MS + transport.RECONNECT_MAX_MS) / 1000 + 0.5
NOTICED_S: Final = 2 * transport.HEARTBEAT_MS / 1000 + 1.0
ANSWER_S: Final = 5.0  # from a connection to an answer, on a machine that others use too


# ---- by an injected clock ----


class Loop(NamedTuple):
    """A program's: what has arrived, when it is due without that, and one turn."""

    inbox: list[Any]
    due: Callable[[], float]
    turn: Callable[[], None]


class Room:
    """A broker, a node and a gateway on one clock, without sockets: what is sent arrives at once.

    Each has its turn when it is due or has got something, as its program's loop does.
    """

    def __init__(self) -> None:
        self.now = 1000.0
        self.scheduler = Scheduler(SchedulerConfig(), incarnation="b", now=self.now)
        self.session = s.Session(name="pi", incarnation="n", engine="echo", rng=random.Random(1), now=self.now)
        self.outbox = o.Outbox(gateway="g", incarnation="g", rng=random.Random(2), now=self.now)
        self.works = True  # whether the node's children do
        self.held: list[m.LeasedJob] = []
        self.answers: list[m.Answer] = []
        self.given_up: list[bytes] = []
        self.written: list[Persist] = []
        self.said: Counter[str] = Counter()
        self.turns: Counter[str] = Counter()
        self.connections: Counter[str] = Counter(node=1, gateway=1)
        self._to_broker: list[FromPeer | PeerGone] = []
        self._to_node: list[m.Message] = []
        self._to_gateway: list[m.Message] = []
        self._loops = {
            "broker": Loop(self._to_broker, self._broker_due, self._broker),
            "node": Loop(self._to_node, self._node_due, self._node),
            "gateway": Loop(self._to_gateway, self.outbox.next_deadline, self._gateway),
        }
        self._beat_at = self._publish_at = self.now
        self.session.handle(s.Offer(ROUTES, 1), self.now)
        self.advance(2.0)

    # ---- time ----

    def advance(self, seconds: float, order: Sequence[str] = ("broker", "node", "gateway")) -> None:
        """Go on by so much, turn by turn; ``order`` says who is first of those whose turn it is."""
        until, hurry = self.now + seconds, 0
        loops = [(who, *self._loops[who]) for who in order]
        while True:
            dues = [0.0 if inbox else due() for _, inbox, due, _ in loops]
            first = min(dues)
            if first > until:
                break
            hurry = hurry + 1 if first <= self.now else 0
            assert hurry < 50, "a loop does not come to rest"
            self.now = max(self.now, first)
            for due, (who, _, _, turn) in zip(dues, loops, strict=True):
                if due <= self.now:
                    self.turns[who] += 1
                    turn()
        self.now = until

    def _broker_due(self) -> float:
        due = self.scheduler.next_deadline()
        return self._publish_at if due is None else min(due, self._publish_at)

    def _node_due(self) -> float:
        due = self.session.next_deadline()
        return self._beat_at if due is None else min(due, self._beat_at)

    # ---- the three loops ----

    def _broker(self) -> None:
        events: list[Any] = [*self._to_broker, Tick()]
        self._to_broker.clear()
        if self.now >= self._publish_at:
            self._publish_at = self.now + PUBLISH_S
            events.append(Beat(HEALTH))
        for event in events:
            for effect in self.scheduler.handle(event, self.now):
                match effect:
                    case Persist():
                        self.written.append(effect)
                    case Send(peer, message):
                        if peer == self._peer("node"):
                            self._to_node.append(message)
                        elif peer == self._peer("gateway"):
                            self._to_gateway.append(message)
                        else:
                            self._to_broker.append(PeerGone(peer))
                    case Publish():
                        pass

    def _peer(self, who: str) -> bytes:
        return b"%s/%d" % (who.encode(), self.connections[who])

    def _say(self, who: str, message: m.Message) -> None:
        self.said[type(message).__name__] += 1
        self._to_broker.append(FromPeer(self._peer(who), message))

    def _node(self) -> None:
        events: list[s.Event] = [s.FromBroker(one) for one in self._to_node]
        self._to_node.clear()
        if self.now >= self._beat_at:
            self._beat_at = self.now + 1.0
            events.append(s.Beat(health(workers=1, slots=1)))
        if self.works and self.held:
            events.append(s.Ended([(job.job_id, job.texts, "v1", 1, 1) for job in self.held], []))
            self.held.clear()
        for event in (*events, s.Tick()):
            for effect in self.session.handle(event, self.now):
                match effect:
                    case s.Send(message):
                        self._say("node", message)
                    case s.Start(jobs):
                        self.held += jobs
                    case s.Reconnect():
                        self.connections["node"] += 1
                        self._to_node.clear()
        if self.works and self.held:
            self._node()

    def _gateway(self) -> None:
        events: list[o.Event] = [o.FromBroker(one) for one in self._to_gateway]
        self._to_gateway.clear()
        for event in (*events, o.Tick()):
            self._post(event)

    def _post(self, event: o.Event) -> None:
        for effect in self.outbox.handle(event, self.now):
            match effect:
                case o.Send(message):
                    self._say("gateway", message)
                case o.Deliver(answer, stray):
                    if not stray:
                        self.answers.append(answer)
                    self._post(o.Have((answer.job_id,)))
                case o.GiveUp(job_id):
                    self.given_up.append(job_id)
                case o.Reconnect():
                    self.connections["gateway"] += 1
                    self._to_gateway.clear()

    def ask(self, number: int) -> None:
        """Somebody wants a translation."""
        self._post(o.Post((spec(number, f"Hallo {number}"),)))
        self._gateway()
        self.advance(0.0)


def weigh(*roots: object) -> int:
    """The bytes of all that is reachable from ``roots``, code left out."""
    seen: dict[int, object] = {}
    waiting = list(roots)
    while waiting:
        one = waiting.pop()
        if id(one) not in seen and not isinstance(one, type | ModuleType | FunctionType):
            seen[id(one)] = one
            waiting += gc.get_referents(one)
    return sum(map(sys.getsizeof, seen.values()))


def test_after_a_day_of_silence_a_job_is_translated_at_once_and_nothing_has_grown() -> None:
    room = Room()
    room.ask(1)
    room.advance(3600.0)
    parts = (room.scheduler, room.session, room.outbox)
    before, room.written, room.said, room.turns = weigh(*parts), [], Counter(), Counter()
    room.advance(DAY_S)
    assert room.said.keys() == {"Heartbeat", "Ping"}  # nothing but signs of life, ...
    assert room.said.total() == pytest.approx(2 * DAY_S, rel=0.01)
    assert not room.written  # ... nothing on the disk, ...
    assert max(room.turns.values()) < 8 * DAY_S  # ... loops that rest, ...
    assert weigh(*parts) <= before + 200  # ... and numbers that got longer
    room.ask(2)
    assert [one.texts for one in room.answers] == [("Hallo 1",), ("Hallo 2",)]
    assert room.connections == Counter(node=1, gateway=1)
    room.scheduler.books.validate()


@pytest.mark.parametrize("order", list(permutations(("broker", "node", "gateway"))))
def test_programs_that_slept_together_for_a_day_go_on_whoever_wakes_up_first(order: tuple[str, ...]) -> None:
    room = Room()
    room.works = False
    room.ask(1)
    (job,) = room.held
    room.advance(0.6)
    room.now += DAY_S  # their clock goes on in such a sleep: that of a paused virtual machine, or after SIGSTOP
    room.turns.clear()
    room.advance(1.0, order)
    assert max(room.turns.values()) < 30  # and not one for each second that went by
    assert room.session.up
    assert room.said["Register"] <= 2
    room.works = True
    room.ask(2)
    assert room.answers[-1].texts == ("Hallo 2",)
    room.advance(1.0)
    # The job that was held is late, as its deadline counted on: the broker says so or, if it woke first, the gateway.
    told = [one.code for one in room.answers if one.job_id == job.job_id]
    assert (told, room.given_up) in ((["deadline"], []), ([], [job.job_id]))
    assert room.session.held == 0
    assert room.scheduler.leased == 0
    room.scheduler.books.validate()


# ---- real programs on two computers ----

PORT: Final = 5570
URL: Final = "http://127.0.0.1:5050"


@pytest.fixture(scope="module")
def apart(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Computers]:
    """The broker is ``broker.test`` on one computer, a node and the HTTP gateway are on another, and all is well."""
    if why := missing():
        pytest.skip(why)
    with Computers(tmp_path_factory.mktemp("apart")) as made:
        made.secure()
        made.there.run("ip", "address", "add", "10.9.0.2/24", "dev", "lan")
        made.here.run("ip", "address", "add", "10.9.0.9/24", "dev", "lan")
        made.here.hosts.write_text("10.9.0.2 broker.test\n")
        made.address = f"tcp://0.0.0.0:{PORT}"
        made.broker()
        made.address = f"tcp://broker.test:{PORT}"
        made.node("one", "--engine", "echo", "--max-workers", "1")
        often = made.folder / "often.toml"
        often.write_text("[http]\nper_minute = 0\n")  # a test that waits asks many times a second
        made.start(
            "http", "gateway_http.py", "--broker", made.address, "--listen", URL.removeprefix("http://"),
            "--config", str(often),
        )  # fmt: skip
        wait_until(lambda: translates(made), 30.0, "a translation")
        yield made


def translates(apart: Computers) -> bool:
    """Whether the gateway, asked on its own computer, has a text translated."""
    text = f"Hallo {uuid.uuid4()}"
    body = json.dumps({"q": text, "source": "de", "target": "en"}).encode()
    request = urllib.request.Request(f"{URL}/translate", body, {"Content-Type": "application/json"})

    def ask() -> bool:
        try:
            with urllib.request.urlopen(request, timeout=30.0) as answer:
                return bool(json.load(answer)["translatedText"] == text)
        except OSError:
            return False

    return apart.here.do(ask)


def complaints(apart: Computers) -> int:
    """How often the node has found the broker silent."""
    return apart.log("one").count("does not answer")


def names_of_nodes(apart: Computers) -> list[str]:
    """The nodes that the broker, asked on its own computer, knows."""
    keys = apart.keys

    async def ask() -> m.Status:
        async with Client(f"tcp://127.0.0.1:{PORT}", gateway="test", keys=keys) as client:
            return await client.status()

    return [node.name for node in apart.there.do(lambda: asyncio.run(ask())).nodes]


def test_a_connection_that_dies_without_a_word_is_noticed_by_both_sides_and_made_anew(apart: Computers) -> None:
    broker = psutil.Process(apart.programs["broker"].pid)
    descriptors, before = broker.num_fds(), complaints(apart)
    apart.plug("here", False)
    took_s = wait_until(lambda: complaints(apart) > before, SILENCE_S + ANSWER_S, "the node notices")
    assert took_s > 1.0  # nobody told it
    wait_until(lambda: names_of_nodes(apart) == [], SILENCE_S + ANSWER_S, "the broker has given the node up")
    # The node's connection and the gateway's: their descriptors are free again, though no FIN ever came.
    wait_until(lambda: broker.num_fds() <= descriptors - 2, NOTICED_S, "the broker hangs up")
    apart.plug("here", True)
    wait_until(lambda: translates(apart), AGAIN_S + ANSWER_S, "the first job after it")
    assert complaints(apart) <= before + 2  # said once, and once more at most where the machine itself stood still


def test_a_broker_that_has_moved_is_found_by_its_name_and_without_a_restart(apart: Computers) -> None:
    before = complaints(apart)
    # The old address is silent: not even the cable says that nobody has it now.
    apart.here.run("ip", "neigh", "change", "10.9.0.2", "nud", "permanent", "dev", "lan")
    apart.there.run("ip", "address", "del", "10.9.0.2/24", "dev", "lan")
    apart.there.run("ip", "address", "add", "10.9.0.3/24", "dev", "lan")
    wait_until(lambda: complaints(apart) > before, SILENCE_S + ANSWER_S, "the node notices")
    apart.here.hosts.write_text("10.9.0.3 broker.test\n")  # the name has moved later than the broker
    wait_until(lambda: translates(apart), AGAIN_S + ANSWER_S, "the first job after it")
    assert complaints(apart) <= before + 2  # said once, and once more at most where the machine itself stood still
    assert {name: program.poll() for name, program in apart.programs.items()} == dict.fromkeys(apart.programs)


# Prints in which turn a message gets from a peer to a broker; once it had an answer, the turns after that must do so.
TURNS: Final = """
import sys, zmq
from dolmetsch.messages import Ping, Pong
from dolmetsch.transport import DealerPort, RouterPort
context = zmq.Context()
broker = RouterPort(context)
where = broker.bind(sys.argv[1])
peer = DealerPort(context, "tcp://localhost:" + where.rpartition(":")[2], "peer")

def arrives():
    peer.send(Ping(edition=0))
    return broker.socket.poll(1000) > 0

turn = 1
while not arrives() and turn < 9:
    peer.reconnect()
    turn += 1
for _ in range(2):
    (arrival,) = broker.receive(9)
    broker.send(arrival.peer, Pong())
    assert peer.socket.poll(5000)
    assert list(peer.receive(9))
    peer.reconnect()
    assert arrives()
print(turn)
peer.close(), broker.close(), context.term()
"""


# Prints the seconds after which a message arrives whose first address is silent, without a new socket.
SILENT: Final = """
import sys, time, zmq
from pathlib import Path
from dolmetsch.messages import Ping
from dolmetsch.transport import DealerPort, RouterPort
context = zmq.Context()
broker = RouterPort(context)
where = broker.bind(sys.argv[1])
peer = DealerPort(context, "tcp://broker.test:" + where.rpartition(":")[2], "peer")
started = time.monotonic()
peer.send(Ping(edition=0))
assert not broker.socket.poll(200)
Path("/etc/hosts").write_text("127.0.0.1 broker.test\\n")
assert broker.socket.poll(20_000)
print(time.monotonic() - started)
peer.close(), broker.close(), context.term()
"""


@pytest.fixture
def computer(tmp_path: Path) -> Iterator[Computer]:
    """One that nobody else can reach."""
    if why := missing():
        pytest.skip(why)
    made = Computer("alone", tmp_path)
    yield made
    made.close()


def test_a_name_with_addresses_of_both_kinds_leads_to_a_broker_at_one_of_them(computer: Computer) -> None:
    computer.hosts.write_text("127.0.0.1 localhost\n::1 localhost ip6-localhost ip6-loopback\n")  # as Debian's is
    for where, turn in (("tcp://127.0.0.1:*", 1), ("tcp://[::1]:*", 2)):
        printed = subprocess.check_output(computer.enter(sys.executable, "-c", TURNS, where), timeout=20.0)
        assert int(printed) == turn, where


def test_an_address_that_is_silent_is_asked_for_anew(computer: Computer) -> None:
    computer.run("ip", "link", "add", "lan", "up", "type", "veth", "peer", "nobody")
    computer.run("ip", "link", "set", "nobody", "up")
    computer.run("ip", "address", "add", "10.9.0.9/24", "dev", "lan")
    computer.run("ip", "neigh", "add", "10.9.0.2", "lladdr", "02:00:00:00:00:02", "dev", "lan")
    computer.hosts.write_text("10.9.0.2 broker.test\n")
    printed = subprocess.check_output(computer.enter(sys.executable, "-c", SILENT, "tcp://127.0.0.1:*"), timeout=30.0)
    assert transport.CONNECT_MS / 1000 - 0.1 < float(printed) < AGAIN_S
