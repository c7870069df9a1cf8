"""Installing over the network, from a real HTTP server: an index, cuts that are resumed, links that lie."""

from __future__ import annotations

import contextlib
import json
import socket
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from dolmetsch import archive, download, packages, store
from dolmetsch.errors import PackageError
from tests.embedded import GERMAN
from tests.package_folders import DEADLINE_S, METADATA, VERSION, home, one_sentence, visible, whole

__all__ = ["home", "whole"]  # fixtures


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
