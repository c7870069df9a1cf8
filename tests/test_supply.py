"""What others wrote and we use: locked whole, by hashes, under licences that we know."""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.metadata import PackageNotFoundError, requires
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests import supply
from tests.supply import HOUSE, LOCKS, PIP, PROGRAMS, TOOLS

FREE = ("msgpack", "msgspec", "platformdirs", "pyzmq")  # in deploy/requirements.in: what the programs have


@pytest.mark.parametrize("lock", LOCKS, ids=lambda lock: str(lock.relative_to(HOUSE)))
def test_a_lock_is_what_was_asked_for(lock: Path) -> None:
    locked = supply.read_lock(lock)
    wanted = supply.read_wanted(lock.with_suffix(".in"))
    assert wanted
    for requirement in wanted:
        lines = locked[canonicalize_name(requirement.name)]
        assert requirement.specifier or requirement.name in FREE
        assert {str(requirement.specifier) or f"=={lines[0].version}"} == {f"=={line.version}" for line in lines}
        for python, machine in supply.everywhere():
            counts = requirement.marker is None or requirement.marker.evaluate(supply.surroundings(python, machine))
            assert counts == any(line.counts(python, machine) for line in lines), requirement.name


@pytest.mark.parametrize("lock", LOCKS, ids=lambda lock: str(lock.relative_to(HOUSE)))
def test_a_lock_has_hashes_and_names_no_place(lock: Path) -> None:
    for name, lines in supply.read_lock(lock).items():
        for line in lines:
            assert re.fullmatch(r"\d[\w.]*", line.version), name
            assert line.hashes and all(re.fullmatch(r"sha256:[0-9a-f]{64}", one) for one in line.hashes), name
    text = lock.read_text(encoding="utf-8")
    assert "make lock" in text.splitlines()[1]
    assert "://" not in text and "--index" not in text and "--find-links" not in text and "@ " not in text


def test_locks_agree() -> None:
    versions: dict[tuple[str, str, str], set[str]] = {}
    for lock in (PROGRAMS, TOOLS, *LOCKS):
        for name, lines in supply.read_lock(lock).items():
            for where in supply.everywhere():
                versions.setdefault((name, *where), set()).update(one.version for one in lines if one.counts(*where))
    ours = supply.read_lock(PROGRAMS)
    assert {name: found for (name, *_), found in versions.items() if name in ours and len(found) > 1} == {}


@pytest.mark.parametrize("lock", [PROGRAMS, TOOLS], ids=lambda lock: lock.name)
@pytest.mark.parametrize("where", list(supply.everywhere()), ids="-".join)
def test_a_lock_has_all_that_its_packages_need(lock: Path, where: tuple[str, str]) -> None:
    locked = {name: lines for name, lines in supply.read_lock(lock).items() if any(one.counts(*where) for one in lines)}
    looked_at = 0
    for name in locked:
        try:
            needs = requires(name) or []
        except PackageNotFoundError:  # for another Python than this one
            continue
        looked_at += 1
        for need in map(Requirement, needs):
            if need.marker is None or need.marker.evaluate(supply.surroundings(*where)):
                assert canonicalize_name(need.name) in locked, f"{name} needs {need}"
    assert looked_at > 30


def test_the_licences_are_written_down_and_allowed() -> None:
    document = supply.LICENCES.read_text(encoding="utf-8")
    assert document.partition("## The list\n")[2].strip() == supply.tables().strip(), "make lock writes it anew"
    assert [f"{name}: {text}" for name, text in supply.written().items() if not supply.is_allowed(text)] == []


@pytest.mark.parametrize(
    ("words", "expression", "allowed"),
    [
        ("MIT License", "MIT", True),
        ("Apache Software License; MIT License", "Apache-2.0 OR MIT", True),
        ("MPL-2.0 AND MIT", "MPL-2.0 AND MIT", True),
        ("MIT AND GPL-3.0-only", "MIT AND GPL-3.0-only", False),
        ("GPL-3.0-only OR MIT", "GPL-3.0-only OR MIT", True),
        ("UNKNOWN", "UNKNOWN", False),
        ("Other/Proprietary License", "Other/Proprietary License", False),
    ],
)
def test_a_licence_is_read(words: str, expression: str, allowed: bool) -> None:
    assert supply.spdx(words) == expression
    assert supply.is_allowed(expression) is allowed


# ---- known flaws: pip-audit itself, and a service of our own that speaks OSV ----


@contextmanager
def service(flawed: str | None, status: int = 200) -> Iterator[str]:
    """Where somebody knows of a flaw in ``flawed``."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            ranges = [{"type": "ECOSYSTEM", "events": [{"introduced": "0"}, {"fixed": "99.1"}]}]
            flaw = {"id": "PYSEC-1", "summary": "bad", "affected": [{"package": asked["package"], "ranges": ranges}]}
            answer = {"vulns": [flaw]} if asked["package"]["name"] == flawed else {}
            body = json.dumps(answer).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.02,))
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}/query"
        finally:
            server.shutdown()
            thread.join(10)


def test_a_known_flaw_is_a_failure() -> None:
    with service("pip") as where:
        flaws, why = supply.audit([PIP], "--vulnerability-service", "osv", "--osv-url", where)
    assert why == "" and len(flaws) == 1
    assert re.fullmatch(r"deploy/pip\.txt: pip [\d.]+: PYSEC-1, mended in 99\.1", flaws[0])


def test_no_known_flaw_is_none() -> None:
    with service(None) as where:
        assert supply.audit([PIP], "--vulnerability-service", "osv", "--osv-url", where) == ([], "")


def test_without_the_service_nothing_is_audited_and_nothing_fails() -> None:
    with service(None, status=503) as where:
        flaws, why = supply.audit([PIP], "--vulnerability-service", "osv", "--osv-url", where)
    assert flaws == [] and "cannot be reached" in why
    flaws, why = supply.audit([PIP], "--vulnerability-service", "osv", "--osv-url", where)  # nobody is there now
    assert flaws == [] and "cannot be reached" in why
