"""A deployed cluster on real hosts, and what tests ask of it."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import cached_property
from itertools import count
from pathlib import Path
from typing import Final

import zmq

from bench.cluster import HOUSE
from dolmetsch import config
from dolmetsch.keys import Credentials
from dolmetsch.transport import SubPort, broker_of, telemetry_address
from tests.deploy.commands import HostError, run, wait_for
from tests.deploy.hosts import Host, Hosts, ssh_options
from tests.deploy.load import SteadyLoad
from tests.deploy.playbooks import PLAYBOOK_S, Playbooks, Played

KIND: Final = "x86_64-cp311"  # the hosts': Debian 12 on the architecture of this computer
WHEELHOUSE_S: Final = 600.0
COMMAND_S: Final = 60.0
BROKER: Final = "dolmetsch-broker"
NODE: Final = "dolmetsch-node"
HTTP: Final = "dolmetsch-http"
DASHBOARD: Final = "dolmetsch-dashboard"
CURRENT: Final = "/opt/dolmetsch/current"
# Run on a host, which has no curl.
_ASK: Final = """
import json, sys, urllib.request
body = json.dumps({"q": sys.argv[1], "source": "de", "target": "en"}).encode()
request = urllib.request.Request("http://127.0.0.1:5050/translate", body, {"Content-Type": "application/json"})
print(json.load(urllib.request.urlopen(request, timeout=20))["translatedText"])
"""


class Site:
    """pi1 has the broker, the dashboard and the HTTP gateway; the other hosts are nodes, or bare still."""

    def __init__(self, hosts: Hosts, folder: Path) -> None:
        self.hosts = hosts
        self.folder = folder
        self.broker = hosts[0]
        self.nodes: list[Host] = list(hosts[1:])
        self.playbooks = Playbooks.copied(folder / "project", folder / "hosts.ini")
        self.write_inventory()
        self.last: Played | None = None
        self._is_deployed = False
        self._strays = count(1)

    @property
    def address(self) -> str:
        """Where the broker is."""
        return f"tcp://{self.broker.address}:5570"

    def write_inventory(self) -> None:
        """The hosts as they are to be."""
        broker = self.broker
        self.hosts.inventory(self.playbooks.inventory, broker=broker, nodes=self.nodes, http=broker, dashboard=broker)

    def collect_wheels(self) -> None:
        """The wheelhouse, kept in the project's own place: most of a minute the first time."""
        run(sys.executable, HOUSE / "deploy" / "wheelhouse.py", KIND, timeout_s=WHEELHOUSE_S)
        link = self.playbooks.folder / "deploy" / "wheelhouse"
        if not link.exists():
            link.symlink_to(HOUSE / "deploy" / "wheelhouse")

    def deploy(self) -> None:
        """Run site.yml, unless that was done."""
        if not self._is_deployed:
            self.collect_wheels()
            self.play("site.yml").succeeded()
            self._is_deployed = True

    def play(self, name: str, *arguments: str, within_s: float = PLAYBOOK_S, inventory: Path | None = None) -> Played:
        """Run a playbook on the site's inventory."""
        self.last = self.playbooks.play(name, *arguments, within_s=within_s, inventory=inventory)
        return self.last

    def add(self, host: Host) -> None:
        """One more node: the playbook writes it into the inventory itself."""
        self.play("add_node.yml", "-e", f"host={host.name}", "-e", f"address={host.address}").succeeded()
        self.nodes.append(host)

    # ---- the broker's owner ----

    def own(self, *arguments: str) -> str:
        """``broker.py ARGUMENTS`` on the broker's host, by the command that the playbooks make for its owner."""
        return self.broker.ssh(shlex.join(["sudo", "dolmetsch", "broker", *arguments]), user="pi").stdout

    def key(self, *where: str) -> str:
        """The public key of a pair on the control machine: ``broker``, or a host and its program."""
        path = self.playbooks.folder.joinpath("deploy", "keys", *where)
        return run(sys.executable, "-m", "dolmetsch.keys", "show", f"{path}.key_secret").stdout.strip()

    @cached_property
    def gateway(self) -> tuple[str, Credentials]:
        """The broker's address and keys for this process, which enrols as a gateway by invitation."""
        invitation = self.own("invite", "--role", "gateway", "--name", "test", "--address", self.address).strip()
        environment = {"DOLMETSCH_KEYS_DIR": str(self.folder / "keys")}
        ended = subprocess.run(
            [sys.executable, "-m", "dolmetsch.enrol", invitation],
            cwd=HOUSE,
            env={**os.environ, **environment},
            capture_output=True,
            text=True,
            timeout=COMMAND_S,
        )
        assert ended.returncode == 0, ended.stderr
        where, keys = broker_of(config.load(None, environment, {}))
        assert keys is not None
        assert where == self.address
        return where, keys

    def load(self, *, per_s: float = 10.0) -> SteadyLoad:
        """A steady load through the broker, from this computer."""
        where, keys = self.gateway
        return SteadyLoad(where, keys, per_s=per_s)

    @contextmanager
    def listening(self) -> Iterator[Callable[[], int]]:
        """Listen to the broker's telemetry; a function that says how many messages came so far."""
        where, keys = self.gateway
        context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        port = SubPort(context, telemetry_address(where), keys)
        heard: list[int] = []

        def so_far() -> int:
            heard.extend(len(frames) for frames in port.receive(1000))
            return len(heard)

        try:
            yield so_far
        finally:
            port.close()
            context.term()

    # ---- hosts that no playbook knows ----

    def copy_programs(self, host: Host) -> None:
        """Put the programs on ``host``, as if its owner had fetched and installed them."""
        ssh = shlex.join(["ssh", *ssh_options(self.hosts.folder)])
        there, here = f"root@{self.nodes[0].address}", f"root@{host.address}"
        run("sh", "-c", f"{ssh} {there} tar -C / -c opt/dolmetsch | {ssh} {here} tar -C / -x", timeout_s=COMMAND_S)

    @contextmanager
    def stray_node(self, host: Host, *arguments: str, keys: str = "keys", broker_key: str = "") -> Iterator[str]:
        """``node.py ARGUMENTS`` on ``host``, with its keys in that folder of its owner's; the name of its unit."""
        unit = f"stray-{next(self._strays)}"
        environment = [f"--setenv=DOLMETSCH_KEYS_DIR=/home/pi/{keys}"]
        if broker_key:
            environment.append(f"--setenv=DOLMETSCH_KEYS_BROKER={broker_key}")
        program = [f"{CURRENT}/venv/bin/python", f"{CURRENT}/node.py", *arguments]
        host.ssh(shlex.join(["systemd-run", f"--unit={unit}", "--uid=pi", *environment, *program]))
        try:
            yield unit
        finally:
            host.ssh(f"systemctl stop {unit}", check=False)

    # ---- looks ----

    def translate(self, text: str) -> str:
        """What the HTTP gateway on the broker's host makes of it; nothing when it cannot."""
        command = shlex.join(["python3", "-c", _ASK, text])
        return self.broker.ssh(command, check=False).stdout.strip()

    def wait_translates(self, text: str, within_s: float) -> str:
        """The translation, as soon as there is one."""
        said = [""]

        def done() -> bool:
            said.append(self.translate(text))
            return bool(said[-1])

        wait_for(done, within_s, f"a translation of {text!r}")
        return said[-1]

    def units(self, host: Host) -> list[str]:
        """The services of dolmetsch that run there."""
        lines = host.ssh("systemctl list-units --plain --no-legend --state=active 'dolmetsch-*.service'").stdout
        return sorted(line.split()[0].removesuffix(".service") for line in lines.splitlines())

    def show(self, host: Host, unit: str, *properties: str) -> dict[str, str]:
        """What systemd says of a unit."""
        lines = host.ssh(f"systemctl show {unit} --property={','.join(properties)}").stdout
        return dict(line.split("=", 1) for line in lines.splitlines())

    def invocations(self) -> dict[tuple[str, str], str]:
        """Which start of each service this is: the same as before when nothing was restarted."""
        return {
            (host.name, unit): self.show(host, unit, "InvocationID")["InvocationID"]
            for host in (self.broker, *self.nodes)
            for unit in self.units(host)
        }

    def versions(self) -> dict[str, str]:
        """The version that each host's services run."""
        found = {}
        for host in (self.broker, *self.nodes):
            running = set()
            for unit in self.units(host):
                pid = self.show(host, unit, "MainPID")["MainPID"]
                running.add(Path(host.ssh(f"readlink /proc/{pid}/cwd").stdout.strip()).name.partition("-")[0])
            found[host.name] = ", ".join(sorted(running))
        return found

    def story(self) -> str:
        """The last lines of each host's services, and of the last playbook, for a test that failed."""
        parts = [f"---- the last playbook\n{self.last.output[-3000:]}"] if self.last else []
        for host in (self.broker, *self.nodes):
            command = "journalctl --no-pager --lines=25 --output=short-iso --unit='dolmetsch-*'"
            try:
                said = host.ssh(command, check=False, timeout_s=15).stdout
            except HostError as error:
                said = str(error)
            parts.append(f"---- {host.name}\n{said}")
        return "\n".join(parts)

    def is_bare(self, host: Host) -> bool:
        """Whether no deployment has been there, or all of it is gone."""
        places = (
            "/opt/dolmetsch /etc/dolmetsch /var/lib/dolmetsch /etc/systemd/system/dolmetsch* /usr/local/bin/dolmetsch"
        )
        files = host.ssh(f"ls -d {places}", check=False)
        user = host.ssh("getent passwd dolmetsch", check=False)
        return not files.stdout and not user.stdout


def grep(pattern: str, lines: str) -> list[str]:
    """The lines that match."""
    return [line for line in lines.splitlines() if re.search(pattern, line)]


def names(hosts: Iterable[Host]) -> list[str]:
    """Nodes are called as their hosts are."""
    return [host.name for host in hosts]
