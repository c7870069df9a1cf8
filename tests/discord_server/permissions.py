"""Permissions: Discord's names and bits, as far as a bot that talks has to do with them."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

BITS: Final[dict[str, int]] = {
    "administrator": 1 << 3,
    "manage_channels": 1 << 4,
    "manage_guild": 1 << 5,
    "add_reactions": 1 << 6,
    "view_channel": 1 << 10,
    "send_messages": 1 << 11,
    "manage_messages": 1 << 13,
    "embed_links": 1 << 14,
    "attach_files": 1 << 15,
    "read_message_history": 1 << 16,
    "mention_everyone": 1 << 17,
    "use_external_emojis": 1 << 18,
    "use_application_commands": 1 << 31,
    "manage_threads": 1 << 34,
    "create_public_threads": 1 << 35,
    "send_messages_in_threads": 1 << 38,
}

# What everybody may do in a new guild.
EVERYONE: Final = (
    "add_reactions",
    "view_channel",
    "send_messages",
    "embed_links",
    "attach_files",
    "read_message_history",
    "mention_everyone",
    "use_external_emojis",
    "use_application_commands",
    "create_public_threads",
    "send_messages_in_threads",
)
# What the role has that Discord makes for an invited bot: what its invitation asked for.
BOT: Final = (
    "add_reactions",
    "view_channel",
    "send_messages",
    "embed_links",
    "attach_files",
    "read_message_history",
    "send_messages_in_threads",
)
# In a direct message with the bot; there are no roles there.
DIRECT: Final = (
    "add_reactions",
    "view_channel",
    "send_messages",
    "embed_links",
    "attach_files",
    "read_message_history",
)


def bits(names: Iterable[str]) -> int:
    """The sum of the named permissions; an unknown name is a mistake of the test."""
    value = 0
    for name in names:
        if name not in BITS:
            raise ValueError(f"no such permission: {name!r}; known are {', '.join(BITS)}")
        value |= BITS[name]
    return value
