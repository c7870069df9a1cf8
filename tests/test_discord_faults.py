"""The Discord gateway where it hurts: lost answers, second thoughts in the middle of something, refusals.

Each scene was a defect once.
"""

from __future__ import annotations

from pathlib import Path

import msgpack
import pytest

from bench.cluster import Cluster
from bench.stage import Stage
from dolmetsch.correspondence import _place
from dolmetsch.messages import Answer
from dolmetsch.replybook import Key
from tests.discord_server import Channel, Message
from tests.scenes import KEYS, TAXI, answer, packages, play, replies_to, translating, waiting

__all__ = ["packages", "translating"]  # fixtures

POST = r"/channels/\d+/messages"
MESSAGE = r"/channels/\d+/messages/\d+"
SOON = {"DOLMETSCH_DISCORD_HOURGLASS_S": "0.2"}


async def settled(stage: Stage, channel: Channel) -> None:
    """Whatever the bot was doing is done: a later request has been answered, and no worker is left."""
    anna = stage.server.add_user("sentinel")
    message = stage.server.say(channel, anna, KEYS)
    stage.server.react(message, anna, "🇩🇪")
    await answer(stage, message, channel, 20)
    await stage.server.until(lambda: f"message {message.id}: de→en in" in stage.log())
    stage.server.delete(message)
    await stage.server.until(lambda: not replies_to(stage, message, channel))


def node(stage: Stage, folder: Path) -> None:
    """A node comes, and what waits is translated."""
    stage.cluster.node("node", "--packages", str(folder), "--max-workers", "1")


def test_bots_are_not_even_told_that_a_route_is_missing(translating: Cluster, tmp_path: Path) -> None:
    async def scene(stage: Stage) -> None:
        server, channel = stage.server, stage.server.add_channel("general")
        await stage.start_bot()
        anna, robot = server.add_user("anna"), server.add_user("robot", bot=True)
        for message in (server.say(channel, robot, "Ciao"), server.say(channel, anna, "Ciao", webhook=True)):
            server.react(message, anna, "🇮🇹")
        await settled(stage, channel)
        assert server.by_bot(channel) == []

    play(scene, translating, tmp_path)


def test_a_refused_reply_leaves_no_hourglass_behind(cluster: Cluster, tmp_path: Path, packages: Path) -> None:
    async def scene(stage: Stage) -> None:
        server, channel = stage.server, stage.server.add_channel("general")
        await stage.start_bot(**SOON)
        anna = server.add_user("anna")
        message = server.say(channel, anna, TAXI)
        server.react(message, anna, "🇩🇪")
        await server.until(lambda: "⏳" in message.reactions)
        server.fail("POST", POST, status=400, code=200000, message="Blocked by automatic moderation")
        node(stage, packages)
        await server.until(lambda: "refused" in stage.log(), 20)
        await server.until(lambda: "⏳" not in message.reactions)
        server.unreact(message, anna, "🇩🇪")
        server.react(message, anna, "🇩🇪")  # and somebody may ask again
        await answer(stage, message, channel)

    cluster.broker()
    play(scene, cluster, tmp_path)


def test_trouble_in_the_middle_does_not_lose_the_result(cluster: Cluster, tmp_path: Path, packages: Path) -> None:
    async def scene(stage: Stage) -> None:
        server, channel = stage.server, stage.server.add_channel("general")
        anna, ben = server.add_user("anna"), server.add_user("ben")
        message = server.say(channel, anna, TAXI)  # before the start: it must be fetched each time
        await stage.start_bot(**SOON)
        for user in (anna, ben):
            server.react(message, user, "🇩🇪")
        await server.until(lambda: "⏳" in message.reactions)
        broken = server.fail("GET", MESSAGE, status=0, times=2)
        server.unreact(message, ben, "🇩🇪")
        await server.until(lambda: broken.hits >= 1)
        node(stage, packages)
        await answer(stage, message, channel, 20)
        await server.until(lambda: "⏳" not in message.reactions)

    cluster.broker()
    play(scene, cluster, tmp_path)


def test_a_flag_taken_back_while_the_message_is_fetched(translating: Cluster, tmp_path: Path) -> None:
    async def scene(stage: Stage) -> None:
        server, channel = stage.server, stage.server.add_channel("general")
        anna = server.add_user("anna")
        message = server.say(channel, anna, TAXI)
        await stage.start_bot()
        server.delay("GET", MESSAGE, 0.4, late=True)
        server.react(message, anna, "🇩🇪")
        await server.until(lambda: any(one.method == "GET" and str(message.id) in one.path for one in server.requests))
        server.unreact(message, anna, "🇩🇪")
        await settled(stage, channel)
        await server.until(lambda: replies_to(stage, message, channel) == [])

    play(scene, translating, tmp_path)


def test_a_flag_set_again_while_the_bot_looks_whether_one_is_left(translating: Cluster, tmp_path: Path) -> None:
    async def scene(stage: Stage) -> None:
        server, channel = stage.server, stage.server.add_channel("general")
        anna = server.add_user("anna")
        message = server.say(channel, anna, TAXI)
        await stage.start_bot()
        server.react(message, anna, "🇩🇪")
        reply = await answer(stage, message, channel)
        await server.until(lambda: "de→en in" in stage.log())
        server.delay("GET", MESSAGE, 0.4, late=True)
        looks = len(looked(stage, message))
        server.unreact(message, anna, "🇩🇪")
        await server.until(lambda: len(looked(stage, message)) > looks)
        server.react(message, anna, "🇩🇪")
        await server.until(lambda: len(looked(stage, message)) > looks + 1)
        await settled(stage, channel)
        assert replies_to(stage, message, channel) == [reply]

    play(scene, translating, tmp_path)


def looked(stage: Stage, message: Message) -> list[object]:
    """How often the bot has fetched the message."""
    return [one for one in stage.server.requests if one.method == "GET" and one.path.endswith(str(message.id))]


def test_a_flag_set_again_while_the_reply_is_deleted(translating: Cluster, tmp_path: Path) -> None:
    async def scene(stage: Stage) -> None:
        server, channel = stage.server, stage.server.add_channel("general")
        await stage.start_bot()
        anna = server.add_user("anna")
        message = server.say(channel, anna, TAXI)
        server.react(message, anna, "🇩🇪")
        first = await answer(stage, message, channel)
        await server.until(lambda: "de→en in" in stage.log())
        server.delay("DELETE", MESSAGE, 0.3, late=True)
        server.unreact(message, anna, "🇩🇪")
        await server.until(lambda: first.deleted)
        server.react(message, anna, "🇩🇪")
        await answer(stage, message, channel)

    play(scene, translating, tmp_path)


def test_a_flag_taken_back_while_the_bot_was_down(cluster: Cluster, tmp_path: Path, packages: Path) -> None:
    async def scene(stage: Stage) -> None:
        server, channel = stage.server, stage.server.add_channel("general")
        await stage.start_bot()
        anna = server.add_user("anna")
        message = server.say(channel, anna, TAXI)
        server.react(message, anna, "🇩🇪")
        await server.until(lambda: waiting(stage) == 1)
        stage.kill_bot()
        server.unreact(message, anna, "🇩🇪")
        await stage.start_bot()
        node(stage, packages)
        await settled(stage, channel)
        assert server.by_bot(channel) == []

    cluster.broker()
    play(scene, cluster, tmp_path)


def test_notices_follow_their_messages_over_a_restart(translating: Cluster, tmp_path: Path) -> None:
    async def scene(stage: Stage) -> None:
        server, channel = stage.server, stage.server.add_channel("general")
        await stage.start_bot()
        anna = server.add_user("anna")
        messages = [server.say(channel, anna, "Ciao") for _ in range(2)]
        for message in messages:
            server.react(message, anna, "🇮🇹")
        notices = [await answer(stage, message, channel) for message in messages]
        await settled(stage, channel)
        await stage.end_bot()
        server.delete(messages[0])
        server.unreact(messages[1], anna, "🇮🇹")
        await stage.start_bot()
        await server.until(lambda: all(notice.deleted for notice in notices))

    play(scene, translating, tmp_path)


def test_a_rate_limit_that_outlasts_the_library_is_no_refusal(translating: Cluster, tmp_path: Path) -> None:
    async def scene(stage: Stage) -> None:
        server, channel = stage.server, stage.server.add_channel("general")
        await stage.start_bot()
        anna = server.add_user("anna")
        message = server.say(channel, anna, TAXI)
        server.fail("POST", POST, status=429, times=5, retry_after=0.05)
        server.react(message, anna, "🇩🇪")
        await answer(stage, message, channel, 20)

    play(scene, translating, tmp_path)


def test_a_reply_whose_answer_was_lost_is_found_long_after(translating: Cluster, tmp_path: Path) -> None:
    async def scene(stage: Stage) -> None:
        server, channel = stage.server, stage.server.add_channel("general")
        await stage.start_bot()
        anna = server.add_user("anna")
        message = server.say(channel, anna, TAXI)
        lost = server.fail("POST", POST, status=0, carried_out=True)
        server.react(message, anna, "🇩🇪")
        await server.until(lambda: lost.hits == 1)
        stage.kill_bot()
        server.forget_nonces()
        server.edit(message, KEYS)
        await stage.start_bot()
        await server.until(lambda: "de→en in" in stage.log())
        assert "keys" in (await answer(stage, message, channel)).content

    play(scene, translating, tmp_path)


def test_a_lost_answer_and_then_a_deletion_leave_no_orphan(translating: Cluster, tmp_path: Path) -> None:
    async def scene(stage: Stage) -> None:
        server, channel = stage.server, stage.server.add_channel("general")
        await stage.start_bot()
        anna = server.add_user("anna")
        message = server.say(channel, anna, TAXI)
        lost = server.fail("POST", POST, status=0, carried_out=True)
        server.react(message, anna, "🇩🇪")
        await server.until(lambda: lost.hits == 1)
        server.delete(message)
        await server.until(lambda: server.by_bot(channel) == [], 20)

    play(scene, translating, tmp_path)


def test_surplus_messages_go_even_when_discord_fails_in_between(translating: Cluster, tmp_path: Path) -> None:
    async def scene(stage: Stage) -> None:
        server, channel = stage.server, stage.server.add_channel("general")
        await stage.start_bot()
        anna = server.add_user("anna")
        message = server.say(channel, anna, "\n".join(f"{TAXI} {KEYS} {number}." for number in range(35)))
        server.react(message, anna, "🇩🇪")
        await server.until(lambda: "de→en in" in stage.log(), 20)
        assert len(replies_to(stage, message, channel)) > 1
        server.fail("DELETE", MESSAGE, status=0)
        server.edit(message, TAXI)
        await server.until(lambda: len(replies_to(stage, message, channel)) == 1, 20)

    play(scene, translating, tmp_path)


def test_an_hourglass_overtaken_by_its_reply_goes_too(cluster: Cluster, tmp_path: Path, packages: Path) -> None:
    async def scene(stage: Stage) -> None:
        server, channel = stage.server, stage.server.add_channel("general")
        await stage.start_bot(**SOON)
        anna = server.add_user("anna")
        message = server.say(channel, anna, TAXI)
        server.delay("PUT", rf"{MESSAGE}/reactions/.*", 4.0)
        server.react(message, anna, "🇩🇪")
        await server.until(lambda: waiting(stage) == 1)
        node(stage, packages)
        await answer(stage, message, channel, 20)
        gone = rf"{message.id}/reactions"
        await server.until(lambda: any(one.method == "DELETE" and gone in one.path for one in server.requests), 20)
        assert "⏳" not in message.reactions

    cluster.broker()
    play(scene, cluster, tmp_path)


NOT_OURS = (b"", b"\xc1", b"\x01", msgpack.packb([1, float("inf"), "x"]), msgpack.packb([1, None, "x"]))


@pytest.mark.parametrize("place", NOT_OURS)
def test_a_result_with_a_place_that_is_no_message_is_nobodys(place: bytes) -> None:
    stray = Answer(bytes(16), ("x",), code="", detail="", model="", attempts=1, cached=False, took_ms=1, reply_to=place)
    assert _place(stray) == Key(0, "")
