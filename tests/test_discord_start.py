"""The Discord gateway's start: a line that says where to click, a Discord that is waited for, the invitation."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from bench.cluster import Cluster
from bench.stage import Stage
from tests.scenes import TAXI, answer, packages, play, translating

__all__ = ["packages", "translating"]  # fixtures


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
