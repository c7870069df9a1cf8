"""From a stranger's archive to a folder that is known to load. Nothing in it is trusted.

An ``.argosmodel`` is a zip with one top folder, as Argos Translate defines it. Its names, sizes and kinds are
checked before a byte is written, its metadata when it is read, its weights by loading them in a process of
its own.

ctranslate2 and sentencepiece are imported inside ``_translate_once``, the only function that needs them: a
node's child sets its thread count and core before CTranslate2 is loaded.
"""

from __future__ import annotations

import mmap
import os
import shutil
import stat
import subprocess
import sys
import unicodedata
import zipfile
import zlib
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import Annotated, Final

import msgspec
from msgspec import Meta, Struct

from dolmetsch.errors import PackageError
from dolmetsch.store import require_space

METADATA_MAX_BYTES: Final = 64 << 10
ARCHIVE_MAX_BYTES: Final = 1 << 30  # official packages have 50 to 300 MB
UNPACKED_MAX_BYTES: Final = 2 << 30
MEMBER_MAX_BYTES: Final = 3 << 29  # 1.5 GiB: leaves room beside model.bin in UNPACKED_MAX_BYTES
MEMBERS_MAX: Final = 512
RATIO_MAX: Final = 50  # unpacked by packed; weights deflate to some 90 %, vocabularies to a quarter
RATIO_FREE_BYTES: Final = 1 << 20  # below this size a high ratio does no harm
NAME_MAX_BYTES: Final = 200  # of one part of a path; file systems end at 255
DEPTH_MAX: Final = 8
LOCAL_HEADER_BYTES: Final = 30  # at least, in front of each member's bytes
CHUNK_BYTES: Final = 64 << 10
LOAD_LIMIT_S: Final = 120.0  # a Pi reads 300 MB from a slow card in some 30 s
IMPORT_ROOT: Final = Path(__file__).resolve().parent.parent

Code = Annotated[str, Meta(pattern=r"\A[A-Za-z]{2,8}([-_][A-Za-z0-9]{1,8}){0,3}\Z")]
Version = Annotated[str, Meta(pattern=r"\A[0-9][0-9A-Za-z.+-]{0,31}\Z")]
Label = Annotated[str, Meta(max_length=64, pattern=r"\A[^\x00-\x1f\x7f-\x9f]*\Z")]


class Metadata(Struct, frozen=True, kw_only=True):
    """``metadata.json`` of a package, and one entry of the index; fields not used here are ignored."""

    package_version: Version
    from_code: Code
    to_code: Code
    from_name: Label = ""
    to_name: Label = ""
    type: Label = "translate"
    target_prefix: Label = ""
    links: list[str] = []


class _Unsafe(Exception):
    """Raised when an archive holds something that no package needs; its text says what."""


def read_metadata(path: Path) -> Metadata:
    """Metadata of the package in ``path`` (a file). Raises ``PackageError``."""
    try:
        with path.open("rb") as file:
            data = file.read(METADATA_MAX_BYTES + 1)
    except OSError as error:
        raise PackageError(f"{path.parent} is not an Argos package: no metadata.json") from error
    if len(data) > METADATA_MAX_BYTES:
        raise PackageError(f"{path} is larger than {METADATA_MAX_BYTES} bytes")
    try:
        return msgspec.json.decode(data, type=Metadata)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise PackageError(f"{path} is not package metadata: {one_line(error)}") from error


def unpack(archive: Path, into: Path) -> Path:
    """Unpack ``archive`` into the empty folder ``into``; returns its top folder. Raises ``PackageError``."""
    try:
        _check_count(archive)
        with zipfile.ZipFile(archive) as zipped:
            members = zipped.infolist()
            top = _check_members(members, archive.stat().st_size)
            require_space(into, sum(member.file_size for member in members))
            for member in members:
                _extract(zipped, member, into)
    except _Unsafe as error:
        raise PackageError(f"{archive.name} is not safe to unpack: {error}") from error
    except (zipfile.BadZipFile, zlib.error, EOFError, ValueError, RuntimeError) as error:
        raise PackageError(f"{archive.name} is not a whole .argosmodel archive: {one_line(error)}") from error
    return into / top


def _check_count(archive: Path) -> None:
    """Count the members in the raw bytes: zipfile makes an object of each before it can be asked."""
    if not 0 < archive.stat().st_size <= ARCHIVE_MAX_BYTES:
        raise _Unsafe(f"it is empty or larger than {ARCHIVE_MAX_BYTES} bytes")
    with archive.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        at = -1
        for _ in range(MEMBERS_MAX + 1):
            at = data.find(b"PK\x01\x02", at + 1)
            if at < 0:
                return
    raise _Unsafe(f"it has more than {MEMBERS_MAX} members")


def _check_members(members: Sequence[zipfile.ZipInfo], archive_bytes: int) -> str:
    """Refuse names that leave the folder, links, bombs; return the one top folder's name."""
    for member in members:
        _check_member(member)
    if any(not 0 <= member.header_offset < archive_bytes for member in members):
        raise _Unsafe("its directory points outside it")
    names = [_folded(member) for member in members]
    if len(set(names)) != len(names):
        raise _Unsafe("a name occurs twice in it, if only in other letters")
    files = {_folded(member) for member in members if not member.is_dir()}
    if any(str(parent) in files for name in names for parent in PurePosixPath(name).parents):
        raise _Unsafe("a name in it is both a file and a folder")
    total = sum(member.file_size for member in members)
    if total > UNPACKED_MAX_BYTES:
        raise _Unsafe(f"it unpacks to more than {UNPACKED_MAX_BYTES} bytes")
    if _is_bomb(total, archive_bytes):
        raise _Unsafe(f"it unpacks to more than {RATIO_MAX} times its size")
    _check_apart(members)
    tops = {member.filename.split("/")[0] for member in members}
    if len(tops) != 1 or not any("/" in name for name in names):
        raise _Unsafe("it has not exactly one top folder")
    return tops.pop()


def _folded(member: zipfile.ZipInfo) -> str:
    """Its name as a file system sees it that knows no capitals, or takes ``é`` for ``e`` with an accent."""
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", member.filename.rstrip("/")).casefold())


def _check_apart(members: Sequence[zipfile.ZipInfo]) -> None:
    """No byte of the archive may be part of two members: that is how bombs are folded."""
    end = 0
    for member in sorted(members, key=lambda one: one.header_offset):
        if member.header_offset < end:
            raise _Unsafe("its members lie over each other")
        end = member.header_offset + LOCAL_HEADER_BYTES + member.compress_size


def _check_member(member: zipfile.ZipInfo) -> None:
    name = member.orig_filename
    parts = name.removesuffix("/").split("/")
    if any(part in ("", ".", "..") or len(part.encode()) > NAME_MAX_BYTES for part in parts) or name.startswith("."):
        raise _Unsafe(f"the name {name[:80]!r} does not stay in its folder")
    # Since Python 3.12 an extra field (0x7075) may give ``filename`` another name than the one that is looked at here.
    if "\\" in name or ":" in name or not name.isprintable() or len(parts) > DEPTH_MAX or member.filename != name:
        raise _Unsafe(f"the name {name[:80]!r} is not a plain one")
    mode = member.external_attr >> 16
    if stat.S_IFMT(mode) not in (0, stat.S_IFREG, stat.S_IFDIR):
        raise _Unsafe(f"{name[:80]!r} is a link or a special file")
    if member.flag_bits & 0x1:
        raise _Unsafe(f"{name[:80]!r} is encrypted")
    if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise _Unsafe(f"{name[:80]!r} is neither stored nor deflated")
    if member.file_size > MEMBER_MAX_BYTES:
        raise _Unsafe(f"{name[:80]!r} is larger than {MEMBER_MAX_BYTES} bytes")
    if _is_bomb(member.file_size, member.compress_size):
        raise _Unsafe(f"{name[:80]!r} unpacks to more than {RATIO_MAX} times its size")


def _is_bomb(unpacked_bytes: int, packed_bytes: int) -> bool:
    return unpacked_bytes > RATIO_FREE_BYTES and unpacked_bytes > RATIO_MAX * packed_bytes


def _extract(zipped: zipfile.ZipFile, member: zipfile.ZipInfo, into: Path) -> None:
    """Write one member; zipfile itself stops at the declared size and checks the CRC."""
    target = into / member.filename
    if member.is_dir():
        target.mkdir(parents=True, exist_ok=True)
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    with zipped.open(member) as source, target.open("xb") as file:
        shutil.copyfileobj(source, file, CHUNK_BYTES)
        if file.tell() != member.file_size:  # zipfile minds one that is longer, not one that is shorter
            raise zipfile.BadZipFile(f"{target.name} ends early")
        file.flush()
        os.fsync(file.fileno())  # a Pi loses power: the rename that follows must not outlive the bytes


def check_loads(folder: Path) -> None:
    """Load the package in ``folder`` in a process of its own and let it translate. Raises ``PackageError``.

    CTranslate2 is native code and the file is a stranger's: a crash there must not be one here.
    """
    code = "import sys; from dolmetsch.archive import _translate_once; _translate_once(sys.argv[1])"
    search_path = os.pathsep.join(filter(None, (str(IMPORT_ROOT), os.environ.get("PYTHONPATH"))))
    try:
        subprocess.run(
            [sys.executable, "-c", code, str(folder.absolute())],
            env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": search_path},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=LOAD_LIMIT_S,
            check=True,
        )
    except subprocess.TimeoutExpired as error:
        raise PackageError(f"{folder.name} did not load within {LOAD_LIMIT_S:g} s") from error
    except subprocess.CalledProcessError as error:
        lines = error.stderr.strip().splitlines() or [f"the process ended with status {error.returncode}"]
        raise PackageError(f"{folder.name} does not load: {lines[-1][:200]}") from error


def _translate_once(folder: str) -> None:
    """The process of ``check_loads``: ends well, or with a traceback whose last line is the reason."""
    import ctranslate2
    from sentencepiece import SentencePieceProcessor

    path = Path(folder)
    pieces = path / "sentencepiece.model"
    if pieces.is_file():
        tokenizer = SentencePieceProcessor(model_file=str(pieces))
        tokens = tokenizer.encode("Guten Tag, hello, 1 2 3.", out_type=str)
    else:  # the first merge in the file makes a piece that the model knows
        merges = (path / "bpe.model").read_text(encoding="utf-8").splitlines()
        first = next(line for line in merges if line and not line.startswith("#version"))
        tokens = ["".join(first.split()).removesuffix("</w>")]
    translator = ctranslate2.Translator(str(path / "model"), device="cpu", inter_threads=1, intra_threads=1)
    target_prefix = read_metadata(path / "metadata.json").target_prefix
    prefix = [[target_prefix]] if target_prefix else None
    translator.translate_batch([tokens], target_prefix=prefix, beam_size=1, max_decoding_length=16)


def one_line(error: BaseException) -> str:
    """What a library's exception says, short and without line breaks."""
    return " ".join(str(error).split())[:200] or type(error).__name__
