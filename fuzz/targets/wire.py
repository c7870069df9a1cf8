"""Frames of any peer. Only ``RemoteError`` leaves ``decode``, with a detail of one line; what it lets through can be
sent on, and comes out the same. A KNOCK, which anybody may send to the door, gets a verdict that can be sent.

The first byte says which kind the rest is the body of; 255: the rest is frames, with ``\\xff\\xfe`` between them.
"""

from __future__ import annotations

import functools
import sqlite3
from typing import Final

from dolmetsch import messages
from dolmetsch.errors import DolmetschError, RemoteError
from dolmetsch.keyring import Keyring
from dolmetsch.messages import Knock, Verdict
from dolmetsch.wire import PROTOCOL, decode, encode
from fuzz.target import scratch
from tests.examples import every_message

MOST_BYTES: Final = 4096  # as much as a stranger may send
TOKENS: Final = (
    PROTOCOL, b"\xff\xfe", b"\xc0", b"\x80", b"\x90", b"\x81\xa4jobs", b"\x91", b"\xdc\x20\x00",
    b"\xdd\x00\x00\x20\x01",    b"\xde\x00\x41", b"\xdf\xff\xff\xff\xff", b"\xc4\x10" + bytes(16),
    b"\xa3\xed\xa0\x80", b"\xcb\x7f\xf8" + bytes(6),
    b"\xcb\x7f\xf0" + bytes(6), b"\xcf" + b"\xff" * 8, b"\xd3\x80" + bytes(7), b"\xc7\x00\x01", b"\xd6\xff" + bytes(4),
    b"\xa7de\xe2\x86\x92en", b"\xc2", b"\xc3",
)  # fmt: skip
FRAMES: Final = 255
KEY: Final = b"k" * 40

_KINDS: Final = sorted({bytes(encode(message)[1]) for message in every_message()})


@functools.cache
def _ring() -> Keyring:
    return Keyring(scratch() / "allowed.sqlite3", lambda: ("boot", 1.0))


def seeds() -> list[bytes]:
    """Every message."""
    found = [encode(message) for message in every_message()]
    bodies = [bytes((_KINDS.index(named),)) + body for _, named, body in found]
    return [*bodies, bytes((FRAMES,)) + b"\xff\xfe".join(found[0])]


def kind(data: bytes) -> bytes:
    """The kind that the first byte stands for."""
    return _KINDS[data[0] % len(_KINDS)] if data else b""


def check(data: bytes) -> None:
    apart = data[:1] == bytes((FRAMES,))
    frames = data[1:].split(b"\xff\xfe") if apart else [PROTOCOL, kind(data), data[1:]]
    try:
        message = decode(frames)
    except RemoteError as error:
        assert error.code in ("bad_message", "wrong_version")
        assert error.detail.isprintable() and len(error.detail) <= messages.MAX_DETAIL_CHARS
        return
    again = encode(message)
    assert repr(decode(again)) == repr(message)
    assert len(again[2]) <= 2 * len(data) + 64  # what came in short does not go out long
    if isinstance(message, Knock):
        _knock(message)


def _knock(knock: Knock) -> None:
    try:
        state, detail = _ring().knock(KEY, knock.name, knock.token, "192.0.2.1")
    except sqlite3.Error:
        raise
    except DolmetschError as error:  # which the gate logs
        assert str(error).isprintable()
        return
    assert isinstance(decode(encode(Verdict(state=state, detail=detail))), Verdict)
