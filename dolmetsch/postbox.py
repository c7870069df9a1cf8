"""The postbox: what the correspondence does in Discord. Finds messages; posts, edits and deletes our replies to them.

What was done is written into the reply book at once. A post whose answer is lost may be there all the same: the book
says *posting* while one is on its way, and who finds that said looks for the message before anything else.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import logging
import time
from collections import OrderedDict
from typing import Any, Final, NamedTuple

import aiohttp
import discord

from dolmetsch import replies
from dolmetsch.flags import Flags
from dolmetsch.replybook import Entry, Key, ReplyBook

HOURGLASS: Final = "⏳"
UNKNOWN_MESSAGE: Final = 10008
TOO_MANY_REQUESTS: Final = 429
LOOK_AHEAD: Final = 100  # messages after the one replied to, among which a lost reply is looked for
MAX_REMEMBERED: Final = 5_000  # messages that we deleted, and channels that were complained of
SILENT: Final = discord.AllowedMentions.none()

log = logging.getLogger("gateway")


class Source(NamedTuple):
    """What is to be translated; ``stamp`` is another one whenever the text or its edit is."""

    text: str
    stamp: str


def source(message: discord.Message) -> Source:
    """The text of ``message``: what was written or forwarded, and its first embed."""
    content, embeds = message.content, message.embeds
    if message.message_snapshots and not content:
        content, embeds = message.message_snapshots[0].content, message.message_snapshots[0].embeds
    embed = embeds[0] if embeds else None
    text = replies.source_text(content, embed.title if embed else None, embed.description if embed else None)
    text = whole(text)
    edited = message.edited_at.isoformat() if message.edited_at else ""
    return Source(text, hashlib.blake2b(f"{edited}\n{text}".encode(), digest_size=12).hexdigest())


def whole(text: str) -> str:
    """``text`` with a question mark for each half of a surrogate pair: no encoding takes those."""
    return text.encode("utf-8", "replace").decode()


def passing(error: Exception) -> bool:
    """Whether trying again later may help: Discord, or the way to it, is in trouble."""
    if isinstance(error, discord.HTTPException):
        return error.status >= 500 or error.status == TOO_MANY_REQUESTS
    return isinstance(error, aiohttp.ClientError | OSError)


class Postbox:
    """Raises what discord.py and aiohttp raise; ``passing`` tells trouble from refusals."""

    def __init__(self, bot: discord.Client, book: ReplyBook, flags: Flags) -> None:
        self._bot = bot
        self._book = book
        self._flags = flags
        self._deleted: OrderedDict[int, None] = OrderedDict()  # our messages that we deleted ourselves
        self._complained: OrderedDict[int, None] = OrderedDict()  # channels whose missing permission was logged

    def deleted_by_us(self, message: int) -> bool:
        """Whether it was not a moderator who deleted this message."""
        return message in self._deleted

    async def find(self, entry: Entry, *, flagged: bool) -> Source | None:
        """The message's text; None when it is gone, or not ours to answer.

        ``flagged``: None as well when nobody's flag for the route is on it.
        """
        number = entry.key.message
        message = next((one for one in reversed(self._bot.cached_messages) if one.id == number), None)
        if message is None:
            try:
                message = await self._channel(entry).fetch_message(number)
            except discord.NotFound:
                return None
        if message.author.bot or message.webhook_id is not None:
            return None
        return None if flagged and not self._flagged(entry, message) else source(message)

    async def show(self, entry: Entry, reply: replies.Reply) -> bool:
        """Make the reply show this: edit the messages that are there, post what is missing, delete the rest.

        False: the message that it would answer is gone.
        """
        old, kept = list(entry.parts), []
        for index, content in enumerate(reply.messages):
            part = await self._edit(entry, old[index], content, reply.file) if index < len(old) else None
            if part is None:
                part = await self._post(entry, content, reply.file, index)
            if part is None:
                return False
            kept.append(part)
            self._change(entry.key, parts=tuple(dict.fromkeys([*kept, *old])), posting=False)
        await self._delete(entry, [part for part in old if part not in kept])
        self._change(entry.key, parts=tuple(kept))
        return True

    async def remove(self, entry: Entry) -> None:
        """Delete what is left of the reply."""
        await self._delete(entry, entry.parts)
        if entry.parts:
            self._change(entry.key, parts=())

    async def recover(self, entry: Entry) -> None:
        """Look for a post of which we do not know whether Discord has it."""
        assert self._bot.user is not None
        found: list[int] = []
        with contextlib.suppress(discord.Forbidden, discord.NotFound):
            after = discord.Object(entry.key.message)
            async for message in self._channel(entry).history(after=after, limit=LOOK_AHEAD):
                reference = message.reference
                ours = message.author.id == self._bot.user.id and self._book.of_part(message.id) is None
                if ours and reference is not None and reference.message_id == entry.key.message:
                    found.append(message.id)
        self._change(entry.key, parts=(*entry.parts, *found), posting=False)

    async def sign(self, key: Key, on: bool) -> None:
        """Put the hourglass on the message, or take it off; without the permission it stays away."""
        entry = self._book.get(key)
        if entry is None or entry.sign == on:
            return
        message = self._channel(entry).get_partial_message(key.message)
        if on:
            self._change(key, sign=True)  # before: one that was put there and forgotten would stay for ever
            try:
                await message.add_reaction(HOURGLASS)
            except discord.Forbidden as error:
                self.complain(entry, error)
            except discord.NotFound:
                pass
        else:
            assert self._bot.user is not None
            with contextlib.suppress(discord.NotFound, discord.Forbidden):
                await message.remove_reaction(HOURGLASS, self._bot.user)
            self._change(key, sign=False)

    def complain(self, entry: Entry, error: discord.Forbidden) -> None:
        """Say once a channel what is missing and where to click."""
        if entry.channel in self._complained:
            return
        _remember(self._complained, entry.channel)
        log.warning(
            "channel %d of server %s: a permission is missing (code %d). Channel settings > Permissions > this bot's"
            " role: View Channel, Send Messages, Send Messages in Threads, Read Message History, Add Reactions,"
            " Attach Files",
            entry.channel, entry.guild or "(direct message)", error.code,
        )  # fmt: skip

    def _change(self, key: Key, **values: Any) -> None:
        self._book.change(key, time.time(), **values)

    def _channel(self, entry: Entry) -> discord.PartialMessageable:
        return self._bot.get_partial_messageable(entry.channel, guild_id=entry.guild)

    def _flagged(self, entry: Entry, message: discord.Message) -> bool:
        """Whether somebody's flag for this route is on ``message``."""
        for reaction in message.reactions:
            flag = self._flags.get(str(reaction.emoji))
            if flag is not None and flag.route == entry.key.route and reaction.count > reaction.me:
                return True
        return False

    async def _delete(self, entry: Entry, parts: list[int] | tuple[int, ...]) -> None:
        for part in parts:
            _remember(self._deleted, part)  # its event may come before the answer
            with contextlib.suppress(discord.NotFound, discord.Forbidden):
                await self._channel(entry).get_partial_message(part).delete()

    async def _edit(self, entry: Entry, part: int, content: str, file: str | None) -> int | None:
        """Let one of our messages show ``content``; None when it is not there any more."""
        try:
            await (
                self._channel(entry)
                .get_partial_message(part)
                .edit(content=content, attachments=files(file), allowed_mentions=SILENT)
            )
        except discord.NotFound:
            return None
        return part

    async def _post(self, entry: Entry, content: str, file: str | None, index: int) -> int | None:
        """Post a reply's message ``index``; its id, or None when there is nothing to reply to.

        The nonce is another one only when the reply was asked for anew: when an earlier try got through after all,
        Discord gives back what that one posted.
        """
        to = discord.MessageReference(
            message_id=entry.key.message, channel_id=entry.channel, guild_id=entry.guild, fail_if_not_exists=True
        )
        asked = hashlib.blake2b(f"{entry.key}{entry.turn}".encode(), digest_size=11).hexdigest()
        self._change(entry.key, posting=True)
        try:
            sent = await self._channel(entry).send(
                content, files=files(file), reference=to, nonce=f"{asked}{index}", allowed_mentions=SILENT,
                suppress_embeds=True,
            )  # fmt: skip
        except discord.HTTPException as error:
            if not passing(error):
                self._change(entry.key, posting=False)
            if error.code == UNKNOWN_MESSAGE or "message_reference" in error.text:
                return None
            raise
        if sent.content.split() != content.split():  # what an earlier try posted said something else
            return await self._edit(entry, sent.id, content, file)
        return sent.id


def files(text: str | None) -> list[discord.File]:
    """``text`` as the file to attach to a message, if there is one."""
    return [discord.File(io.BytesIO(text.encode()), "translation.txt")] if text is not None else []


def _remember(kept: OrderedDict[int, None], number: int) -> None:
    kept[number] = None
    while len(kept) > MAX_REMEMBERED:
        kept.popitem(last=False)
