"""The small Discord itself, with the real discord.py client on it: what the tests of the bot stand on."""

from __future__ import annotations

import asyncio
import io
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

import aiohttp
import discord
import discord.gateway
import discord.http
import pytest
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


def test_a_client_connects_and_sees_the_guild() -> None:
    async def story(bot: Bot, server: DiscordServer) -> None:
        assert bot.user is not None and bot.user.id == APPLICATION
        assert bot.application_id == APPLICATION
        guild = bot.get_guild(server.guild.id)
        assert guild is not None and guild.me.id == APPLICATION
        channel = guild.text_channels[0]
        assert channel.name == "general"
        assert channel.permissions_for(guild.me).send_messages
        assert server.connected and server.ready_count == 1
        await bot.change_presence(activity=discord.CustomActivity("with words"))
        await server.until(lambda: server.presence is not None)

    tell(story)


def test_events_of_messages_and_reactions() -> None:
    async def story(bot: Bot, server: DiscordServer) -> None:
        channel, anna = general(server), server.add_user("anna")
        said = server.say(channel, anna, "Guten Morgen")
        server.react(said, anna, "🇩🇪")
        server.react(said, anna, "<:wave:123456>")
        server.unreact(said, anna, "🇩🇪")
        server.edit(said, "Guten Abend")
        server.embed(said, [{"type": "link", "title": "a page", "url": "https://example.org"}])
        server.clear_emoji(said, "wave:123456")
        server.clear_reactions(said)
        server.delete(said)
        two = [server.say(channel, anna, word) for word in ("one", "two")]
        server.delete_many(two)
        await server.until(lambda: bot.of("raw_bulk_message_delete"))

        message = bot.of("message")[0]
        assert (message.id, message.author.id, message.guild.id) == (said.id, anna.id, server.guild.id)
        assert isinstance(message.author, discord.Member) and message.type is discord.MessageType.default
        flag, custom = bot.of("raw_reaction_add")
        assert str(flag.emoji) == "🇩🇪" and flag.member.id == anna.id and flag.message_author_id == anna.id
        assert (custom.emoji.id, custom.emoji.name) == (123456, "wave") and not custom.burst
        assert [str(one.emoji) for one in bot.of("raw_reaction_remove")] == ["🇩🇪"]
        edited, embedded = bot.of("raw_message_edit")
        assert edited.message.content == "Guten Abend" and edited.message.edited_at is not None
        assert embedded.message.edited_at == edited.message.edited_at and embedded.message.embeds[0].title == "a page"
        assert len(bot.of("raw_reaction_clear_emoji")) == len(bot.of("raw_reaction_clear")) == 1
        assert bot.of("raw_message_delete")[0].message_id == said.id
        assert bot.of("raw_bulk_message_delete")[0].message_ids == {one.id for one in two}
        assert server.messages(channel) == []

    tell(story)


def test_a_message_from_before_the_start_is_fetched_and_answered() -> None:
    async def run() -> None:
        async with asyncio.timeout(DEADLINE_S), DiscordServer(TOKEN, APPLICATION) as server:
            channel, anna = server.add_channel("general"), server.add_user("anna")
            old = server.say(channel, anna, "Guten Morgen", attachments=[("a.txt", b"abc")])
            server.react(old, anna, "🇩🇪")
            async with started(server) as bot:
                place: Any = bot.get_channel(channel.id)
                found = await place.fetch_message(old.id)
                assert found.content == "Guten Morgen" and found.author.id == anna.id and found.created_at
                assert await found.attachments[0].read() == b"abc"
                assert [(str(one.emoji), one.count, one.me) for one in found.reactions] == [("🇩🇪", 1, False)]
                assert [user.id async for user in found.reactions[0].users()] == [anna.id]
                none = discord.AllowedMentions.none()
                sent = await found.reply(f"{anna.mention} @everyone good morning", allowed_mentions=none)
                assert sent.reference.resolved.id == old.id and sent.type is discord.MessageType.reply
                assert [one.id async for one in place.history(limit=10)] == [sent.id, old.id]
                assert [one.id async for one in place.history(limit=10, oldest_first=True)] == [old.id, sent.id]
                (stored,) = server.by_bot(channel)
                assert stored.reply_to == old.id and stored.allowed_mentions == {"parse": []}
                assert not stored.mentions and not stored.mention_everyone
                await server.until(lambda: bot.of("message"))
                assert bot.of("message")[0].id == sent.id

    asyncio.run(run())


def test_a_reply_to_what_is_gone() -> None:
    async def story(bot: Bot, server: DiscordServer) -> None:
        channel, anna = general(server), server.add_user("anna")
        place: Any = bot.get_channel(channel.id)
        gone = server.say(channel, anna, "soon gone")
        server.delete(gone)
        reference = discord.MessageReference(message_id=gone.id, channel_id=channel.id, fail_if_not_exists=True)
        with pytest.raises(discord.HTTPException) as error:
            await place.send("too late", reference=reference)
        assert error.value.status == 400 and error.value.code == 50035 and "Unknown message" in error.value.text
        reference.fail_if_not_exists = False
        sent = await place.send("all the same", reference=reference)
        assert sent.reference is None and sent.type is discord.MessageType.default
        with pytest.raises(discord.NotFound) as missing:
            await place.fetch_message(gone.id)
        assert missing.value.code == 10008

    tell(story)


def test_the_same_nonce_makes_one_message() -> None:
    async def story(bot: Bot, server: DiscordServer) -> None:
        place: Any = bot.get_channel(general(server).id)
        first = await place.send("once", nonce="dm-1")
        again = await place.send("once", nonce="dm-1")
        other = await place.send("once", nonce="dm-2")
        assert first.id == again.id != other.id and first.nonce == "dm-1"
        assert [one.nonce for one in server.by_bot(general(server))] == ["dm-1", "dm-2"]
        server.fail("POST", r"/channels/\d+/messages", status=502, carried_out=True)
        await place.send("its answer is lost", nonce="dm-3")
        assert len(server.by_bot(general(server))) == 3

    tell(story)


def test_the_bot_edits_deletes_and_reacts() -> None:
    async def story(bot: Bot, server: DiscordServer) -> None:
        channel, anna = general(server), server.add_user("anna")
        place: Any = bot.get_channel(channel.id)
        sent = await place.send("good mroning", embed=discord.Embed(title="t", description="d"))
        (stored,) = server.by_bot(channel)
        assert stored.embeds[0]["description"] == "d"
        await sent.edit(content="good morning", embed=None)
        assert (stored.content, stored.embeds) == ("good morning", []) and stored.edited_at is not None
        await sent.add_reaction("🇫🇷")
        await sent.add_reaction("🇫🇷")
        assert stored.reactions == {"🇫🇷": [APPLICATION]}
        await sent.remove_reaction("🇫🇷", bot.user)
        assert stored.reactions == {}
        with pytest.raises(discord.HTTPException) as error:
            await sent.add_reaction("abc")
        assert error.value.code == 10014
        await sent.delete()
        assert stored.deleted
        others = await place.fetch_message(server.say(channel, anna, "mine").id)
        with pytest.raises(discord.Forbidden) as foreign:
            await others.edit(content="yours")
        assert foreign.value.code == 50005
        with pytest.raises(discord.Forbidden):
            await others.delete()
        server.permit(channel, "manage_messages")
        await others.delete()
        await server.until(lambda: bot.of("raw_message_delete"))
        assert [str(one.emoji) for one in bot.of("raw_reaction_add")] == ["🇫🇷"]

    tell(story)


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


def test_forwards_webhooks_and_replies_of_people() -> None:
    async def story(bot: Bot, server: DiscordServer) -> None:
        channel, anna = general(server), server.add_user("anna")
        robot = server.add_user("robot", bot=True)
        first = server.say(channel, anna, "the original")
        server.say(channel, anna, forwarded=first)
        server.say(channel, anna, "from a webhook", webhook=True)
        server.say(channel, anna, "as I said", reply_to=first)
        server.say(channel, robot, "beep")
        server.say(channel, anna, kind=7)
        await server.until(lambda: len(bot.of("message")) == 6)
        _, forward, hook, reply, beep, joined = bot.of("message")
        assert forward.content == "" and forward.message_snapshots[0].content == "the original"
        assert forward.reference.type is discord.MessageReferenceType.forward
        assert hook.webhook_id and hook.author.bot and hook.author.name == "anna"
        assert reply.reference.resolved.content == "the original"
        assert beep.author.bot and not beep.webhook_id
        assert joined.type is discord.MessageType.new_member and joined.is_system()
        with pytest.raises(discord.HTTPException):
            await joined.reply("hello")

    tell(story)


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


def test_direct_messages_threads_and_posts() -> None:
    async def story(bot: Bot, server: DiscordServer) -> None:
        channel, anna = general(server), server.add_user("anna")
        dm, thread = server.add_dm(anna), server.add_thread("a thread", parent=channel)
        post = server.add_thread("a post", server.add_forum("forum"), owner=anna, content="first")
        for place in (dm, thread, post):
            said = server.say(place, anna, "hello")
            server.react(said, anna, "🇩🇪")
        await server.until(lambda: len(bot.of("raw_reaction_add")) == 3)
        first, direct, in_thread, in_post = bot.of("message")
        assert direct.guild is None and isinstance(direct.channel, discord.DMChannel)
        assert bot.of("raw_reaction_add")[0].guild_id is None and bot.of("raw_reaction_add")[0].member is None
        assert isinstance(in_thread.channel, discord.Thread) and in_thread.channel.parent_id == channel.id
        assert first.id == first.channel.id == post.id
        assert isinstance(in_post.channel.parent, discord.ForumChannel)
        for message in (direct, in_thread, in_post):
            await message.reply("hello yourself")
        assert [len(server.by_bot(place)) for place in (dm, thread, post)] == [1, 1, 1]
        user: Any = await bot.fetch_user(anna.id)
        await user.send("and by itself")
        assert server.by_bot(dm)[-1].content == "and by itself"
        server.forbid(thread, "send_messages")
        with pytest.raises(discord.Forbidden):
            await in_thread.channel.send("not here")
        server.forbid(dm, "send_messages")
        with pytest.raises(discord.Forbidden) as error:
            await user.send("no more")
        assert error.value.code == 50007

    tell(story)


def test_files_go_up_and_stay_on_edit() -> None:
    async def story(bot: Bot, server: DiscordServer) -> None:
        channel = general(server)
        place: Any = bot.get_channel(channel.id)
        files = [discord.File(io.BytesIO(data), name) for name, data in (("a.txt", b"one"), ("b.txt", b"two"))]
        sent = await place.send("two files", files=files, nonce="with-files")
        (stored,) = server.by_bot(channel)
        assert stored.attachments == [("a.txt", b"one"), ("b.txt", b"two")] and stored.content == "two files"
        assert await sent.attachments[1].read() == b"two"
        await sent.edit(content="one file", attachments=[sent.attachments[1]])
        assert stored.attachments == [("b.txt", b"two")]

    tell(story)


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


def test_guilds_and_members_come_later() -> None:
    async def story(bot: Bot, server: DiscordServer) -> None:
        guild = server.add_guild("another")
        channel = server.add_channel("elsewhere", guild=guild)
        boss = server.add_user("boss", permissions=["manage_guild"])
        server.say(channel, boss, "hello")
        await server.until(lambda: bot.of("message"))
        assert bot.of("message")[0].guild.name == "another"
        found = await bot.get_guild(guild.id).query_members(user_ids=[boss.id])  # type: ignore[union-attr]
        assert [one.name for one in found] == ["boss"]

    tell(story)


def test_what_is_not_emulated_is_recorded() -> None:
    async def run() -> None:
        async with asyncio.timeout(DEADLINE_S), DiscordServer(TOKEN, APPLICATION) as server:
            async with started(server) as bot:
                with pytest.raises(discord.NotFound):
                    await bot.fetch_guild_preview(server.guild.id)
            assert list(server.unknown) == [("GET", f"/guilds/{server.guild.id}/preview")]

    asyncio.run(run())


def test_many_reactions_at_once() -> None:
    """400 reactions, each answered with a reply, take the server no more than a few seconds."""

    async def story(bot: Bot, server: DiscordServer) -> None:
        channel, anna = general(server), server.add_user("anna")
        said = [server.say(channel, anna, f"message {number}") for number in range(400)]
        place: Any = bot.get_channel(channel.id)
        for one in said:
            server.react(one, anna, "🇩🇪")
        await server.until(lambda: len(bot.of("raw_reaction_add")) == 400)
        await asyncio.gather(*(place.get_partial_message(one.id).reply("x") for one in said))
        assert len(server.by_bot(channel)) == 400

    tell(story)
