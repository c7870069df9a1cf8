"""Folders for packages, for a test: none but its own; and the embedded package as an archive, as it is or changed."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path
from typing import Any

import pytest

from dolmetsch import download, packages
from tests.embedded import GERMAN

ROOT = Path(__file__).resolve().parent.parent
METADATA = json.loads((GERMAN / "metadata.json").read_text())
VERSION = METADATA["package_version"]
DEADLINE_S = 60.0


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Every folder a package could be in lies below tmp_path; nothing waits between tries; no proxy."""
    for name in (
        "DOLMETSCH_INDEX",
        "ARGOS_PACKAGES_DIR",
        "HTTP_PROXY",
        "http_proxy",
        "ALL_PROXY",
        "all_proxy",
    ):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "xdg"))
    monkeypatch.setenv("DOLMETSCH_PACKAGES", str(tmp_path / "installed"))
    monkeypatch.setattr(download, "RETRY_WAIT_S", 0.0)
    return tmp_path / "installed"


@pytest.fixture(scope="session")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The embedded package, zipped as it would be published."""
    metadata = (GERMAN / "metadata.json").read_bytes()
    return zip_package(tmp_path_factory.mktemp("archives") / "whole.argosmodel", metadata)


def zip_package(path: Path, metadata: Any, *, weights: bytes | None = None) -> Path:
    """The embedded package with other metadata or other weights."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as zipped:
        for file in sorted(GERMAN.rglob("*")):
            name = f"package/{file.relative_to(GERMAN)}"
            if file.name == "metadata.json":
                zipped.writestr(name, metadata if isinstance(metadata, bytes) else json.dumps(metadata))
            elif file.name == "model.bin" and weights is not None:
                zipped.writestr(name, weights)
            elif file.is_file():
                zipped.write(file, name)
    return path


def place(folder: Path, version: str, from_code: str = "de", to_code: str = "en") -> Path:
    """A package folder with the right structure; its weights are never loaded in the tests that use it."""
    path = folder / f"{from_code}_{to_code}-{version}"
    (path / "model").mkdir(parents=True)
    named = {"package_version": version, "from_code": from_code, "to_code": to_code}
    (path / "metadata.json").write_text(json.dumps(named))
    (path / "sentencepiece.model").write_bytes(b"pieces")
    (path / "model" / "model.bin").write_bytes(b"weights")
    return path


def visible(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if not path.name.startswith("."))


def temporary(folder: Path) -> list[str]:
    return [path.name for path in folder.iterdir() if path.name.startswith((".new-", ".old-"))]


def one_sentence(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """Run the command, which must fail with exactly one line on stderr; the line."""
    assert packages.main(arguments) == 1
    captured = capsys.readouterr()
    assert captured.out == "" and captured.err.count("\n") == 1 and captured.err.startswith("error: ")
    return captured.err
