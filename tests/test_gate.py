"""Keys on real sockets: a broker with an allow-list, and computers, each a HOME of its own, that it knows or not."""

from __future__ import annotations

import asyncio
import contextlib
import os
import select
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import zmq

from bench.cluster import HOUSE, Cluster
from dolmetsch import keys
from dolmetsch.client import Client
from dolmetsch.config import KeysConfig
from dolmetsch.enrol import enrol
from dolmetsch.errors import NoBroker, RemoteError
from dolmetsch.keyring import clock
from dolmetsch.lifecycle import Signals
from dolmetsch.messages import APPROVE, DRAIN, REFUSE, Knock, Telemetry, Verdict
from dolmetsch.transport import DealerPort, SubPort, door_address, telemetry_address
from dolmetsch.wire import PROTOCOL, decode
from tests.conftest import wait_until

ECHO = ("--engine", "echo", "--max-workers", "1")


class Computer:
    """Somebody's computer: programs with a HOME, and so with keys, of its own."""

    def __init__(self, cluster: Cluster, name: str) -> None:
        self.cluster, self.name = cluster, name
        home = cluster.folder / name
        self.environment = {**cluster.environment, "HOME": str(home), "XDG_DATA_HOME": str(home / "data")}
        self.config = KeysConfig(dir=str(home / "data" / "dolmetsch" / "keys"))

    def run(self, *arguments: str, timeout_s: float = 30.0) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, *arguments], cwd=HOUSE, env=self.environment, capture_output=True, text=True,
            timeout=timeout_s, check=False,
        )  # fmt: skip

    def node(self, *more: str) -> subprocess.Popen[bytes]:
        saved, self.cluster.environment = self.cluster.environment, self.environment
        try:
            return self.cluster.start(self.name, "node.py", "--name", self.name, *ECHO, *more)
        finally:
            self.cluster.environment = saved

    def log(self) -> str:
        return self.cluster.log(self.name)

    def says(self, what: str, within_s: float = 20.0) -> None:
        wait_until(lambda: what in self.log(), within_s, f"{self.name} says {what!r}")

    def knows(self, where: str, key: bytes) -> None:
        keys.remember_broker(self.config, where, key, first=True)


class Owner(Computer):
    """The computer of the broker."""

    def __init__(self, cluster: Cluster) -> None:
        super().__init__(cluster, "owner")
        cluster.environment = self.environment
        self.pair = keys.pair_at(Path(self.config.dir) / "broker.key_secret", make=True)  # a key: so keys are wanted

    def start(self) -> None:
        self.cluster.broker()
        self.cluster.wait_listening()

    def command(self, *arguments: str) -> str:
        ended = self.run("broker.py", *arguments)
        assert ended.returncode == 0, ended.stderr
        return ended.stdout.strip()

    def invite(self, *more: str) -> str:
        return self.command("invite", *more)

    def ask(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        return self.run("gateway_cli.py", "--broker", self.cluster.address, *arguments)


@pytest.fixture
def owner(cluster: Cluster) -> Iterator[Owner]:
    made = Owner(cluster)
    made.start()
    yield made
    assert "Traceback" not in cluster.log("broker")
    assert made.pair.secret.decode() not in cluster.log("broker")


def joined(cluster: Cluster, owner: Owner, name: str) -> Computer:
    computer = Computer(cluster, name)
    computer.node("--join", owner.invite())
    computer.says("joined")
    return computer


def test_an_invitation_is_all_a_new_computer_needs(cluster: Cluster, owner: Owner) -> None:
    invitation = owner.invite()
    pi = Computer(cluster, "pi4")
    pi.node("--join", invitation)
    pi.says("joined")
    assert owner.ask("Hallo").stdout == "Hallo\n"  # the owner's own programs need no invitation
    assert "pi4: node, invited" in owner.command("keys")

    cluster.end("pi4")
    pi.node()  # from now on it knows where to go
    wait_until(lambda: pi.log().count("joined") == 2, 20, "it joins again without an invitation")
    cluster.end("pi4")
    pi.node("--join", invitation)  # the same command again, as in a shell's history
    wait_until(lambda: pi.log().count("joined") == 3, 20, "it joins again with the old one")

    thief = Computer(cluster, "thief").run("node.py", *ECHO, "--join", invitation)
    assert thief.returncode == 1
    assert thief.stderr.splitlines()[-1].endswith("ask for a new one (python broker.py invite)")
    assert "the invitation is not valid (any more)" in thief.stderr


def test_an_invitation_that_has_ended(cluster: Cluster, owner: Owner) -> None:
    invitation = owner.invite("--for", "1")
    ended_at = clock()[1] + 1.0
    wait_until(lambda: clock()[1] > ended_at, 10, "its second is over")
    late = Computer(cluster, "late").run("node.py", *ECHO, "--join", invitation)
    assert late.returncode == 1 and "the invitation is not valid (any more)" in late.stderr


def test_a_revoked_node_is_out_at_once(cluster: Cluster, owner: Owner) -> None:
    pi = joined(cluster, owner, "pi4")
    owner.command("revoke", "pi4")
    pi.says("was revoked")
    wait_until(lambda: "pi4" not in owner.ask("--status").stdout, 10, "the cluster is without it")
    pi.says("does not know this computer's key, or has revoked it", 40)
    assert pi.log().count("does not know this computer's key") == 1
    assert cluster.log("broker").count("was revoked, or has another role") == 1
    assert cluster.programs["pi4"].poll() is None  # it goes on trying: it may be let in again
    assert "pi4: revoked" in owner.command("keys")
    assert Computer(cluster, "pi4").run("-m", "dolmetsch.enrol", owner.invite()).returncode == 0
    wait_until(lambda: pi.log().count("joined") == 2, 60, "the running node is back")


def test_a_computer_that_was_never_invited(cluster: Cluster, owner: Owner) -> None:
    stranger = Computer(cluster, "stranger")
    stranger.knows(cluster.address, owner.pair.public)  # it may have read it anywhere: a public key is no secret
    stranger.node("--broker", cluster.address)
    stranger.says("does not know this computer's key")
    refused = stranger.run("gateway_cli.py", "--broker", cluster.address, "Hallo")
    assert refused.returncode == 1 and "does not know this computer's key" in refused.stderr
    line = f"refused: the key {keys.fingerprint(keys.own_pair(stranger.config).public)}, from 127.0.0.1"
    assert cluster.log("broker").count(line) == 1


def test_a_broker_with_another_key_is_not_trusted(cluster: Cluster, owner: Owner) -> None:
    pi = Computer(cluster, "pi4")
    pi.knows(cluster.address, keys.KeyPair(*zmq.curve_keypair()).public)
    pi.node("--broker", cluster.address)
    pi.says("does not have the key that is known here")
    plain = Computer(cluster, "plain").run("gateway_cli.py", "--broker", cluster.address, "Hallo")
    assert plain.returncode == 1 and "no broker answered" in plain.stderr


def test_a_key_is_for_its_role(cluster: Cluster, owner: Owner) -> None:
    pi = joined(cluster, owner, "pi4")
    submitted = pi.run("gateway_cli.py", "Hallo")
    assert submitted.returncode == 1 and "this computer's key may not do that" in submitted.stderr
    observer, gateway = Computer(cluster, "observer"), Computer(cluster, "gateway")
    for computer in (observer, gateway):
        invitation = owner.invite("--role", computer.name)
        assert computer.run("-m", "dolmetsch.enrol", invitation).returncode == 0
    assert "pi4: ready" in observer.run("gateway_cli.py", "--status").stdout
    assert "may not do that" in observer.run("gateway_cli.py", "Hallo").stderr
    assert gateway.run("gateway_cli.py", "Hallo").stdout == "Hallo\n"
    assert "may not do that" in gateway.run("gateway_cli.py", "--drain", "pi4").stderr
    assert owner.ask("--drain", "pi4").stdout == "pi4 holds nothing any more\n"
    assert owner.ask("--resume", "pi4").stdout == "pi4 takes work again\n"
    assert hears(cluster, observer, 5.0) and not hears(cluster, pi, 2.0)


def hears(cluster: Cluster, computer: Computer, within_s: float) -> bool:
    """Whether telemetry arrives."""
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    port = SubPort(context, telemetry_address(cluster.address), keys.credentials(computer.config, cluster.address))
    try:
        if not port.socket.poll(int(within_s * 1000)):
            return False
        return all(isinstance(decode(frames), Telemetry) for frames in port.receive(1))
    finally:
        port.close()
        context.term()


def test_who_waits_is_approved_or_refused(cluster: Cluster, owner: Owner) -> None:
    invitation = keys.Invitation(cluster.address, door_address(cluster.address), owner.pair.public, b"")
    results: dict[str, str] = {}

    def come(name: str) -> None:
        config = Computer(cluster, name).config
        try:
            with contextlib.closing(QuietSignals()) as signals:
                results[name] = str(enrol(config, invitation, name, signals))
        except Exception as error:
            results[name] = str(error)

    waiting = [threading.Thread(target=come, args=(name,), daemon=True) for name in ("pi4", "pi5", "pi6")]
    for one in waiting:
        one.start()
    wait_until(lambda: "3 waiting" in owner.command("approve"), 20, "three wait")
    assert "pi4: waits at 127.0.0.1" in owner.command("keys")
    owner.command("approve", "pi4")

    async def manage(action: str, name: str) -> int:
        key = keys.credentials(owner.config, cluster.address)
        fingerprint = keys.fingerprint(keys.own_pair(Computer(cluster, name).config).public)
        async with Client(cluster.address, gateway="dashboard", keys=key) as client:
            await client.wait_up(5)
            return (await client.manage(action, node=fingerprint)).count

    assert asyncio.run(manage(APPROVE, "pi5")) == 1
    assert asyncio.run(manage(REFUSE, "pi6")) == 1
    assert asyncio.run(manage(APPROVE, "pi6")) == 0  # it does not wait any more
    for one in waiting:
        one.join(20)
    assert results["pi4"] == results["pi5"] == "True"
    assert "revoked" in results["pi6"]
    Computer(cluster, "pi5").node()
    Computer(cluster, "pi5").says("joined")


class QuietSignals(Signals):
    """Outside the main thread no signals can be caught: a descriptor on which nothing ever happens."""

    def __init__(self) -> None:
        super().__init__()
        self._quiet = socket.socketpair()

    @property
    def fd(self) -> int:
        return self._quiet[0].fileno()

    def close(self) -> None:
        for one in self._quiet:
            one.close()


def test_a_deployment_changes_who_may_connect(cluster: Cluster, owner: Owner) -> None:
    pi = Computer(cluster, "pi4")
    pi.knows(cluster.address, owner.pair.public)
    public = keys.own_pair(pi.config).public.decode()
    grants = cluster.folder / "grants"
    grants.write_text(f"# by a playbook\nnode pi4 {public}\n")
    assert owner.command("allow", str(grants)) == "added pi4\n1 changed"
    assert owner.command("allow", str(grants)) == "0 changed"
    pi.node()
    pi.says("joined")
    grants.write_text("")
    assert owner.command("allow", str(grants)) == "removed pi4\n1 changed"
    pi.says("was revoked")
    grants.write_text("node pi4\n")
    assert owner.run("broker.py", "allow", str(grants)).returncode == 1


class Tap:
    """Everything that goes between two sockets, as somebody in the network sees it."""

    def __init__(self, port: int) -> None:
        self.seen = bytearray()
        self._to = port
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> Tap:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join(10)

    def _run(self) -> None:
        other: dict[socket.socket, socket.socket] = {}
        while not self._ended.is_set():
            for ready in select.select([self._listener, *other], [], [], 0.1)[0]:
                if ready is self._listener:
                    near, _ = self._listener.accept()
                    far = socket.create_connection(("127.0.0.1", self._to))
                    other[near], other[far] = far, near
                    continue
                data = ready.recv(65536)
                self.seen += data
                if data:
                    other[ready].sendall(data)
                else:
                    for one in (other.pop(ready), ready):
                        other.pop(one, None)
                        one.close()
        for one in (*other, self._listener):
            one.close()


def test_nothing_can_be_read_on_the_way(cluster: Cluster, owner: Owner) -> None:
    joined(cluster, owner, "pi4")
    with Tap(int(cluster.address.rpartition(":")[2])) as tap:
        where = f"tcp://127.0.0.1:{tap.port}"
        keys.remember_broker(owner.config, where, owner.pair.public, first=False)
        ended = owner.run("gateway_cli.py", "--broker", where, "Streng geheim: der Schlüssel liegt unter der Matte")
    assert ended.stdout.startswith("Streng geheim")
    assert len(tap.seen) > 500 and b"CURVE" in tap.seen
    for plain in (b"geheim", b"Matte", b"SUBMIT", b"jobs", b"de\xe2\x86\x92en", PROTOCOL):
        assert plain not in tap.seen


def test_a_stranger_at_the_door_harms_nobody(cluster: Cluster, owner: Owner) -> None:
    pi = joined(cluster, owner, "pi4")
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    stranger = keys.Credentials(keys.KeyPair(*zmq.curve_keypair()), owner.pair.public)
    door = DealerPort(context, door_address(cluster.address), "stranger", stranger)
    try:
        for _ in range(200):
            door.socket.send_multipart([b"dolm1", b"REGISTER", os.urandom(50)], zmq.DONTWAIT)
        door.socket.send_multipart([b"x" * 100_000], zmq.DONTWAIT)  # more than a door takes: it hangs up
        door.reconnect()
        door.send(Knock(name="stranger", token=b"t" * 16))
        assert door.socket.poll(10_000)
        (verdict,) = [decode(frames) for frames in door.receive(1)]
        assert isinstance(verdict, Verdict) and verdict.state == "refused"
    finally:
        door.close()
        context.term()
    assert owner.ask("Hallo").stdout == "Hallo\n"
    assert "does not answer" not in pi.log() and "lost" not in cluster.log("broker")


def test_without_keys_nobody_waits(cluster: Cluster) -> None:
    cluster.broker()

    async def approve() -> str:
        async with Client(cluster.address, gateway="dashboard") as client:
            await client.wait_up(10)
            return (await client.manage(APPROVE, node="pi4")).problem

    assert "has no keys" in asyncio.run(approve())
    assert not (Path(cluster.environment["XDG_DATA_HOME"]) / "dolmetsch" / "keys").exists()


def test_a_program_says_why_it_is_not_let_in(cluster: Cluster, owner: Owner) -> None:
    observer = Computer(cluster, "observer")
    assert observer.run("-m", "dolmetsch.enrol", owner.invite("--role", "observer")).returncode == 0
    key = keys.credentials(observer.config, cluster.address)

    async def drain() -> None:
        async with Client(cluster.address, gateway="observer", keys=key) as client:
            await client.wait_up(5)
            await client.manage(DRAIN, node="pi4", within_s=3)

    with pytest.raises((RemoteError, NoBroker)):
        asyncio.run(drain())


def test_the_door_can_be_shut(cluster: Cluster) -> None:
    cluster.environment["DOLMETSCH_BROKER_DOOR"] = "off"
    owner = Owner(cluster)
    owner.start()
    assert "newcomers" not in cluster.log("broker")
    ended = owner.run("broker.py", "invite")
    assert ended.returncode == 1 and "broker.door is off" in ended.stderr


def test_a_broker_that_ends_in_the_middle_of_a_handshake_does_not_have_another_key() -> None:
    """Whoever restarted the broker was told to join anew."""
    pair = keys.KeyPair(*zmq.curve_keypair())
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(10)
        port = DealerPort(
            context, f"tcp://127.0.0.1:{listener.getsockname()[1]}", "t", keys.Credentials(pair, zmq.curve_keypair()[0])
        )

        def cut_off() -> None:
            stranger, _ = listener.accept()
            with stranger:
                stranger.settimeout(10)
                stranger.recv(10)
                stranger.sendall(bytes.fromhex("ff00000000000000017f03"))

        try:
            for _ in range(2):
                cut_off()
            held, _ = listener.accept()  # so the second has been noticed
            assert port.trouble == ""
            held.close()
            cut_off()
            wait_until(lambda: "key" in port.trouble, 10, "a key that is wrong again and again")
        finally:
            port.close()
            context.term()
