"""Somebody in the network who has no key, or only what was said before: nothing of it opens a door."""

from __future__ import annotations

import contextlib
import re
import select
import socket
import threading
from collections.abc import Iterator

import msgpack
import pytest
import zmq

from bench.cluster import Cluster
from dolmetsch import keys
from dolmetsch.transport import door_address, telemetry_address
from dolmetsch.wire import PROTOCOL
from tests.conftest import wait_until
from tests.test_gate import Computer, Owner, joined

__all__ = ["owner"]
READ_BYTES = 65_536


@pytest.fixture
def owner(cluster: Cluster) -> Owner:
    made = Owner(cluster)
    made.start()
    return made


def port_of(address: str) -> int:
    return int(address.rpartition(":")[2])


@contextlib.contextmanager
def recorder(port: int) -> Iterator[tuple[int, list[bytes]]]:
    """A port that leads to ``port``, and what the first to connect says there."""
    said: list[bytes] = []
    ended = threading.Event()

    def run(listener: socket.socket) -> None:
        near, _ = listener.accept()
        with near, socket.create_connection(("127.0.0.1", port)) as far:
            while not ended.is_set():
                for ready in select.select([near, far], [], [], 0.1)[0]:
                    data = ready.recv(READ_BYTES)
                    if not data:
                        return
                    if ready is near:
                        said.append(data)
                    (far if ready is near else near).sendall(data)

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=run, args=(listener,), daemon=True)
        thread.start()
        try:
            yield listener.getsockname()[1], said
        finally:
            ended.set()
            thread.join(10)


def play(port: int, said: list[bytes]) -> bytes:
    """Say it again, piece by piece, on a connection of our own; what comes back until the broker hangs up."""
    heard = bytearray()
    with (
        socket.create_connection(("127.0.0.1", port), timeout=10) as line,
        contextlib.suppress(ConnectionResetError, BrokenPipeError),
    ):
        for piece in said:
            line.sendall(piece)
            while select.select([line], [], [], 0.3)[0] and (data := line.recv(READ_BYTES)):
                heard += data
    return bytes(heard)


def test_a_recorded_enrolment_lets_nobody_in_again(cluster: Cluster, owner: Owner) -> None:
    door = port_of(door_address(cluster.address))
    pi = Computer(cluster, "pi4")
    with recorder(door) as (port, said):
        invitation = keys.read_invitation(owner.invite())._replace(door=f"tcp://127.0.0.1:{port}")
        assert pi.run("-m", "dolmetsch.enrol", invitation.text()).returncode == 0
    assert len(b"".join(said)) > 400
    name = next(line.split(":")[0] for line in owner.command("keys").splitlines() if "node, invited" in line)
    owner.command("revoke", name)  # so that a second enrolment would be seen
    heard = play(door, said)
    assert b"WELCOME" in heard and b"READY" not in heard  # with another key of the moment, for which it is all wrong
    assert "node, invited" not in owner.command("keys") and "revoked" in owner.command("keys")
    again = pi.run("-m", "dolmetsch.enrol", invitation._replace(door=f"tcp://127.0.0.1:{door}").text())
    assert again.returncode == 1 and "refuses this computer" in again.stderr


def test_a_recorded_job_is_not_done_again(cluster: Cluster, owner: Owner) -> None:
    joined(cluster, owner, "pi4")
    main = port_of(cluster.address)
    with recorder(main) as (port, said):
        where = f"tcp://127.0.0.1:{port}"
        keys.remember_broker(owner.config, where, owner.pair.public, first=False)
        assert owner.run("gateway_cli.py", "--broker", where, "Hallo").stdout == "Hallo\n"
    heard = play(main, said)
    assert b"WELCOME" in heard and b"READY" not in heard
    assert done(owner) == 1
    assert owner.ask("Hallo noch einmal").stdout == "Hallo noch einmal\n"
    assert done(owner) == 2


def done(owner: Owner) -> int:
    found = re.search(r"so far +(\d+) done", owner.ask("--status").stdout)
    assert found
    return int(found[1])


@pytest.mark.parametrize("mechanism", ["none", "plain"])
def test_who_has_no_key_hears_nothing(cluster: Cluster, owner: Owner, mechanism: str) -> None:
    joined(cluster, owner, "pi4")
    door, telemetry = door_address(cluster.address), telemetry_address(cluster.address)
    places = ((zmq.DEALER, cluster.address), (zmq.DEALER, door), (zmq.SUB, telemetry))
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    try:
        poller = zmq.Poller()
        for kind, where in places:
            one = context.socket(kind)
            one.linger = 0
            if mechanism == "plain":
                one.plain_username, one.plain_password = b"owner", b"owner"
            if kind == zmq.SUB:
                one.subscribe(b"")
            one.connect(where)
            if kind == zmq.DEALER:
                one.send_multipart([PROTOCOL, b"STATUS", msgpack.packb({})], zmq.DONTWAIT)
                one.send_multipart([PROTOCOL, b"KNOCK", msgpack.packb({"name": "x", "token": b""})], zmq.DONTWAIT)
            poller.register(one, zmq.POLLIN)
        assert poller.poll(3000) == []  # telemetry comes every second to those who may hear it
    finally:
        context.destroy(linger=0)
    assert owner.ask("Hallo").stdout == "Hallo\n"
    assert "x: waits" not in owner.command("keys")


def test_a_key_that_was_revoked_hears_nothing_more(cluster: Cluster, owner: Owner) -> None:
    pi = joined(cluster, owner, "pi4")
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    try:
        line = context.socket(zmq.DEALER)
        line.linger = 0
        pair = keys.own_pair(pi.config)
        line.curve_publickey, line.curve_secretkey, line.curve_serverkey = *pair, owner.pair.public
        line.connect(cluster.address)

        def answered() -> bool:
            line.send_multipart([PROTOCOL, b"PING", msgpack.packb({})], zmq.DONTWAIT)
            return bool(line.poll(500) and line.recv_multipart())

        wait_until(answered, 10, "the broker answers a key that it knows")
        owner.command("revoke", "pi4")
        wait_until(lambda: not answered() and not answered(), 20, "it does so no more")
    finally:
        context.destroy(linger=0)
