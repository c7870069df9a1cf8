"""Application commands: private translations and what the cluster can do, in English and German.

Everything is answered ephemerally: only who asks sees it. Which way to translate: to the language of the member's own
Discord where a route leads there, from whatever the only route comes from; otherwise the member chooses.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import Sequence
from typing import Any, Final

import aiohttp
import discord
from discord import app_commands
from discord.app_commands import locale_str

from dolmetsch import replies
from dolmetsch.backoff import Backoff
from dolmetsch.client import Client
from dolmetsch.config import DiscordConfig
from dolmetsch.correspondence import notice
from dolmetsch.errors import DolmetschError
from dolmetsch.flags import Flags
from dolmetsch.logs import trace
from dolmetsch.manners import Asker, Manners
from dolmetsch.postbox import SILENT, files, source, whole

STATUS_S: Final = 2.0  # an interaction must be answered within 3 s
MAX_CHOICES: Final = 25  # Discord's limit for lists
MAX_ROUTE: Final = 40
SYNC_TRIES: Final = 20  # about half an hour
SYNC_S: Final = 60.0
SYNC_PAUSE_S: Final = 120.0
CHOICE_S: Final = 300.0  # a list of routes can be used so long
MAX_TEXT: Final = 6_000  # what Discord lets people type into an option

GERMAN: Final = {
    "Translate": "Übersetzen",
    "translate": "übersetzen",
    "languages": "sprachen",
    "cluster": "cluster",
    "text": "text",
    "route": "richtung",
    "Translate a text; only you see the result": "Einen Text übersetzen; nur du siehst das Ergebnis",
    "What to translate": "Was übersetzt werden soll",
    "From which language to which": "Aus welcher Sprache in welche",
    "Which languages can be translated now": "Welche Sprachen gerade übersetzt werden können",
    "How the cluster that translates is doing": "Wie es dem Cluster geht, der übersetzt",
}

TROUBLE: Final = (discord.HTTPException, aiohttp.ClientError, OSError)

log = logging.getLogger("gateway")  # "discord" is the library's
Interaction = discord.Interaction[Any]


class German(app_commands.Translator):
    """German names and descriptions for clients that are set to German."""

    async def translate(
        self, string: locale_str, locale: discord.Locale, context: app_commands.TranslationContextTypes
    ) -> str | None:
        return GERMAN.get(string.message) if locale is discord.Locale.german else None


class Commands:
    """The command tree's functions; ``add`` puts them into it."""

    def __init__(self, client: Client, flags: Flags, manners: Manners, config: DiscordConfig) -> None:
        self._client = client
        self._flags = flags
        self._manners = manners
        self._config = config
        self.answered = 0
        self.failed = 0

    def add(self, tree: app_commands.CommandTree[Any]) -> None:
        """Add the commands to ``tree``, and answer what goes wrong in them."""

        @tree.context_menu(name=locale_str("Translate"))
        async def menu(interaction: Interaction, message: discord.Message) -> None:
            await self._translate(interaction, source(message).text, None)

        @tree.command(name=locale_str("translate"), description=locale_str("Translate a text; only you see the result"))
        @app_commands.rename(text=locale_str("text"), route=locale_str("route"))
        @app_commands.describe(text=locale_str("What to translate"), route=locale_str("From which language to which"))
        async def translate(
            interaction: Interaction,
            text: app_commands.Range[str, 1, MAX_TEXT],
            route: app_commands.Range[str, 1, MAX_ROUTE] | None = None,
        ) -> None:
            await self._translate(interaction, whole(text), route)

        @translate.autocomplete("route")
        async def complete(interaction: Interaction, current: str) -> list[app_commands.Choice[str]]:
            found = [route for route in self._routes() if current.lower() in self._label(route).lower()]
            return [app_commands.Choice(name=self._label(route), value=route) for route in found[:MAX_CHOICES]]

        @tree.command(name=locale_str("languages"), description=locale_str("Which languages can be translated now"))
        async def languages(interaction: Interaction) -> None:
            there = self._flags.describe(self._routes()) or replies.unavailable("", "", "")
            await interaction.response.send_message(there, ephemeral=True)

        @tree.command(name=locale_str("cluster"), description=locale_str("How the cluster that translates is doing"))
        async def cluster(interaction: Interaction) -> None:
            await interaction.response.send_message(await self._cluster(), ephemeral=True)

        @tree.error
        async def failed(interaction: Interaction, error: app_commands.AppCommandError) -> None:
            log.error("a command failed: %s", trace(getattr(error, "original", error)))

    def _routes(self) -> list[str]:
        return [one.route for one in self._client.routes]

    def _label(self, route: str) -> str:
        return f"{self._flags.header(route)} {route}"

    async def _cluster(self) -> str:
        try:
            status = await self._client.status(STATUS_S)
        except DolmetschError:
            return replies.unreachable()
        workers = sum(node.workers for node in status.nodes)
        queued = status.queued_interactive + status.queued_bulk
        return replies.cluster(len(status.nodes), workers, queued, status.median_ms, status.done)

    async def _translate(self, interaction: Interaction, text: str, route: str | None) -> None:
        """Translate for ``interaction``; ``route`` None: the one that fits, or let the member choose."""
        now = time.monotonic()
        asker = Asker(interaction.user.id, interaction.channel_id or 0, interaction.guild_id)
        wait_s = self._manners.ask(asker, now)
        if wait_s:
            await interaction.response.send_message(replies.slow_down(wait_s), ephemeral=True)
            return
        if not text.strip():
            await interaction.response.send_message(replies.no_text(), ephemeral=True)
            return
        routes = self._routes()
        candidates = [route] if route else fitting(routes, interaction.locale.value)
        if len(candidates) > 1:
            await interaction.response.send_message(
                view=_Choice(self, text, [(one, self._label(one)) for one in candidates]), ephemeral=True
            )
            return
        if not candidates or candidates[0] not in routes:
            wanted = candidates[0] if candidates else ""
            there = self._flags.describe(routes)
            await interaction.response.send_message(replies.unavailable("", wanted, there), ephemeral=True)
            return
        await interaction.response.defer(ephemeral=True, thinking=True)
        await self.finish(interaction, text, candidates[0])

    async def finish(self, interaction: Interaction, text: str, route: str) -> None:
        """Put the translation into the answer that ``interaction`` is waiting for."""
        tenant = str(interaction.guild_id or interaction.user.id)
        try:
            answer = await self._client.translate(text, route, tenant=tenant, deadline_s=self._config.deadline_s)
        except DolmetschError as error:
            self.failed += 1
            await interaction.edit_original_response(content=notice(error), view=None)
            return
        assert answer.texts is not None  # translate raises otherwise
        first, *others = (reply := replies.reply(self._flags.header(route), answer.texts[0])).messages
        await interaction.edit_original_response(
            content=first, view=None, attachments=files(reply.file), allowed_mentions=SILENT
        )
        for other in others:
            await interaction.followup.send(other, ephemeral=True, allowed_mentions=SILENT)
        self.answered += 1


def fitting(routes: Sequence[str], locale: str) -> list[str]:
    """Routes to the language of ``locale`` ("en-US"); all of them when none leads there."""
    language = locale.split("-")[0]
    return [route for route in routes if route.split("→")[1] == language] or list(routes)


class _Choice(discord.ui.View):
    """A list of routes; the chosen one is used at once."""

    def __init__(self, commands: Commands, text: str, routes: Sequence[tuple[str, str]]) -> None:
        super().__init__(timeout=CHOICE_S)
        select: discord.ui.Select[_Choice] = discord.ui.Select(
            options=[discord.SelectOption(label=label, value=route) for route, label in routes[:MAX_CHOICES]]
        )

        done = False

        async def chosen(interaction: Interaction) -> None:
            nonlocal done
            await interaction.response.defer()
            if not done:  # a second click may come before the list is gone
                done = True
                await commands.finish(interaction, text, select.values[0])

        select.callback = chosen  # type: ignore[method-assign]
        self.add_item(select)

    async def on_error(self, interaction: Interaction, error: Exception, item: discord.ui.Item[Any]) -> None:
        log.error("a choice failed: %s", trace(error))


async def publish(tree: app_commands.CommandTree[Any]) -> None:
    """Tell Discord which commands there are. Failures are logged: reactions work without them."""
    await tree.set_translator(German())
    pauses = Backoff(random.Random(), most_s=SYNC_PAUSE_S)
    for _ in range(SYNC_TRIES):
        try:
            async with asyncio.timeout(SYNC_S):
                await tree.sync()
            return
        except (
            discord.HTTPException,
            app_commands.AppCommandError,
            aiohttp.ClientError,
            OSError,
            TimeoutError,
        ) as error:
            log.warning("the commands could not be registered with Discord: %s", trace(error))
        await asyncio.sleep(pauses.next_s())
