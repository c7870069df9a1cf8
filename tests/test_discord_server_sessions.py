"""The small Discord's gateway: logins, heartbeats, breaks that are resumed, and what each intent lets through."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import aiohttp
import discord
import pytest

from tests.discord_client import APPLICATION, DEADLINE_S, TOKEN, Bot, general, intents, point_at, tell
from tests.discord_server import DiscordServer


def test_a_break_is_resumed_and_what_was_missed_is_replayed() -> None:
    async def story(bot: Bot, server: DiscordServer) -> None:
        channel, anna = general(server), server.add_user("anna")
        server.drop()
        assert not server.connected
        for number in range(20):
            server.say(channel, anna, f"while away {number}")
        await server.until(lambda: server.resume_count == 1 and len(bot.of("message")) == 20)
        assert [one.content for one in bot.of("message")] == [f"while away {number}" for number in range(20)]
        server.reconnect()
        await server.until(lambda: server.resume_count == 2 and server.connected)
        server.say(channel, anna, "after")
        await server.until(lambda: len(bot.of("message")) == 21)
        assert server.ready_count == 1

    tell(story)


@pytest.mark.parametrize("how", ["drop", "invalidate"])
def test_a_session_that_cannot_be_resumed_begins_anew(how: str) -> None:
    async def story(bot: Bot, server: DiscordServer) -> None:
        channel, anna = general(server), server.add_user("anna")
        getattr(server, how)(resumable=False)
        server.say(channel, anna, "lost")
        await server.until(lambda: server.ready_count == 2 and bot.get_channel(channel.id))
        server.say(channel, anna, "heard")
        await server.until(lambda: bot.of("message"))
        assert [one.content for one in bot.of("message")] == ["heard"] and server.resume_count == 0

    tell(story)


def test_a_session_that_is_told_to_resume_does() -> None:
    async def story(bot: Bot, server: DiscordServer) -> None:
        server.invalidate(resumable=True)
        await server.until(lambda: server.resume_count == 1)
        assert server.ready_count == 1

    tell(story)


def refused_start(prepare: Callable[[DiscordServer], None], token: str, error: type[Exception]) -> None:
    async def run() -> None:
        async with asyncio.timeout(DEADLINE_S), DiscordServer(TOKEN, APPLICATION) as server:
            prepare(server)
            point_at(server)
            with pytest.raises(error):
                async with Bot(intents()) as bot:
                    await bot.start(token)
            assert not server.connected

    asyncio.run(run())


def test_a_wrong_token_is_refused() -> None:
    refused_start(lambda server: None, "wrong", discord.LoginFailure)


def test_heartbeats_keep_a_connection() -> None:
    async def story(bot: Bot, server: DiscordServer) -> None:
        await asyncio.sleep(0.3)
        assert server.connected and bot.latency < 1 and server.ready_count == 1 and server.resume_count == 0
        place: Any = bot.get_channel(general(server).id)
        await place.typing()

    tell(story, heartbeat_interval_ms=50)


@pytest.mark.parametrize(
    ("frames", "code"),
    [
        ([], 4009),
        (["{"], 4002),
        (['{"op": 77}'], 4003),
        (['{"op": 2, "d": {"token": "wrong", "intents": 1, "properties": {}}}'], 4004),
        (['{"op": 2, "d": {"token": "TOKEN", "intents": 1}}'], 4002),
        (['{"op": 2, "d": {"token": "TOKEN", "intents": 4294967296, "properties": {}}}'], 4013),
        (['{"op": 2, "d": {"token": "TOKEN", "intents": 1, "properties": {}}}'] * 2, 4005),
        (['{"op": 2, "d": {"token": "TOKEN", "intents": 1, "properties": {}}}', '{"op": 77}'], 4001),
        (['{"op": 6, "d": {"token": "wrong", "session_id": "x", "seq": 1}}'], 4004),
    ],
)
def test_a_client_that_does_not_keep_to_the_protocol_is_closed(frames: list[str], code: int) -> None:
    async def run() -> None:
        async with (
            asyncio.timeout(DEADLINE_S),
            DiscordServer(TOKEN, APPLICATION, heartbeat_interval_ms=100) as server,
            aiohttp.ClientSession() as http,
            http.ws_connect(server.gateway + "?v=10&encoding=json") as socket,
        ):
            assert (await socket.receive_json())["op"] == 10
            for frame in frames:
                await socket.send_str(frame.replace("TOKEN", TOKEN))
            while (message := await socket.receive()).type is aiohttp.WSMsgType.TEXT:
                pass
            assert (message.type, socket.close_code) == (aiohttp.WSMsgType.CLOSE, code)

    asyncio.run(run())


def test_a_privileged_intent_that_is_not_allowed_is_refused() -> None:
    def forbid(server: DiscordServer) -> None:
        server.message_content_allowed = False

    refused_start(forbid, TOKEN, discord.PrivilegedIntentsRequired)


def test_without_message_content_only_some_messages_are_read() -> None:
    wanted = intents()
    wanted.message_content = False

    async def story(bot: Bot, server: DiscordServer) -> None:
        channel, anna = general(server), server.add_user("anna")
        embeds = [{"type": "rich", "title": "t"}]
        hidden = server.say(channel, anna, "hidden", embeds=embeds, attachments=[("a", b"a")])
        server.say(channel, anna, f"{server.bot.mention} shown")
        server.say(server.add_dm(anna), anna, "direct")
        await server.until(lambda: len(bot.of("message")) == 3)
        first, second, third = bot.of("message")
        assert (first.content, first.embeds, first.attachments) == ("", [], [])
        assert second.content.endswith("shown") and third.content == "direct"
        place: Any = bot.get_channel(channel.id)
        assert (await place.fetch_message(hidden.id)).content == "hidden"
        server.message_content_allowed = False
        assert (await place.fetch_message(hidden.id)).content == ""

    tell(story, wanted)


def test_events_without_their_intent_do_not_come() -> None:
    wanted = discord.Intents(guilds=True, guild_messages=True)

    async def story(bot: Bot, server: DiscordServer) -> None:
        channel, anna = general(server), server.add_user("anna")
        server.say(server.add_dm(anna), anna, "unheard")
        said = server.say(channel, anna, "heard")
        server.react(said, anna, "🇩🇪")
        server.delete(said)
        await server.until(lambda: bot.of("raw_message_delete"))
        assert len(bot.of("message")) == 1 and not bot.of("raw_reaction_add")

    tell(story, wanted)
