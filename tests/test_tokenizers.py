"""Tokenizers: byte pairs that are merged, and a whole package that uses them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from dolmetsch.config import EngineConfig
from dolmetsch.engine import ArgosEngine
from dolmetsch.errors import PackageError
from dolmetsch.packages import open_package
from dolmetsch.tokenizer import BpeTokenizer, Merges
from tests.engines import SHORT, CopyPackage, copy_package, translate

__all__ = ["copy_package"]  # fixtures

MERGES = "#version: 0.2\nl o\nlo w</w>\ne r</w>\nn e\nne w\nl o\n"


def test_merges_are_applied_lowest_rank_first(tmp_path: Path) -> None:
    path = tmp_path / "bpe.model"
    path.write_text(MERGES)
    merges = Merges.read(path)
    assert merges.split("low") == ("low",)
    assert merges.split("lower") == ("lo@@", "w@@", "er")
    assert merges.split("newer") == ("new@@", "er")
    assert merges.split("lolo") == ("lo@@", "l@@", "o")  # "o</w>" is not "o"
    assert merges.split("x") == ("x",)


def test_the_first_format_has_an_end_mark_of_its_own(tmp_path: Path) -> None:
    path = tmp_path / "bpe.model"
    path.write_text("l o\nlo w\nlow </w>\ne r\n")
    merges = Merges.read(path)
    assert merges.split("low") == ("low",)
    assert merges.split("lower") == ("low@@", "er")
    assert merges.split("lolo") == ("lo@@", "lo")


@pytest.mark.parametrize("content", ["#version: 9.9\na b\n", "a b c\n", "\udcff"])
def test_a_bad_list_of_merges_is_refused(tmp_path: Path, content: str) -> None:
    path = tmp_path / "bpe.model"
    path.write_bytes(content.encode("utf-8", "surrogateescape"))
    with pytest.raises(PackageError, match=r"bpe\.model"):
        Merges.read(path)


def test_bpe_tokens_come_back_as_the_sentence(tmp_path: Path) -> None:
    path = tmp_path / "bpe.model"
    path.write_text(MERGES)
    tokenizer = BpeTokenizer(path, "en", "en")
    sentences = ["The lower, newer one (it's low) costs 3.50!", 'Tom & Mary said "no" twice.']
    rows = tokenizer.encode(sentences)
    assert rows[0][rows[0].index("new@@") :][:2] == ["new@@", "er"]
    assert rows[1][3:6] == ["&@@", "a@@", "m@@"]  # Moses writes & as an entity
    assert tokenizer.decode(rows) == sentences
    assert [tokenizer.starts_word(["a@@", "b", "c"], at) for at in range(3)] == [True, False, True]


def test_a_bpe_package_translates(copy_package: CopyPackage) -> None:
    """The embedded model with its vocabulary written as BPE tokens: nonsense as language, complete as code."""
    package = copy_package("de", "en")
    vocabulary = package.path / "model" / "shared_vocabulary.json"
    pieces = json.loads(vocabulary.read_text())
    renamed = [
        piece if piece.startswith("<") else "_" if piece == "▁" else piece[1:] if piece[0] == "▁" else f"{piece}@@"
        for piece in pieces
    ]
    vocabulary.write_text(json.dumps(renamed))
    (package.path / "sentencepiece.model").unlink()
    (package.path / "bpe.model").write_text("#version: 0.2\nH u\nHu n\n")
    engine = ArgosEngine([open_package(package.path)], EngineConfig())
    (out,) = translate(engine, f"{SHORT} <@42>")
    assert out.endswith(" <@42>")
    assert "@@" not in out and "▁" not in out
