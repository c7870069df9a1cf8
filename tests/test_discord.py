"""The Discord gateway, whole: discord.py on a real WebSocket, a real broker, a real node with the embedded model."""

from __future__ import annotations

import asyncio
import json
import re
import shutil
import time
from collections.abc import Awaitable, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from bench.cluster import Cluster
from bench.stage import Stage
from tests.discord_server import Channel, Message
from tests.embedded import GERMAN

TAXI = "Rufen Sie bitte ein Taxi, sonst verpasse ich meinen Flug."
KEYS = "Weißt du, wo meine Schlüssel sind?"
HEADER = "🇩🇪➡️🇺🇸"

Scene = Callable[[Stage], Awaitable[None]]


@pytest.fixture(scope="module")
def packages(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The embedded package, and two more routes that are the same model under other names."""
    folder = tmp_path_factory.mktemp("packages")
    for first, second in (("de", "en"), ("en", "de"), ("en", "fr")):
        place = folder / f"translate-{first}_{second}-1_0"
        shutil.copytree(GERMAN, place)
        metadata = json.loads((place / "metadata.json").read_text())
        (place / "metadata.json").write_text(json.dumps({**metadata, "from_code": first, "to_code": second}))
    return folder


@pytest.fixture(scope="module")
def translating(tmp_path_factory: pytest.TempPathFactory, packages: Path) -> Iterator[Cluster]:
    """A cluster that translates, for all scenes that leave it as it is."""
    with Cluster(tmp_path_factory.mktemp("cluster")) as cluster:
        cluster.broker()
        cluster.node("node", "--packages", str(packages), "--max-workers", "1")
        cluster.wait_ready(1, 1)
        yield cluster


def play(scene: Scene, cluster: Cluster, folder: Path, within_s: float = 60.0, clean: bool = True) -> None:
    """Play ``scene`` before a new Discord; fails when the bot called something that Discord does not have.

    ``clean``: the bot's log must not say "error". Texts and the token are never in it.
    """

    async def whole() -> None:
        async with Stage(cluster, folder) as stage:
            try:
                await asyncio.wait_for(scene(stage), within_s)
            finally:
                print(stage.log() if stage.bot else "")  # pytest shows it when the scene failed
            assert list(stage.server.unknown) == []
            if stage.bot:
                assert "Traceback" not in stage.log()
                assert not clean or " error " not in stage.log()
                assert stage.token.split(".")[2] not in stage.log() and "Taxi" not in stage.log()

    asyncio.run(whole())


def replies_to(stage: Stage, message: Message, channel: Channel) -> list[Message]:
    return [one for one in stage.server.by_bot(channel) if one.reply_to == message.id]


async def answer(stage: Stage, message: Message, channel: Channel, within_s: float = 10.0) -> Message:
    """The only reply to ``message``."""
    await stage.server.until(lambda: bool(replies_to(stage, message, channel)), within_s)
    (reply,) = replies_to(stage, message, channel)
    return reply


# ---- reaction and reply ----


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
            assert reply.content.startswith(f"{HEADER} Please call a taxi, or I'll miss my ")
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


# ---- under load ----


def test_an_hourglass_while_it_takes_time_and_edits_of_what_waits(
    cluster: Cluster, tmp_path: Path, packages: Path
) -> None:
    async def scene(stage: Stage) -> None:
        server, channel = stage.server, stage.server.add_channel("general")
        await stage.start_bot(DOLMETSCH_DISCORD_HOURGLASS_S="0.3")
        anna = server.add_user("anna")
        stays, changes, goes, unwanted = [server.say(channel, anna, TAXI) for _ in range(4)]
        for message in (stays, changes, goes, unwanted):
            server.react(message, anna, "🇩🇪")
        await server.until(lambda: all("⏳" in one.reactions for one in (stays, changes, goes, unwanted)))
        server.edit(changes, KEYS)
        server.delete(goes)
        server.unreact(unwanted, anna, "🇩🇪")
        await server.until(lambda: "⏳" not in unwanted.reactions)
        cluster.node("node", "--packages", str(packages), "--max-workers", "1")
        assert "taxi" in (await answer(stage, stays, channel, 20)).content
        assert "keys" in (await answer(stage, changes, channel)).content
        await server.until(lambda: "⏳" not in stays.reactions and "⏳" not in changes.reactions)
        assert len(server.by_bot(channel)) == 2

    cluster.broker()
    play(scene, cluster, tmp_path)


def test_too_many_requests_are_refused_once_and_politely(translating: Cluster, tmp_path: Path) -> None:
    async def scene(stage: Stage) -> None:
        server, channel = stage.server, stage.server.add_channel("general")
        await stage.start_bot(DOLMETSCH_DISCORD_USER_LIMIT="3")
        anna, ben = server.add_user("anna"), server.add_user("ben")
        messages = [server.say(channel, anna, TAXI) for _ in range(6)]
        for message in messages:
            server.react(message, anna, "🇩🇪")
        await server.until(lambda: any("Slow down" in one.content for one in server.by_bot(channel)))
        server.react(messages[5], ben, "🇩🇪")  # somebody else may still ask
        await answer(stage, messages[5], channel)
        told = [one for one in server.by_bot(channel) if "Slow down" in one.content]
        assert len(told) == 1 and re.search(r"in \d+ s", told[0].content)
        assert len([one for one in server.by_bot(channel) if one.content.startswith(HEADER)]) == 4

    play(scene, translating, tmp_path)


def test_an_overloaded_broker_says_when_to_come_back(cluster: Cluster, tmp_path: Path) -> None:
    async def scene(stage: Stage) -> None:
        server, channel = stage.server, stage.server.add_channel("general")
        await stage.start_bot()
        anna = server.add_user("anna")
        messages = [server.say(channel, anna, text) for text in (TAXI, KEYS)]
        server.react(messages[0], anna, "🇩🇪")
        await server.until(lambda: waiting(stage) == 1, 5)
        server.react(messages[1], anna, "🇩🇪")
        reply = await answer(stage, messages[1], channel)
        assert re.fullmatch(r"Overloaded: try again in \d+ s\.", reply.content)

    cluster.environment["DOLMETSCH_SCHEDULER_MAX_JOBS"] = "1"
    cluster.broker()
    play(scene, cluster, tmp_path)


def waiting(stage: Stage) -> int:
    """Jobs in the broker's queue. Asked in a thread, as the scene's own loop is running."""
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(stage.cluster.status).result().queued_interactive


def test_without_a_broker_one_honest_message_at_the_deadline(cluster: Cluster, tmp_path: Path) -> None:
    async def scene(stage: Stage) -> None:
        server, channel = stage.server, stage.server.add_channel("general")
        await stage.start_bot(DOLMETSCH_DISCORD_DEADLINE_S="3", DOLMETSCH_DISCORD_HOURGLASS_S="0.5")
        anna = server.add_user("anna")
        message = server.say(channel, anna, TAXI)
        server.react(message, anna, "🇩🇪")
        await server.until(lambda: "⏳" in message.reactions)
        reply = await answer(stage, message, channel)
        assert "reached" in reply.content
        await server.until(lambda: "⏳" not in message.reactions)
        assert "the broker does not answer" in stage.log()

    play(scene, cluster, tmp_path)


def test_a_burst_of_200_over_a_dropped_websocket(translating: Cluster, tmp_path: Path) -> None:
    async def scene(stage: Stage) -> None:
        server, channel = stage.server, stage.server.add_channel("general")
        await stage.start_bot()
        users = [server.add_user(f"user{number}") for number in range(50)]
        messages = [server.say(channel, users[number % 50], f"{TAXI} {number}.") for number in range(200)]
        for number, message in enumerate(messages):
            server.react(message, users[number % 50], "🇩🇪")
            if number == 100:
                server.drop()
            if number % 20 == 0:
                await asyncio.sleep(0)
        await server.until(lambda: len(server.by_bot(channel)) >= 200, 40)
        assert [len(replies_to(stage, message, channel)) for message in messages] == [1] * 200
        assert server.resume_count >= 1

    play(scene, translating, tmp_path)


def test_a_discord_in_trouble_is_asked_again(translating: Cluster, tmp_path: Path) -> None:
    async def scene(stage: Stage) -> None:
        server, channel = stage.server, stage.server.add_channel("general")
        anna = server.add_user("anna")
        messages = [server.say(channel, anna, TAXI) for _ in range(5)]
        await stage.start_bot()
        server.fail("GET", r"/channels/\d+/messages/\d+", status=503, times=2)
        server.fail("POST", r"/channels/\d+/messages", status=429, times=2, retry_after=0.2)
        server.fail("POST", r"/channels/\d+/messages", status=503, times=2)
        for message in messages:
            server.react(message, anna, "🇩🇪")
        for message in messages:
            await answer(stage, message, channel, 30)
        assert len(server.by_bot(channel)) == 5

    play(scene, translating, tmp_path)


def test_a_discord_that_is_away_is_a_line_a_try_and_nothing_is_missed(translating: Cluster, tmp_path: Path) -> None:
    async def scene(stage: Stage) -> None:
        server, channel = stage.server, stage.server.add_channel("general")
        await stage.start_bot()
        away = server.fail("GET", "/", status=503, times=2)
        anna = server.add_user("anna")
        server.drop()
        message = server.say(channel, anna, TAXI)
        server.react(message, anna, "🇩🇪")
        await answer(stage, message, channel, 20)
        tries = [line for line in stage.log().splitlines() if " error " in line]
        assert away.hits == len(tries) == 2 and all("reconnect" in line for line in tries)
        assert "Traceback" not in stage.log()

    play(scene, translating, tmp_path, clean=False)


def test_a_new_session_looks_at_what_it_missed(translating: Cluster, tmp_path: Path) -> None:
    async def scene(stage: Stage) -> None:
        server, channel = stage.server, stage.server.add_channel("general")
        await stage.start_bot()
        anna = server.add_user("anna")
        message = server.say(channel, anna, TAXI)
        server.react(message, anna, "🇩🇪")
        reply = await answer(stage, message, channel)
        await server.until(lambda: "de→en in" in stage.log())
        server.drop(resumable=False)
        server.delete(message)
        await server.until(lambda: server.ready_count == 2, 20)
        await server.until(lambda: reply.deleted)

    play(scene, translating, tmp_path)


# ---- crashes ----


def test_killed_between_submission_and_reply_it_answers_once_after_its_restart(
    cluster: Cluster, tmp_path: Path, packages: Path
) -> None:
    async def scene(stage: Stage) -> None:
        server, channel = stage.server, stage.server.add_channel("general")
        await stage.start_bot()
        anna = server.add_user("anna")
        messages = [server.say(channel, anna, f"{TAXI} {number}.") for number in range(5)]
        for message in messages:
            server.react(message, anna, "🇩🇪")
        await server.until(lambda: waiting(stage) == 5)
        stage.kill_bot()
        cluster.node("node", "--packages", str(packages), "--max-workers", "1")
        await server.until(lambda: waiting(stage) == 0, 20)
        await stage.start_bot()
        for message in messages:
            await answer(stage, message, channel)
        await server.until(lambda: stage.log().count("de→en in") == 5)
        assert len(server.by_bot(channel)) == 5

    cluster.broker()
    play(scene, cluster, tmp_path)


def test_killed_while_it_posts_there_is_still_one_reply(translating: Cluster, tmp_path: Path) -> None:
    async def scene(stage: Stage) -> None:
        server, channel = stage.server, stage.server.add_channel("general")
        await stage.start_bot()
        anna = server.add_user("anna")
        message = server.say(channel, anna, TAXI)
        # Discord has the reply, and the bot does not know.
        lost = server.fail("POST", r"/channels/\d+/messages", status=0, times=1, carried_out=True)
        server.react(message, anna, "🇩🇪")
        await server.until(lambda: lost.hits == 1)
        stage.kill_bot()
        await stage.start_bot()
        await server.until(lambda: "de→en in" in stage.log())
        await answer(stage, message, channel)
        server.edit(message, KEYS)
        await server.until(lambda: "keys" in server.by_bot(channel)[0].content)
        assert len(server.by_bot(channel)) == 1

    play(scene, translating, tmp_path)


def test_stopped_with_jobs_on_their_way_the_next_process_answers_once(
    cluster: Cluster, tmp_path: Path, packages: Path
) -> None:
    async def scene(stage: Stage) -> None:
        server, channel = stage.server, stage.server.add_channel("general")
        await stage.start_bot(DOLMETSCH_DISCORD_HOURGLASS_S="0.2")
        anna = server.add_user("anna")
        message = server.say(channel, anna, TAXI)
        server.react(message, anna, "🇩🇪")
        await server.until(lambda: "⏳" in message.reactions)
        assert await stage.end_bot() == 0
        cluster.node("node", "--packages", str(packages), "--max-workers", "1")
        await server.until(lambda: waiting(stage) == 0, 20)
        await stage.start_bot()
        await answer(stage, message, channel)
        await server.until(lambda: "⏳" not in message.reactions)
        assert len(server.by_bot(channel)) == 1

    cluster.broker()
    play(scene, cluster, tmp_path)


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


# ---- commands and what others see ----


def test_private_translations(translating: Cluster, tmp_path: Path) -> None:
    async def scene(stage: Stage) -> None:
        server, channel = stage.server, stage.server.add_channel("general")
        await stage.start_bot()
        await server.until(lambda: len(server.commands) == 4)
        names = {one["name"]: one.get("name_localizations", {}) for one in server.commands}
        assert names["translate"]["de"] == "übersetzen" and names["Translate"]["de"] == "Übersetzen"
        assert all(one.get("description") or one["type"] == 3 for one in server.commands)
        anna = server.add_user("anna")
        message = server.say(channel, anna, TAXI)
        asked = server.command(channel, anna, "translate", {"text": TAXI, "route": "de→en"})
        await server.until(lambda: "taxi" in ((asked.response or {}).get("content") or ""))
        assert asked.ephemeral
        to_german = server.context_menu(channel, anna, "Translate", message, locale="de")  # one route leads there
        await server.until(lambda: "➡️🇩🇪" in ((to_german.response or {}).get("content") or ""))
        unsure = server.context_menu(
            channel, anna, "Translate", message, locale="fr"
        )  # two routes do, one by way of en
        await server.until(lambda: bool((unsure.response or {}).get("components")))
        select = unsure.response["components"][0]["components"][0]  # type: ignore[index]
        assert {one["value"] for one in select["options"]} == {"de→fr", "en→fr"}
        server.choose(unsure, select["custom_id"], ["de→fr"])
        await server.until(lambda: "➡️🇫🇷" in ((unsure.response or {}).get("content") or ""))
        assert not unsure.response["components"]  # type: ignore[index]
        completed = server.autocomplete(channel, anna, "translate", {"route": "de→e"}, focused="route")
        await server.until(lambda: bool(completed.choices))
        assert [one["value"] for one in completed.choices] == ["de→en"]
        for name, word in (("languages", "de→en"), ("cluster", "1")):
            shown = server.command(channel, anna, name, {})
            await server.until(lambda shown=shown, word=word: word in ((shown.response or {}).get("content") or ""))
            assert shown.ephemeral
        missing = server.command(channel, anna, "translate", {"text": TAXI, "route": "it→en"})
        await server.until(lambda: "it→en" in ((missing.response or {}).get("content") or ""))
        assert server.by_bot(channel) == []

    play(scene, translating, tmp_path)


def test_presence_and_report(translating: Cluster, tmp_path: Path) -> None:
    async def scene(stage: Stage) -> None:
        server = stage.server
        await stage.start_bot()
        await server.until(lambda: "1 Pi " in json.dumps(server.presence, ensure_ascii=False))
        until, found = time.monotonic() + 10, []
        while not found:
            assert time.monotonic() < until
            status = await asyncio.to_thread(stage.cluster.status)
            found = [one for one in status.gateways if one.name == "discord"]
        (report,) = found
        assert (report.kind, report.servers) == ("discord", 1)
        await stage.end_bot()
        lines = tmp_path / "status.txt"
        lines.write_text("Ich übersetze\n\nzweite Zeile\n", encoding="utf-8")
        await stage.start_bot(STATUS_FILE=str(lines))
        await server.until(lambda: "Ich übersetze" in json.dumps(server.presence, ensure_ascii=False))

    play(scene, translating, tmp_path)


# ---- starting ----


@pytest.mark.parametrize(
    ("trouble", "line"),
    [
        ("none", "there is no DISCORD_TOKEN: copy .env.example to .env"),
        ("wrong", "Discord does not know this DISCORD_TOKEN"),
        ("intent", "switch on .*Message Content Intent"),
        ("refused", "Discord refused the login"),
    ],
)
def test_a_start_that_fails_is_one_line_that_says_where_to_click(
    cluster: Cluster, tmp_path: Path, trouble: str, line: str
) -> None:
    async def scene(stage: Stage) -> None:
        if trouble == "intent":
            stage.server.message_content_allowed = False
        changes = {
            "none": {"DISCORD_TOKEN": ""},
            "wrong": {"DISCORD_TOKEN": "MTEwMDAw.abc.wrong"},
        }
        if trouble == "refused":
            stage.server.fail("GET", "/users/@me", status=403, code=40001, message="Unauthorized")
        await stage.start_bot(ready=False, **changes.get(trouble, {}))
        assert await stage.exit_status() == 1
        (said,) = [one for one in stage.log().splitlines() if " error " in one]
        assert re.search(line, said)
        assert "Traceback" not in stage.log() and stage.token not in stage.log()
        stage.bot = ""

    play(scene, cluster, tmp_path)


def test_a_discord_that_cannot_be_reached_yet_is_waited_for(translating: Cluster, tmp_path: Path) -> None:
    async def scene(stage: Stage) -> None:
        server, channel = stage.server, stage.server.add_channel("general")
        anna = server.add_user("anna")
        message = server.say(channel, anna, TAXI)
        server.fail("GET", "/users/@me", status=0, times=3)  # aiohttp itself asks twice
        await stage.start_bot()
        assert "Discord cannot be reached" in stage.log()
        server.react(message, anna, "🇩🇪")
        await answer(stage, message, channel)
        await stage.end_bot()
        server.fail("GET", "/users/@me", status=0, times=99)
        await stage.start_bot(ready=False)
        await server.until(lambda: "Discord cannot be reached" in stage.log())
        assert await stage.end_bot() == 0

    play(scene, translating, tmp_path)


def test_the_invitation_asks_for_what_is_used_and_no_more(cluster: Cluster, tmp_path: Path) -> None:
    async def scene(stage: Stage) -> None:
        await stage.start_bot("--invite-url", ready=False)
        assert await stage.exit_status() == 0
        assert re.search(r"client_id=1100000000000000000\S*permissions=274878008384\b", stage.log())
        stage.bot = ""

    play(scene, cluster, tmp_path)
