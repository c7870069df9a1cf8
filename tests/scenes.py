"""Scenes for the whole Discord gateway: discord.py on a real WebSocket, a real broker, a node that translates."""

from __future__ import annotations

import asyncio
import json
import shutil
from collections.abc import Awaitable, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from bench.cluster import Cluster
from bench.stage import Stage
from tests.discord_server import Channel, Message
from tests.embedded import GERMAN

TAXI = "Rufen Sie bitte ein Taxi, sonst verpasse ich meinen Flug."
KEYS = "Weißt du, wo meine Schlüssel sind?"
HEADER = "🇩🇪➡️🇺🇸"

Scene = Callable[[Stage], Awaitable[None]]


@pytest.fixture(scope="module")
def packages(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The embedded package, and two more routes that are the same model under other names."""
    folder = tmp_path_factory.mktemp("packages")
    for first, second in (("de", "en"), ("en", "de"), ("en", "fr")):
        place = folder / f"translate-{first}_{second}-1_0"
        shutil.copytree(GERMAN, place)
        metadata = json.loads((place / "metadata.json").read_text())
        (place / "metadata.json").write_text(json.dumps({**metadata, "from_code": first, "to_code": second}))
    return folder


@pytest.fixture(scope="module")
def translating(tmp_path_factory: pytest.TempPathFactory, packages: Path) -> Iterator[Cluster]:
    """A cluster that translates, for all scenes that leave it as it is."""
    with Cluster(tmp_path_factory.mktemp("cluster")) as cluster:
        cluster.broker()
        cluster.node("node", "--packages", str(packages), "--max-workers", "1")
        cluster.wait_ready(1, 1)
        yield cluster


def play(scene: Scene, cluster: Cluster, folder: Path, within_s: float = 60.0, clean: bool = True) -> None:
    """Play ``scene`` before a new Discord; fails when the bot called something that Discord does not have.

    ``clean``: the bot's log must not say "error". Texts and the token are never in it.
    """

    async def whole() -> None:
        async with Stage(cluster, folder) as stage:
            try:
                await asyncio.wait_for(scene(stage), within_s)
            finally:
                print(stage.log() if stage.bot else "")  # pytest shows it when the scene failed
            assert list(stage.server.unknown) == []
            if stage.bot:
                assert "Traceback" not in stage.log()
                assert not clean or " error " not in stage.log()
                assert stage.token.split(".")[2] not in stage.log() and "Taxi" not in stage.log()

    asyncio.run(whole())


def replies_to(stage: Stage, message: Message, channel: Channel) -> list[Message]:
    return [one for one in stage.server.by_bot(channel) if one.reply_to == message.id]


async def answer(stage: Stage, message: Message, channel: Channel, within_s: float = 10.0) -> Message:
    """The only reply to ``message``."""
    await stage.server.until(lambda: bool(replies_to(stage, message, channel)), within_s)
    (reply,) = replies_to(stage, message, channel)
    return reply


def waiting(stage: Stage) -> int:
    """Jobs in the broker's queue. Asked in a thread, as the scene's own loop is running."""
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(stage.cluster.status).result().queued_interactive
