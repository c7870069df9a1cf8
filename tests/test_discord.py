"""The Discord gateway, whole: a flag, a reply, and what becomes of the reply."""

from __future__ import annotations

from pathlib import Path

from bench.cluster import Cluster
from bench.stage import Stage
from tests.scenes import HEADER, KEYS, TAXI, answer, packages, play, replies_to, translating

__all__ = ["packages", "translating"]  # fixtures


def test_a_flag_gives_a_reply_wherever_messages_are(translating: Cluster, tmp_path: Path) -> None:
    async def scene(stage: Stage) -> None:
        server = stage.server
        anna = server.add_user("anna")
        general = server.add_channel("general")
        early = server.say(general, anna, TAXI)  # before the bot starts
        await stage.start_bot()
        thread = server.add_thread("thread", parent=general)
        post = server.add_thread("post", parent=server.add_forum("forum"))
        places = [general, thread, post, server.add_dm(anna)]
        messages = [early, *[server.say(place, anna, TAXI) for place in places[1:]]]
        for message in messages:
            server.react(message, anna, "🇩🇪")
        for message, place in zip(messages, places, strict=True):
            reply = await answer(stage, message, place)
            assert reply.content.startswith(f"{HEADER} Please call a taxi")
            assert reply.allowed_mentions is not None and reply.allowed_mentions["parse"] == []

    play(scene, translating, tmp_path)


def test_two_people_make_one_reply_and_the_last_flag_takes_it_away(translating: Cluster, tmp_path: Path) -> None:
    async def scene(stage: Stage) -> None:
        server, channel = stage.server, stage.server.add_channel("general")
        await stage.start_bot()
        anna, ben = server.add_user("anna"), server.add_user("ben")
        message = server.say(channel, anna, TAXI)
        server.react(message, anna, "🇩🇪")
        server.react(message, ben, "🇦🇹")
        server.react(message, ben, "🇩🇪")
        await answer(stage, message, channel)
        server.unreact(message, anna, "🇩🇪")
        server.unreact(message, ben, "🇩🇪")
        other = server.say(channel, anna, KEYS)
        server.react(other, anna, "🇩🇪")
        await answer(stage, other, channel)  # what came before it was looked at
        await answer(stage, message, channel)
        server.unreact(message, ben, "🇦🇹")
        await server.until(lambda: replies_to(stage, message, channel) == [])
        server.react(message, ben, "🇩🇪")
        await answer(stage, message, channel)
        server.clear_reactions(message)
        await server.until(lambda: replies_to(stage, message, channel) == [])

    play(scene, translating, tmp_path)


def test_a_reply_follows_its_message(translating: Cluster, tmp_path: Path) -> None:
    async def scene(stage: Stage) -> None:
        server, channel = stage.server, stage.server.add_channel("general")
        await stage.start_bot()
        anna = server.add_user("anna")
        messages = [server.say(channel, anna, text) for text in (TAXI, KEYS, TAXI, TAXI)]
        for message in messages:
            server.react(message, anna, "🇩🇪")
        first, second, third, fourth = [await answer(stage, message, channel) for message in messages]
        server.edit(messages[0], KEYS)
        await server.until(lambda: first.content == f"{HEADER} Do you know where my keys are?")
        server.edit(messages[0], TAXI)  # back again: a job that was done before
        await server.until(lambda: "taxi" in first.content)
        server.delete(messages[1])
        server.delete_many([messages[2]])
        await server.until(lambda: second.deleted and third.deleted)
        server.delete(fourth)  # a moderator takes our reply away: it stays away
        server.edit(messages[3], KEYS)
        server.edit(messages[0], KEYS)
        await server.until(lambda: "keys" in first.content)
        assert replies_to(stage, messages[3], channel) == []
        assert server.by_bot(channel) == [first]

    play(scene, translating, tmp_path)


def test_replies_follow_their_messages_over_a_restart(translating: Cluster, tmp_path: Path) -> None:
    async def scene(stage: Stage) -> None:
        server, channel = stage.server, stage.server.add_channel("general")
        await stage.start_bot()
        anna = server.add_user("anna")
        messages = [server.say(channel, anna, TAXI) for _ in range(4)]
        for message in messages:
            server.react(message, anna, "🇩🇪")
        shown = [await answer(stage, message, channel) for message in messages]
        await server.until(lambda: stage.log().count("de→en in") == len(messages))
        assert await stage.end_bot() == 0
        server.delete(messages[0])
        server.unreact(messages[1], anna, "🇩🇪")
        server.edit(messages[2], KEYS)
        await stage.start_bot()
        await server.until(lambda: shown[0].deleted and shown[1].deleted and "keys" in shown[2].content)
        server.edit(messages[3], KEYS)
        await server.until(lambda: "keys" in shown[3].content)
        assert len(server.by_bot(channel)) == 2

    play(scene, translating, tmp_path)


def test_what_is_not_prose_survives_and_nobody_is_pinged(translating: Cluster, tmp_path: Path) -> None:
    async def scene(stage: Stage) -> None:
        server, channel = stage.server, stage.server.add_channel("general")
        await stage.start_bot()
        anna = server.add_user("anna")
        parts = [f"<@{anna.id}>", "@everyone", "<:kek:123456789012345678>", "`make run`", "https://example.org/a_b?c=1"]
        first = f"{parts[0]} {parts[1]} schau mal {parts[4]} an.\n- Tippe {parts[3]} ein {parts[2]}"
        text = f"{first}\n\n||{KEYS}||\n```py\nx = 1\n```"
        message = server.say(channel, anna, text)
        server.react(message, anna, "🇩🇪")
        reply = await answer(stage, message, channel)
        for part in [*parts, "||", "```py\nx = 1\n```", "\n- "]:
            assert part in reply.content
        assert reply.allowed_mentions is not None and reply.allowed_mentions["parse"] == []

    play(scene, translating, tmp_path)


def test_embeds_and_forwarded_messages_are_read(translating: Cluster, tmp_path: Path) -> None:
    async def scene(stage: Stage) -> None:
        server, channel = stage.server, stage.server.add_channel("general")
        await stage.start_bot()
        anna = server.add_user("anna")
        embedded = server.say(channel, anna, "", embeds=[{"title": "Guten Morgen.", "description": TAXI}])
        forwarded = server.say(channel, anna, "", forwarded=server.say(channel, anna, KEYS))
        for message in (embedded, forwarded):
            server.react(message, anna, "🇩🇪")
        assert "taxi" in (await answer(stage, embedded, channel)).content
        assert "keys" in (await answer(stage, forwarded, channel)).content
        unfurled = server.say(channel, anna, TAXI)
        server.react(unfurled, anna, "🇩🇪")
        reply = await answer(stage, unfurled, channel)
        server.embed(unfurled, [{"title": KEYS}])
        await server.until(lambda: "keys" in reply.content and "taxi" in reply.content)

    play(scene, translating, tmp_path)


def test_long_results_become_more_messages_or_a_file(translating: Cluster, tmp_path: Path) -> None:
    async def scene(stage: Stage) -> None:
        server, channel = stage.server, stage.server.add_channel("general")
        await stage.start_bot()
        anna = server.add_user("anna")
        paragraphs = [f"{TAXI} {KEYS} {number}." for number in range(200)]
        long = server.say(channel, anna, "\n".join(paragraphs[:35]))
        longest = server.say(
            channel,
            anna,
            "",
            embeds=[
                {"title": "Hallo.", "description": "\n".join(paragraphs[:40])},
            ],
        )
        endless = server.say(channel, anna, "", embeds=[{"description": "\n".join(paragraphs[:90])}])
        for message in (long, longest, endless):
            server.react(message, anna, "🇩🇪")
        await server.until(lambda: len(server.by_bot(channel)) >= 5 and bool(replies_to(stage, endless, channel)), 40)
        await server.until(lambda: stage.log().count("de→en in") == 3)
        parts = replies_to(stage, long, channel)
        assert 1 < len(parts) <= 3 and all(len(part.content) <= 2000 for part in parts)
        assert parts[0].content.startswith(HEADER) and not parts[1].content.startswith(HEADER)
        (one,) = replies_to(stage, endless, channel)
        ((name, content),) = one.attachments
        assert name.endswith(".txt") and content.decode().count("taxi") == 90
        server.edit(long, TAXI)  # fewer messages now: the surplus goes
        await server.until(lambda: len(replies_to(stage, long, channel)) == 1)
        server.delete(endless)
        await server.until(lambda: one.deleted)

    play(scene, translating, tmp_path)


def test_bots_webhooks_and_itself_are_never_answered(translating: Cluster, tmp_path: Path) -> None:
    async def scene(stage: Stage) -> None:
        server, channel = stage.server, stage.server.add_channel("general")
        await stage.start_bot()
        anna, robot = server.add_user("anna"), server.add_user("robot", bot=True)
        by_robot = server.say(channel, robot, TAXI)
        by_hook = server.say(channel, server.add_user("hook"), TAXI, webhook=True)
        by_anna = server.say(channel, anna, TAXI)
        server.react(by_robot, anna, "🇩🇪")
        server.react(by_hook, anna, "🇩🇪")
        server.react(by_anna, robot, "🇩🇪")
        server.react(by_anna, anna, "👍")
        last = server.say(channel, anna, KEYS)
        server.react(last, anna, "🇩🇪")
        reply = await answer(stage, last, channel)
        server.react(reply, anna, "🇩🇪")
        another = server.say(channel, anna, KEYS)
        server.react(another, anna, "🇩🇪")
        await answer(stage, another, channel)
        assert len(server.by_bot(channel)) == 2

    play(scene, translating, tmp_path)


def test_a_route_that_is_not_there_is_said_once(translating: Cluster, tmp_path: Path) -> None:
    async def scene(stage: Stage) -> None:
        server, channel = stage.server, stage.server.add_channel("general")
        await stage.start_bot()
        anna, ben = server.add_user("anna"), server.add_user("ben")
        message = server.say(channel, anna, "Buongiorno a tutti")
        server.react(message, anna, "🇮🇹")
        reply = await answer(stage, message, channel)
        assert "it→en" in reply.content and "de→en" in reply.content and "en→de" in reply.content
        server.react(message, ben, "🇮🇹")
        empty = server.say(channel, anna, "🍕 123")
        server.react(empty, anna, "🇩🇪")
        await answer(stage, empty, channel)
        assert len(replies_to(stage, message, channel)) == 1
        server.clear_reactions(message)
        await server.until(lambda: reply.deleted)

    play(scene, translating, tmp_path)


def test_the_message_goes_while_it_is_translated(translating: Cluster, tmp_path: Path) -> None:
    async def scene(stage: Stage) -> None:
        server, channel = stage.server, stage.server.add_channel("general")
        await stage.start_bot()
        anna = server.add_user("anna")
        message = server.say(channel, anna, TAXI)
        server.delay("POST", r"/channels/\d+/messages", 0.3)
        server.react(message, anna, "🇩🇪")
        server.delete(message)
        other = server.say(channel, anna, KEYS)
        server.react(other, anna, "🇩🇪")
        await answer(stage, other, channel)
        await server.until(lambda: len(server.by_bot(channel)) == 1)

    play(scene, translating, tmp_path)


def test_a_missing_permission_is_one_line_that_says_where_to_click(translating: Cluster, tmp_path: Path) -> None:
    async def scene(stage: Stage) -> None:
        server = stage.server
        closed, open_ = server.add_channel("closed"), server.add_channel("open")
        server.forbid(closed, "send_messages")
        await stage.start_bot()
        anna = server.add_user("anna")
        for _ in range(2):
            server.react(server.say(closed, anna, TAXI), anna, "🇩🇪")
        await server.until(lambda: "permission is missing" in stage.log())
        message = server.say(open_, anna, TAXI)
        server.react(message, anna, "🇩🇪")
        await answer(stage, message, open_)
        assert stage.log().count("permission is missing") == 1 and "Channel settings" in stage.log()

    play(scene, translating, tmp_path)
