"""The Discord gateway under load: what takes time or is too much, and a broker or a Discord that is in trouble."""

from __future__ import annotations

import asyncio
import re
from pathlib import Path

from bench.cluster import Cluster
from bench.stage import Stage
from tests.scenes import HEADER, KEYS, TAXI, answer, packages, play, replies_to, translating, waiting

__all__ = ["packages", "translating"]  # fixtures


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
