"""The Discord gateway killed or stopped in the middle of something: there is one reply, and never two."""

from __future__ import annotations

from pathlib import Path

from bench.cluster import Cluster
from bench.stage import Stage
from tests.scenes import KEYS, TAXI, answer, packages, play, translating, waiting

__all__ = ["packages", "translating"]  # fixtures


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
