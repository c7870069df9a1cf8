"""What the owner does with keys on the broker's computer: ``python broker.py invite``, ``approve``, ``revoke`` ...

Each command works on the allow-list's file, whether the broker runs or not; a running one sees it within a second.
"""

from __future__ import annotations

import argparse
import contextlib
import re
import socket
import sys
import time
from pathlib import Path
from typing import Final

import psutil

from dolmetsch.access import NODE, ROLES
from dolmetsch.config import BrokerConfig, Config
from dolmetsch.errors import ConfigError, InputError
from dolmetsch.keyring import INVITATION_S, Keyring, read_grants
from dolmetsch.keys import (
    SUFFIX,
    Invitation,
    KeyPair,
    fingerprint,
    folder,
    is_loopback,
    own_pair,
    pair_at,
    remember_broker,
)
from dolmetsch.transport import address, door_address

ALLOW_LIST: Final = "allowed.sqlite3"
_LONGEST_S: Final = 7 * 86400.0


def add_commands(parser: argparse.ArgumentParser) -> None:
    """The commands behind ``broker.py``."""
    commands = parser.add_subparsers(dest="command", metavar="init|invite|approve|refuse|revoke|keys|allow")
    commands.add_parser("init", help="make this broker's key now, instead of at its first start")
    invite = commands.add_parser("invite", help="print what lets one more computer in, once")
    invite.add_argument("--role", choices=ROLES, default=NODE, help="what its key is for (node)")
    invite.add_argument("--name", default="", help="what it is called here (its own name)")
    invite.add_argument("--address", metavar="ADDRESS", help="where it reaches the broker (this one's address)")
    invite.add_argument("--for", dest="for_s", type=float, default=INVITATION_S, metavar="S", help="seconds (3600)")
    commands.add_parser("approve", help="let a node in that waits").add_argument("who", nargs="?", help=_WHO)
    commands.add_parser("refuse", help="turn a node away that waits").add_argument("who", help=_WHO)
    commands.add_parser("revoke", help="a key is valid no longer, at once").add_argument("who", help=_WHO)
    commands.add_parser("keys", help="who has one, and who waits")
    allow = commands.add_parser("allow", help="make the deployed keys those of a file")
    allow.add_argument("file", type=Path, help="lines ROLE NAME PUBLICKEY")


_WHO: Final = "its name or its key's fingerprint"


def keyring(settings: Config) -> Keyring:
    """The allow-list. Raises ``KeyFileError``."""
    return Keyring(folder(settings.keys) / ALLOW_LIST)


def has_pair(settings: Config) -> bool:
    """Whether this computer has a broker's key pair."""
    return _pair_path(settings).exists()


def broker_pair(settings: Config) -> KeyPair:
    """The broker's own key pair, made if need be. Raises ``KeyFileError``."""
    return pair_at(_pair_path(settings), make=True)


def _pair_path(settings: Config) -> Path:
    return folder(settings.keys) / f"broker{SUFFIX}"


def prepare(settings: Config) -> KeyPair:
    """The broker's pair; and let this user's programs on this computer find and use it.

    They need no invitation: whoever can read the broker's own key needs none. Raises ``KeyFileError``.
    """
    pair = broker_pair(settings)
    ring = keyring(settings)
    where, door = places(settings.broker)
    try:
        ring.own(own_pair(settings.keys).public, "this computer")
        ring.listens(where, door)
    finally:
        ring.close()
    here = re.sub(r"//(0\.0\.0\.0|\*|\[::\]):", "//127.0.0.1:", where)
    remember_broker(settings.keys, here, pair.public, first=False)
    return pair


def run(arguments: argparse.Namespace, settings: Config) -> None:
    """Carry out ``arguments.command``. Raises ``DolmetschError``."""
    if arguments.command == "init":
        print(f"this broker's key has the fingerprint {fingerprint(prepare(settings).public)}")
        return
    ring = keyring(settings)
    try:
        match arguments.command:
            case "invite":
                _invite(arguments, settings, ring)
            case "approve" if arguments.who is None:
                _show_pending(ring)
            case "approve":
                one = ring.approve(arguments.who)
                print(f"{one.name} at {one.address} is let in; to take that back: python broker.py revoke {one.name}")
            case "refuse":
                print(f"{ring.refuse(arguments.who).name} was turned away")
            case "revoke":
                print(f"the key of {ring.revoke(arguments.who).name} is valid no longer")
            case "keys":
                _show(ring)
            case "allow":
                _allow(arguments.file, ring)
    finally:
        ring.close()


def _invite(arguments: argparse.Namespace, settings: Config, ring: Keyring) -> None:
    if not 1 <= arguments.for_s <= _LONGEST_S:
        raise InputError(f"--for is from 1 to {_LONGEST_S:g} seconds")
    # Where the broker listens it knows best; one that never ran will listen where the configuration says.
    bind, door = ring.place() or places(settings.broker)
    if not door:
        raise ConfigError("broker.door is off: nobody could enrol")
    where = address(arguments.address) if arguments.address else reachable(bind)
    door = f"{where.rpartition(':')[0]}:{door.rpartition(':')[2]}"
    key = broker_pair(settings).public
    token = ring.invite(arguments.role, arguments.name, arguments.for_s)
    print(Invitation(where, door, key, token).text())
    how = "make node JOIN='...'" if arguments.role == NODE else "python -m dolmetsch.enrol '...'"
    print(f"on the other computer: {how}  (once, within {arguments.for_s:.0f} s)", file=sys.stderr)
    if is_loopback(where):
        print(f"careful: {where} is only reached from this computer; see broker.py --bind", file=sys.stderr)


def places(settings: BrokerConfig) -> tuple[str, str]:
    """Where a broker listens, and where its door is; empty when there is none. Raises ``TransportError``."""
    where = address(settings.bind)
    return where, "" if settings.door == "off" else address(settings.door or door_address(where))


def reachable(bind: str) -> str:
    """``bind`` as others reach it: for all addresses, the one this computer has in its network."""
    host, _, port = bind.removeprefix("tcp://").rpartition(":")
    if host not in ("*", "0.0.0.0", "[::]"):  # nosec  # compared, not bound
        return bind
    return f"tcp://{_own_address()}:{port}"


def _own_address() -> str:
    """The address that packets to elsewhere would bear; in a network without a router, that of the first interface."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe, contextlib.suppress(OSError):
        probe.connect(("192.0.2.1", 9))  # sends nothing: it only asks which way packets would go (RFC 5737)
        return str(probe.getsockname()[0])
    for name, card in sorted(psutil.net_if_stats().items()):
        for one in psutil.net_if_addrs().get(name, ()):
            if card.isup and one.family == socket.AF_INET and not one.address.startswith("127."):
                return str(one.address)
    raise ConfigError("this computer has no network: say where it is reached, --address tcp://HOST")


def _show_pending(ring: Keyring) -> None:
    pending = ring.pending()
    for one in pending:
        print(f"{one.name}: at {one.address}, key {fingerprint(one.public)}")
    print(f"{len(pending) or 'nobody'} waiting" + ("; let one in by: python broker.py approve NAME" if pending else ""))


def _show(ring: Keyring) -> None:
    for one in ring.holders():
        since = time.strftime("%Y-%m-%d", time.localtime(one.since))
        print(f"{one.name}: {one.role or 'revoked'}, {one.source} {since}, key {fingerprint(one.public)}")
    for stranger in ring.pending():
        print(f"{stranger.name}: waits at {stranger.address}, key {fingerprint(stranger.public)}")


def _allow(path: Path, ring: Keyring) -> None:
    try:
        grants = read_grants(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"cannot read {path}: {getattr(error, 'strerror', 'not UTF-8')}") from error
    changes = ring.deploy(grants)
    for change in changes:
        print(change)
    print(f"{len(changes)} changed")
