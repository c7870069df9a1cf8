#!/usr/bin/env python3
"""The Discord gateway: members react to a message with a flag and read its translation in a reply.

Its token comes from DISCORD_TOKEN, in the environment or in the file .env; see .env.example.
"""

from __future__ import annotations

from dolmetsch.bootstrap import in_venv

in_venv()

import argparse
import asyncio
import base64
import binascii
import logging
import random
import re
import signal
import sys
from pathlib import Path
from typing import Any, Final

import aiohttp
import discord
import yarl

from dolmetsch import __version__, config, logs
from dolmetsch.backoff import Backoff
from dolmetsch.bot import PERMISSIONS, Bot
from dolmetsch.errors import ConfigError, DolmetschError
from dolmetsch.flags import Flags
from dolmetsch.lifecycle import feed_watchdog, sd_notify
from dolmetsch.postbox import passing
from dolmetsch.replybook import ReplyBook
from dolmetsch.transport import broker_of

HOUSE: Final = Path(__file__).resolve().parent
FLAGS: Final = HOUSE / "dolmetsch" / "flags.toml"
PORTAL: Final = "the Discord developer portal (https://discord.com/developers/applications) > your application > Bot"
BAD_TOKEN: Final = 4004  # Discord's close code
CLOSE_S: Final = 10.0
AWAY_S: Final = 60.0  # the longest pause between two tries to log in

log = logging.getLogger("gateway")


def _arguments(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="gateway_discord.py", description="Translates Discord messages that get a flag as a reaction."
    )
    parser.add_argument("--broker", metavar="ADDRESS", help="the broker (default: the one joined, else one here)")
    parser.add_argument("--config", type=Path, metavar="PATH", help="a TOML file; --show-config prints its keys")
    parser.add_argument("--env", type=Path, metavar="PATH", default=HOUSE / ".env", help="where the token is (.env)")
    parser.add_argument("--invite-url", action="store_true", help="print the link that adds the bot to a server")
    parser.add_argument("--has-token", action="store_true", help="exit status 0 if there is a token; nothing else")
    parser.add_argument("--show-config", action="store_true", help="print the configuration in force, and end")
    parser.add_argument("--version", action="version", version=f"dolmetsch {__version__}")
    return parser.parse_args(argv)


def application_id(token: str) -> int:
    """The application's id, which a bot's token begins with. Raises ``ConfigError``; never shows the token."""
    head = token.split(".")[0]
    try:
        if not (token.isascii() and token.isprintable()) or " " in token:
            raise ValueError
        return int(base64.urlsafe_b64decode(head + "=" * (-len(head) % 4)))
    except (binascii.Error, ValueError) as error:
        raise ConfigError(
            f"DISCORD_TOKEN does not look like a bot's token: copy it from {PORTAL} > Reset Token"
        ) from error


def invite_url(token: str) -> str:
    """The link that adds the bot to a server, with the permissions it uses and no others."""
    return discord.utils.oauth_url(
        application_id(token), permissions=PERMISSIONS, scopes=("bot", "applications.commands")
    )


def point_at(settings: config.DiscordConfig) -> None:
    """Use another Discord than Discord's, where the configuration says so."""
    if settings.api:
        discord.http.Route.BASE = settings.api.rstrip("/")
    if settings.gateway:
        discord.gateway.DiscordWebSocket.DEFAULT_GATEWAY = yarl.URL(settings.gateway)


async def _serve(settings: config.Config, token: str) -> None:
    discord_config = settings.discord
    flags_path = Path(discord_config.flags) if discord_config.flags else FLAGS
    try:
        flags = Flags.parse(flags_path.read_text(encoding="utf-8"), str(flags_path))
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"cannot read {flags_path}: {type(error).__name__}") from error
    state = Path(discord_config.state) if discord_config.state else config.data_path("discord.sqlite3")
    broker, keys = broker_of(settings)
    book = ReplyBook(state, discord_config.window_s)
    loop, task = asyncio.get_running_loop(), asyncio.current_task()
    assert task is not None
    loop.set_exception_handler(_complain)
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, task.cancel)
    pauses = Backoff(random.Random(), most_s=AWAY_S)
    feeding = loop.create_task(feed_watchdog())
    sd_notify("READY=1")  # Discord need not be there yet: after a power cut the router comes up last
    try:
        while not await _run(Bot(discord_config, broker, keys, flags, book), token):
            await asyncio.sleep(pauses.next_s())
    except asyncio.CancelledError:
        sd_notify("STOPPING=1")  # a signal says stop
    finally:
        feeding.cancel()
        book.close()


async def _run(bot: Bot, token: str) -> bool:
    """Log in and stay connected; False when Discord cannot be reached. Raises ``ConfigError`` with where to click."""
    try:
        await bot.start(token)
        return True
    except discord.LoginFailure as error:
        raise ConfigError(
            f"Discord does not know this DISCORD_TOKEN: copy it anew from {PORTAL} > Reset Token"
        ) from error
    except discord.PrivilegedIntentsRequired as error:
        raise ConfigError(f"the bot may not read messages: switch on {PORTAL} > Message Content Intent") from error
    except discord.ConnectionClosed as error:
        if error.code == BAD_TOKEN:
            raise ConfigError(f"Discord takes this token no more: copy it anew from {PORTAL} > Reset Token") from error
        raise ConfigError(f"Discord has closed the connection for good, with code {error.code}") from error
    except (discord.HTTPException, aiohttp.ClientError, OSError) as error:
        if not passing(error):
            raise ConfigError(f"Discord refused the login: {type(error).__name__}") from error
        log.warning("Discord cannot be reached (%s): trying again until it can", type(error).__name__)
        return False
    finally:
        async with asyncio.timeout(CLOSE_S):
            await bot.close()


def _complain(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    """What nobody waited for has failed. asyncio's own report would quote the error's message."""
    error = context.get("exception")
    what = re.split(r"[\n(<]", context["message"], maxsplit=1)[0].strip()  # the rest is what a callback was called with
    log.error("%s: %s", what, logs.trace(error) if error else "")


def main(argv: list[str]) -> int:
    """Run the gateway until SIGTERM or SIGINT; the exit status."""
    arguments = _arguments(argv)
    logs.start("discord")
    logging.getLogger("discord").setLevel(logging.ERROR)  # the library's warnings show addresses with secrets in them
    try:
        values = config.environment(arguments.env)
        settings = config.load(arguments.config, values, {"node": {"broker": arguments.broker}})
        if arguments.show_config:
            print(config.show(settings))
            return 0
        token = values.get("DISCORD_TOKEN", "").strip()
        if arguments.has_token:
            return 0 if token else 1
        if not token:
            raise ConfigError(
                f"there is no DISCORD_TOKEN: copy .env.example to .env and put it there; it is at {PORTAL}"
            )
        if arguments.invite_url:
            print(invite_url(token))
            return 0
        application_id(token)  # what is no token is not sent anywhere
        point_at(settings.discord)
        asyncio.run(_serve(settings, token))
    except DolmetschError as error:
        log.error("%s", error)
        return 1
    log.info("stopped")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
