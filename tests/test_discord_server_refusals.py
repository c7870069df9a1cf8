"""What the small Discord refuses or is slow with: limits, errors, permissions, requests without sense."""

from __future__ import annotations

import asyncio
import io
import logging
from collections.abc import Awaitable
from typing import Any

import aiohttp
import discord
import pytest

from tests.discord_client import APPLICATION, DEADLINE_S, TOKEN, Bot, general, started, tell
from tests.discord_server import DiscordServer


@pytest.mark.parametrize(
    ("content", "embeds", "code"),
    [
        ("x" * 2001, [], 50035),
        (" \n", [], 50006),
        ("", [discord.Embed(description="x" * 4097)], 50035),
        ("", [discord.Embed(description="x" * 3500), discord.Embed(description="x" * 3500)], 50035),
    ],
)
def test_what_is_no_message_is_refused(content: str, embeds: list[discord.Embed], code: int) -> None:
    async def story(bot: Bot, server: DiscordServer) -> None:
        place: Any = bot.get_channel(general(server).id)
        with pytest.raises(discord.HTTPException) as error:
            await place.send(content, embeds=embeds)
        assert (error.value.status, error.value.code) == (400, code)
        assert await place.send("x" * 2000)

    tell(story)


@pytest.mark.parametrize("is_global", [False, True])
def test_429_is_obeyed_and_tried_again(is_global: bool, caplog: pytest.LogCaptureFixture) -> None:
    async def story(bot: Bot, server: DiscordServer) -> None:
        place: Any = bot.get_channel(general(server).id)
        path = r"/channels/\d+/messages"
        server.fail("POST", path, status=429, times=2, retry_after=0.05, is_global=is_global)
        await place.send("in the end")
        assert [one.status for one in server.requests if one.method == "POST"] == [429, 429, 200]
        assert any("Global rate limit" in one.message for one in caplog.records) == is_global

    with caplog.at_level(logging.WARNING):
        tell(story)


def test_a_real_limit_is_kept_by_the_client() -> None:
    async def story(bot: Bot, server: DiscordServer) -> None:
        place: Any = bot.get_channel(general(server).id)
        await asyncio.gather(*(place.send(str(number)) for number in range(7)))
        statuses = [one.status for one in server.requests if one.method == "POST"]
        assert statuses.count(200) == 7
        times = [one.created_at_monotonic for one in server.by_bot(general(server))]
        assert times[-1] - times[0] >= 0.4

    tell(story, rate_limit=(3, 0.2))


def test_a_server_error_is_tried_again_or_raised() -> None:
    async def story(bot: Bot, server: DiscordServer) -> None:
        place: Any = bot.get_channel(general(server).id)
        server.fail("POST", r"/channels/\d+/messages", status=502)
        await place.send("discord.py tries again")
        fault = server.fail("POST", r"/channels/\d+/messages", status=503, times=2)
        with pytest.raises(discord.DiscordServerError):
            await place.send("it does not try again after 503")
        assert (fault.hits, fault.left) == (1, 1)
        fault.left = 0
        server.fail("POST", r"/channels/\d+/messages", status=0)
        with pytest.raises(aiohttp.ServerDisconnectedError):
            await place.send("cut off")
        server.fail("POST", r"/channels/\d+/messages", status=403, code=50001, message="Missing Access")
        with pytest.raises(discord.Forbidden) as error:
            await place.send("refused")
        assert error.value.code == 50001

    tell(story)


def test_an_answer_takes_its_time() -> None:
    async def story(bot: Bot, server: DiscordServer) -> None:
        place: Any = bot.get_channel(general(server).id)
        server.delay("POST", r"/channels/\d+/messages", 0.2)
        loop = asyncio.get_running_loop()
        began = loop.time()
        await place.send("slowly")
        assert loop.time() - began >= 0.2
        server.delay("POST", r"/channels/\d+/messages", 0)
        await place.send("quickly")
        assert loop.time() - began < 0.4

    tell(story, latency_s=0.01)


def test_what_is_forbidden() -> None:
    async def story(bot: Bot, server: DiscordServer) -> None:
        anna = server.add_user("anna")
        channels = {name: server.add_channel(name) for name in ("send", "react", "read", "view", "attach")}
        said = {name: server.say(channel, anna, "hello") for name, channel in channels.items()}
        server.forbid(channels["send"], "send_messages")
        server.forbid(channels["react"], "add_reactions")
        server.forbid(channels["read"], "read_message_history")
        server.forbid(channels["attach"], "attach_files")
        server.react(said["react"], anna, "🇩🇪")
        await server.until(lambda: bot.of("raw_reaction_add"))
        server.forbid(channels["view"], "view_channel")
        server.say(channels["view"], anna, "unseen")
        await server.until(lambda: len(bot.of("guild_channel_update")) == 5)
        place: Any = {name: bot.get_channel(channel.id) for name, channel in channels.items()}
        assert not place["send"].permissions_for(place["send"].guild.me).send_messages
        assert len(bot.of("message")) == 5

        async def refused(what: Awaitable[Any]) -> int:
            with pytest.raises(discord.Forbidden) as error:
                await what
            return error.value.code

        message = {name: place[name].get_partial_message(one.id) for name, one in said.items()}
        assert await refused(place["send"].send("x")) == 50013
        assert await refused(message["react"].add_reaction("🇫🇷")) == 50013
        await message["react"].add_reaction("🇩🇪")
        assert await refused(message["read"].fetch()) == 50013
        assert await refused(message["read"].reply("x")) == 160002
        assert [one async for one in place["read"].history()] == []
        assert await refused(message["view"].fetch()) == 50001
        assert await refused(place["attach"].send(file=discord.File(io.BytesIO(b"x"), "x"))) == 50013

    tell(story)


def test_requests_without_the_token_or_without_sense() -> None:
    async def run() -> None:
        async with (
            asyncio.timeout(DEADLINE_S),
            DiscordServer(TOKEN, APPLICATION) as server,
            aiohttp.ClientSession() as http,
        ):
            async with http.get(server.api + "/users/@me") as answer:
                assert answer.status == 401 and await answer.json() == {"message": "401: Unauthorized", "code": 0}
            async with http.post(server.api + "/users/@me/channels", data=b"{") as answer:
                assert answer.status == 400 and (await answer.json())["code"] == 50109
            async with http.get(server.api + "/users/@me", headers={"Authorization": f"Bot {TOKEN}"}) as answer:
                assert answer.status == 200 and answer.headers["Content-Type"] == "application/json"
                assert answer.headers["X-RateLimit-Remaining"]

    asyncio.run(run())


def test_what_is_not_emulated_is_recorded() -> None:
    async def run() -> None:
        async with asyncio.timeout(DEADLINE_S), DiscordServer(TOKEN, APPLICATION) as server:
            async with started(server) as bot:
                with pytest.raises(discord.NotFound):
                    await bot.fetch_guild_preview(server.guild.id)
            assert list(server.unknown) == [("GET", f"/guilds/{server.guild.id}/preview")]

    asyncio.run(run())
