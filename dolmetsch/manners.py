"""Manners: how much one user, channel, guild, and all together may ask for, by discord.py's own cooldowns.

Whoever asks too often is told so once, and then not again before the cooldown is over.
"""

from __future__ import annotations

from typing import Any, Final, NamedTuple

from discord.ext.commands import Cooldown, CooldownMapping

from dolmetsch.config import DiscordConfig

MAX_TOLD: Final = 10_000  # users and channels remembered as told; beyond that the oldest are forgotten


class Asker(NamedTuple):
    """Who asks, and where; ``guild`` is None in direct messages."""

    user: int
    channel: int
    guild: int | None


class Manners:
    """Each request takes a token from four buckets, or from none of them. Times are in seconds, from any clock."""

    def __init__(self, config: DiscordConfig) -> None:
        limits = (
            (config.user_limit, lambda asker: asker.user),
            (config.channel_limit, lambda asker: asker.channel),
            (config.guild_limit, lambda asker: asker.guild or -asker.user),
            (config.total_limit, lambda asker: 0),
        )
        self._mappings: list[CooldownMapping[Any]] = [
            CooldownMapping(Cooldown(limit, config.limit_s), key) for limit, key in limits
        ]
        self._told: dict[str, float] = {}  # user or channel -> until when

    def ask(self, asker: Asker, now: float) -> float:
        """Take a token; 0.0, or the seconds after which to try again."""
        buckets = [bucket for one in self._mappings if (bucket := one.get_bucket(asker, now)) is not None]
        wait_s = max(bucket.get_retry_after(now) for bucket in buckets)
        if wait_s <= 0.0:
            for bucket in buckets:
                bucket.update_rate_limit(now)
        return max(wait_s, 0.0)

    def tell(self, asker: Asker, wait_s: float, now: float) -> bool:
        """Whether to tell ``asker`` to wait so long: once, and one in a channel at most, until that time is over."""
        about = (f"user {asker.user}", f"channel {asker.channel}")
        if any(self._told.get(one, now) > now for one in about):
            return False
        for one in about:
            self._told.pop(one, None)
            self._told[one] = now + wait_s
        while len(self._told) > MAX_TOLD:
            del self._told[next(iter(self._told))]
        return True
