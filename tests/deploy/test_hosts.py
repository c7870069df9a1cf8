"""The hosts themselves: bare, alone with each other, cut off and switched off as told, and gone without a trace."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from bench.cluster import HOUSE
from tests.deploy.commands import HostError, wait_for
from tests.deploy.hosts import Hosts
from tests.deploy.slots import RUN

pytestmark = pytest.mark.timeout(1200)  # the first test of all may have to make the root file system


def traces(slot: int) -> list[str]:
    """What is left of a slot on this computer: interfaces, mounts, control groups, processes, folders."""
    name = f"dolm{slot}"
    found = [f"interface {one.name}" for one in Path("/sys/class/net").iterdir() if f"{name}-" in f"{one.name}-"]
    found += [f"mount {line}" for line in Path("/proc/mounts").read_text().splitlines() if f"/{slot}/disks" in line]
    found += [f"control group {one}" for one in Path("/sys/fs/cgroup").glob(f"**/{name}-*")]
    found += [f"folder {one}" for one in RUN.glob(f"{slot}") if one.exists()]
    for process in Path("/proc").glob("[0-9]*"):
        try:
            words = (process / "cmdline").read_bytes().decode(errors="replace")
        except OSError:
            continue
        if f"{name}-" in words or f"{RUN}/{slot}/" in words:
            found.append(f"process {words}")
    return found


def test_a_host_is_bare_debian_with_systemd(hosts: Hosts) -> None:
    for host in hosts:
        assert host.ssh("hostname", user="pi").stdout.strip() == host.name
        assert host.ssh("sudo --non-interactive id -u", user="pi").stdout.strip() == "0"
        assert host.ssh("systemctl is-system-running").stdout.strip() == "running"
        assert "VERSION_CODENAME=bookworm" in host.ssh("cat /etc/os-release").stdout
        assert host.ssh("python3 -m venv /tmp/venv", check=False).returncode != 0
    assert len({host.ssh("cat /etc/machine-id").stdout for host in hosts}) == 3


def test_hosts_see_each_other_and_nothing_else(hosts: Hosts) -> None:
    knock = "timeout 5 bash -c 'exec 3<>/dev/tcp/{address}/22 && head -c 4 <&3'"
    assert hosts[0].ssh(knock.format(address=hosts[1].address)).stdout == "SSH-"
    assert hosts[0].ssh("ip route show default; ip -6 route show default").stdout == ""


def test_a_command_that_fails_says_what_it_said(hosts: Hosts) -> None:
    with pytest.raises(HostError, match=r"(?s)exit status 3.*it is broken"):
        hosts[0].ssh("echo it is broken >&2; exit 3")
    with pytest.raises(HostError, match="not within 1 s"):
        hosts[0].ssh("sleep 60", timeout_s=1)


def test_a_cable_is_pulled_out_and_put_back(hosts: Hosts) -> None:
    hosts[1].link_down()
    try:
        assert hosts[1].ssh("true", check=False).returncode == 255
    finally:
        hosts[1].link_up()
    wait_for(lambda: hosts[1].ssh("true", check=False).returncode == 0, 20, "it is reachable again")


def test_a_power_cut_keeps_what_was_synced_and_nothing_runs(hosts: Hosts) -> None:
    before = hosts[2].ssh("echo kept > /root/file; sync; cat /proc/sys/kernel/random/boot_id /etc/machine-id").stdout
    hosts[2].ssh("systemd-run --unit=late sh -c 'trap \"echo told > /root/told\" TERM; sleep 600 & wait'")
    hosts[2].power_off()
    assert hosts[2].ssh("true", check=False).returncode == 255
    hosts[2].power_on()
    assert hosts[2].ssh("cat /root/file; ls /root/told", check=False).stdout == "kept\n"
    assert hosts[2].ssh("cat /etc/machine-id").stdout == before.splitlines(keepends=True)[1]


def test_a_capture_has_what_two_hosts_say_to_each_other(hosts: Hosts, tmp_path: Path) -> None:
    path = tmp_path / "wire.pcap"
    server = "import socket; s = socket.create_server(('', 7777)); print(s.accept()[0].recv(99))"
    hosts[1].ssh(f'systemd-run --unit=listener python3 -c "{server}"')
    with hosts.capture(path):
        talk = f"echo Geheimnis > /dev/tcp/{hosts[1].address}/7777"
        wait_for(lambda: hosts[0].ssh(f"bash -c '{talk}'", check=False).returncode == 0, 10, "the listener")
        wait_for(lambda: b"Geheimnis" in path.read_bytes(), 10, "the word in the capture")


def test_a_host_may_call_itself_32_bit(hosts: Hosts) -> None:
    (old,) = hosts.boot("old", personality="x86")
    assert old.ssh("uname -m").stdout.strip() in ("i386", "i686", "x86")


def test_an_inventory_names_everybody(hosts: Hosts, tmp_path: Path) -> None:
    text = hosts.inventory(tmp_path / "hosts.ini", broker=hosts[0], nodes=hosts[1:3]).read_text()
    assert text.startswith(
        f"[broker]\npi1 ansible_host={hosts[0].address}\n\n[nodes]\npi2 ansible_host={hosts[1].address}\npi3 "
    )


@contextmanager
def up_by_hand() -> Iterator[tuple[subprocess.Popen[str], int]]:
    """One host as a person starts it, and its slot."""
    command = [sys.executable, "-m", "tests.deploy.hosts", "up", "1"]
    with subprocess.Popen(command, cwd=HOUSE, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            slot = -1
            for line in process.stdout:
                if "console:" in line:
                    slot = int(Path(line.split()[-1]).parent.name)
                if line.startswith("Ctrl-C"):
                    break
            yield process, slot
        finally:
            process.terminate()
            process.wait(30)


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_nothing_is_left(how: signal.Signals) -> None:
    with up_by_hand() as (process, slot):
        assert traces(slot) != []
        process.send_signal(how)
        process.wait(30)
    if how is signal.SIGKILL:  # nobody could clean up: the next one does
        with up_by_hand() as (_, again):
            assert again == slot
    assert traces(slot) == []


def test_a_test_that_fails_leaves_nothing() -> None:
    with pytest.raises(ZeroDivisionError), Hosts(1) as hosts:
        slot = int(hosts.folder.name)
        raise ZeroDivisionError
    assert traces(slot) == []


def test_two_uses_at_once_do_not_meet(hosts: Hosts) -> None:
    started = time.monotonic()
    with Hosts(1) as others:
        print(f"another bare host took {time.monotonic() - started:.1f} s")
        assert others.folder != hosts.folder
        assert others.address.rpartition(".")[0] != hosts.address.rpartition(".")[0]
        assert others[0].ssh("hostname").stdout == hosts[0].ssh("hostname").stdout
    assert os.path.exists(hosts.folder)
