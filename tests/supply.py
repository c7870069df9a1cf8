"""What others wrote and we use: the locked requirements, their licences, and whether a flaw is known in any of them.

    python -m tests.supply licences    write the tables of docs/licenses.md anew
    python -m tests.supply audit       ask for known flaws; the exit status is 1 if there is one

`make lock` does the first, `make check` the second. Where no service that knows of flaws answers, that is one line.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final, NamedTuple

from packaging.markers import Marker
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

HOUSE: Final = Path(__file__).resolve().parent.parent
LICENCES: Final = HOUSE / "docs" / "licenses.md"
PROGRAMS: Final = HOUSE / "requirements.txt"
TOOLS: Final = HOUSE / "requirements-dev.txt"
PIP: Final = HOUSE / "deploy" / "pip.txt"
DEPLOY: Final = HOUSE / "deploy" / "requirements-dev.txt"
RECIPE: Final = HOUSE / "models" / "recipe" / "requirements.txt"
LOCKS: Final = (PROGRAMS, TOOLS, HOUSE / "deploy" / "requirements.txt", DEPLOY, PIP, RECIPE)
PYTHONS: Final = ("3.11", "3.12", "3.13")
MACHINES: Final = ("x86_64", "aarch64")
AUDIT_S: Final = 60.0
REPLY_S: Final = 5  # of the service, for one package

# Where a package says it in words, and not as an SPDX expression.
WORDS: Final = {
    "Apache Software License": "Apache-2.0",
    "BSD": "BSD-3-Clause",
    "MIT License": "MIT",
    "Mozilla Public License 2.0 (MPL 2.0)": "MPL-2.0",
    "Python Software Foundation License": "PSF-2.0",
    "Zope Public License": "ZPL-2.1",
    "DFSG approved; MIT License": "MIT",
}
# None of them asks anything of dolmetsch's own code. MPL and LGPL ask that changes to those packages are published, and
# that their users can replace them: they are installed unchanged, as files of their own.
ALLOWED: Final = frozenset({
    "0BSD", "Apache-2.0", "BSD-2-Clause", "BSD-3-Clause", "CC0-1.0", "CNRI-Python", "ISC", "LGPL-2.1-or-later", "MIT",
    "MPL-2.0", "PSF-2.0", "ZPL-2.1", "Zlib",
})  # fmt: skip


class Locked(NamedTuple):
    """A line of a lock."""

    version: str
    marker: Marker | None
    hashes: tuple[str, ...]

    def counts(self, python: str, machine: str) -> bool:
        """Whether it is installed by CPython there, on Linux."""
        return self.marker is None or self.marker.evaluate(surroundings(python, machine))


def surroundings(python: str, machine: str) -> dict[str, str]:
    """What the words of markers mean."""
    return {
        "extra": "", "implementation_name": "cpython", "implementation_version": f"{python}.0", "os_name": "posix",
        "platform_machine": machine, "platform_python_implementation": "CPython", "platform_release": "",
        "platform_system": "Linux", "platform_version": "", "python_full_version": f"{python}.0",
        "python_version": python, "sys_platform": "linux",
    }  # fmt: skip


def everywhere() -> Iterator[tuple[str, str]]:
    """Each Python on each machine."""
    return ((python, machine) for python in PYTHONS for machine in MACHINES)


def read_lock(path: Path) -> dict[str, list[Locked]]:
    """By name: what is locked. A name has two lines where the version depends on where it is installed."""
    found: dict[str, list[Locked]] = {}
    for line in path.read_text(encoding="utf-8").replace("\\\n", " ").splitlines():
        text, *hashes = line.partition("#")[0].split(" --hash=")
        if text.strip():
            requirement = Requirement(text)
            version = str(requirement.specifier).removeprefix("==")
            one = Locked(version, requirement.marker, tuple(word.strip() for word in hashes))
            found.setdefault(canonicalize_name(requirement.name), []).append(one)
    return found


def read_wanted(path: Path) -> list[Requirement]:
    """What people asked for in a ``.in`` file, and in those that it includes."""
    wanted: list[Requirement] = []
    for line in path.read_text(encoding="utf-8").splitlines():
        text = line.partition("#")[0].strip()
        if text.startswith("-r "):
            wanted += read_wanted(path.parent / text[3:])
        elif text and not text.startswith("-c "):
            wanted.append(Requirement(text))
    return wanted


# ---- licences ----


def installed() -> dict[str, str]:
    """By name: the licence of what is installed in this environment."""
    command = [sys.executable, "-m", "piplicenses", "--from=mixed", "--format=json", "--with-system"]
    ended = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
    return {canonicalize_name(one["Name"]): spdx(one["License"]) for one in json.loads(ended.stdout)}


def spdx(words: str) -> str:
    """A licence as an SPDX expression, as far as we know one."""
    return WORDS.get(words) or " OR ".join(WORDS.get(one, one) for one in words.split("; "))


def is_allowed(expression: str) -> bool:
    """Whether each part of it is on the list; for a choice, whether one is."""
    return any(
        all(part in ALLOWED for part in choice.strip("() ").split(" AND ")) for choice in expression.split(" OR ")
    )


def written() -> dict[str, str]:
    """By name: what the document says."""
    rows = re.findall(r"^\| ([a-z0-9-]+) \| (.+?) \|$", LICENCES.read_text(encoding="utf-8"), re.MULTILINE)
    return {name: licence for name, licence in rows if name != "package"}


def tables() -> str:
    """The tables as they should be. What is not installed here, but with another Python, stays as it was written."""
    known = {**written(), **installed()}
    programs, tools = names(PROGRAMS), names(TOOLS)
    parts = []
    for title, group in (("The programs", programs), ("Beside them, to develop", tools - programs)):
        rows = [f"| {name} | {known.get(name, 'unknown')} |" for name in sorted(group)]
        parts.append("\n".join([f"### {title}", "", "| package | licence |", "|---|---|", *rows]))
    return "\n\n".join(parts) + "\n"


def names(lock: Path) -> set[str]:
    """What a lock installs on any of our Pythons and machines."""
    return {name for name, lines in read_lock(lock).items() if any(
        one.counts(*where) for one in lines for where in everywhere()
    )}  # fmt: skip


def write_licences() -> None:
    """All after the document's line ``## The list``."""
    head, mark, _ = LICENCES.read_text(encoding="utf-8").partition("## The list\n")
    LICENCES.write_text(f"{head}{mark}\n{tables()}", encoding="utf-8")


# ---- known flaws ----


def audit(locks: Sequence[Path], *more: str) -> tuple[list[str], str]:
    """Known flaws, a line each, and why not all was asked for, or ``""``. ``more`` are flags for pip-audit."""
    flaws: list[str] = []
    unknown = asked = 0
    for lock in locks:
        command = [sys.executable, "-m", "pip_audit", "--requirement", str(lock), "--require-hashes", "--disable-pip"]
        command += ["--format", "json", "--progress-spinner", "off", "--timeout", str(REPLY_S), *more]
        try:
            ended = subprocess.run(command, capture_output=True, text=True, check=False, timeout=AUDIT_S)
            found = json.loads(ended.stdout)["dependencies"]
        except (subprocess.TimeoutExpired, json.JSONDecodeError):  # it prints nothing when the service is not there
            return flaws, "the service that knows of flaws cannot be reached"
        asked += len(found)
        unknown += sum("skip_reason" in one for one in found)
        if unknown == asked:
            return flaws, "the service answers, and knows none of the packages: a mirror?"
        for one in found:
            for flaw in one.get("vulns", ()):
                mended = f", mended in {', '.join(flaw['fix_versions'])}" if flaw["fix_versions"] else ""
                flaws.append(f"{lock.relative_to(HOUSE)}: {one['name']} {one['version']}: {flaw['id']}{mended}")
    return flaws, f"the service does not know {unknown} of {asked} packages" if unknown else ""


def main(words: Sequence[str]) -> int:
    """Do what the word says; the exit status."""
    match words:
        case ["licences"]:
            write_licences()
            return 0
        case ["audit"]:
            flaws, why = audit((PIP, TOOLS, DEPLOY, RECIPE))
            for flaw in flaws:
                print(f"known flaw: {flaw}")
            print(f"not audited: {why}" if why else f"audited: {len(flaws)} known flaws")
            return 1 if flaws else 0
    print(__doc__, file=sys.stderr)
    return 2


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
