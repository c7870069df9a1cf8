"""Packages: found in the right order, installed whole or not at all, fetched from a real HTTP server."""

from __future__ import annotations

import contextlib
import fcntl
import json
import logging
import os
import re
import shutil
import signal
import socket
import stat
import struct
import subprocess
import sys
import tempfile
import threading
import zipfile
import zlib
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dolmetsch import archive, download, packages, store
from dolmetsch.errors import PackageError
from tests.embedded import ENGLISH, GERMAN

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


# --- the server ----------------------------------------------------------------------------


class Server(ThreadingHTTPServer):
    """Serves ``files`` with Range, If-Range and ETag; counts body bytes; can cut once or ignore Range."""

    daemon_threads = False  # closing the server waits for its threads: none outlives its test

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.files: dict[str, bytes] = {}
        self.etag = '"one"'
        self.cut_after: int | None = None
        self.ignores_range = False
        self.ignores_if_range = False
        self.asked: list[tuple[str, str | None]] = []
        self.sent: dict[str, int] = {}

    def url(self, path: str) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}{path}"

    def offer(self, data: bytes, version: str = VERSION, **more: Any) -> str:
        """Put one package and an index of it on the server; the index's URL."""
        self.files["/package"] = data
        entry = METADATA | {"package_version": version, "links": [self.url("/package")]} | more
        self.files["/index.json"] = json.dumps([{"type": "sbd", "code": "x"}, entry]).encode()
        return self.url("/index.json")


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        wanted = self.headers["Range"]
        self.server.asked.append((self.path, wanted))
        data = self.server.files.get(self.path)
        if data is None:
            return self.send_error(404)
        start = 0
        same = self.headers["If-Range"] == self.server.etag or self.server.ignores_if_range
        if wanted and same and not self.server.ignores_range:
            start = int(wanted.removeprefix("bytes=").removesuffix("-"))
            if start >= len(data):
                return self.answer(416, b"", f"bytes */{len(data)}")
            return self.answer(206, data[start:], f"bytes {start}-{len(data) - 1}/{len(data)}")
        self.answer(200, data, None)

    def answer(self, status: int, body: bytes, content_range: str | None) -> None:
        self.send_response(status)
        self.send_header("ETag", self.server.etag)
        self.send_header("Content-Length", str(len(body)))
        if content_range:
            self.send_header("Content-Range", content_range)
        self.end_headers()
        if self.path == "/package" and self.server.cut_after is not None:
            body, self.server.cut_after = body[: self.server.cut_after], None
        self.server.sent[self.path] = self.server.sent.get(self.path, 0) + len(body)
        with contextlib.suppress(ConnectionError):  # a client may have read enough
            self.wfile.write(body)

    def log_message(self, format: str, *arguments: Any) -> None:
        """Quiet."""


@pytest.fixture
def server() -> Iterator[Server]:
    with Server() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server
        server.shutdown()
        thread.join(DEADLINE_S)


def closed_port() -> int:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        return int(unused.getsockname()[1])


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


# --- archives that must not be unpacked ------------------------------------------------------


def member(name: str, mode: int = stat.S_IFREG | 0o644) -> zipfile.ZipInfo:
    info = zipfile.ZipInfo(name)
    info.external_attr = mode << 16
    info.compress_type = zipfile.ZIP_DEFLATED
    return info


def evil(path: Path, *members: tuple[zipfile.ZipInfo, bytes]) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as zipped:
        for info, data in ((member("p/metadata.json"), json.dumps(METADATA).encode()), *members):
            zipped.writestr(info, data)
    return path


@pytest.mark.parametrize(
    ("name", "mode", "reason"),
    [
        ("../escaped", 0, "does not stay"),
        ("p/../../escaped", 0, "does not stay"),
        ("/escaped", 0, "does not stay"),
        ("p//escaped", 0, "does not stay"),
        (".hidden/escaped", 0, "does not stay"),
        ("p/" + "x" * 201, 0, "does not stay"),
        ("p/..\\escaped", 0, "plain"),
        ("C:escaped", 0, "plain"),
        ("p/esc\naped", 0, "plain"),
        ("p/a/b/c/d/e/f/g/h", 0, "plain"),
        ("p/link", stat.S_IFLNK | 0o777, "link or a special file"),
        ("p/fifo", stat.S_IFIFO | 0o644, "link or a special file"),
        ("p/disk", stat.S_IFBLK | 0o644, "link or a special file"),
        ("p/terminal", stat.S_IFCHR | 0o644, "link or a special file"),
        ("p/socket", stat.S_IFSOCK | 0o644, "link or a special file"),
        ("p/C:\\escaped", 0, "plain"),
        ("\\\\host\\p\\escaped", 0, "plain"),
        ("p/x/.", 0, "does not stay"),
        ("p/nepo.\u202egnp", 0, "plain"),
        ("p/\u2028", 0, "plain"),
        ("p/Metadata.JSON", 0, "occurs twice"),
        ("p/metadata.json/", 0, "occurs twice"),
        ("P/file", 0, "exactly one top folder"),
        ("p/metadata.json/under", 0, "both a file and a folder"),
        ("other/file", 0, "exactly one top folder"),
        ("file-beside", 0, "exactly one top folder"),
    ],
)
def test_names_that_are_refused(
    name: str, mode: int, reason: str, home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = evil(tmp_path / "evil.argosmodel", (member(name, mode), b"/etc"))
    with pytest.raises(PackageError, match=reason) as raised:
        packages.install_file(path)
    assert "\n" not in str(raised.value)
    assert visible(home) == [] and not temporary(home)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["evil.argosmodel", "installed"]


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_a_name_that_occurs_twice_is_refused(tmp_path: Path) -> None:
    path = evil(tmp_path / "evil.argosmodel", (member("p/metadata.json"), b"{}"))
    with pytest.raises(PackageError, match="occurs twice"):
        packages.install_file(path)


@pytest.mark.parametrize("pair", [("\u00e9", "e\u0301"), ("ß", "SS"), ("Å", "\u212b"), ("İ", "i\u0307")])
def test_names_that_some_disk_takes_for_the_same_are_refused(pair: tuple[str, str], tmp_path: Path, home: Path) -> None:
    path = evil(tmp_path / "evil.argosmodel", *((member(f"p/{name}"), b"x") for name in pair))
    with pytest.raises(PackageError, match="occurs twice"):
        packages.install_file(path)
    assert visible(home) == [] and not temporary(home)


def test_a_second_name_in_an_extra_field_leads_nowhere(tmp_path: Path, home: Path) -> None:
    """Since Python 3.12 zipfile takes it (0x7075) for the name, behind the back of whoever looks at the first one."""
    outside = tmp_path / "escaped"
    for other in ("p/../../../escaped", "p/../../escaped", str(outside), "p/metadata.json", "p/good"):
        info = member("p/x")
        data = struct.pack("<BL", 1, zlib.crc32(b"p/x")) + other.encode()
        info.extra = struct.pack("<HH", 0x7075, len(data)) + data
        with pytest.raises(PackageError, match="plain" if sys.version_info >= (3, 12) else "no sentencepiece"):
            packages.install_file(evil(tmp_path / "evil.argosmodel", (info, b"x")))
        assert not outside.exists() and visible(home) == [] and not temporary(home)
        assert sorted(path.name for path in tmp_path.iterdir()) == ["evil.argosmodel", "installed"]
        info.filename = other  # what Python 3.12 makes of it
        with pytest.raises(archive._Unsafe, match="plain"):
            archive._check_member(info)


def test_what_is_odd_and_harmless_stays_in_its_folder(tmp_path: Path) -> None:
    odd = ("p/CON", "p/．．／x", "p/... ", "p/%2e%2e%2fx", "p/~", "p/$HOME", "p/-rf")
    path = evil(tmp_path / "odd.argosmodel", *((member(name, stat.S_IFREG | 0o7777), b"x") for name in odd))
    into = tmp_path / "into"
    into.mkdir()
    top = archive.unpack(path, into)
    assert sorted(found.name for found in top.iterdir()) == sorted([name[2:] for name in odd] + ["metadata.json"])
    assert all(stat.S_IMODE(found.stat().st_mode) & 0o7111 == 0 for found in top.iterdir()), "no rights are taken over"


def test_members_that_lie_over_each_other_are_refused(tmp_path: Path, home: Path) -> None:
    """Also where they do not unpack to much: no package has them."""
    path = tmp_path / "overlapping.argosmodel"
    with zipfile.ZipFile(path, "w") as zipped:
        zipped.writestr("p/0", os.urandom(10_000))
        again = zipfile.ZipInfo("p/1")
        for field in ("header_offset", "CRC", "compress_size", "file_size"):
            setattr(again, field, getattr(zipped.filelist[0], field))
        zipped.filelist.append(again)
    with pytest.raises(PackageError, match="lie over each other"):
        packages.install_file(path)
    assert visible(home) == [] and not temporary(home)


def test_an_archive_in_an_archive_is_a_file(tmp_path: Path, home: Path) -> None:
    bomb = evil(tmp_path / "bomb.zip", (member("p/zeros"), bytes(64 << 20))).read_bytes()
    path = evil(tmp_path / "nested.argosmodel", *((member(f"p/{count}.zip"), bomb) for count in range(16)))
    with pytest.raises(PackageError, match=r"no sentencepiece\.model|more than 50 times"):
        packages.install_file(path)
    assert visible(home) == [] and not temporary(home)


@pytest.mark.parametrize("lie", [-1, 1, 1000])
def test_a_size_that_is_not_true_is_found(lie: int, tmp_path: Path, home: Path) -> None:
    for method in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        path = tmp_path / "lie.argosmodel"
        with zipfile.ZipFile(path, "w", method) as zipped:
            zipped.writestr("p/metadata.json", json.dumps(METADATA))
            zipped.writestr("p/x", os.urandom(5000))
            zipped.filelist[-1].file_size += lie
        with pytest.raises(PackageError, match="is not a whole"):
            packages.install_file(path)
        assert visible(home) == [] and not temporary(home)


def test_a_directory_that_names_fewer_members_than_it_has_is_counted(tmp_path: Path) -> None:
    path = evil(tmp_path / "many.argosmodel", *((member(f"p/{count}"), b"") for count in range(600)))
    data = bytearray(path.read_bytes())
    struct.pack_into("<HH", data, len(data) - 14, 1, 1)
    path.write_bytes(data)
    with pytest.raises(PackageError, match="more than 512 members"):
        packages.install_file(path)


def test_every_beginning_of_an_archive_is_refused(tmp_path: Path, home: Path) -> None:
    path = evil(tmp_path / "whole.argosmodel", (member("p/sentencepiece.model"), b"x"))
    data = path.read_bytes()
    for length in range(len(data)):
        path.write_bytes(data[:length])
        with pytest.raises(PackageError, match=r"is not a whole|is empty") as raised:
            packages.install_file(path)
        assert "\n" not in str(raised.value)
    assert visible(home) == [] and not temporary(home)


def test_bombs_are_refused(tmp_path: Path, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    zeros = evil(tmp_path / "zeros.argosmodel", (member("p/zeros"), bytes(3 << 20)))
    with pytest.raises(PackageError, match="'p/zeros' unpacks to more than 50 times"):
        packages.install_file(zeros)

    overlapping = tmp_path / "overlapping.argosmodel"
    with zipfile.ZipFile(overlapping, "w") as zipped:
        zipped.writestr("p/0", os.urandom(200_000))
        for count in range(1, 100):  # a hundred entries of the directory for one run of bytes
            again = zipfile.ZipInfo(f"p/{count}")
            for field in ("header_offset", "CRC", "compress_size", "file_size"):
                setattr(again, field, getattr(zipped.filelist[0], field))
            zipped.filelist.append(again)
    with pytest.raises(PackageError, match="it unpacks to more than 50 times"):
        packages.install_file(overlapping)

    many = evil(tmp_path / "many.argosmodel", *((member(f"p/{count}"), b"") for count in range(512)))
    with pytest.raises(PackageError, match="more than 512 members"):
        packages.install_file(many)

    monkeypatch.setattr(archive, "MEMBER_MAX_BYTES", 1000)
    large = evil(tmp_path / "large.argosmodel", (member("p/large"), os.urandom(1001)))
    with pytest.raises(PackageError, match="'p/large' is larger than 1000 bytes"):
        packages.install_file(large)
    monkeypatch.setattr(archive, "UNPACKED_MAX_BYTES", 1500)
    total = evil(tmp_path / "total.argosmodel", (member("p/1"), os.urandom(900)), (member("p/2"), os.urandom(900)))
    with pytest.raises(PackageError, match="it unpacks to more than 1500 bytes"):
        packages.install_file(total)
    monkeypatch.setattr(archive, "ARCHIVE_MAX_BYTES", 100)
    with pytest.raises(PackageError, match="larger than 100 bytes"):
        packages.install_file(total)
    assert visible(home) == [] and not temporary(home)


def test_a_full_disk_is_said_before_anything_is_written(
    whole: Path, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store, "DISK_RESERVE_BYTES", 1 << 60)
    with pytest.raises(PackageError, match=r"MiB free, .* MiB are needed"):
        packages.install_file(whole)
    assert visible(home) == [] and not temporary(home)


WRONG_METADATA = [
    *(
        {name: wrong}
        for name in ("package_version", "from_code", "to_code")
        for wrong in (None, 1, 1.5, True, [], {}, "")
    ),
    *({"from_code": code} for code in ("d", "de/en", "de\n", "..", "de-", "d" * 50, "dé")),
    *({"package_version": version} for version in ("one", "1/2", "1\n", "1" * 40, ".1")),
    *({name: wrong} for name in ("type", "target_prefix", "from_name") for wrong in (None, 7, ["x"], "a\nb", "x" * 65)),
    *({"links": wrong} for wrong in ("x", [1], {})),
]


@pytest.mark.parametrize("wrong", WRONG_METADATA, ids=str)
def test_metadata_of_wrong_types_is_refused(wrong: dict[str, Any], tmp_path: Path) -> None:
    path = tmp_path / "metadata.json"
    path.write_text(json.dumps(METADATA | wrong))
    with pytest.raises(PackageError, match="is not package metadata") as raised:
        archive.read_metadata(path)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    "written", [b"\xef\xbb\xbf{}", "{}".encode("utf-16"), b"{" * 5000, b'{"a": 1e999', b"\x00", b"NaN"]
)
def test_metadata_that_is_no_json_is_refused(written: bytes, tmp_path: Path) -> None:
    path = tmp_path / "metadata.json"
    path.write_bytes(written)
    with pytest.raises(PackageError, match="is not package metadata"):
        archive.read_metadata(path)


@pytest.mark.parametrize("metadata", [b"not JSON", b"[]", b"{}", b'{"from_code": 1}'])
def test_bad_metadata_is_refused(metadata: bytes, home: Path, tmp_path: Path) -> None:
    with pytest.raises(PackageError, match="is not package metadata"):
        packages.install_file(zip_package(tmp_path / "bad.argosmodel", metadata))
    assert visible(home) == []


def test_files_that_are_no_whole_archive(whole: Path, home: Path, tmp_path: Path) -> None:
    data = whole.read_bytes()
    flipped = bytearray(data)
    flipped[len(data) // 2] ^= 0xFF
    bad = tmp_path / "bad.argosmodel"
    for content, reason in ((b"", "empty"), (data[: len(data) // 2], "whole"), (bytes(flipped), "whole")):
        bad.write_bytes(content)
        with pytest.raises(PackageError, match=reason):
            packages.install_file(bad)
    no_metadata = tmp_path / "none.argosmodel"
    with zipfile.ZipFile(no_metadata, "w") as zipped:
        zipped.writestr("p/sentencepiece.model", b"pieces")
    with pytest.raises(PackageError, match=r"no metadata\.json"):
        packages.install_file(no_metadata)
    with pytest.raises(PackageError, match="there is no file"):
        packages.install_file(tmp_path / "absent.argosmodel")
    assert visible(home) == [] and not temporary(home)


@settings(max_examples=300, deadline=None, derandomize=True, database=None)
@given(changes=st.lists(st.tuples(st.integers(0, 399), st.integers(0, 255)), min_size=1, max_size=6))
def test_arbitrary_bytes_give_only_package_errors(changes: list[tuple[int, int]]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = evil(Path(folder) / "a.argosmodel", (member("p/x"), b"x" * 100))
        data = bytearray(path.read_bytes())
        for back, value in changes:  # from the end, where the directory is
            data[-1 - back % len(data)] = value
        path.write_bytes(data)
        into = Path(folder) / "into"
        into.mkdir()
        try:
            top = archive.unpack(path, into)
        except PackageError as error:
            assert "\n" not in str(error)
        else:
            assert top.is_dir()
        assert sorted(found.name for found in Path(folder).iterdir()) == ["a.argosmodel", "into"]


# --- over the network ------------------------------------------------------------------------


def test_install_from_an_index(
    server: Server,
    whole: Path,
    home: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("DOLMETSCH_INDEX", server.offer(whole.read_bytes()))
    assert packages.main(["install", "de", "en"]) == 0
    assert f"de→en {VERSION} is installed in" in capsys.readouterr().out
    assert visible(home) == [GERMAN.name]
    assert list((home / store.DOWNLOADS).iterdir()) == []
    assert packages.main(["install", "de", "en"]) == 0  # nothing newer: nothing is fetched
    assert "was installed before" in capsys.readouterr().err
    assert server.sent["/package"] == whole.stat().st_size


def test_the_newest_entry_and_the_first_good_link_are_taken(server: Server, whole: Path, home: Path) -> None:
    server.files["/package"] = whole.read_bytes()
    links = ["ipfs://somewhere", "http://[", server.url("/missing"), server.url("/package")]
    entries = [
        METADATA | {"package_version": "1.9", "links": [server.url("/older")]},
        METADATA | {"package_version": "1.10", "links": links},
        METADATA | {"package_version": "1.2", "links": []},
        {"type": "translate", "from_code": 7},
    ]
    server.files["/index.json"] = json.dumps(entries).encode()
    packages.install("de", "en", server.url("/index.json"))
    assert [path for path, _ in server.asked] == ["/index.json", "/missing", "/package"]


def test_a_cut_is_resumed_and_only_the_rest_is_sent(
    server: Server, whole: Path, home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = whole.read_bytes()
    url = server.offer(data)
    server.cut_after = len(data) // 2
    said: list[str] = []
    packages.install("de", "en", url, progress=said.append)
    assert any("broke off; trying again" in line for line in said)
    (_, first), (_, second) = [asked for asked in server.asked if asked[0] == "/package"]
    assert first is None and second is not None
    start = int(second.removeprefix("bytes=").removesuffix("-"))
    assert len(data) // 2 - archive.CHUNK_BYTES <= start <= len(data) // 2  # requests may drop its last chunk
    assert server.sent["/package"] == len(data) // 2 + len(data) - start


def test_a_later_command_resumes(
    server: Server, whole: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    data = whole.read_bytes()
    url = server.offer(data)
    server.cut_after = len(data) // 2
    monkeypatch.setattr(download, "ATTEMPTS", 1)
    assert packages.main(["install", "de", "en", "--index", url]) == 1
    assert "broke off" in capsys.readouterr().err
    assert packages.main(["install", "de", "en", "--index", url]) == 0
    assert server.sent["/package"] <= len(data) + archive.CHUNK_BYTES


@pytest.mark.parametrize("why", ["another file by now", "a server without Range"])
def test_a_resume_that_cannot_be_starts_from_zero(
    why: str, server: Server, whole: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = whole.read_bytes()
    url = server.offer(data)
    server.cut_after = len(data) // 2
    monkeypatch.setattr(download, "ATTEMPTS", 1)
    with pytest.raises(PackageError, match="broke off"):
        packages.install("de", "en", url)
    if why == "another file by now":
        server.etag = '"two"'
    else:
        server.ignores_range = True
    packages.install("de", "en", url)
    assert server.asked[-1][1] is not None
    assert server.sent["/package"] == len(data) // 2 + len(data)


def test_a_rest_of_another_file_is_not_appended(server: Server, whole: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The server continues although If-Range named another ETag; it is asked again, from zero."""
    data = whole.read_bytes()
    url = server.offer(bytes(len(data)))
    server.cut_after = len(data) // 2
    with monkeypatch.context() as once, pytest.raises(PackageError, match="broke off"):
        once.setattr(download, "ATTEMPTS", 1)
        packages.install("de", "en", url)
    server.offer(data)
    server.etag, server.ignores_if_range = '"two"', True
    packages.install("de", "en", url)
    assert [wanted is None for path, wanted in server.asked if path == "/package"] == [True, False, True]


@pytest.mark.parametrize("extra", [0, 7], ids=["complete", "longer than the file"])
def test_a_part_the_server_has_no_rest_for(extra: int, server: Server, whole: Path, home: Path) -> None:
    data = whole.read_bytes()
    url = server.offer(data)
    (home / store.DOWNLOADS).mkdir(parents=True)
    part = download._Part(home / store.DOWNLOADS, server.url("/package"))
    part.restart(server.etag)
    part.path.write_bytes(data + bytes(extra))
    packages.install("de", "en", url)
    assert server.sent["/package"] == (len(data) if extra else 0)


def test_a_bad_download_is_not_kept(server: Server, whole: Path, home: Path) -> None:
    bad = bytearray(whole.read_bytes())
    bad[len(bad) // 2] ^= 0xFF
    url = server.offer(bytes(bad))
    with pytest.raises(PackageError, match="not a whole"):
        packages.install("de", "en", url)
    assert list((home / store.DOWNLOADS).iterdir()) == [] and visible(home) == []
    server.files["/package"] = whole.read_bytes()
    assert packages.install("de", "en", url).version == VERSION


def test_a_download_over_the_cap_is_refused(
    server: Server, whole: Path, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(download, "ARCHIVE_MAX_BYTES", 1000)
    with pytest.raises(PackageError, match="larger than 1000 bytes"):
        packages.install("de", "en", server.offer(whole.read_bytes()))
    assert visible(home) == []


def test_a_link_that_gives_another_route_is_refused(server: Server, whole: Path, home: Path) -> None:
    url = server.offer(whole.read_bytes(), from_code="fr")
    with pytest.raises(PackageError, match="promised fr→en, its link gave de→en"):
        packages.install("fr", "en", url)
    assert visible(home) == []


def one_sentence(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """Run the command, which must fail with exactly one line on stderr; the line."""
    assert packages.main(arguments) == 1
    captured = capsys.readouterr()
    assert captured.out == "" and captured.err.count("\n") == 1 and captured.err.startswith("error: ")
    return captured.err


def test_no_network_is_one_sentence(
    server: Server, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    refused = f"http://127.0.0.1:{closed_port()}/index.json"
    line = one_sentence(capsys, "install", "de", "en", "--index", refused)
    assert "no connection to 127.0.0.1" in line and "install FILE.argosmodel" in line

    assert "404 Not Found" in one_sentence(capsys, "install", "de", "en", "--index", server.url("/none"))
    assert "cannot be fetched" in one_sentence(capsys, "install", "de", "en", "--index", "ftp://host/x")
    assert "cannot be fetched" in one_sentence(capsys, "install", "de", "en", "--index", "nonsense")

    def no_names(*_: Any, **__: Any) -> None:
        raise socket.gaierror(socket.EAI_AGAIN, "Temporary failure in name resolution")

    monkeypatch.setattr(socket, "getaddrinfo", no_names)
    line = one_sentence(capsys, "install", "de", "en", "--index", "http://index.example/index.json")
    assert "the name index.example cannot be resolved" in line and "install FILE.argosmodel" in line


def test_an_index_without_the_pair_is_one_sentence(server: Server, capsys: pytest.CaptureFixture[str]) -> None:
    url = server.offer(b"")
    line = one_sentence(capsys, "install", "de", "fr", "--index", url)
    assert "no package de→fr" in line and "from de it has: en" in line
    assert "it has none from xx" in one_sentence(capsys, "install", "xx", "en", "--index", url)
    for content in (b"not JSON", b"{}", b"[" * 100_000):
        server.files["/index.json"] = content
        assert "is not a package index" in one_sentence(capsys, "install", "de", "en", "--index", url)


def test_links_that_cannot_be_used(server: Server) -> None:
    with pytest.raises(PackageError, match=r"404 Not Found; .*FILE\.argosmodel"):
        packages.install("de", "en", server.offer(b"", links=[server.url("/missing")]))
    with pytest.raises(PackageError, match="no http"):
        packages.install("de", "en", server.offer(b"", links=["ipfs://x", "file:///etc/passwd"]))


def test_a_progress_bar_on_a_terminal_only(
    server: Server, whole: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    url = server.offer(whole.read_bytes())
    packages.install("de", "en", url, bar=True)
    assert capsys.readouterr().err == ""
    packages.remove("de", "en")
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    packages.install("de", "en", url, bar=True)
    assert f"/{whole.stat().st_size / 1e6:.2f}M [" in capsys.readouterr().err


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
