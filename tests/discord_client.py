"""The real discord.py client on the small Discord, for a test: it writes down what it is told."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import discord
import discord.gateway
import discord.http
import yarl
from discord import app_commands

from tests.discord_server import DiscordServer

APPLICATION = 1_234_567_890_123_456_789
TOKEN = DiscordServer.make_token(APPLICATION)
DEADLINE_S = 15.0

Story = Callable[["Bot", DiscordServer], Awaitable[None]]


class Bot(discord.Client):
    """A client that writes down what it is told."""

    def __init__(self, intents: discord.Intents) -> None:
        super().__init__(intents=intents, guild_ready_timeout=0.05, max_messages=100)
        self.tree = app_commands.CommandTree(self)
        self.seen: list[tuple[str, Any]] = []

    async def before_identify_hook(self, shard_id: int | None, *, initial: bool = False) -> None:
        """discord.py waits 5 s before another IDENTIFY; here nobody else identifies."""

    def dispatch(self, event: str, /, *args: Any, **kwargs: Any) -> None:
        if not event.startswith("socket"):
            self.seen.append((event, args[0] if args else None))
        super().dispatch(event, *args, **kwargs)

    def of(self, event: str) -> list[Any]:
        return [argument for name, argument in self.seen if name == event]

    async def on_error(self, event_method: str, /, *args: Any, **kwargs: Any) -> None:
        raise


def intents() -> discord.Intents:
    wanted = discord.Intents.none()
    wanted.guilds = wanted.guild_messages = wanted.guild_reactions = True
    wanted.dm_messages = wanted.dm_reactions = wanted.message_content = True
    return wanted


def point_at(server: DiscordServer) -> None:
    discord.http.Route.BASE = server.api
    discord.gateway.DiscordWebSocket.DEFAULT_GATEWAY = yarl.URL(server.gateway)


@asynccontextmanager
async def started(server: DiscordServer, wanted: discord.Intents | None = None) -> AsyncIterator[Bot]:
    point_at(server)
    async with Bot(wanted or intents()) as bot:
        task = asyncio.create_task(bot.start(TOKEN))
        await server.until(lambda: bot.is_ready() or task.done(), 5)
        if task.done():
            task.result()
        yield bot
        heartbeat = getattr(bot.ws, "_keep_alive", None)
        await bot.close()
        await task
        if heartbeat is not None:  # the library's thread, which would speak to a loop that is no more
            await asyncio.to_thread(heartbeat.join, 10)


def tell(story: Story, wanted: discord.Intents | None = None, **options: Any) -> None:
    """Run a story with a server and a bot that is ready, within the deadline; afterwards nothing was unknown."""

    async def run() -> None:
        async with asyncio.timeout(DEADLINE_S), DiscordServer(TOKEN, APPLICATION, **options) as server:
            server.add_channel("general")
            async with started(server, wanted) as bot:
                await story(bot, server)
            assert not server.unknown

    asyncio.run(run())


def general(server: DiscordServer) -> Any:
    return next(iter(server.guild.channels.values()))
