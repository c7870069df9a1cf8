"""Commands on the small Discord: slash commands, menus, selects, buttons, and what Discord would refuse."""

from __future__ import annotations

import asyncio
import io
from functools import partial
from typing import Any

import discord
import pytest
from discord import app_commands

from tests.discord_client import APPLICATION, Bot, general, tell
from tests.discord_server import DiscordServer


class Buttons(discord.ui.View):
    @discord.ui.button(label="Undo", custom_id="undo")
    async def undo(self, interaction: discord.Interaction, button: discord.ui.Button[discord.ui.View]) -> None:
        await interaction.response.send_message("undone", file=discord.File(io.BytesIO(b"log"), "log.txt"))


def register(bot: Bot) -> None:
    """The commands of the stories below."""

    @bot.tree.command(name="translate", description="Translate a text")
    async def translate(interaction: discord.Interaction, text: str, to: str = "en") -> None:
        await interaction.response.defer(ephemeral=True)
        await interaction.edit_original_response(content=f"{text} → {to} ({interaction.locale.value})")
        await interaction.followup.send("and more", ephemeral=True)

    @translate.autocomplete("to")
    async def complete(interaction: discord.Interaction, current: str) -> list[app_commands.Choice[str]]:
        return [app_commands.Choice(name=current + letter, value=current + letter) for letter in "ea"]

    @bot.tree.context_menu(name="Translate this")
    async def menu(interaction: discord.Interaction, message: discord.Message) -> None:
        view = discord.ui.View(timeout=5)
        select: Any = discord.ui.Select(custom_id="language", options=[discord.SelectOption(label="de")])

        async def chosen(again: discord.Interaction) -> None:
            await again.response.edit_message(content=f"chosen: {select.values[0]}", view=None)

        select.callback = chosen
        view.add_item(select)
        await interaction.response.send_message(f"of {message.content!r}", view=view, ephemeral=True)

    group = app_commands.Group(name="settings", description="What this place wants")

    @group.command(name="set", description="Set the language")
    async def set_language(interaction: discord.Interaction, language: str) -> None:
        await interaction.response.defer(thinking=True)
        await interaction.followup.send(f"set: {language}", view=Buttons())

    bot.tree.add_command(group)

    @bot.tree.command(name="silent", description="Never answers")
    async def silent(interaction: discord.Interaction) -> None:
        await asyncio.sleep(0.2)
        with pytest.raises(discord.NotFound) as error:
            await interaction.response.send_message("too late")
        assert error.value.code == 10062
        bot.seen.append(("late", interaction))


def test_a_slash_command_is_deferred_and_answered() -> None:
    async def story(bot: Bot, server: DiscordServer) -> None:
        channel, anna = general(server), server.add_user("anna")
        register(bot)
        with pytest.raises(AssertionError, match="registered: none"):
            server.command(channel, anna, "translate", {"text": "Hallo"})
        await bot.tree.sync()
        assert {one["name"] for one in server.commands} == {"translate", "Translate this", "settings", "silent"}
        for place in (channel, server.add_dm(anna)):
            used = server.command(place, anna, "translate", {"text": "Hallo", "to": "fr"}, locale="de")
            await server.until(partial(len, used.followups))
            assert used.response is not None and used.response["content"] == "Hallo → fr (de)"
            assert used.deferred and used.ephemeral and used.followups[0].content == "and more"
            assert not server.messages(place) and not used.expired
        with pytest.raises(AssertionError, match="required"):
            server.command(channel, anna, "translate", {})
        with pytest.raises(AssertionError, match="no option"):
            server.command(channel, anna, "translate", {"text": "Hallo", "from": "de"})

    tell(story)


def test_a_context_menu_a_select_and_completion() -> None:
    async def story(bot: Bot, server: DiscordServer) -> None:
        channel, anna = general(server), server.add_user("anna")
        register(bot)
        await bot.tree.sync()
        said = server.say(channel, anna, "Guten Morgen")
        used = server.context_menu(channel, anna, "Translate this", said, locale="en-US")
        await server.until(lambda: used.response)
        assert used.response is not None and used.response["content"] == "of 'Guten Morgen'"
        assert used.ephemeral and not used.deferred
        with pytest.raises(AssertionError, match="among"):
            server.choose(used, "language", ["xx"])
        with pytest.raises(AssertionError, match="no component"):
            server.choose(used, "other", ["de"])
        picked = server.choose(used, "language", ["de"])
        await server.until(lambda: picked.answered)
        assert used.response["content"] == "chosen: de" and used.response["components"] == []
        typed = server.autocomplete(channel, anna, "translate", {"to": "d"}, focused="to")
        await server.until(lambda: typed.choices is not None)
        assert typed.choices == [{"name": "de", "value": "de"}, {"name": "da", "value": "da"}]

    tell(story)


def test_a_subcommand_that_thinks_and_a_button() -> None:
    async def story(bot: Bot, server: DiscordServer) -> None:
        channel, anna, boss = general(server), server.add_user("anna"), server.add_user("boss")
        register(bot)
        await bot.tree.sync(guild=discord.Object(server.guild.id))
        await bot.tree.sync()
        server.delay("POST", r"/webhooks/.*", 0.05)
        used = server.command(channel, anna, "settings set", {"language": "de"})
        await server.until(lambda: used.answered)
        assert used.deferred and used.response is None and server.messages(channel) == []
        await server.until(lambda: used.response)
        (said,) = server.by_bot(channel)
        assert said is used.message and said.content == "set: de" and not used.followups
        pressed = server.choose(used, "undo", user=boss)
        await server.until(lambda: pressed.response)
        assert [one.content for one in server.by_bot(channel)] == ["set: de", "undone"]
        assert server.by_bot(channel)[1].attachments == [("log.txt", b"log")]
        assert pressed.user is boss and pressed.message is server.by_bot(channel)[1]
        await server.until(lambda: len(bot.of("message")) == 2)
        assert bot.of("message")[0].interaction_metadata.user.id == anna.id

    tell(story)


def test_an_interaction_that_is_not_answered_in_time_expires() -> None:
    async def story(bot: Bot, server: DiscordServer) -> None:
        register(bot)
        await bot.tree.sync()
        used = server.command(general(server), server.add_user("anna"), "silent")
        assert not used.expired
        await server.until(lambda: bot.of("late"))
        assert used.expired and used.response is None

    tell(story, interaction_deadline_s=0.1)


@pytest.mark.parametrize(
    "command",
    [
        {"name": "Translate", "description": "capitals"},
        {"name": "two words", "description": "a blank"},
        {"name": "x" * 33, "description": "long"},
        {"name": "x", "description": ""},
        {"name": "x", "description": "x", "name_localizations": {"xx": "no such language"}},
        {"name": "x", "description": "x", "name_localizations": {"de": "Übersetze"}},
        {"name": "x", "description": "x", "options": [{"name": "A", "type": 3, "description": "x"}]},
        {"name": "Label", "type": 3, "description": "menus have none"},
    ],
)
def test_commands_that_discord_would_refuse(command: dict[str, Any]) -> None:
    async def story(bot: Bot, server: DiscordServer) -> None:
        with pytest.raises(discord.HTTPException) as error:
            await bot.http.bulk_upsert_global_commands(APPLICATION, [command])
        assert error.value.code == 50035 and server.commands == []
        good = {"name": "übersetze", "description": "x", "name_localizations": {"th": "แปลภาษา", "hi": "अनुवाद"}}
        await bot.http.bulk_upsert_global_commands(APPLICATION, [good, {"name": "Über setze", "type": 3}])
        assert [one["name"] for one in server.commands] == ["übersetze", "Über setze"]

    tell(story)
