"""Key files, invitations, and the allow-list with its own clock."""

from __future__ import annotations

import stat
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import zmq
import zmq.auth
from hypothesis import given
from hypothesis import strategies as st
from zmq.utils import z85

from dolmetsch import keys
from dolmetsch.access import GATEWAY, MAY_SEND, NODE, OBSERVER, OPERATOR, OWNER, ROLES, may_send
from dolmetsch.config import KeysConfig
from dolmetsch.discovery import Announcer, find, the_broker
from dolmetsch.errors import ConfigError, InputError, KeyFileError, NodeError
from dolmetsch.keyring import ADMITTED, PENDING, PENDING_S, REFUSED, Grant, Keyring, read_grants
from dolmetsch.messages import Manage, Ping, Register, Submit
from tests.examples import every_message


def pair() -> keys.KeyPair:
    return keys.KeyPair(*zmq.curve_keypair())


# ---- files ----


def test_a_pair_is_made_once_and_for_its_owner_alone(tmp_path: Path) -> None:
    path = tmp_path / "keys" / "one.key_secret"
    made = keys.pair_at(path, make=True)
    assert keys.pair_at(path, make=True) == made == keys.KeyPair(*zmq.auth.load_certificate(path))
    assert stat.S_IMODE(path.stat().st_mode) == 0o600 and stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    assert list(path.parent.iterdir()) == [path]
    assert made.secret.decode() not in repr(made)


def test_two_programs_that_start_at_once_share_one_pair(tmp_path: Path) -> None:
    found: list[keys.KeyPair] = []
    threads = [
        threading.Thread(target=lambda: found.append(keys.pair_at(tmp_path / "one.key_secret", make=True)))
        for _ in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10)
    assert len(found) == 8 and len(set(found)) == 1


def test_a_key_file_that_is_none_or_open_to_others(tmp_path: Path) -> None:
    path = tmp_path / "one.key_secret"
    with pytest.raises(KeyFileError, match="there is no key"):
        keys.pair_at(path, make=False)
    path.write_text("not a key")
    with pytest.raises(KeyFileError, match="not a key file"):
        keys.pair_at(path, make=True)
    path.unlink()
    keys.pair_at(path, make=True)
    path.chmod(0o644)
    with pytest.raises(KeyFileError, match="can be read by others"):
        keys.pair_at(path, make=True)


def test_known_brokers_begin_with_the_one_joined_last(tmp_path: Path) -> None:
    config = KeysConfig(dir=str(tmp_path))
    one, two = pair().public, pair().public
    assert keys.default_broker(config) == keys.LOCAL_BROKER
    keys.remember_broker(config, "tcp://192.0.2.1:5570", one, first=True)
    keys.remember_broker(config, "tcp://127.0.0.1:5570", two, first=False)
    assert keys.default_broker(config) == "tcp://192.0.2.1:5570"
    keys.remember_broker(config, "tcp://192.0.2.2:5570", two, first=True)
    assert list(keys.known_brokers(config).items()) == [
        ("tcp://192.0.2.2:5570", two), ("tcp://192.0.2.1:5570", one), ("tcp://127.0.0.1:5570", two),
    ]  # fmt: skip
    assert keys.credentials(config, "tcp://localhost:5570") == (keys.own_pair(config), two)


def test_without_keys_only_this_computer_is_spoken_to(tmp_path: Path) -> None:
    config = KeysConfig(dir=str(tmp_path))
    assert keys.credentials(config, "tcp://127.0.0.1:5570") is None
    assert keys.credentials(config, "tcp://[::1]:5570") is None
    for where in ("tcp://192.0.2.1:5570", "tcp://pi.local:5570", "tcp://127.0.0.1.example:5570"):
        with pytest.raises(ConfigError, match="nothing is sent in the clear"):
            keys.credentials(config, where)
    assert list(tmp_path.iterdir()) == []


def test_a_known_brokers_file_that_is_broken(tmp_path: Path) -> None:
    (tmp_path / "known_brokers").write_text("tcp://192.0.2.1:5570 short\n")
    with pytest.raises(KeyFileError, match="line 1"):
        keys.known_brokers(KeysConfig(dir=str(tmp_path)))


# ---- invitations ----

INVITATION = keys.Invitation("tcp://192.0.2.1:5570", "tcp://192.0.2.1:5572", z85.encode(bytes(range(32))), b"t" * 16)


@given(st.binary(min_size=32, max_size=32), st.binary(min_size=16, max_size=16))
def test_an_invitation_comes_back(key: bytes, token: bytes) -> None:
    made = INVITATION._replace(key=z85.encode(key), token=token)
    text = made.text()
    assert keys.read_invitation(f" {text}\n") == made
    assert text.replace("-", "").replace("_", "").isalnum()  # no shell, makefile or chat changes it


@given(st.data())
def test_a_damaged_invitation_is_none(data: st.DataObject) -> None:
    text = INVITATION.text()
    at = data.draw(st.integers(0, len(text) - 1))
    damaged = data.draw(
        st.sampled_from([text[:at], text[:at] + ("A" if text[at] != "A" else "B") + text[at + 1 :], text[at + 1 :]])
    )
    with pytest.raises(ConfigError, match="not an invitation"):
        keys.read_invitation(damaged)


@given(st.text())
def test_any_text_is_an_invitation_or_a_clear_error(text: str) -> None:
    with pytest.raises(ConfigError):
        keys.read_invitation(text)
    with pytest.raises(ConfigError):
        keys.read_invitation("dolmetsch-" + text)


@given(st.text(max_size=60))
def test_a_public_key_is_checked(text: str) -> None:
    try:
        assert len(z85.decode(keys.check_public(text))) == 32
    except ConfigError as error:
        assert "public key" in str(error)


# ---- roles ----


def test_every_message_to_the_broker_has_a_role_that_may_send_it() -> None:
    to_broker = {
        "Hello", "Submit", "Ack", "Cancel", "Manage", "Ping", "Ask", "Report", "Register", "Heartbeat", "Done",
        "Failed", "Goodbye",
    }  # fmt: skip
    assert {kind.__name__ for kind in MAY_SEND[OWNER]} == to_broker
    for message in every_message():
        assert may_send(OWNER, message) == (type(message).__name__ in to_broker)
        assert not may_send(None, message)


def test_what_each_role_may() -> None:
    register = next(one for one in every_message() if isinstance(one, Register))
    who = {
        type(message): {role for role in ROLES if may_send(role, message)}
        for message in (Manage(action="drain"), Submit(jobs=()), Ping(), register)
    }
    assert who == {
        Manage: {OPERATOR}, Submit: {GATEWAY, OPERATOR}, Ping: {GATEWAY, OPERATOR, OBSERVER}, Register: {NODE},
    }  # fmt: skip


# ---- the allow-list ----


class Clock:
    def __init__(self) -> None:
        self.boot, self.now = "boot-1", 1000.0

    def __call__(self) -> tuple[str, float]:
        return self.boot, self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def ring(tmp_path: Path, clock: Clock) -> Iterator[Keyring]:
    made = Keyring(tmp_path / "allowed.sqlite3", clock)
    yield made
    made.close()


def test_an_invitation_lets_one_in_and_that_one_again(ring: Keyring) -> None:
    token = ring.invite(NODE, "")
    one, two = pair().public, pair().public
    assert ring.knock(one, "pi4", token, "192.0.2.4") == (ADMITTED, "as node")
    assert ring.knock(one, "pi4", token, "192.0.2.4") == (ADMITTED, "as node")
    assert ring.knock(two, "pi5", token, "192.0.2.5")[0] == REFUSED
    ring.refresh()
    assert ring.roles == {one: NODE}


def test_an_invitation_ends_with_its_time_and_with_the_boot(ring: Keyring, clock: Clock) -> None:
    late, rebooted = ring.invite(NODE, "", 60), ring.invite(NODE, "", 3600)
    clock.now += 61
    assert ring.knock(pair().public, "pi4", late, "192.0.2.4")[0] == REFUSED
    clock.boot, clock.now = "boot-2", 1.0
    assert ring.knock(pair().public, "pi4", rebooted, "192.0.2.4")[0] == REFUSED
    assert ring.roles == {}


def test_a_command_that_sees_another_boot_id_goes_by_the_brokers(ring: Keyring, tmp_path: Path, clock: Clock) -> None:
    """As in a container, where the service's /proc is not the shell's."""
    ring.listens("tcp://192.0.2.1:5570", "tcp://192.0.2.1:5572")
    shell_clock = Clock()
    shell_clock.boot, shell_clock.now = "masked", clock.now + 5
    shell = Keyring(tmp_path / "allowed.sqlite3", shell_clock)
    token = shell.invite(NODE, "")
    assert ring.knock(pair().public, "pi4", token, "192.0.2.4")[0] == ADMITTED
    ring.knock(pair().public, "pi5", b"", "192.0.2.5")
    assert [one.name for one in shell.pending()] == ["pi5"]
    shell_clock.now = 10.0  # rebooted, and the broker has not started yet: what it wrote is of no use
    assert shell.pending() == []
    shell.close()


def test_who_knocks_without_an_invitation_waits_to_be_approved(ring: Keyring, clock: Clock) -> None:
    one = pair().public
    assert ring.knock(one, "pi4", b"", "192.0.2.4")[0] == PENDING
    assert ring.pending() == [(one, "pi4", "192.0.2.4")]
    assert ring.approve("pi4").public == one and ring.pending() == []
    assert ring.knock(one, "pi4", b"", "192.0.2.4")[0] == ADMITTED
    two = pair().public
    ring.knock(two, "pi5", b"", "192.0.2.5")
    ring.refuse(keys.fingerprint(two))
    assert ring.knock(two, "pi5", b"", "192.0.2.5")[0] == REFUSED
    ring.knock(pair().public, "pi6", b"", "192.0.2.6")
    clock.now += PENDING_S + 1
    assert ring.pending() == []
    with pytest.raises(InputError, match="nobody called pi6 waits"):
        ring.approve("pi6")


def test_the_waiting_room_is_small(ring: Keyring) -> None:
    states = [ring.knock(pair().public, "x", b"", "192.0.2.4")[0] for _ in range(6)]
    assert states == [PENDING] * 4 + [REFUSED] * 2  # one computer does not fill it
    states = [ring.knock(pair().public, "x", b"", f"192.0.2.{host}")[0] for host in range(10, 60)]
    assert states.count(PENDING) == 28 and len(ring.pending()) == 32
    with pytest.raises(InputError, match="give a fingerprint"):
        ring.approve("x")


def test_nobody_is_let_in_by_the_fingerprint_of_another(ring: Keyring) -> None:
    pi, thief = pair().public, pair().public
    ring.knock(pi, "pi4", b"", "192.0.2.4")
    for name in (keys.fingerprint(pi), keys.fingerprint(pi).upper()):
        assert ring.knock(thief, name, b"", "192.0.2.5")[0] == REFUSED
    assert ring.approve(keys.fingerprint(pi)).public == pi
    with pytest.raises(InputError, match="no fingerprint"):
        ring.invite(NODE, keys.fingerprint(pi))


def test_names_stay_apart(ring: Keyring) -> None:
    for _ in range(2):
        ring.knock(pair().public, "pi4", ring.invite(NODE, ""), "192.0.2.4")
    first, second = ring.holders()
    assert first.name == "pi4" and second.name == f"pi4-{keys.fingerprint(second.public)[:4]}"


def test_revoked_keys_are_told_of_once(ring: Keyring, tmp_path: Path, clock: Clock) -> None:
    one = pair().public
    ring.knock(one, "pi4", ring.invite(NODE, ""), "192.0.2.4")
    assert ring.refresh() == set() and ring.roles == {one: NODE}
    other = Keyring(tmp_path / "allowed.sqlite3", clock)  # the owner's command, another process
    other.revoke("pi4")
    assert ring.refresh() == {one} and ring.roles == {} and ring.refresh() == set()
    assert ring.knock(one, "pi4", b"", "192.0.2.4")[0] == REFUSED
    assert ring.knock(one, "pi4", other.invite(GATEWAY, ""), "192.0.2.4") == (ADMITTED, "as gateway")
    with pytest.raises(InputError, match="no key is called pi9"):
        other.revoke("pi9")
    other.close()


def test_a_deployment_says_who(ring: Keyring) -> None:
    one, two, guest = (pair().public for _ in range(3))
    ring.knock(guest, "guest", ring.invite(NODE, ""), "192.0.2.9")
    grants = [Grant(NODE, "pi1", one), Grant(GATEWAY, "web", two)]
    assert ring.deploy(grants) == ["added pi1", "added web"]
    assert ring.deploy(grants) == []
    assert ring.deploy([Grant(OPERATOR, "web", two)]) == ["removed pi1", "changed web"]
    ring.refresh()
    assert ring.roles == {two: OPERATOR, guest: NODE}
    with pytest.raises(InputError, match="there is no role king"):
        ring.deploy([Grant("king", "pi1", one)])
    assert len(ring.holders()) == 3


def test_a_deployments_file() -> None:
    key = pair().public
    assert read_grants(f"# who\n\nnode pi1 {key.decode()}\n") == [Grant("node", "pi1", key)]
    with pytest.raises(InputError, match="line 2"):
        read_grants("\nnode pi1\n")
    with pytest.raises(ConfigError, match="public key"):
        read_grants("node pi1 short\n")


def test_a_file_that_is_no_allow_list(tmp_path: Path) -> None:
    (tmp_path / "allowed.sqlite3").write_bytes(b"x" * 5000)
    with pytest.raises(KeyFileError, match="not an allow-list"):
        Keyring(tmp_path / "allowed.sqlite3")


# ---- mDNS, on the loopback interface ----


def test_a_broker_that_announces_itself_is_found() -> None:
    key = pair().public
    announcer = Announcer(lambda: "tcp://127.0.0.1:5570", "tcp://127.0.0.1:5572", key, ["127.0.0.1"])
    announcer.start()
    try:
        for _ in range(5):
            ours = [one for one in find(interfaces=["127.0.0.1"]) if one.key == key]
            if ours:
                break
        assert [(one.broker, one.door) for one in ours] == [("tcp://127.0.0.1:5570", "tcp://127.0.0.1:5572")]
    finally:
        announcer.close()
    assert the_broker(ours, None) == ours[0]
    with pytest.raises(NodeError, match="say which"):
        the_broker([*ours, *ours], None)
    with pytest.raises(NodeError, match="no broker announces itself"):
        the_broker([], None)
