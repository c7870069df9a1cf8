"""An ``.argosmodel`` of a stranger. Only ``PackageError`` leaves, in one line; nothing is written outside the folder it
is unpacked into, nothing but plain files and folders inside, and no more than the limits say.

An even first byte: the rest is the file. An odd one: the rest describes a zip (see ``_zip``), so that mutations reach
what lies behind the checksums.
"""

from __future__ import annotations

import json
import os
import shutil
import stat
import struct
import warnings
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from dolmetsch.archive import RATIO_FREE_BYTES, RATIO_MAX, unpack
from dolmetsch.errors import PackageError
from dolmetsch.packages import open_package
from fuzz.target import scratch

MOST_BYTES: Final = 4096
DESCRIBED: Final = 1
SEPARATOR: Final = b"\n\x00\n"
_METADATA: Final = json.dumps({"package_version": "1.0", "from_code": "de", "to_code": "en"}).encode()
_GOOD: Final = (
    (b"p/metadata.json", _METADATA), (b"p/sentencepiece.model", b"pieces"), (b"p/model/", b""),
    (b"p/model/model.bin", b"weights"),
)  # fmt: skip


def _extra(name: bytes, other: bytes) -> bytes:
    """The field by which a member of one name gets another (Info-ZIP's Unicode path)."""
    data = struct.pack("<BL", 1, zlib.crc32(name)) + other
    return struct.pack("<HH", 0x7075, len(data)) + data


TOKENS: Final = (
    SEPARATOR, b"../", b"/", b"\\", b"C:", b"\0", b"p/", b"P/", b"p/model", b"metadata.json", b"model.bin", b"..",
    b"\xff", b"\xc3\xa9", b"e\xcc\x81", b"\xe2\x80\xae", b"\xef\xbc\x8f", b"CON", b"A" * 201,
    b"PK\x01\x02", b"PK\x03\x04", b"PK\x05\x06", b"PK\x06\x06", b"PK\x06\x07", b"\xff" * 4, b"\xff" * 8,
    _extra(b"p/x", b"p/../../escaped"), _extra(b"p/x", b"p/../../../escaped"), b'{"type": 1}', b'"from_code": "../de"',
)  # fmt: skip


def _described(members: list[tuple[bytes, bytes, int, int, bytes]]) -> bytes:
    """Name, content, mode, flag bits and extra field of each, as ``_zip`` reads them."""
    parts = [
        bytes((len(name),)) + name + struct.pack("<HHB", mode, flags, len(extra)) + extra + content
        for name, content, mode, flags, extra in members
    ]
    return bytes((DESCRIBED,)) + SEPARATOR.join(parts)


def _zip(described: bytes) -> bytes:
    """The zip of a description: checksums and sizes are right, whatever the rest is. An odd flag bit 15 deflates."""
    body = directory = b""
    parts = described.split(SEPARATOR)[:600]
    for part in parts:
        length = part[0] if part else 0
        name, rest = part[1 : 1 + length], part[1 + length :].ljust(5, b"\0")
        mode, flags, extra_length = struct.unpack("<HHB", rest[:5])
        extra, content = rest[5 : 5 + extra_length], rest[5 + extra_length :]
        method, packed = 0, content
        if flags & 0x8000:
            packer = zlib.compressobj(9, zlib.DEFLATED, -15)
            method, packed = 8, packer.compress(content * 64) + packer.flush()
            content = content * 64
        common = struct.pack(
            "<HHHHLLLHH", flags & 0x0801, method, 0, 33, zlib.crc32(content), len(packed), len(content), len(name),
            len(extra),
        )  # fmt: skip
        directory += struct.pack("<4sHH", b"PK\x01\x02", 0x031E, 20) + common
        directory += struct.pack("<HHHLL", 0, 0, 0, mode << 16, len(body)) + name + extra
        body += struct.pack("<4sH", b"PK\x03\x04", 20) + common + name + extra + packed
    end = struct.pack("<4sHHHHLLH", b"PK\x05\x06", 0, 0, len(parts), len(parts), len(directory), len(body), 0)
    return body + directory + end


def seeds() -> list[bytes]:
    """A good package as bytes and described, and one of each kind of evil."""
    good = [(name, content, 0o100644, 0, b"") for name, content in _GOOD]
    evil = [
        (b"p/link", b"/etc", stat.S_IFLNK | 0o777, 0, b""),
        (b"p/../../escaped", b"x", 0, 0, b""),
        (b"p/x", b"x", 0, 0, _extra(b"p/x", b"p/../../escaped")),
        (b"p/Model/MODEL.BIN", b"x", 0, 0x8000, b""),
        (b"p/\xc3\xa9\0", b"x", stat.S_IFCHR, 0x0800, b""),
    ]
    return [bytes(1) + _zip(_described(good)[1:]), _described(good), *(_described([*good, one]) for one in evil)]


def check(data: bytes) -> None:
    if not data:
        return
    content = _zip(data[1:]) if data[0] & DESCRIBED else data[1:]
    place = scratch() / "archive"
    shutil.rmtree(place, ignore_errors=True)
    into = place / "into" / "deep"
    into.mkdir(parents=True)
    path = place / "a.argosmodel"
    path.write_bytes(content)
    with warnings.catch_warnings():  # zipfile wonders about names
        warnings.simplefilter("ignore")
        try:
            open_package(unpack(path, into))
        except PackageError as error:
            assert str(error).isprintable(), ascii(error)
    assert sorted(os.listdir(place)) == ["a.argosmodel", "into"] and os.listdir(place / "into") == ["deep"]
    size = 0
    for found in _below(into):
        kind = found.lstat()
        assert stat.S_ISREG(kind.st_mode) or stat.S_ISDIR(kind.st_mode), found
        size += kind.st_size if stat.S_ISREG(kind.st_mode) else 0
    assert size <= max(RATIO_FREE_BYTES, RATIO_MAX * len(content))


def _below(folder: Path) -> Iterator[Path]:
    for top, folders, files in os.walk(folder):
        yield from (Path(top) / name for name in [*folders, *files])
