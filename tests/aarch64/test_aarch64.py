"""What is committed, on aarch64 under emulation: it installs from wheels, starts, and translates as it does here.

Not part of ``make test``: it needs root, qemu and minutes. ``AARCH64_SUITES=bookworm,trixie`` for more than Debian 12.
That it runs is all that this tells: an emulator's speed, memory and clock are not a Pi's.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tarfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

import pytest

from bench.cluster import HOUSE, Cluster, command
from tests.aarch64.emulated import Computer, root_file_system
from tests.conftest import wait_until

SUITES: Final = os.environ.get("AARCH64_SUITES", "bookworm").split(",")
KINDS: Final = {"bookworm": "aarch64-cp311", "trixie": "aarch64-cp313"}
RELEASE_HOME: Final = Path("/opt/dolmetsch")
TEXT: Final = "Das Rathaus ist am Montag geschlossen."
WHEELS_S: Final = 600.0
INSTALL_S: Final = 1800.0
READY_S: Final = 300.0
# An emulated program is 10 to 30 times as slow: whoever waits for it is to wait that much longer.
PATIENT: Final = {
    "DOLMETSCH_SCHEDULER_LOST_AFTER_S": "60",
    "DOLMETSCH_SCHEDULER_LEASE_S": "120",
    "DOLMETSCH_SCHEDULER_RESEND_S": "30",
    "DOLMETSCH_POOL_JOB_LIMIT_S": "600",
    "DOLMETSCH_POOL_MAX_WORKERS": "1",
}

pytestmark = pytest.mark.timeout(3 * 3600)  # whatever is slow here has a limit of its own


@pytest.fixture
def took(capsys: pytest.CaptureFixture[str]) -> Iterator[Callable[[str], None]]:
    """Says how long it was since the last time, or the test's beginning."""
    since = time.monotonic()

    def tell(what: str) -> None:
        nonlocal since
        now = time.monotonic()
        with capsys.disabled():
            print(f"{now - since:8.1f} s  {what}", flush=True)
        since = now

    yield tell


def wheels(archive: Path, kind: str, folder: Path) -> Path:
    """The archive of all wheels that the packed programs need on that kind of computer, as a deployment sends it."""
    with tarfile.open(archive) as tar:
        tar.extract("requirements.txt", folder, filter="data")
    collect = [sys.executable, str(HOUSE / "deploy" / "wheelhouse.py"), "--quiet", kind]
    collect += ["--requirements", str(folder / "requirements.txt")]
    said = subprocess.run(collect, check=True, stdout=subprocess.PIPE, text=True, timeout=WHEELS_S).stdout
    return Path(said.split()[0])


def install(pi: Computer, packed: dict[str, str], wheelhouse: Path) -> Path:
    """Install as a deployment does, with its own script; the release's folder there.

    There is no network, so nothing can come from elsewhere; the two variables forbid what must not happen here.
    """
    archive = Path(packed["archive"])
    for source in (archive, wheelhouse, HOUSE / "deploy/roles/dolmetsch/files/install.sh"):
        target = pi.root / "var/tmp" / source.name
        target.write_bytes(source.read_bytes())
    words = [packed["release"], ".complete", f"/var/tmp/{archive.name}", f"/var/tmp/{wheelhouse.name}", "verify"]
    only = {"PIP_REQUIRE_HASHES": "1", "PIP_ONLY_BINARY": ":all:"}
    pi.run("sh", "/var/tmp/install.sh", *words, timeout_s=INSTALL_S, **only)
    return RELEASE_HOME / "releases" / packed["release"]


def here(cluster: Cluster) -> str:
    """What this computer makes of ``TEXT``."""
    cluster.broker()
    cluster.node("one", "--max-workers", "1")
    cluster.wait_ready(1, 1)
    return command("gateway_cli.py", "--broker", cluster.address, TEXT, cluster=cluster).stdout.strip()


@pytest.mark.parametrize("suite", SUITES)
def test_it_installs_and_translates(suite: str, cluster: Cluster, tmp_path: Path, took: Callable[[str], None]) -> None:
    expected = here(cluster)
    pack = [sys.executable, str(HOUSE / "deploy" / "pack.py"), "--out", str(tmp_path / "packed")]
    packed = json.loads(subprocess.run(pack, check=True, capture_output=True, timeout=60).stdout)
    took(f"{packed['release']} is packed; x86-64 says: {expected} {packed['note']}")
    wheelhouse = wheels(Path(packed["archive"]), KINDS[suite], tmp_path)
    took(f"wheels for {KINDS[suite]}")
    base = root_file_system(suite)
    took(f"root file system of {suite}")
    with Computer(base) as pi:
        about = "import platform, sys; print(platform.machine(), platform.python_version(), sys.byteorder)"
        machine, version, _ = pi.run("python3", "-c", about).stdout.split()
        assert machine == "aarch64"
        assert f"cp{''.join(version.split('.')[:2])}" in KINDS[suite]
        release = install(pi, packed, wheelhouse)
        took(f"installed on {machine} with Python {version}, from wheels alone")
        python = str(release / "venv/bin/python")
        programs = {name: str(release / name) for name in ("broker.py", "node.py", "gateway_cli.py")}

        pi.start("broker", python, programs["broker.py"], **PATIENT)
        wait_until(lambda: "listening" in pi.log("broker") or pi.has_ended("broker"), READY_S, "a broker that listens")
        assert not pi.has_ended("broker"), pi.log("broker")
        took("the broker listens")

        pi.start("node", python, programs["node.py"], **PATIENT)
        wait_until(lambda: "joined" in pi.log("node") or pi.has_ended("node"), READY_S, "a node that has joined")
        assert not pi.has_ended("node"), pi.log("node")
        took("the node has joined")

        said = pi.run(python, programs["gateway_cli.py"], TEXT, user="dolmetsch", timeout_s=READY_S).stdout.strip()
        took(f"aarch64 says: {said}")
        for name in ("node", "broker"):
            assert pi.end(name) == 0, pi.log(name)
            assert "stopped" in pi.log(name)
        took("both have ended")
    assert said == expected
