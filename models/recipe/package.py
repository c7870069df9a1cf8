"""From CTranslate2's files to an Argos package, with its card."""

from __future__ import annotations

import json
import re
import shutil
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from models.recipe.evaluate import Scores, table

LANGUAGES: Final = {
    "de": "German", "en": "English", "fr": "French", "es": "Spanish", "it": "Italian", "nl": "Dutch", "pl": "Polish",
    "pt": "Portuguese", "ru": "Russian", "tr": "Turkish", "uk": "Ukrainian",
}  # fmt: skip

# By what a corpus file's name begins with. Who passes the package on passes these on.
CREDITS: Final = {
    "tatoeba": "The sentence pairs of [Tatoeba](https://tatoeba.org) and its contributors, as prepared by "
    "[manythings.org](https://www.manythings.org/anki/): licence "
    "[CC BY 2.0 FR](https://creativecommons.org/licenses/by/2.0/fr/).",
    "europarl": "Europarl: Philipp Koehn, *Europarl: A Parallel Corpus for Statistical Machine Translation*, "
    "MT Summit 2005.",
    "phrases": "Phrases that were made up for this project, with the help of a large language model "
    "(`models/phrases/`).",
}
BEGUN_FROM: Final = "By way of the weights that training began with,"


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """What the card says of how a package was made."""

    from_code: str
    to_code: str
    version: str
    architecture: str
    training: str
    data: str
    credits: tuple[str, ...]

    @property
    def name(self) -> str:
        """The package's folder."""
        return f"translate-{self.from_code}_{self.to_code}-{self.version.replace('.', '_')}"

    @property
    def route(self) -> str:
        return f"{language(self.from_code)} → {language(self.to_code)}"


def language(code: str) -> str:
    return LANGUAGES.get(code, code)


def credits_of(corpora: Sequence[Path], given: Sequence[str]) -> tuple[str, ...]:
    """What is due for ``corpora``; ``given`` comes from the user. Says so where nothing is known."""
    found = list(given)
    for path in corpora:
        known = [credit for start, credit in CREDITS.items() if path.name.lower().startswith(start)]
        if not known and not given:
            known = [f"{path.name}: write its origin and licence here before this is passed on."]
        found += known
    return tuple(dict.fromkeys(found))


def credits_in(path: Path) -> tuple[str, ...]:
    """What the card of the package in ``path`` gives credit to: what is made from its weights owes it too."""
    card = path / "README.md"
    section = re.search(
        r"^## Data.*?$(.*?)(?=^## |\Z)", card.read_text(encoding="utf-8") if card.exists() else "", re.M | re.S
    )
    items = re.findall(r"^- (.+(?:\n  .+)*)", section[1], re.M) if section else []
    if not items:
        return (f"{BEGUN_FROM} {path.name}: write here what that was made from.",)
    found = [" ".join(item.split()) for item in items]
    known = (*CREDITS.values(), f"{BEGUN_FROM} ")
    return tuple(item if item.startswith(known) else f"{BEGUN_FROM} {path.name}: {item}" for item in found)


def write_package(folder: Path, model: Path, pieces: Path, facts: Facts) -> Path:
    """Put together ``folder``/NAME, in place of one that is there; returns it. The card comes later."""
    path = folder / facts.name
    shutil.rmtree(path, ignore_errors=True)
    path.mkdir(parents=True)
    shutil.copytree(model, path / "model")
    shutil.copyfile(pieces, path / "sentencepiece.model")
    metadata = {
        "package_version": facts.version,
        "argos_version": "1.9",
        "type": "translate",
        "from_code": facts.from_code,
        "from_name": language(facts.from_code),
        "to_code": facts.to_code,
        "to_name": language(facts.to_code),
        "code": f"translate-{facts.from_code}_{facts.to_code}",
        "links": [],
    }
    (path / "metadata.json").write_text(json.dumps(metadata, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
    return path


def card(facts: Facts, scores: Scores | None, examples: Sequence[tuple[str, str]]) -> str:
    """The package's README.md."""
    lines = [
        f"# Model card: {facts.name}, {facts.route}",
        "",
        "An Argos package: `metadata.json`, `sentencepiece.model` and `model/` (CTranslate2, int8), made by",
        "`python -m models.recipe train`.",
        "",
        "## Architecture and training",
        "",
        f"- {facts.architecture}",
        "- The decoder starts from `<s>`. The source ends with `</s>`, which CTranslate2 adds by itself.",
        f"- {facts.training}",
        f"- {facts.data}",
        "",
        "## Data, licence and attribution",
        "",
        *(f"- {credit}" for credit in facts.credits),
        "",
        "Who passes this package on keeps this attribution with it.",
    ]
    if scores:
        lines += ["", "## Scores and speed", "", table([scores]), ""]
        lines += [
            f"`{scores.signatures[0]}`  ",
            f"`{scores.signatures[1]}`  ",
            "By `python -m models.recipe evaluate`.",
        ]
    if examples:
        lines += ["", "## Examples: the first sentences of the validation file", ""]
        lines += [f"| {language(facts.from_code)} | as this model gives it |", "|---|---|"]
        lines += [f"| {source} | {target} |" for source, target in examples]
    return "\n".join([*lines, ""])


def archive(path: Path) -> Path:
    """Zip the package in ``path`` as ``.argosmodel`` beside it; returns that file."""
    target = path.with_name(f"{path.name}.argosmodel")
    with zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED) as zipped:
        for file in sorted(file for file in path.rglob("*") if file.is_file()):
            zipped.write(file, file.relative_to(path.parent))
    return target
