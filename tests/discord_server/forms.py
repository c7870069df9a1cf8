"""What Discord accepts as a message: the limits on its content, embeds, nonce and emojis."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any, Final

from tests.discord_server.errors import ApiError, form_error, unknown
from tests.discord_server.world import Json

MAX_CONTENT: Final = 2000
MAX_EMBEDS: Final = 10
MAX_EMBED_CHARACTERS: Final = 6000
MAX_FIELDS: Final = 25
MAX_NONCE: Final = 25
MAX_REACTIONS: Final = 20
_CUSTOM: Final = re.compile(r"\w{2,32}:\d+")


def check_content(content: Any) -> str:
    """The content as Discord keeps it: without white space at its ends."""
    if content is None:
        return ""
    text = str(content).strip()
    if len(text) > MAX_CONTENT:
        raise too_long("content", MAX_CONTENT)
    return text


def too_long(path: str, most: int) -> ApiError:
    return form_error(path, "BASE_TYPE_MAX_LENGTH", f"Must be {most} or fewer in length.")


def check_nonce(nonce: Any) -> str | None:
    if nonce is None:
        return None
    if len(str(nonce)) > MAX_NONCE:
        raise too_long("nonce", MAX_NONCE)
    return str(nonce)


def check_embeds(embeds: Any) -> list[Json]:
    """The embeds as Discord keeps them: those that a bot sends are rich ones."""
    embeds = embeds or []
    if len(embeds) > MAX_EMBEDS:
        raise too_long("embeds", MAX_EMBEDS)
    for place, embed in enumerate(embeds):
        for path, text, most in _texts(embed):
            if len(text) > most:
                raise too_long(f"embeds.{place}.{path}", most)
        if len(embed.get("fields") or ()) > MAX_FIELDS:
            raise too_long(f"embeds.{place}.fields", MAX_FIELDS)
    if sum(len(text) for embed in embeds for _, text, _ in _texts(embed)) > MAX_EMBED_CHARACTERS:
        raise form_error("embeds", "MAX_EMBED_SIZE_EXCEEDED", "Embed size exceeds maximum size of 6000")
    return [{**embed, "type": "rich"} for embed in embeds]


def _texts(embed: Json) -> Iterator[tuple[str, str, int]]:
    yield "title", embed.get("title") or "", 256
    yield "description", embed.get("description") or "", 4096
    yield "footer.text", (embed.get("footer") or {}).get("text") or "", 2048
    yield "author.name", (embed.get("author") or {}).get("name") or "", 256
    for place, one in enumerate(embed.get("fields") or ()):
        yield f"fields.{place}.name", one.get("name") or "", 256
        yield f"fields.{place}.value", one.get("value") or "", 1024


def check_emoji(key: str) -> str:
    """An emoji to react with: one of a guild's own, or characters that are not just letters."""
    if _CUSTOM.fullmatch(key) or (key and not key.isascii() and not any(letter.isalpha() for letter in key)):
        return key
    raise unknown("Emoji")


def sent_files(form: Json, files: dict[str, tuple[str, bytes]]) -> list[tuple[str, bytes]]:
    """The uploaded files in order, each under the name that the form's ``attachments`` give it, if they do."""
    names = {str(one.get("id")): one.get("filename") for one in form.get("attachments") or ()}
    found = []
    for key, (name, data) in files.items():
        number = re.fullmatch(r"files\[(\d+)\]", key)
        found.append(((number and names.get(number[1])) or name, data))
    return found


def kept_attachments(form: Json, kept: list[int]) -> list[int]:
    """Which of a message's attachments an edit leaves: all, unless it lists them."""
    if form.get("attachments") is None:
        return kept
    listed = {str(one.get("id")) for one in form["attachments"]}
    return [number for number in kept if str(number) in listed]
