"""The bot: Discord's events in, calls to the correspondence and the broker out. It decides nothing itself."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import sys
import time
from pathlib import Path
from typing import Any, Final

import aiohttp
import discord
from discord import app_commands

from dolmetsch import replies
from dolmetsch.client import Client
from dolmetsch.config import DiscordConfig
from dolmetsch.correspondence import Correspondence
from dolmetsch.errors import DolmetschError
from dolmetsch.flags import Flags
from dolmetsch.keys import Credentials
from dolmetsch.logs import trace
from dolmetsch.manners import Asker, Manners
from dolmetsch.messages import Answer
from dolmetsch.postbox import SILENT
from dolmetsch.replybook import Key, ReplyBook
from dolmetsch.slash import Commands, publish

PERMISSIONS: Final = discord.Permissions(
    view_channel=True,
    send_messages=True,
    send_messages_in_threads=True,
    read_message_history=True,
    add_reactions=True,
    attach_files=True,
)
GUILDS_S: Final = 0.5  # of silence after which the servers are taken to be all there
REPORT_S: Final = 5.0
PRESENCE_S: Final = 30.0  # Discord allows five changes in 20 s
STATUS_S: Final = 3.0
MAX_PRESENCE: Final = 128  # characters
MAX_STATUS_BYTES: Final = 65_536  # of the status file
FULL_WAIT_S: Final = 10.0  # when too many replies are in the making
TOLD_S: Final = 15.0  # "slow down" stays so long

log = logging.getLogger("gateway")  # "discord" is the library's


def intents() -> discord.Intents:
    """Only what is needed: to see messages, read them, and see reactions."""
    wanted = discord.Intents.none()
    wanted.guilds = wanted.messages = wanted.reactions = wanted.message_content = True
    return wanted


class Bot(discord.Client):
    """One connection to Discord, and one to the broker, for as long as it is entered."""

    def __init__(
        self, config: DiscordConfig, broker: str, keys: Credentials | None, flags: Flags, book: ReplyBook
    ) -> None:
        super().__init__(
            intents=intents(), allowed_mentions=SILENT, chunk_guilds_at_startup=False, guild_ready_timeout=GUILDS_S
        )
        self._config = config
        self._flags = flags
        self._manners = Manners(config)
        self._client = Client(broker, gateway="discord", keys=keys, on_stray=self._stray)
        self._correspondence = Correspondence(self, self._client, book, flags, config)
        self._commands = Commands(self._client, flags, self._manners, config)
        self._tree = app_commands.CommandTree(self)
        self._commands.add(self._tree)
        self._background: list[asyncio.Task[None]] = []
        self._shown: str | None = None

    async def setup_hook(self) -> None:
        """Called once by discord.py, logged in and not yet connected."""
        await self._client.__aenter__()
        loop = asyncio.get_running_loop()
        self._background = [loop.create_task(work) for work in (publish(self._tree), self._report(), self._presence())]

    async def close(self) -> None:
        """Stop, and leave to the next process what is not done."""
        if self.is_closed():
            return
        background, self._background = self._background, []
        for task in background:
            task.cancel()
        await asyncio.gather(*background, return_exceptions=True)
        await self._correspondence.close()
        if background:
            await self._client.__aexit__(None, None, None)
        await super().close()

    # ---- events ----

    async def on_ready(self) -> None:
        log.info("ready: %s, servers: %d", self.user.id if self.user else "?", len(self.guilds))
        self._shown = None  # a new session shows nothing
        self._correspondence.resume()

    async def on_raw_reaction_add(self, payload: discord.RawReactionActionEvent) -> None:
        flag = self._flags.get(payload.emoji.name) if payload.emoji.is_unicode_emoji() else None
        if flag is None or self._is_bot(payload):
            return
        key = Key(payload.message_id, flag.route)
        if self._correspondence.again(key):
            return
        now = time.monotonic()
        asker = Asker(payload.user_id, payload.channel_id, payload.guild_id)
        wait_s = self._manners.ask(asker, now)
        if not wait_s and self._correspondence.full:
            wait_s = FULL_WAIT_S
        if wait_s:
            await self._slow_down(asker, wait_s, now)
        else:
            self._correspondence.ask(key, payload.channel_id, payload.guild_id, flag)

    async def on_raw_reaction_remove(self, payload: discord.RawReactionActionEvent) -> None:
        flag = self._flags.get(payload.emoji.name) if payload.emoji.is_unicode_emoji() else None
        if flag is not None:
            self._correspondence.reactions_gone(payload.message_id, {flag.route})

    async def on_raw_reaction_clear(self, payload: discord.RawReactionClearEvent) -> None:
        self._correspondence.reactions_gone(payload.message_id)

    async def on_raw_reaction_clear_emoji(self, payload: discord.RawReactionClearEmojiEvent) -> None:
        flag = self._flags.get(payload.emoji.name)
        if flag is not None:
            self._correspondence.reactions_gone(payload.message_id, {flag.route})

    async def on_raw_message_edit(self, payload: discord.RawMessageUpdateEvent) -> None:
        self._correspondence.edited(payload.message_id)

    async def on_raw_message_delete(self, payload: discord.RawMessageDeleteEvent) -> None:
        self._correspondence.deleted(payload.message_id)

    async def on_raw_bulk_message_delete(self, payload: discord.RawBulkMessageDeleteEvent) -> None:
        for message in payload.message_ids:
            self._correspondence.deleted(message)

    async def on_error(self, event_method: str, /, *args: Any, **kwargs: Any) -> None:
        error = sys.exc_info()[1]
        if isinstance(error, DolmetschError):
            log.error("%s: %s", event_method, error)
        elif error is not None:
            log.error("%s: %s", event_method, trace(error))

    def _stray(self, answer: Answer) -> None:
        self._correspondence.stray(answer)

    def _is_bot(self, payload: discord.RawReactionActionEvent) -> bool:
        ours = self.user is not None and self.user.id in (payload.user_id, payload.message_author_id)
        return ours or (payload.member is not None and payload.member.bot)

    async def _slow_down(self, asker: Asker, wait_s: float, now: float) -> None:
        """Tell a user once, by name but without a ping; the notice goes by itself."""
        if not self._manners.tell(asker, wait_s, now):
            return
        log.info("channel %d: user %d asks too often", asker.channel, asker.user)
        channel = self.get_partial_messageable(asker.channel, guild_id=asker.guild)
        with contextlib.suppress(discord.HTTPException, aiohttp.ClientError, OSError):
            await channel.send(
                f"<@{asker.user}> {replies.slow_down(wait_s)}",
                delete_after=min(max(wait_s, 5.0), TOLD_S),
                allowed_mentions=SILENT,
            )

    # ---- what others see of us ----

    async def _report(self) -> None:
        """Tell the broker how we are, for the dashboard."""
        trouble = ""
        while True:
            if self._client.trouble != trouble:
                trouble = self._client.trouble
                log.warning("%s", trouble) if trouble else log.info("the broker is there again")
            self._client.report(
                kind="discord",
                servers=len(self.guilds),
                latency_ms=round(1000 * self.latency, 1) if math.isfinite(self.latency) else None,
                queued=self._correspondence.open,
                answered=self._correspondence.answered + self._commands.answered,
                failed=self._correspondence.failed + self._commands.failed,
            )
            await asyncio.sleep(REPORT_S)

    async def _presence(self) -> None:
        """Show the cluster, or the lines of the status file in turn."""
        await self.wait_until_ready()
        path = self._config.status_file
        if path and not _lines(path):
            log.warning("the status file %s has no lines that can be read: the cluster is shown", path)
        turn = 0
        while True:
            text = await self._presence_text(turn)
            if text != self._shown:
                # A closed connection is made again by discord.py; the next turn shows it then.
                with contextlib.suppress(OSError, aiohttp.ClientError, discord.ConnectionClosed):
                    await self.change_presence(activity=discord.CustomActivity(name=text[:MAX_PRESENCE]))
                    self._shown = text
            turn += 1
            await asyncio.sleep(PRESENCE_S)

    async def _presence_text(self, turn: int) -> str:
        lines = _lines(self._config.status_file)
        if lines:
            return lines[turn % len(lines)]
        try:
            status = await self._client.status(STATUS_S)
        except DolmetschError:
            return replies.presence(0, 0)
        return replies.presence(len(status.nodes), status.done)


def _lines(path: str) -> list[str]:
    """The lines of the status file; read each time, so that it can be changed while we run."""
    try:
        if not path or not Path(path).is_file():  # a pipe or a device would keep us waiting
            return []
        with Path(path).open("rb") as file:
            text = file.read(MAX_STATUS_BYTES).decode(errors="replace")
    except OSError:
        return []
    return [line.strip() for line in text.splitlines() if line.strip()]
