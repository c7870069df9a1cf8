#!/usr/bin/env python3
"""Collect the wheels that hosts need, so that they need no internet.

    wheelhouse.py                          for 64-bit Raspberry Pi OS and Debian 12 and 13, on a Pi
    wheelhouse.py aarch64-cp311            for one kind of host: its architecture and its Python
    wheelhouse.py x86_64-cp313 --quiet     prints only the archive's path

wheelhouse/KIND/ then holds the wheels, MANIFEST (their SHA-256, and for which requirements they are), and one archive
of them all, which is what a host is sent. What is there and fits is not fetched again, so the folder may come from
another computer.
"""

from __future__ import annotations

import argparse
import fcntl
import hashlib
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path
from typing import Final

from packaging.requirements import Requirement

HERE: Final = Path(__file__).resolve().parent
USUAL: Final = ("aarch64-cp311", "aarch64-cp313")  # Debian 12 and 13
KIND: Final = re.compile(r"(aarch64|x86_64)-cp3(\d+)")
PIP: Final = HERE / "pip.txt"  # goes with the wheels: a bare Debian has none
GLIBC: Final = 36  # 2.36, Debian 12's: wheels that want a newer one would not start there


class Target:
    """One kind of host."""

    def __init__(self, kind: str) -> None:
        match = KIND.fullmatch(kind)
        if match is None:
            sys.exit(f"wheelhouse: {kind} is no kind of host: it looks like aarch64-cp311 or x86_64-cp313")
        self.kind = kind
        self.arch, minor = match[1], int(match[2])
        self.python = f"3.{minor}"
        self.abi = f"cp3{minor}"
        oldest = 17 if self.arch == "aarch64" else 5
        self.platforms = [f"manylinux_2_{glibc}_{self.arch}" for glibc in range(GLIBC, oldest - 1, -1)]
        self.platforms.append(f"manylinux2014_{self.arch}")
        if self.arch == "x86_64":
            self.platforms += [f"manylinux2010_{self.arch}", f"manylinux1_{self.arch}"]

    @property
    def markers(self) -> dict[str, str]:
        """What the words of environment markers mean there."""
        return {
            "implementation_name": "cpython",
            "implementation_version": f"{self.python}.0",
            "os_name": "posix",
            "platform_machine": self.arch,
            "platform_python_implementation": "CPython",
            "platform_release": "",
            "platform_system": "Linux",
            "platform_version": "",
            "python_full_version": f"{self.python}.0",
            "python_version": self.python,
            "sys_platform": "linux",
        }

    def wants(self, requirement: Requirement) -> bool:
        """Whether that line of a requirements file counts there."""
        return requirement.marker is None or requirement.marker.evaluate({**self.markers, "extra": ""})


def locked(requirements: Path, target: Target) -> list[str]:
    """What ``target`` needs, all of it, each with its hashes: ``name==version --hash=sha256:…``, without markers.

    pip chooses wheels for another Python, but reads markers with its own: so they are read here.
    """
    lines = []
    for path in (requirements, PIP):
        for line in path.read_text(encoding="utf-8").replace("\\\n", " ").splitlines():
            text, *hashes = line.partition("#")[0].split(" --hash=")
            if text.strip() and target.wants(requirement := Requirement(text)):
                requirement.marker = None
                lines.append(" --hash=".join([str(requirement), *map(str.strip, hashes)]))
    return sorted(lines)


def collect(requirements: Path, target: Target, folder: Path) -> None:
    """Fill ``folder`` with the best wheel for each line, if its hash is one of those in the line."""
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"]
    command += ["--only-binary=:all:", "--require-hashes", "--implementation", "cp", "--python-version", target.python]
    command += [word for abi in (target.abi, "abi3", "none") for word in ("--abi", abi)]
    command += [word for platform in target.platforms for word in ("--platform", platform)]
    folder.mkdir()
    with tempfile.NamedTemporaryFile("w", encoding="utf-8", suffix=".txt") as file:
        file.write("\n".join(locked(requirements, target)))
        file.flush()
        command += ["--dest", str(folder), "--requirement", file.name]
        ended = subprocess.run(command, capture_output=True, text=True)
    if ended.returncode != 0:
        sys.exit(f"wheelhouse: no wheels for {target.kind}:\n{ended.stderr.strip()}")


def sha256(path: Path) -> str:
    """The file's digest."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def stamp(requirements: Path, target: Target) -> str:
    """The first line of a manifest that fits."""
    lines = "\n".join(locked(requirements, target))
    return f"# {target.kind}, glibc 2.{GLIBC}, requirements {hashlib.sha256(lines.encode()).hexdigest()}"


def fits(folder: Path, first_line: str) -> bool:
    """Whether ``folder`` holds all that its manifest says, for these requirements."""
    manifest = folder / "MANIFEST"
    if not manifest.exists():
        return False
    first, *lines = manifest.read_text().splitlines()
    listed = {name: digest for digest, name in (line.split("  ", 1) for line in lines)}
    there = {path.name for path in folder.iterdir()} - {"MANIFEST"}
    return first == first_line and there == set(listed) and all(sha256(folder / name) == listed[name] for name in there)


def make(requirements: Path, target: Target, root: Path) -> tuple[Path, bool]:
    """The archive for ``target``, and whether it had to be made."""
    root.mkdir(parents=True, exist_ok=True)
    folder, first_line = root / target.kind, stamp(requirements, target)
    with (root / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        made = not fits(folder, first_line)
        if made:
            with tempfile.TemporaryDirectory(dir=root, prefix=f".{target.kind}-") as name:
                half = Path(name) / "wheels"
                collect(requirements, target, half)
                _seal(half, first_line)
                shutil.rmtree(folder, ignore_errors=True)
                half.rename(folder)
    return next(folder.glob("wheels-*.tar")), made


def _seal(folder: Path, first_line: str) -> None:
    """Add the archive, named by what is in it, and the manifest."""
    wheels = sorted(folder.glob("*.whl"))
    lines = [f"{sha256(wheel)}  {wheel.name}" for wheel in wheels]
    archive = folder / f"wheels-{hashlib.sha256(chr(10).join(lines).encode()).hexdigest()[:12]}.tar"
    with tarfile.open(archive, "w") as tar:  # wheels are compressed already
        for wheel in wheels:
            tar.add(wheel, wheel.name)
    lines.append(f"{sha256(archive)}  {archive.name}")
    (folder / "MANIFEST").write_text("\n".join([first_line, *lines]) + "\n")


def main() -> int:
    """Collect for each kind of host."""
    parser = argparse.ArgumentParser(description="Collects the wheels that hosts need, so that they need no internet.")
    parser.add_argument("kinds", nargs="*", metavar="KIND", help=f"kinds of hosts (default: {' '.join(USUAL)})")
    parser.add_argument("--requirements", type=Path, default=HERE.parent / "requirements.txt", metavar="FILE")
    parser.add_argument("--folder", type=Path, default=HERE / "wheelhouse", help="where to put them")
    parser.add_argument("--quiet", action="store_true", help="print only each archive's path, and + when it is new")
    arguments = parser.parse_args()
    for kind in arguments.kinds or USUAL:
        archive, made = make(arguments.requirements, Target(kind), arguments.folder)
        if arguments.quiet:
            print(f"{archive}{' +' if made else ''}")
        else:
            count, size = len(list(archive.parent.glob("*.whl"))), archive.stat().st_size / 1e6
            how = "collected" if made else "there already"
            print(f"{kind}: {count} wheels, {size:.0f} MB, {how} in {archive.parent}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
