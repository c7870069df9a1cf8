"""The documents: what they name is there."""

from __future__ import annotations

import re
from pathlib import Path

HOUSE = Path(__file__).parent.parent


def test_every_defence_has_its_test() -> None:
    named = re.findall(r"`(test_\w+)::(test_\w+)`", (HOUSE / "docs" / "security.md").read_text(encoding="utf-8"))
    assert len(named) > 30
    for file, test in named:
        assert f"def {test}(" in (HOUSE / "tests" / f"{file}.py").read_text(encoding="utf-8"), f"{file}::{test}"


def test_every_link_to_a_file_leads_to_one() -> None:
    for page in (HOUSE / "README.md", HOUSE / "deploy" / "README.md", *(HOUSE / "docs").glob("*.md")):
        for target in re.findall(r"\]\(([^)#:]+)\)", page.read_text(encoding="utf-8")):
            assert (page.parent / target).exists(), f"{page.name} -> {target}"
