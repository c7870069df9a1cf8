"""The small Discord itself, with the real discord.py client on it: messages, reactions and files, in every place."""

from __future__ import annotations

import asyncio
import io
from typing import Any

import discord
import pytest

from tests.discord_client import APPLICATION, DEADLINE_S, TOKEN, Bot, general, started, tell
from tests.discord_server import DiscordServer


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
