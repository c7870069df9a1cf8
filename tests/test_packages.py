"""Packages: found in the right order, installed whole or not at all, also two at once and when killed."""

from __future__ import annotations

import fcntl
import json
import logging
import os
import re
import shutil
import signal
import struct
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from dolmetsch import archive, packages, store
from dolmetsch.errors import PackageError
from tests.embedded import ENGLISH, GERMAN
from tests.package_folders import (
    DEADLINE_S,
    METADATA,
    ROOT,
    VERSION,
    home,
    one_sentence,
    place,
    temporary,
    visible,
    whole,
    zip_package,
)

__all__ = ["home", "whole"]  # fixtures


# --- finding ---------------------------------------------------------------------------------


def test_the_embedded_packages_are_found_alone() -> None:
    package, back = packages.find_packages()
    assert (back.route, back.path, back.embedded) == ("en→de", ENGLISH, True)
    assert (package.route, package.version, package.embedded, package.uses_bpe) == ("de→en", VERSION, True, False)
    assert (package.from_name, package.to_name, package.target_prefix) == ("German", "English", "")
    assert package.path == GERMAN
    assert package.tokenizer_path.is_file() and (package.model_path / "model.bin").is_file()
    assert re.fullmatch(rf"de_en-{re.escape(VERSION)}-[0-9a-f]{{8}}", package.model_version)


def test_order_of_places_and_versions(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    argos = tmp_path / "xdg" / "argos-translate" / "packages"
    theirs = place(argos, "2.0")
    assert [package.path for package in packages.find_packages()] == [theirs, ENGLISH]
    older, newer = place(home, "1.9"), place(home, "1.10")
    french = place(home, "1.0", "fr", "en")
    assert [package.path for package in packages.find_packages()] == [newer, ENGLISH, french]
    assert [package.path for package in packages.every_package()] == [newer, older, theirs, GERMAN, ENGLISH, french]
    monkeypatch.setenv("ARGOS_PACKAGES_DIR", str(tmp_path / "elsewhere"))
    assert theirs not in [package.path for package in packages.every_package()]
    assert [package.path for package in packages.find_packages([argos])] == [theirs]


def test_of_equal_versions_the_later_folder_is_used(home: Path) -> None:
    first, second = place(home, "1.0"), place(home, "1")
    os.utime(first, (1000, 1000))
    os.utime(second, (2000, 2000))
    assert packages.find_packages()[0].path == second
    os.utime(first, (3000, 3000))
    assert packages.find_packages()[0].path == first


BREAKERS: dict[str, Callable[[Path], object]] = {
    "no metadata": lambda path: (path / "metadata.json").unlink(),
    "metadata not JSON": lambda path: (path / "metadata.json").write_text("{"),
    "metadata not UTF-8": lambda path: (path / "metadata.json").write_bytes(b'{"from_code": "\xff"}'),
    "metadata too deep": lambda path: (path / "metadata.json").write_text('{"x":' + "[" * 60000),
    "metadata too large": lambda path: (path / "metadata.json").write_text(" " * (archive.METADATA_MAX_BYTES + 1)),
    "a code that is a path": lambda path: (path / "metadata.json").write_text(
        '{"package_version": "1", "from_code": "../de", "to_code": "en"}'
    ),
    "another type": lambda path: (path / "metadata.json").write_text(
        '{"package_version": "1", "from_code": "de", "to_code": "en", "type": "sbd"}'
    ),
    "no tokenizer": lambda path: (path / "sentencepiece.model").unlink(),
    "no weights": lambda path: (path / "model" / "model.bin").unlink(),
    "empty weights": lambda path: (path / "model" / "model.bin").write_bytes(b""),
}


@pytest.mark.parametrize("breaker", BREAKERS.values(), ids=BREAKERS)
def test_a_broken_folder_warns_and_hides_nothing(
    breaker: Callable[[Path], object], home: Path, caplog: pytest.LogCaptureFixture
) -> None:
    good = place(home, "1.0")
    bad = place(home, "2.0")
    breaker(bad)
    with caplog.at_level(logging.WARNING):
        assert [package.path for package in packages.find_packages()] == [good, ENGLISH]
    (record,) = caplog.records
    assert str(bad) in record.getMessage() and "\n" not in record.getMessage()


def test_model_version_follows_the_content(home: Path, tmp_path: Path) -> None:
    first, same = place(home, "1.0"), place(tmp_path / "copy", "1.0")
    assert packages.open_package(first).model_version == packages.open_package(same).model_version
    (same / "model" / "model.bin").write_bytes(b"weightz")
    assert packages.open_package(first).model_version != packages.open_package(same).model_version


def test_importing_is_light() -> None:
    heavy = "{'requests', 'tenacity', 'tqdm', 'ctranslate2', 'sentencepiece', 'numpy', 'platformdirs'}"
    code = f"import sys, dolmetsch.packages; print({heavy} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, timeout=DEADLINE_S)
    assert (done.returncode, done.stdout) == (0, b"set()\n")


# --- installing a file -----------------------------------------------------------------------


def test_install_list_verify_remove(whole: Path, home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert packages.main(["install", str(whole)]) == 0
    out = capsys.readouterr().out
    assert out.count("\n") == 1 and f"de→en {VERSION} is installed in" in out and "next start" in out
    assert visible(home) == [GERMAN.name] and not temporary(home)
    package, _ = packages.find_packages()
    assert not package.embedded and package.model_version == packages.open_package(GERMAN).model_version

    assert packages.main(["list"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[:2] + line.split()[3:5] for line in lines[1:]] == [
        ["de→en", VERSION, "installed", "used"],
        ["de→en", VERSION, "embedded", "shadowed"],
        ["en→de", packages.open_package(ENGLISH).version, "embedded", "used"],
    ]
    assert packages.main(["list", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert [row["where"] for row in rows] == [str(package.path), str(GERMAN), str(ENGLISH)]
    assert packages.main(["verify"]) == 0
    assert f"de→en {VERSION} loads and translates" in capsys.readouterr().out

    assert packages.main(["remove", "de", "en"]) == 0
    assert f"nodes use {GERMAN}" in capsys.readouterr().out
    assert visible(home) == [] and not temporary(home)
    assert packages.main(["remove", "de", "en"]) == 1
    err = capsys.readouterr().err
    assert err.count("\n") == 1 and "not dolmetsch's to remove" in err


def test_an_install_replaces_the_other_versions_of_its_route_only(home: Path, whole: Path) -> None:
    place(home, "0.9")
    french = place(home, "1.0", "fr", "en")
    wreck = home / "translate-de_en-0_8"
    wreck.mkdir()
    packages.install_file(whole)
    assert visible(home) == sorted([french.name, GERMAN.name])
    packages.install_file(whole)  # the same again: never without a package, so under another name
    assert visible(home) == sorted([french.name, f"{GERMAN.name}-2"])


def test_routes_that_differ_by_a_hyphen_stay_apart(home: Path) -> None:
    spanish = home / "translate-de_es_419-1_0"
    spanish.mkdir(parents=True)
    place(home, "1.0", "de", "es")
    packages.remove("de", "es")
    assert visible(home) == [spanish.name]
    assert packages.remove("de", "es-419") == spanish


@pytest.mark.parametrize("weights", [b"\x06\x00\x00\x00", None], ids=["garbage", "truncated"])
def test_weights_that_do_not_load_change_nothing(
    weights: bytes | None, whole: Path, home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = packages.install_file(whole)
    half = (GERMAN / "model" / "model.bin").read_bytes()[: 3 << 20]
    bad = zip_package(tmp_path / "bad.argosmodel", METADATA | {"package_version": "2.0"}, weights=weights or half)
    assert packages.main(["install", str(bad)]) == 1
    assert "error: package does not load: " in capsys.readouterr().err
    assert packages.find_packages()[0] == before
    assert visible(home) == [before.path.name] and not temporary(home)


def test_a_tokenizer_that_does_not_load_is_refused(whole: Path, home: Path, tmp_path: Path) -> None:
    bad = tmp_path / "bad.argosmodel"
    with zipfile.ZipFile(whole) as source, zipfile.ZipFile(bad, "w") as target:
        for member in source.infolist():
            data = source.read(member)
            target.writestr(member, data[: len(data) // 2] if "sentencepiece" in member.filename else data)
    with pytest.raises(PackageError, match="does not load"):
        packages.install_file(bad)
    assert visible(home) == []


@pytest.mark.parametrize(
    ("file", "change"),
    [
        ("model/model.bin", lambda data: data[:1]),
        ("model/model.bin", lambda data: data[:40]),
        ("model/model.bin", lambda data: data[:-1]),
        ("model/model.bin", lambda data: data.replace(struct.pack("<LL", 4000, 256), b"\xff\xff\xff\x7f" * 2, 1)),
        ("model/shared_vocabulary.json", lambda data: data[: len(data) // 2]),
        ("model/shared_vocabulary.json", lambda data: b"[]"),
        ("model/config.json", lambda data: data[:5]),
        ("sentencepiece.model", lambda data: b""),
        ("sentencepiece.model", lambda data: data[:-1]),
        ("sentencepiece.model", lambda data: data[::-1]),
    ],
    ids=[*"abcdefghij"],  # the same in each process of pytest-xdist
)
def test_a_model_of_which_something_is_missing_is_refused(
    file: str, change: Callable[[bytes], bytes], home: Path, tmp_path: Path
) -> None:
    bad = tmp_path / "bad.argosmodel"
    with zipfile.ZipFile(bad, "w") as zipped:
        for path in sorted(GERMAN.rglob("*")):
            if path.is_file():
                name, data = str(path.relative_to(GERMAN)), path.read_bytes()
                changed = change(data) if name == file else data
                assert name != file or changed != data
                zipped.writestr(f"package/{name}", changed)
    with pytest.raises(PackageError, match="does not load") as raised:
        packages.install_file(bad)
    assert "\n" not in str(raised.value)
    assert visible(home) == [] and not temporary(home)


def test_bpe_and_a_target_prefix_pass_the_trial(home: Path, tmp_path: Path) -> None:
    folder = tmp_path / "package"
    shutil.copytree(GERMAN, folder)
    (folder / "sentencepiece.model").unlink()
    (folder / "bpe.model").write_text("#version: 0.2\nd e</w>\n")
    (folder / "metadata.json").write_text(json.dumps(METADATA | {"target_prefix": "▁the"}))
    package = packages.open_package(folder)
    assert package.uses_bpe and package.tokenizer_path.name == "bpe.model" and package.target_prefix == "▁the"
    archive.check_loads(folder)
    (folder / "bpe.model").write_text("")
    with pytest.raises(PackageError, match="StopIteration"):
        archive.check_loads(folder)


def test_a_model_that_takes_too_long_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(archive, "LOAD_LIMIT_S", 0.001)
    with pytest.raises(PackageError, match=r"did not load within 0\.001 s"):
        archive.check_loads(GERMAN)


# --- at once, and killed ---------------------------------------------------------------------


def test_an_install_that_finds_the_lock_taken_says_so(
    whole: Path, home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(store, "LOCK_LIMIT_S", 0.2)
    home.mkdir()
    with (home / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert "another install has been at work" in one_sentence(capsys, "install", str(whole))
    assert packages.main(["install", str(whole)]) == 0


def test_two_installs_at_once_leave_one_whole_package(whole: Path, home: Path) -> None:
    command = [sys.executable, "-m", "dolmetsch.packages", "install", str(whole)]
    running = [subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE) for _ in range(2)]
    for process in running:
        _, err = process.communicate(timeout=DEADLINE_S)
        assert process.returncode == 0, err
    assert len(visible(home)) == 1 and not temporary(home)
    archive.check_loads(packages.find_packages()[0].path)


def test_a_killed_install_changes_nothing_and_is_cleaned_up(whole: Path, home: Path) -> None:
    """The process kills itself between unpacking and the rename."""
    before = place(home, "0.9")
    code = (
        "import os, signal, sys; from pathlib import Path; from dolmetsch import packages\n"
        "def step(text):\n"
        "    if text.startswith('loading'): os.kill(os.getpid(), signal.SIGKILL)\n"
        "packages.install_file(Path(sys.argv[1]), step)"
    )
    done = subprocess.run([sys.executable, "-c", code, str(whole)], cwd=ROOT, timeout=DEADLINE_S)
    assert done.returncode == -signal.SIGKILL
    assert len(temporary(home)) == 1 and visible(home) == [before.name]
    assert packages.find_packages()[0].path == before
    packages.install_file(whole)
    assert visible(home) == [GERMAN.name] and not temporary(home)


def test_a_folder_that_cannot_be_written_is_one_sentence(
    whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("DOLMETSCH_PACKAGES", str(tmp_path / "file" / "packages"))
    line = one_sentence(capsys, "install", str(whole))
    assert "cannot be changed (Not a directory); DOLMETSCH_PACKAGES names another folder" in line


def test_the_list_prints_where_there_is_no_unicode() -> None:
    command = [sys.executable, "-m", "dolmetsch.packages", "list"]
    environment = os.environ | {"PYTHONIOENCODING": "ascii"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, timeout=DEADLINE_S)
    assert (done.returncode, done.stderr) == (0, b"") and b"de?en" in done.stdout


@pytest.mark.parametrize("arguments", [["install", "a", "b", "c"], ["install", "x.argosmodel", "--index", "u"], []])
def test_wrong_arguments(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as raised:
        packages.main(arguments)
    assert raised.value.code == 2
