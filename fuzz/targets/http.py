"""Requests to the LibreTranslate API. Every answer is one of those its description has, as JSON that says what; never a
500. A translation has the shape of its question, and a page's tags are never the translator's.

The first line is method, path and query, the second the content type, the rest the body.
"""

from __future__ import annotations

import asyncio
import functools
import json
import logging
from collections.abc import Sequence
from typing import Any, Final

from dolmetsch.apikeys import Keys
from dolmetsch.calls import Work
from dolmetsch.config import HttpConfig
from dolmetsch.detect import Detector
from dolmetsch.httpapi import Api
from dolmetsch.httpspec import Request
from dolmetsch.messages import MAX_JOB_CHARS, MAX_TEXTS, Answer, Result
from dolmetsch.reports import Route
from dolmetsch.wire import decode, encode
from fuzz.target import scratch

MOST_BYTES: Final = 4096
TOKENS: Final = tuple(
    part.encode()
    for part in (
        "POST /translate", "POST /detect", "GET /languages", "GET /spec", "OPTIONS /translate", "?q=x&target=en", "\n",
        "application/json", "application/x-www-form-urlencoded", "multipart/form-data; boundary=b", "; charset=utf-16",
        "; charset=idna", '"q"', '"source"', '"target"', '"format"', '"html"', '"alternatives"', '"api_key"', '"auto"',
        '"de"', '"en"', "q=", "&source=", "&target=", "&format=html", "&alternatives=3", "%ff", "%00", "%ed%a0%80", "+",
        '"\\ud800"', "null", "true", "1e400", "-1", "[[", "{}", "--b\r\n", "--b--\r\n", "\r\n\r\n",
        'Content-Disposition: form-data; name="q"', '; filename="x"', "<b>", "</b>", "<script>", "&amp;", "\x00", "ß",
    )
)  # fmt: skip
ALLOWED: Final = frozenset((200, 400, 403, 404, 405, 413))

logging.getLogger("http").setLevel(logging.CRITICAL)  # a bug is seen by its status


class _Shouter:
    """A cluster that shouts; each job must be one that a broker takes."""

    routes = tuple(Route(route, "m") for route in ("de→en", "de→fr", "en→pb"))
    trouble = ""

    async def translate(self, works: Sequence[Work], *, deadline_s: float, since: float | None = None) -> list[Answer]:
        for work in works:
            assert 1 <= len(work.texts) <= MAX_TEXTS and sum(map(len, work.texts)) <= MAX_JOB_CHARS
            assert any(map(str.strip, work.texts)), "a broker refuses a job that is blank"
        shouted = [tuple(map(str.upper, work.texts)) * (1 + work.alternatives) for work in works]
        answers = [Answer(bytes(16), texts, "", "", "m", 1, False, 1, b"") for texts in shouted]
        decode(encode(Result(jobs=tuple(answers[:256]))))  # no half surrogate pair and the like has come so far
        return answers


@functools.cache
def _api() -> Api:
    config = HttpConfig(per_minute=0, chars_per_minute=0, body_bytes=2048, char_limit=1000, batch_limit=8)
    return Api(config, _Shouter(), Keys(scratch() / "keys.sqlite3"), Detector())


@functools.cache
def _loop() -> asyncio.Runner:
    return asyncio.Runner()


def seeds() -> list[bytes]:
    """Each kind of body, and the other paths."""
    fields = {"q": ["Guten Morgen", "ja"], "source": "auto", "target": "en", "alternatives": 2}
    page = {"q": "<p>Guten <b>Tag</b></p>", "source": "de", "target": "fr", "format": "html", "api_key": "k"}
    form = b"q=Guten+Morgen&q=%C3%A4&source=de&target=en&format=text&alternatives=1"
    parts = "".join(
        f'--b\r\nContent-Disposition: form-data; name="{name}"\r\n\r\n{value}\r\n'
        for name, value in (("q", "Hallo"), ("source", "de"), ("target", "en"))
    )
    return [
        b"POST /translate\napplication/json\n" + json.dumps(fields).encode(),
        b"POST /translate\napplication/json\n" + json.dumps(page).encode(),
        b"POST /translate\napplication/x-www-form-urlencoded\n" + form,
        b"POST /translate?q=x\nmultipart/form-data; boundary=b\n" + parts.encode() + b"--b--\r\n",
        b'POST /detect\napplication/json\n{"q": "Guten Morgen"}',
        b"GET /languages?x\n\n",
        b"GET /frontend/settings\n\n",
        b"GET /spec\n\n",
    ]


def check(data: bytes) -> None:
    first, _, rest = data.partition(b"\n")
    kind, _, body = rest.partition(b"\n")
    method, _, where = first.decode("latin-1").partition(" ")
    path, _, query = where.partition("?")
    if not method.isalpha() or not method.isascii() or not path.startswith("/"):
        return  # no server lets that through
    request = Request(method, path, query.encode("latin-1"), kind.decode("latin-1"), body, "192.0.2.1")
    status, headers, answer = _loop().run(_api().answer(request))
    assert status in ALLOWED, (status, answer)
    if status == 200 and headers["Content-Type"].startswith("text/plain"):
        return
    found = json.loads(answer)
    if status != 200:
        assert isinstance(found["error"], str) and found["error"]
    elif path == "/translate" and kind.partition(b";")[0].strip().lower() == b"application/json":
        _compare(json.loads(body), found)


def _compare(asked: dict[str, Any], found: dict[str, Any]) -> None:
    """A list is answered by a list of the same length, a text by a text."""
    new = found["translatedText"]
    if isinstance(asked["q"], list):
        assert len(new) == len(asked["q"]) and all(isinstance(text, str) for text in new)
    else:
        assert isinstance(new, str)
