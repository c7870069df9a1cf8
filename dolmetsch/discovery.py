"""Finding a broker without typing its address: mDNS and DNS-SD (RFC 6762, RFC 6763), by the zeroconf package.

The broker announces ``_dolmetsch._tcp`` with its public key and the port of its door. Anybody in the network can
announce anything: whoever enrols this way should compare the key's fingerprint with the one the broker logs.
"""

from __future__ import annotations

import contextlib
import ipaddress
import logging
import socket
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Final, NamedTuple

from zeroconf import Error as ZeroconfError
from zeroconf import InterfaceChoice, IPVersion, ServiceBrowser, ServiceInfo, ServiceListener, Zeroconf

from dolmetsch.errors import ConfigError, DolmetschError, NodeError
from dolmetsch.keys import check_public, fingerprint

SERVICE: Final = "_dolmetsch._tcp.local."
VERSION: Final = b"1"
# The first question wants its answer sent to this computer alone (RFC 6762, 5.4), where another program may take it;
# the second, a second later, wants one for all, which comes within another.
LOOK_S: Final = 3.0
RESOLVE_MS: Final = 2_000
CLOSE_S: Final = 3.0
AGAIN_S: Final = 60.0  # a network that was not there may be there now
MAX_FOUND: Final = 16

log = logging.getLogger("discovery")

Interfaces = Sequence[str] | InterfaceChoice


class Found(NamedTuple):
    """A broker that announces itself."""

    name: str
    broker: str
    door: str
    key: bytes


class Announcer:
    """Tells the network where this broker is, in a thread of its own, until closed. Nothing fails over it.

    ``broker`` finds out under which address the network reaches the broker; after a power cut there may be none yet.
    """

    def __init__(
        self, broker: Callable[[], str], door: str, key: bytes, interfaces: Interfaces = InterfaceChoice.All
    ) -> None:
        self._broker = broker
        self._door = door
        self._key = key
        self._interfaces = interfaces
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, name="announcer", daemon=True)

    def start(self) -> None:
        """Asking whether the name is free takes two seconds, which the broker need not wait for."""
        self._thread.start()

    def close(self) -> None:
        """Say that we are gone, within seconds."""
        self._ended.set()
        self._thread.join(CLOSE_S)

    def _run(self) -> None:
        said = ""
        while not self._ended.is_set():
            try:
                self._announce()
            except (OSError, ZeroconfError, DolmetschError) as error:
                why = str(error) or type(error).__name__
                if why != said:
                    log.warning("cannot announce this broker in the network: %s; trying again", why)
                said = why
                self._ended.wait(AGAIN_S)

    def _announce(self) -> None:
        info = _service(self._broker(), self._door, self._key)
        with Zeroconf(interfaces=self._interfaces, ip_version=IPVersion.V4Only) as zeroconf:
            zeroconf.register_service(info, allow_name_change=True)
            log.info("announcing this broker in the network as %s", info.name.removesuffix("." + SERVICE))
            self._ended.wait()
            zeroconf.unregister_service(info)


def _service(broker: str, door: str, key: bytes) -> ServiceInfo:
    host, _, port = broker.removeprefix("tcp://").rpartition(":")
    try:
        address = ipaddress.IPv4Address(host)
    except ValueError as error:
        raise ConfigError(f"{host} is not an IPv4 address") from error
    name = socket.gethostname().split(".")[0][:60] or "dolmetsch"
    return ServiceInfo(
        SERVICE,
        f"{name}.{SERVICE}",
        addresses=[address.packed],
        port=int(port),
        properties={b"v": VERSION, b"key": key, b"door": door.rpartition(":")[2].encode()},
        server=f"{name}.local.",
    )


def find(within_s: float = LOOK_S, interfaces: Interfaces = InterfaceChoice.All) -> list[Found]:
    """The brokers that announce themselves, by name. Raises ``NodeError`` when this computer has no network."""
    names: list[str] = []

    class Listener(ServiceListener):
        def add_service(self, zc: Zeroconf, type_: str, name: str) -> None:
            if len(names) < MAX_FOUND:
                names.append(name)

        def update_service(self, zc: Zeroconf, type_: str, name: str) -> None:
            pass

        def remove_service(self, zc: Zeroconf, type_: str, name: str) -> None:
            pass

    try:
        with Zeroconf(interfaces=interfaces, ip_version=IPVersion.V4Only) as zeroconf:
            browser = ServiceBrowser(zeroconf, SERVICE, Listener())
            threading.Event().wait(within_s)
            browser.cancel()
            with ThreadPoolExecutor(MAX_FOUND) as threads:  # at once: each may keep us waiting, and strangers would
                infos = list(threads.map(partial(_resolve, zeroconf), sorted(set(names))))
    except (OSError, ZeroconfError) as error:
        raise NodeError(f"cannot look for brokers in the network: {error}") from error
    return [found for info in infos if info is not None for found in _read(info)]


def _resolve(zeroconf: Zeroconf, name: str) -> ServiceInfo | None:
    """What is announced under ``name``; None when nobody says, or it is no name: it comes from anybody."""
    with contextlib.suppress(ZeroconfError):
        return zeroconf.get_service_info(SERVICE, name, RESOLVE_MS)
    return None


def _read(info: ServiceInfo) -> list[Found]:
    """What is announced, if it makes sense: it comes from anybody."""
    properties = info.properties
    addresses = info.parsed_addresses(IPVersion.V4Only)
    try:
        key = check_public((properties.get(b"key") or b"").decode("ascii"))
        door = int(properties.get(b"door") or b"")
        if properties.get(b"v") != VERSION or not addresses or not info.port or not 0 < door < 65536:
            return []
    except (ValueError, UnicodeDecodeError, ConfigError):
        return []
    where = f"tcp://{addresses[0]}"
    name = "".join(filter(str.isprintable, info.name.removesuffix("." + SERVICE)))
    return [Found(name, f"{where}:{info.port}", f"{where}:{door}", key)]


def the_broker(found: Sequence[Found], wanted: str | None) -> Found:
    """The one to enrol with: the only one, or the one at ``wanted``. Raises ``NodeError`` that lists them."""
    chosen = [one for one in found if wanted is None or one.broker == wanted]
    if len(chosen) == 1:
        return chosen[0]
    if not found:
        raise NodeError(
            "no broker announces itself in this network: is it on, and bound beyond its own computer?"
            " Else ask its owner for an invitation (python broker.py invite)"
        )
    listed = "; ".join(f"{one.name} at {one.broker}, key {fingerprint(one.key)}" for one in found)
    raise NodeError(f"say which with --broker ADDRESS: {listed}")
