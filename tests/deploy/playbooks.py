"""The playbooks of deploy/, run as a person at the control machine runs them, from a copy of the project.

A copy, because a deployment leaves things in its folder (keys), and because an upgrade needs a second version.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from bench.cluster import HOUSE
from tests.deploy.commands import HostError

PLAYBOOK_S: Final = 300.0
_LEFT_OUT: Final = shutil.ignore_patterns(".*", "__pycache__", "*.pyc", "tests", "wheelhouse")
_VERSION: Final = re.compile(r'^__version__ = "(.*)"$', re.MULTILINE)
_RECAP: Final = re.compile(r"^(?P<host>\S+)\s+: (?P<counts>ok=\d+.*)$", re.MULTILINE)


@dataclass(frozen=True)
class Played:
    """How a playbook ended."""

    status: int
    took_s: float
    output: str

    @property
    def recap(self) -> dict[str, dict[str, int]]:
        """Ansible's last lines: for each host how many tasks were ok, changed, failed, unreachable, skipped …"""
        hosts = {}
        for found in _RECAP.finditer(self.output):
            pairs = (pair.split("=") for pair in found["counts"].split())
            hosts[found["host"]] = {name: int(count) for name, count in pairs}
        return hosts

    @property
    def changed(self) -> int:
        """How many tasks changed something, on all hosts."""
        return sum(counts["changed"] for counts in self.recap.values())

    def succeeded(self) -> Played:
        """Itself. Raises ``HostError`` with Ansible's output when it is no success."""
        if self.status != 0:
            raise HostError(f"ansible-playbook ended with {self.status} after {self.took_s:.0f} s:\n{self.output}")
        return self


def ansible() -> Path | None:
    """The folder of ansible-playbook: ``$DOLMETSCH_ANSIBLE`` (a virtual environment), else .venv-deploy here."""
    chosen = os.environ.get("DOLMETSCH_ANSIBLE")
    for venv in [Path(chosen)] if chosen else [HOUSE / ".venv-deploy"]:
        if (venv / "bin" / "ansible-playbook").exists():
            return venv / "bin"
    return None


class Playbooks:
    """The project in a folder, with its deploy/, and an inventory."""

    def __init__(self, folder: Path, inventory: Path) -> None:
        self.folder = folder
        self.inventory = inventory

    @classmethod
    def copied(cls, folder: Path, inventory: Path) -> Playbooks:
        """A fresh copy of the project in ``folder``."""
        shutil.copytree(HOUSE, folder, ignore=_LEFT_OUT)
        return cls(folder, inventory)

    def set_version(self, version: str) -> str:
        """Make another version of the copy; which one it was."""
        path = self.folder / "dolmetsch" / "__init__.py"
        text = path.read_text()
        found = _VERSION.search(text)
        assert found is not None
        path.write_text(_VERSION.sub(f'__version__ = "{version}"', text))
        return found[1]

    @contextmanager
    def another_version(self, version: str) -> Iterator[None]:
        """The copy has this version meanwhile."""
        before = self.set_version(version)
        try:
            yield
        finally:
            self.set_version(before)

    @contextmanager
    def broken_node(self, version: str) -> Iterator[None]:
        """The copy has this version meanwhile, and its node ends as soon as it is started."""
        path = self.folder / "node.py"
        text = path.read_text()
        assert text.count("\nin_venv()\n") == 1
        path.write_text(text.replace("\nin_venv()\n", "\nraise SystemExit('broken on purpose')\n"))
        try:
            with self.another_version(version):
                yield
        finally:
            path.write_text(text)

    def play(self, name: str, *arguments: str, within_s: float = PLAYBOOK_S, inventory: Path | None = None) -> Played:
        """Run a playbook to its end; past ``within_s`` it is killed. Raises ``HostError`` only for that."""
        found = ansible()
        assert found is not None
        started = time.monotonic()
        process = subprocess.Popen(
            [str(found / "ansible-playbook"), "-i", str(inventory or self.inventory), name, *arguments],
            cwd=self.folder / "deploy",
            env={
                **{key: value for key, value in os.environ.items() if not key.startswith("ANSIBLE_")},
                "PATH": f"{found}:{os.environ['PATH']}",
                "LC_ALL": "C.UTF-8",
                "ANSIBLE_NOCOLOR": "1",
                "ANSIBLE_FORCE_COLOR": "0",
            },
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            start_new_session=True,  # so that its forks can be ended with it
        )
        try:
            output, _ = process.communicate(timeout=within_s)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            output, _ = process.communicate()
            raise HostError(f"{name} is not done within {within_s:g} s:\n{output}") from None
        except BaseException:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            raise
        return Played(process.returncode, time.monotonic() - started, output)
