"""An engine on the embedded model, for a test: texts, packages to copy, and what runs all that waits."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from dolmetsch.config import EngineConfig
from dolmetsch.engine import ArgosEngine, Batch, Engine, Outcome
from dolmetsch.packages import Package, open_package
from tests.embedded import GERMAN

ROUTE = "de→en"
SHORT = "Ich habe Hunger."
OTHER = "Wo ist der Bahnhof?"
LONG = "Wenn das Wetter morgen gut ist, gehen wir mit den Kindern in den Park und spielen dort bis zum Abend."
RUNAWAY = "haha" * 50

CopyPackage = Callable[..., Package]


@pytest.fixture
def package() -> Package:
    return open_package(GERMAN)


@pytest.fixture
def engine(package: Package) -> ArgosEngine:
    return ArgosEngine([package], EngineConfig())


@pytest.fixture
def copy_package(tmp_path: Path) -> CopyPackage:
    """Copies the embedded package under other language codes; its language stays German to English."""

    def copy(from_code: str, to_code: str, **metadata: str) -> Package:
        path = tmp_path / f"translate-{from_code}_{to_code}-1_0"
        shutil.copytree(GERMAN, path)
        known = json.loads((path / "metadata.json").read_text())
        known.update(from_code=from_code, to_code=to_code, **metadata)
        (path / "metadata.json").write_text(json.dumps(known))
        return open_package(path)

    return copy


def run(engine: Engine, batch: Batch) -> list[Outcome]:
    """Run ``batch``; the jobs that are complete now."""
    return engine.finish(batch, engine.run(batch))


def finish(engine: Engine) -> dict[bytes, Outcome]:
    """Run everything that waits; no job may end twice."""
    outcomes: dict[bytes, Outcome] = {}
    while batch := engine.next_batch():
        for outcome in run(engine, batch):
            assert outcome.key not in outcomes
            outcomes[outcome.key] = outcome
    assert engine.pending == 0
    return outcomes


def translate(engine: Engine, *texts: str) -> tuple[str, ...]:
    engine.submit(b"job", ROUTE, texts)
    outcome = finish(engine)[b"job"]
    assert outcome.texts is not None, outcome.detail
    return outcome.texts


def keys(batch: Batch | None) -> tuple[bytes, ...]:
    assert batch is not None
    return batch.keys
