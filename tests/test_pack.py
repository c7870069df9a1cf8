"""What hosts get: the programs and the language packages, and nothing that only developers need."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

HOUSE = Path(__file__).parent.parent


def test_hosts_get_what_runs_there_and_nothing_to_train_or_test_with(tmp_path: Path) -> None:
    source = tmp_path / "source"
    for name in ("broker.py", "requirements.txt", "dolmetsch/__init__.py"):
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(HOUSE / name, source / name)
    for name in ("models/translate-de_en-1_0/metadata.json", "models/recipe/train.py", "models/phrases/phrases.tsv",
                 "bench/one.py", "tests/test_one.py", ".git-blame", "dolmetsch/__pycache__/x.pyc"):  # fmt: skip
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        (source / name).touch()
    command = [sys.executable, HOUSE / "deploy" / "pack.py", source, "--out", tmp_path / "out"]
    packed = json.loads(subprocess.run(command, check=True, capture_output=True, timeout=60).stdout)
    with tarfile.open(packed["archive"]) as archive:
        names = {member.name for member in archive if member.isfile()}
    assert names == {
        "broker.py", "requirements.txt", "dolmetsch/__init__.py", "models/translate-de_en-1_0/metadata.json"
    }  # fmt: skip
