"""A stage for the Discord gateway: a Discord of our own on loopback, a cluster, and the real bot between them."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from bench.cluster import Cluster
from tests.discord_server import DiscordServer

APPLICATION: Final = 1_100_000_000_000_000_000
START_S: Final = 20.0

_numbers = itertools.count(1)


class Stage:
    """``server`` is Discord; ``start_bot`` lets ``gateway_discord.py`` log in to it.

    ``cluster`` is the caller's to fill with a broker and nodes. Everything that was started is ended on exit.
    """

    def __init__(self, cluster: Cluster, folder: Path, **options: object) -> None:
        self.cluster = cluster
        self.token = DiscordServer.make_token(APPLICATION)
        self.state = folder / "discord.sqlite3"
        self.server = DiscordServer(token=self.token, application_id=APPLICATION, **options)
        self.bot = ""

    async def __aenter__(self) -> Self:
        await self.server.__aenter__()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with contextlib.suppress(KeyError):
            await self.end_bot()
        await self.server.__aexit__(kind, error, trace)

    async def start_bot(self, *arguments: str, ready: bool = True, **environment: str) -> None:
        """Start it and wait until it is ready; ``environment`` adds to the cluster's, in capitals."""
        self.bot = f"discord-{next(_numbers)}"  # never used before, so that its log is its own
        before = dict(self.cluster.environment)
        self.cluster.environment |= {
            "DISCORD_TOKEN": self.token,
            "DISCORD_API": self.server.api,
            "DISCORD_GATEWAY": self.server.gateway,
            "DOLMETSCH_DISCORD_STATE": str(self.state),
            **environment,
        }
        try:
            self.cluster.start(
                self.bot, "gateway_discord.py", "--broker", self.cluster.address, "--env", "/dev/null", *arguments
            )
        finally:
            self.cluster.environment = before
        if ready:
            seen = self.server.ready_count
            await self.server.until(lambda: self.server.ready_count > seen and " ready: " in self.log(), START_S)

    def log(self) -> str:
        """What the bot has said since it was started last."""
        return self.cluster.log(self.bot)

    def kill_bot(self) -> None:
        """As a power cut would."""
        self.cluster.kill(self.bot)

    async def end_bot(self) -> int:
        """As a person would (SIGTERM); its exit status."""
        return await asyncio.to_thread(self.cluster.end, self.bot)

    async def exit_status(self, within_s: float = START_S) -> int:
        """Wait until the bot ends by itself."""
        program = self.cluster.programs.pop(self.bot)
        return await asyncio.wait_for(asyncio.to_thread(program.wait, within_s), within_s + 1)
