"""A small Discord for tests: REST v10 and Gateway v10 on loopback, for an unmodified client over real sockets.

``server`` is what tests use: it opens the port and plays everybody but the bot. ``world`` holds the state, ``render``
its JSON; ``actions`` changes the state and tells the sessions of ``gateway``; ``rest`` answers requests by ``routes``,
with the rules in ``forms``, ``permissions`` and ``errors``; ``commands`` and ``interactions`` are what users call;
``faults`` is what goes wrong on purpose.
"""

from __future__ import annotations

from tests.discord_server.faults import Fault
from tests.discord_server.http import Request
from tests.discord_server.interactions import Interaction
from tests.discord_server.server import DiscordServer
from tests.discord_server.world import Channel, Guild, Message, User

__all__ = ["Channel", "DiscordServer", "Fault", "Guild", "Interaction", "Message", "Request", "User"]
