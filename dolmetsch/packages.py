"""Argos packages: find, verify, install, remove; the embedded default.

A package is a folder with ``metadata.json``, ``sentencepiece.model`` (or ``bpe.model``) and ``model/``
(CTranslate2). Three places are searched, in this order: dolmetsch's own folder, that of argostranslate, and
the ``models/`` folder that comes with dolmetsch. Each route uses the first it finds; within one place the
newest version.

An install is all or nothing. The archive is checked and unpacked into a temporary folder beside its final
place, the model is loaded and asked for one translation in a process of its own, then one rename puts it in
place; only then do other versions of the route go. What a killed install leaves behind is removed by the next
one.
"""

from __future__ import annotations

import argparse
import io
import json
import logging
import os
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import Final

if __name__ == "__main__":  # before the imports that need the environment
    from dolmetsch.bootstrap import in_venv

    in_venv()

from dolmetsch import store
from dolmetsch.archive import IMPORT_ROOT, Metadata, check_loads, read_metadata, unpack
from dolmetsch.download import DEFAULT_INDEX, Say, fetch, forget, read_index
from dolmetsch.errors import PackageError

EMBEDDED: Final = IMPORT_ROOT / "models"
SHORTLIST: Final = "vmap.txt"  # CTranslate2's name for which target pieces a source piece may become
DIGEST_BYTES: Final = 1 << 20  # read from each end of model.bin for model_version, and from the start of a shortlist

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Package:
    """One package on disk whose structure has been checked; made by ``open_package``.

    ``model_version`` is a short, stable identity of the weights ("de_en-1.0-1f2e3d4c"), the same on every
    machine that has the same package. It is taken when the package is opened: a later install does not change
    it.
    """

    path: Path
    from_code: str
    to_code: str
    from_name: str
    to_name: str
    version: str
    target_prefix: str
    embedded: bool
    model_version: str

    @property
    def route(self) -> str:
        return f"{self.from_code}→{self.to_code}"

    @property
    def model_path(self) -> Path:
        return self.path / "model"

    @property
    def uses_bpe(self) -> bool:
        """True where there is only ``bpe.model``; ``sentencepiece.model`` wins where both are there."""
        return not (self.path / "sentencepiece.model").is_file()

    @property
    def tokenizer_path(self) -> Path:
        return self.path / ("bpe.model" if self.uses_bpe else "sentencepiece.model")

    @property
    def size_bytes(self) -> int:
        return sum(file.stat().st_size for file in self.path.rglob("*") if file.is_file())


# --- finding ----------------------------------------------------------------------------


def data_dir() -> Path:
    """Where packages are installed: DOLMETSCH_PACKAGES, else the user's data folder. It need not exist."""
    chosen = os.environ.get("DOLMETSCH_PACKAGES")
    if chosen:
        return Path(chosen).expanduser().absolute()
    import platformdirs  # here: a child that is told its folders has no use for it

    return platformdirs.user_data_path("dolmetsch", appauthor=False) / "packages"


def argos_dir() -> Path:
    """Where argostranslate installs packages: ARGOS_PACKAGES_DIR, else in XDG_DATA_HOME or ~/.local/share."""
    chosen = os.environ.get("ARGOS_PACKAGES_DIR")
    if chosen:
        return Path(chosen).expanduser()
    data_home = os.environ.get("XDG_DATA_HOME") or "~/.local/share"
    return Path(data_home).expanduser() / "argos-translate" / "packages"


def every_package(search: Sequence[Path] | None = None) -> list[Package]:
    """All whole packages in the folders ``search``, the preferred one of each route before those it shadows.

    A broken one is skipped with one warning. None: dolmetsch's folder, argostranslate's, the embedded one.
    """
    found = []
    for folder in (data_dir(), argos_dir(), EMBEDDED) if search is None else search:
        packages = [package for path in _subfolders(folder) if (package := _open_or_warn(path))]
        found += sorted(packages, key=_age, reverse=True)
    found.sort(key=lambda package: (package.from_code, package.to_code))  # stable: keeps the order of places
    return found


def find_packages(search: Sequence[Path] | None = None) -> list[Package]:
    """The package each route uses, sorted by route; places and order as in ``every_package``."""
    preferred: dict[str, Package] = {}
    for package in every_package(search):
        preferred.setdefault(package.route, package)
    return list(preferred.values())


def open_package(path: Path) -> Package:
    """Check the structure of the package in ``path``, without loading it. Raises ``PackageError``."""
    metadata = read_metadata(path / "metadata.json")
    if metadata.type != "translate":
        raise PackageError(f"{path} is a package of the type {metadata.type!r}, not 'translate'")
    if not any((path / name).is_file() for name in ("sentencepiece.model", "bpe.model")):
        raise PackageError(f"{path} has no sentencepiece.model and no bpe.model")
    try:
        model_version = _model_version(path, metadata)
    except OSError as error:
        raise PackageError(f"{path} has no model/model.bin that can be read ({error.strerror})") from error
    return Package(
        path=path,
        from_code=metadata.from_code,
        to_code=metadata.to_code,
        from_name=metadata.from_name or metadata.from_code,
        to_name=metadata.to_name or metadata.to_code,
        version=metadata.package_version,
        target_prefix=metadata.target_prefix,
        embedded=path.resolve().parent == EMBEDDED,
        model_version=model_version,
    )


def _model_version(path: Path, metadata: Metadata) -> str:
    weights = path / "model" / "model.bin"
    size = weights.stat().st_size
    if not size:
        raise PackageError(f"{weights} is empty")
    digest = blake2b((path / "metadata.json").read_bytes(), digest_size=4)
    digest.update(str(size).encode())
    with weights.open("rb") as file:
        digest.update(file.read(DIGEST_BYTES))
        file.seek(max(0, size - DIGEST_BYTES))
        digest.update(file.read(DIGEST_BYTES))
    shortlist = path / "model" / SHORTLIST
    if shortlist.is_file():
        with shortlist.open("rb") as file:
            digest.update(file.read(DIGEST_BYTES))
    return f"{metadata.from_code}_{metadata.to_code}-{metadata.package_version}-{digest.hexdigest()}"


def _subfolders(folder: Path) -> list[Path]:
    try:
        return sorted(path for path in folder.iterdir() if path.is_dir() and not _is_other(path))
    except FileNotFoundError:
        return []
    except OSError as error:
        log.warning("%s cannot be searched for packages: %s", folder, error.strerror)
        return []


def _is_other(path: Path) -> bool:
    """Whether a folder is not meant to be a package: the store's own, and what the embedded ones are made from."""
    return path.name.startswith(".") or path in (EMBEDDED / "phrases", EMBEDDED / "recipe")


def _open_or_warn(path: Path) -> Package | None:
    try:
        return open_package(path)
    except PackageError as error:
        log.warning("skipped: %s", error)
        return None


def _age(package: Package) -> tuple[list[int], float]:
    try:
        changed = package.path.stat().st_mtime
    except OSError:  # removed this moment
        changed = 0.0
    # The time decides when an install was killed before it removed the folder that it replaced.
    return _version_key(package.version), changed


def _version_key(version: str) -> list[int]:
    numbers = [int(number) for number in re.findall(r"\d+", version)]
    while len(numbers) > 1 and numbers[-1] == 0:
        numbers.pop()  # 1.0 is 1
    return numbers


# --- installing and removing ------------------------------------------------------------


def _silent(text: str) -> None:
    """The default of ``progress``."""


def install(
    from_code: str,
    to_code: str,
    index_url: str | None = None,
    *,
    progress: Say = _silent,
    bar: bool = False,
) -> Package:
    """Download the newest package of a route and install it, unless it or a newer one is installed already.

    ``index_url`` None: DOLMETSCH_INDEX, else the official index. ``progress`` gets one line for each step,
    ``bar`` shows a bar on a terminal's stderr. Raises ``PackageError``; then no package has changed.
    """
    index_url = index_url or os.environ.get("DOLMETSCH_INDEX") or DEFAULT_INDEX
    folder = data_dir()
    with store.locked(folder):
        wanted = _choose(read_index(index_url, progress), from_code, to_code, index_url)
        newest = _version_key(wanted.package_version)
        for package in find_packages([folder]):
            if _codes(package) == (from_code, to_code) and _version_key(package.version) >= newest:
                progress(f"{package.route} {package.version} was installed before")
                return package
        progress(f"downloading {from_code}→{to_code} {wanted.package_version}")
        archive = fetch(wanted.links, folder / store.DOWNLOADS, progress, bar=bar)
        try:
            package = _install(archive, folder, progress, expected=(from_code, to_code))
        except PackageError:
            forget(archive)  # a bad file is not resumed; after Ctrl-C a good one is still there
            raise
        forget(archive)
        return package


def install_file(path: Path, progress: Say = _silent) -> Package:
    """Install the package in the ``.argosmodel`` file ``path``, in place of any other of its route.

    Raises ``PackageError``; then no package has changed.
    """
    if not path.is_file():
        raise PackageError(f"there is no file {path}; from the index, give two codes: install de en")
    folder = data_dir()
    with store.locked(folder):
        return _install(path, folder, progress)


def remove(from_code: str, to_code: str) -> Path:
    """Remove what dolmetsch installed for a route and return where it was. Raises ``PackageError``."""
    folder = data_dir()
    with store.locked(folder):
        installed = _folders_of(folder, from_code, to_code)
        for path in installed:
            store.discard(path)
    if installed:
        return installed[0]
    others = [package.path for package in find_packages() if _codes(package) == (from_code, to_code)]
    where = f"; the one in {others[0]} is not dolmetsch's to remove" if others else ""
    raise PackageError(f"no package {from_code}→{to_code} is installed in {folder}{where}")


def _choose(index: Sequence[Metadata], from_code: str, to_code: str, index_url: str) -> Metadata:
    wanted = [entry for entry in index if (entry.from_code, entry.to_code) == (from_code, to_code)]
    if wanted:
        return max(wanted, key=lambda entry: _version_key(entry.package_version))
    targets = sorted({entry.to_code for entry in index if entry.from_code == from_code})[:40]
    known = f"from {from_code} it has: {', '.join(targets)}" if targets else f"it has none from {from_code}"
    raise PackageError(f"the index {index_url} has no package {from_code}→{to_code}; {known}")


def _install(archive: Path, folder: Path, progress: Say, expected: tuple[str, str] | None = None) -> Package:
    with store.temporary(folder) as temporary:
        progress(f"unpacking {archive.stat().st_size / 1e6:.1f} MB")
        package = open_package(unpack(archive, Path(temporary)))
        if expected and _codes(package) != expected:
            raise PackageError(f"the index promised {'→'.join(expected)}, its link gave {package.route}")
        progress(f"loading {package.route} {package.version} once")
        check_loads(package.path)
        replaced = _folders_of(folder, *_codes(package))
        name = _stem(*_codes(package)) + package.version.replace(".", "_")
        place = store.put(package.path, folder, name)
    for path in replaced:
        store.discard(path)
    return open_package(place)


def _codes(package: Package) -> tuple[str, str]:
    return package.from_code, package.to_code


def _stem(from_code: str, to_code: str) -> str:
    """The folder's name up to the version; a code's own hyphen would make two routes look alike."""
    return f"translate-{from_code.replace('-', '_')}_{to_code.replace('-', '_')}-"


def _folders_of(folder: Path, from_code: str, to_code: str) -> list[Path]:
    """Folders of one route, also the broken ones that carry its name."""
    found = []
    for path in _subfolders(folder):
        try:
            belongs = _codes(open_package(path)) == (from_code, to_code)
        except PackageError:
            belongs = path.name.startswith(_stem(from_code, to_code))
        if belongs:
            found.append(path)
    return found


# --- the command ------------------------------------------------------------------------


def _row(package: Package, used: Sequence[Package]) -> dict[str, str | int]:
    installed = package.path.parent == data_dir()
    return {
        "route": package.route,
        "version": package.version,
        "size_bytes": package.size_bytes,
        "kind": "embedded" if package.embedded else "installed" if installed else "argostranslate",
        "state": "used" if package in used else "shadowed",
        "where": str(package.path),
    }


def _list(as_json: bool) -> None:
    used = find_packages()
    rows = [_row(package, used) for package in every_package()]
    if as_json:
        print(json.dumps(rows, ensure_ascii=False, indent=1))
        return
    table = [["route", "version", "MB", "kind", "state", "where"]]
    for row in rows:
        megabytes = f"{int(row['size_bytes']) / 1e6:.1f}"
        line = {key: str(value) for key, value in row.items()} | {"MB": megabytes}
        table.append([line[key] for key in table[0]])
    widths = [max(len(cells[column]) for cells in table) for column in range(len(table[0]))]
    for cells in table:
        print("  ".join(cell.ljust(width) for cell, width in zip(cells, widths, strict=True)).rstrip())


def _tell(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _run(arguments: argparse.Namespace) -> None:
    match arguments.command:
        case "list":
            _list(arguments.json)
        case "install":
            if len(arguments.what) == 1:
                package = install_file(Path(arguments.what[0]), _tell)
            else:
                from_code, to_code = arguments.what
                package = install(from_code, to_code, arguments.index, progress=_tell, bar=True)
            what = f"{package.route} {package.version}"
            print(f"{what} is installed in {package.path}; nodes pick it up at their next start")
        case "remove":
            codes = (arguments.from_code, arguments.to_code)
            path = remove(*codes)
            left = [package.path for package in find_packages() if _codes(package) == codes]
            then = f"use {left[0]}" if left else f"no longer translate {'→'.join(codes)}"
            print(f"{path} is removed; from their next start nodes {then}")
        case "verify":
            for package in find_packages():
                check_loads(package.path)
                print(f"{package.route} {package.version} loads and translates ({package.path})")


def main(argv: Sequence[str] | None = None) -> int:
    """The command ``python -m dolmetsch.packages``; exit status 0, 1 (``PackageError``) or 130 (Ctrl-C)."""
    parser = argparse.ArgumentParser(
        prog="python -m dolmetsch.packages", description="The Argos packages of this machine."
    )
    commands = parser.add_subparsers(dest="command", required=True)
    listing = commands.add_parser("list", help="what is here, and which package each route uses")
    listing.add_argument("--json", action="store_true", help="for programs")
    adding = commands.add_parser("install", help="install a route from the index, or a file")
    adding.add_argument("what", nargs="+", metavar="CODE|FILE", help="two codes (de en), or one .argosmodel file")
    adding.add_argument("--index", metavar="URL", help="default: DOLMETSCH_INDEX, else the official index")
    removing = commands.add_parser("remove", help="remove an installed package")
    removing.add_argument("from_code", metavar="de")
    removing.add_argument("to_code", metavar="en")
    commands.add_parser("verify", help="load every package in use and let it translate")
    arguments = parser.parse_args(argv)
    if arguments.command == "install" and len(arguments.what) != 2 and (arguments.index or arguments.what[1:]):
        parser.error("install takes two codes, which --index may go with, or one file")
    logging.basicConfig(format="%(message)s")
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # the arrow of a route, where there is no Unicode
    try:
        _run(arguments)
    except PackageError as error:
        _tell(f"error: {error}")
        return 1
    except KeyboardInterrupt:
        _tell("stopped; the same command continues a download where it was")
        return 130
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
