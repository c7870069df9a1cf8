#!/usr/bin/env python3
"""Pack what hosts get of this source tree into one archive, named by its content.

Prints a JSON object: ``release`` (VERSION-HASH), ``archive``, and ``note``, a sentence when something was left out.
In a git checkout that is what is committed; elsewhere the folder. The hash is of names, modes and contents: the same
content is the same release, and nothing is done for it twice.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import json
import os
import re
import subprocess
import sys
import tarfile
from pathlib import Path
from typing import Final

HERE: Final = Path(__file__).resolve().parent
NOT_SHIPPED: Final = ("bench", "deploy", "docs", "tests", "models/phrases", "models/recipe")
KEPT: Final = 3  # archives of earlier releases
HASH_CHARS: Final = 8


def shipped(path: str) -> bool:
    """Whether hosts get the file at ``path``."""
    parts = Path(path).parts
    hidden = any(part.startswith(".") or part == "__pycache__" for part in parts)
    return not hidden and not any(Path(path).is_relative_to(folder) for folder in NOT_SHIPPED)


def from_git(source: Path) -> tuple[dict[str, tuple[int, bytes]], str]:
    """What is committed, and a note when the folder says something else."""
    changed = _git(source, "status", "--porcelain", "--untracked-files=no").decode().splitlines()
    names = [line[3:].split(" -> ")[-1] for line in changed]
    differ = [name for name in names if shipped(name)]
    note = f"not committed, and so not shipped: {', '.join(differ[:5])}" if differ else ""
    files = {}
    with tarfile.open(fileobj=io.BytesIO(_git(source, "archive", "--format=tar", "HEAD"))) as archive:
        for member in archive:
            content = archive.extractfile(member) if member.isfile() else None
            if content is not None and shipped(member.name):
                files[member.name] = (_mode(member.mode), content.read())
    return files, note


def from_folder(source: Path) -> tuple[dict[str, tuple[int, bytes]], str]:
    """What lies in the folder."""
    files = {}
    for folder, folders, names in os.walk(source):
        inside = Path(folder).relative_to(source)
        folders[:] = [name for name in folders if shipped(str(inside / name))]
        for name in names:
            path = Path(folder, name)
            if shipped(str(inside / name)) and path.is_file():
                files[str(inside / name)] = (_mode(path.stat().st_mode), path.read_bytes())
    return files, ""


def _mode(mode: int) -> int:
    return 0o755 if mode & 0o100 else 0o644


def _git(source: Path, *words: str) -> bytes:
    ended = subprocess.run(["git", "-C", str(source), *words], capture_output=True)
    if ended.returncode != 0:
        sys.exit(f"git {words[0]} in {source}: {ended.stderr.decode().strip()}")
    return ended.stdout


def pack(source: Path, out: Path) -> dict[str, str]:
    """Make the archive unless it is there."""
    files, note = from_git(source) if (source / ".git").exists() else from_folder(source)
    if "broker.py" not in files or "requirements.txt" not in files:
        sys.exit(f"{source} is not dolmetsch's source tree")
    found = re.search(r'^__version__ = "([^"]+)"', files["dolmetsch/__init__.py"][1].decode(), re.MULTILINE)
    digest = hashlib.sha256()
    for name, (mode, content) in sorted(files.items()):
        digest.update(f"{name}\0{mode:o}\0{hashlib.sha256(content).hexdigest()}\n".encode())
    release = f"{found[1] if found else '0'}-{digest.hexdigest()[:HASH_CHARS]}"
    archive = out / f"{release}.tar.gz"
    if not archive.exists():
        out.mkdir(parents=True, exist_ok=True)
        half = archive.with_suffix(".half")
        with tarfile.open(half, "w:gz", compresslevel=6) as tar:
            for name, (mode, content) in sorted(files.items()):
                member = tarfile.TarInfo(name)
                member.mode, member.size = mode, len(content)
                tar.addfile(member, io.BytesIO(content))
        half.replace(archive)
    archive.touch()
    for old in sorted(out.glob("*.tar.gz"), key=lambda path: path.stat().st_mtime, reverse=True)[KEPT:]:
        old.unlink()
    return {"release": release, "archive": str(archive), "note": note}


def main() -> int:
    """Pack, and say what and where."""
    parser = argparse.ArgumentParser(description="Packs the source tree for hosts.")
    parser.add_argument("source", type=Path, nargs="?", default=HERE.parent)
    parser.add_argument("--out", type=Path, default=HERE / "build", help="folder for the archive")
    arguments = parser.parse_args()
    print(json.dumps(pack(arguments.source.resolve(), arguments.out)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
