"""Archives that must not be unpacked: names that lead elsewhere, bombs, lies, and metadata that is none."""

from __future__ import annotations

import json
import os
import stat
import struct
import sys
import tempfile
import zipfile
import zlib
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dolmetsch import archive, packages, store
from dolmetsch.errors import PackageError
from tests.package_folders import METADATA, home, temporary, visible, whole, zip_package

__all__ = ["home", "whole"]  # fixtures


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
