"""Real hosts for a while: bare Debian 12 in containers with systemd, sshd and a cable each, on a bridge of their own.

From a test:

    with Hosts(3) as hosts:
        hosts[0].ssh("hostname").stdout           # as root; user="pi" has sudo without a password, as on a Pi
        hosts[1].link_down(), hosts[1].link_up()  # pull its cable out, put it back
        hosts[2].power_off(), hosts[2].power_on() # a power cut, and the boot after it; its disk stays
        hosts.boot("spare")                       # one more
        with hosts.capture(path):                 # all that is on the wire, for tcpdump -r
            ...
        hosts.inventory(path, broker=hosts[0], nodes=hosts[1:])  # an Ansible inventory with these groups

From a terminal, as root, in the project's folder:

    python -m tests.deploy.hosts up 3             # boots, says how to reach them, and ends them at Ctrl-C or SIGTERM
    python -m tests.deploy.hosts up 3 --inventory /tmp/hosts.ini
    python -m tests.deploy.hosts link pi2 down    # in another terminal; also: link pi2 up, power pi2 off, power pi2 on
    python -m tests.deploy.hosts build            # only make the root file system (a minute, once)

The hosts see each other and this computer, and nothing else: there is no route to anywhere. Needs root and the Debian
packages in ``NEEDS``. The root file system is made once by debootstrap and kept in ``$XDG_CACHE_HOME`` or /var/cache;
a host is an overlay on it, so that a fresh one costs nothing. ``DOLMETSCH_DEBIAN_MIRROR`` names another mirror.

Each use takes the first free *slot* (``slots``), so that several can run beside each other.
"""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import hashlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import FrameType, TracebackType
from typing import Final, NoReturn, Self, overload

from tests.deploy.commands import LOOK_S, HostError, run, tail, wait_for
from tests.deploy.slots import END_S, RUN, Slot, cgroups, end_machines, end_masters

NEEDS: Final = {  # program: the Debian package that has it
    "systemd-nspawn": "systemd-container",
    "debootstrap": "debootstrap",
    "ip": "iproute2",
    "ssh": "openssh-client",
    "tcpdump": "tcpdump",
}
SUITE: Final = "bookworm"
# What a Pi has and a deployment may count on: Python without venv and pip, ssh, sudo.
PACKAGES: Final = ("systemd", "systemd-sysv", "dbus", "openssh-server", "sudo", "python3", "iproute2")
# Run in the new root file system. The empty machine-id makes each copy's first boot a first boot.
FINISH: Final = """
set -e
apt-get clean
rm -rf /var/lib/apt/lists/*
: > /etc/machine-id
rm -f /var/lib/dbus/machine-id
systemctl enable systemd-networkd.service ssh.service
systemctl disable apt-daily.timer apt-daily-upgrade.timer
systemctl mask systemd-networkd-wait-online.service console-getty.service
echo LANG=C.UTF-8 > /etc/default/locale
useradd --create-home --shell /bin/bash --groups sudo pi
echo 'pi ALL=(ALL) NOPASSWD: ALL' > /etc/sudoers.d/010_pi-nopasswd
chmod 0440 /etc/sudoers.d/010_pi-nopasswd
install -d -m 0700 /root/.ssh
install -d -m 0700 -o pi -g pi /home/pi/.ssh
"""
FIRST_HOST: Final = 11
BOOT_S: Final = 60.0
SSH_S: Final = 60.0


def missing() -> str:
    """What this computer lacks for hosts, as a sentence; empty when nothing."""
    if sys.platform != "linux" or os.geteuid() != 0:
        return "hosts are containers with networks of their own: this needs Linux and root"
    search = os.environ.get("PATH", os.defpath) + ":/usr/sbin:/sbin"
    packages = [package for program, package in NEEDS.items() if shutil.which(program, path=search) is None]
    return f"on Debian: apt install {' '.join(packages)}" if packages else ""


# ---- the root file system ----


def _cache() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or "/var/cache") / "dolmetsch-hosts"


def root_file_system() -> Path:
    """The folder with the bare root file system, made now if it is not there. Raises ``HostError``."""
    recipe = "\n".join((SUITE, *PACKAGES, FINISH))
    folder = _cache() / f"debian-{hashlib.sha256(recipe.encode()).hexdigest()[:12]}"
    _cache().mkdir(parents=True, exist_ok=True)
    with (_cache() / "build.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not folder.exists():
            _build(folder)
    return folder


def _build(folder: Path) -> None:
    half = folder.with_name(f"{folder.name}.half")
    shutil.rmtree(half, ignore_errors=True)
    mirror = os.environ.get("DOLMETSCH_DEBIAN_MIRROR", "")  # without one, debootstrap's own
    include = f"--include={','.join(PACKAGES)}"
    print(f"making the root file system {folder} (once, about a minute)", file=sys.stderr, flush=True)
    try:
        run("debootstrap", "--variant=minbase", include, SUITE, half, *filter(None, [mirror]), timeout_s=900)
        run("chroot", half, "/bin/sh", "-c", FINISH, timeout_s=60)
        half.rename(folder)
    except BaseException:
        shutil.rmtree(half, ignore_errors=True)
        raise


# ---- hosts ----


class Host:
    """One computer. Made by ``Hosts``."""

    def __init__(self, slot: Slot, base: Path, name: str, address: str, personality: str) -> None:
        self.name = name
        self.address = address
        self._slot = slot
        self._base = base
        self._machine = slot.machine(name)
        self._disk = slot.disks / name
        self._personality = personality
        self._cgroup = cgroups()[0] / self._machine
        self._process: subprocess.Popen[bytes] | None = None
        if len(f"vb-{self._machine}") > 15:
            raise HostError(f"the name {name} is too long for a network interface")
        self._format()

    def __repr__(self) -> str:
        return f"<{self.name} {self.address}>"

    def _format(self) -> None:
        """An empty disk above the common one, with what the person who flashed the card would have put there."""
        top = self._disk / "top"
        for folder in (top, self._disk / "work", self._disk / "root"):
            folder.mkdir(parents=True, mode=0o755)
        self._put(
            "etc/systemd/network/10-cable.network",
            f"[Match]\nName=host0\n[Network]\nAddress={self.address}/24\nLLDP=no\n",
        )
        self._put("etc/hostname", f"{self.name}\n")
        self._put("etc/hosts", f"127.0.0.1 localhost\n::1 localhost\n127.0.1.1 {self.name}\n")
        key = (self._slot.folder / "key.pub").read_text()
        self._put("root/.ssh/authorized_keys", key, folder_mode=0o700)
        self._put("home/pi/.ssh/authorized_keys", key, folder_mode=0o700)
        (top / "root").chmod(0o700)
        for path in (top / "home/pi", top / "home/pi/.ssh", top / "home/pi/.ssh/authorized_keys"):
            pi = (self._base / "home/pi").stat()
            os.chown(path, pi.st_uid, pi.st_gid)

    def _put(self, path: str, text: str, folder_mode: int = 0o755) -> None:
        target = self._disk / "top" / path
        target.parent.mkdir(parents=True, exist_ok=True, mode=0o755)
        target.parent.chmod(folder_mode)
        target.write_text(text)

    # ---- power ----

    def start(self) -> None:
        """Switch it on; ``wait_booted`` tells when it is up."""
        if self._process is not None:
            raise HostError(f"{self.name} is on already")
        # The work folder of an overlay that was cut off may not be used again.
        shutil.rmtree(self._disk / "work")
        (self._disk / "work").mkdir(mode=0o755)
        self._cgroup.mkdir(exist_ok=True)
        overlay = f"lowerdir={self._base},upperdir={self._disk / 'top'},workdir={self._disk / 'work'}"
        # The overlay is mounted in a namespace that ends with the container: no way of dying leaves a mount behind.
        # A control group of its own, or systemd in one container would meet the processes of another.
        script = 'mount -t overlay overlay -o "$1" "$2" && echo $$ > "$3/cgroup.procs" && shift 3 && exec "$@"'
        nspawn = [
            *(
                "systemd-nspawn",
                "--quiet",
                "--boot",
                "--register=no",
                "--keep-unit",
                "--directory",
                self._disk / "root",
            ),
            *("--machine", self._machine, "--hostname", self.name, "--network-bridge", self._slot.bridge),
            *("--resolv-conf=off", "--timezone=off", "--link-journal=no", "--console=pipe"),
            *([f"--personality={self._personality}"] if self._personality else []),
        ]
        unshare = ["unshare", "--mount", "--propagation", "private", "sh", "-c", script, "sh"]
        command = [*unshare, overlay, self._disk / "root", self._cgroup, *nspawn]
        with self._console.open("ab") as console:
            self._process = subprocess.Popen(
                [str(word) for word in command],
                env={**os.environ, "SYSTEMD_NSPAWN_UNIFIED_HIERARCHY": "1", "SYSTEMD_NSPAWN_LOCK": "0"},
                stdin=subprocess.DEVNULL,
                stdout=console,
                stderr=console,
                start_new_session=True,  # Ctrl-C is for us: we end it
            )

    def wait_booted(self, within_s: float = BOOT_S) -> None:
        """Return once systemd says that the host is up and root can log in. Raises ``HostError``."""
        until = time.monotonic() + within_s
        said = "no answer"
        while time.monotonic() < until:
            if self._process is None or self._process.poll() is not None:
                break
            if self._port_open():
                left_s = max(1.0, until - time.monotonic())
                answer = self.ssh("systemctl is-system-running --wait", check=False, timeout_s=left_s)
                said = (answer.stdout + answer.stderr).strip()
                if said == "running":
                    return
                if said == "degraded":
                    failed = self.ssh("systemctl list-units --failed --plain --no-legend", check=False).stdout
                    print(f"{self.name} is up, but not all of it:\n{failed}", file=sys.stderr)
                    return
            time.sleep(LOOK_S)
        raise HostError(f"{self.name} is not up within {within_s:g} s ({said}):\n{self.console()}")

    def _port_open(self) -> bool:
        with contextlib.suppress(OSError), socket.create_connection((self.address, 22), timeout=1.0):
            return True
        return False

    def power_off(self) -> None:
        """Pull the plug: every process is gone at once, nothing is told."""
        if self._process is None:
            return
        end_machines(self._machine)
        self._process.wait(END_S)
        self._process = None
        end_masters(self._slot.folder / "ssh")
        interface = Path("/sys/class/net", f"vb-{self._machine}")
        wait_for(lambda: not interface.exists(), END_S, f"the end of {interface.name}")

    def power_on(self, within_s: float = BOOT_S) -> None:
        """Boot from the disk as the power cut left it."""
        self.start()
        self.wait_booted(within_s)

    # ---- cable ----

    def link_down(self) -> None:
        """Pull the cable out: the host sees that, too."""
        run("ip", "link", "set", f"vb-{self._machine}", "down")

    def link_up(self) -> None:
        """Put it back."""
        run("ip", "link", "set", f"vb-{self._machine}", "up")

    # ---- a look inside ----

    def ssh(
        self, command: str, *, user: str = "root", timeout_s: float = SSH_S, check: bool = True
    ) -> subprocess.CompletedProcess[str]:
        """Run a shell command there. Raises ``HostError``; without ``check`` only when time is over."""
        options = ssh_options(self._slot.folder)
        return run("ssh", *options, f"{user}@{self.address}", command, timeout_s=timeout_s, check=check)

    def journal(self, unit: str = "", since: str = "") -> str:
        """What its journal says, of one unit or of all."""
        more = (f" --unit={unit}" if unit else "") + (f" --since='{since}'" if since else "")
        return self.ssh(f"journalctl --no-pager --output=cat{more}").stdout

    def now(self) -> str:
        """Its time, for ``journal(since=…)``."""
        return self.ssh("date '+%F %T'").stdout.strip()

    @property
    def _console(self) -> Path:
        return self._slot.folder / f"{self.name}.console"

    def console(self) -> str:
        """The last of what it wrote on its console while it booted."""
        return tail(self._console.read_bytes()) if self._console.exists() else ""


def ssh_options(folder: Path) -> list[str]:
    """How to reach any host of this run. Hosts are new each time, so there is no host key to remember."""
    return [
        *("-F", "none", "-i", str(folder / "key")),
        *("-o", "StrictHostKeyChecking=no", "-o", "UserKnownHostsFile=/dev/null", "-o", "LogLevel=ERROR"),
        *("-o", "BatchMode=yes", "-o", "ConnectTimeout=5"),
        *("-o", "ServerAliveInterval=5", "-o", "ServerAliveCountMax=3"),
    ]


class Hosts(Sequence[Host]):
    """``count`` bare hosts, pi1, pi2 …, booted on entry; all of it is gone on exit."""

    def __init__(self, count: int) -> None:
        self._count = count
        self._hosts: list[Host] = []

    @overload
    def __getitem__(self, index: int) -> Host: ...
    @overload
    def __getitem__(self, index: slice) -> list[Host]: ...
    def __getitem__(self, index: int | slice) -> Host | list[Host]:
        return self._hosts[index]

    def __len__(self) -> int:
        return len(self._hosts)

    def __enter__(self) -> Self:
        lacking = missing()
        if lacking:
            raise HostError(lacking)
        base = root_file_system()
        self._slot = Slot()
        try:
            self._plug_in(base)
            self.boot(*(f"pi{number}" for number in range(1, self._count + 1)))
        except BaseException:
            self._slot.release()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            for host in self._hosts:
                host.power_off()
        finally:
            self._slot.release()

    def _plug_in(self, base: Path) -> None:
        """The bridge, the key, and room for disks."""
        slot = self._slot
        self._base = base
        self.folder = slot.folder
        slot.folder.mkdir(mode=0o700)
        (slot.folder / "ssh").mkdir(mode=0o700)
        disks = _cache() / f"disks-{slot.number}"
        shutil.rmtree(disks, ignore_errors=True)
        disks.mkdir(mode=0o755)
        slot.disks.symlink_to(disks)
        run("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "dolmetsch-hosts", "-f", slot.folder / "key")
        # With an address of its own: else it has the lowest of its ports', which may change when a host comes, and the
        # others send to the old one until they ask anew, up to 30 s later.
        address = ("address", f"02:00:00:00:{slot.number:02x}:01")
        run("ip", "link", "add", slot.bridge, *address, "type", "bridge", "forward_delay", "0")
        run("ip", "address", "add", f"{slot.subnet}.1/24", "dev", slot.bridge)
        run("ip", "link", "set", slot.bridge, "up")

    @property
    def address(self) -> str:
        """This computer's own address on the bridge."""
        return f"{self._slot.subnet}.1"

    def boot(self, *names: str, personality: str = "", within_s: float = BOOT_S) -> list[Host]:
        """More bare hosts, all at once. ``personality="x86"`` makes one that calls itself 32-bit."""
        new = [
            Host(self._slot, self._base, name, f"{self._slot.subnet}.{FIRST_HOST + len(self) + n}", personality)
            for n, name in enumerate(names)
        ]
        self._hosts += new
        for host in new:
            host.start()
        for host in new:
            host.wait_booted(within_s)
        return new

    def __call__(self, name: str) -> Host:
        """The host of that name."""
        return next(host for host in self._hosts if host.name == name)

    @contextlib.contextmanager
    def capture(self, path: Path) -> Iterator[None]:
        """Write every frame on the bridge into ``path`` meanwhile. Raises ``HostError``."""
        log = path.with_suffix(".log")
        command = ["tcpdump", "-i", self._slot.bridge, "-s", "0", "-U", "-B", "16384", "-Z", "root", "-w", str(path)]
        with log.open("wb") as said:
            process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=said, stderr=said, start_new_session=True
            )
        try:
            wait_for(lambda: b"listening on" in log.read_bytes() or process.poll() is not None, 10, "tcpdump to listen")
            if process.poll() is not None:
                raise HostError(f"tcpdump ended:\n{log.read_text()}")
            yield
        finally:
            process.send_signal(signal.SIGINT)
            try:
                process.wait(END_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait(END_S)

    def inventory(self, path: Path, **groups: Host | Sequence[Host]) -> Path:
        """Write an Ansible inventory with these groups; hosts are reached as ``pi``, who has sudo."""
        lines = []
        for group, members in groups.items():
            lines.append(f"[{group}]")
            for host in (members,) if isinstance(members, Host) else members:
                lines.append(f"{host.name} ansible_host={host.address}")
            lines.append("")
        # ssh's -i is Ansible's own variable; the rest of the options are the same. Connections are kept open in our
        # folder, so that we can end them.
        options = [*ssh_options(self.folder)[4:], "-o", f"ControlPath={self.folder / 'ssh' / '%C'}"]
        lines += [
            "[all:vars]",
            "ansible_user=pi",
            f"ansible_ssh_private_key_file={self.folder / 'key'}",
            f"ansible_ssh_common_args='{' '.join(options)}'",
            "ansible_python_interpreter=/usr/bin/python3",
            "",
        ]
        path.write_text("\n".join(lines))
        return path


# ---- the command line ----


def _end(number: int, _: FrameType | None) -> NoReturn:
    raise SystemExit(128 + number)


def _up(count: int, inventory: Path | None) -> None:
    started = time.monotonic()
    with Hosts(count) as hosts:
        ssh = " ".join(["ssh", *ssh_options(hosts.folder)])
        print(f"{count} hosts are up after {time.monotonic() - started:.1f} s:", flush=True)
        for host in hosts:
            print(f"  {host.name:8} {host.address:16} console: {hosts.folder / host.name}.console")
        print(f"as root, or as pi with sudo:\n  {ssh} root@{hosts[0].address}")
        path = hosts.inventory(inventory or hosts.folder / "inventory.ini", broker=hosts[0], nodes=hosts[1:])
        print(f"an inventory to begin with:\n  {path}")
        print("this computer is reached at", hosts.address)
        print("Ctrl-C ends them", flush=True)
        # Orders from another terminal come through files, as only the process that made a host may end it.
        orders = hosts.folder / "orders"
        orders.mkdir()
        while True:
            for order in sorted(orders.glob("*.order")):
                name, what, how = order.read_text().split()
                _obey(hosts(name), what, how)
                order.unlink()
                print(f"{name}: {what} {how}", flush=True)
            time.sleep(LOOK_S)


def _obey(host: Host, what: str, how: str) -> None:
    doings: dict[tuple[str, str], Callable[[], None]] = {
        ("link", "down"): host.link_down,
        ("link", "up"): host.link_up,
        ("power", "off"): host.power_off,
        ("power", "on"): host.power_on,
    }
    doings[what, how]()


def _order(slot: int, host: str, what: str, how: str) -> None:
    orders = RUN / str(slot) / "orders"
    if not orders.exists():
        raise HostError(f"nothing is up in slot {slot}")
    order = orders / f"{time.monotonic_ns()}.order"
    order.with_suffix(".half").write_text(f"{host} {what} {how}")
    order.with_suffix(".half").rename(order)
    wait_for(lambda: not order.exists(), BOOT_S, "the order to be carried out")


def main(argv: Sequence[str] | None = None) -> int:
    """``up``, ``build``, ``link`` or ``power``."""
    parser = argparse.ArgumentParser(prog="python -m tests.deploy.hosts", description=(__doc__ or "").split("\n")[0])
    commands = parser.add_subparsers(dest="command", required=True)
    up = commands.add_parser("up", help="boot hosts, and end them at Ctrl-C")
    up.add_argument("count", type=int, nargs="?", default=3)
    up.add_argument("--inventory", type=Path, help="write an inventory there")
    commands.add_parser("build", help="only make the root file system")
    for what, ways in (("link", ("down", "up")), ("power", ("off", "on"))):
        order = commands.add_parser(what, help=f"{what} {' or '.join(ways)}, of a host that is up")
        order.add_argument("host")
        order.add_argument("how", choices=ways)
        order.add_argument("--slot", type=int, default=0, help="which run of hosts: the number in its folder's name")
    arguments = parser.parse_args(argv)
    signal.signal(signal.SIGTERM, _end)
    try:
        match arguments.command:
            case "up":
                _up(arguments.count, arguments.inventory)
            case "build":
                print(root_file_system())
            case what:
                _order(arguments.slot, arguments.host, what, arguments.how)
    except HostError as error:
        print(f"hosts: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
