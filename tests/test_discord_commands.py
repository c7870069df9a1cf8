"""The Discord gateway's commands, and what others see of it: private translations, presence, its report."""

from __future__ import annotations

import asyncio
import json
import time
from pathlib import Path

from bench.cluster import Cluster
from bench.stage import Stage
from tests.scenes import TAXI, packages, play, translating

__all__ = ["packages", "translating"]  # fixtures


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
