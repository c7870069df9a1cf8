"""The wire: what goes in comes out, and nothing else gets in."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import msgpack
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dolmetsch import messages
from dolmetsch.errors import LocalError, RemoteError
from dolmetsch.messages import Accepted, Ack, Hello, JobSpec, JobState, Ping, Report, Submit, batches
from dolmetsch.reports import NO_LATENCY_MS
from dolmetsch.wire import _SCHEMA, PROTOCOL, decode, encode
from tests.examples import every_message

ID = bytes(range(16))


@pytest.mark.parametrize("message", every_message(), ids=lambda one: type(one).__name__)
def test_decode_is_the_inverse_of_encode(message: messages.Message) -> None:
    assert repr(decode(encode(message))) == repr(message)  # equal tuples need not be the same records


def test_there_is_an_example_of_every_kind() -> None:
    assert {type(one) for one in every_message()} == {schema[0] for schema in _SCHEMA.values()}


def _submit(**changes: object) -> list[bytes]:
    spec = {"id": ID, "route": "de→en", "texts": ["x"], "lane": 0, "tenant": "", "deadline": 1.0, "reply_to": b""}
    spec |= {"alternatives": 0, "waited_ms": 0}
    spec.update(changes)
    return [PROTOCOL, b"SUBMIT", msgpack.packb({"jobs": [list(spec.values())]})]


def _report(**changes: object) -> list[bytes]:
    fields = {"kind": "discord", "servers": 2, "latency_ms": 48.5, "queued": 1, "answered": 20, "failed": 3}
    return [PROTOCOL, b"REPORT", msgpack.packb({**fields, **changes})]


@pytest.mark.parametrize(
    "frames",
    [
        [],
        [PROTOCOL],
        [PROTOCOL, b"ASK", b"", b""],
        [PROTOCOL, b"NOSUCH", b"\x80"],
        [PROTOCOL, b"ASK", b""],
        [PROTOCOL, b"ASK", b"\x80\x80"],
        [PROTOCOL, b"ASK", b"\x90"],
        [PROTOCOL, b"ASK", msgpack.packb({"more": 1})],
        [PROTOCOL, b"PING", b"\x80"],
        [PROTOCOL, b"ASK", b"\x81\xa1a"],
        [PROTOCOL, b"ACK", msgpack.packb({"jobs": [b"short"]})],
        [PROTOCOL, b"ACK", msgpack.packb({"jobs": [ID] * (messages.MAX_JOBS + 1)})],
        [PROTOCOL, b"ACK", msgpack.packb({"jobs": "text"})],
        [PROTOCOL, b"ACK", msgpack.packb({1: []})],
        [PROTOCOL, b"ACK", b"\x82\xa4jobs\x90\xa4jobs\x90"],  # a key twice
        [PROTOCOL, b"ACK", b"\x81\xa4jobs\xd4\x01\x00"],  # an extension type
        [PROTOCOL, b"ACK", b"\x81\xa4jobs\xd7\xff" + bytes(8)],  # msgpack's own timestamp
        [PROTOCOL, b"ACK", b"\x91" * 2000],  # nesting
        [PROTOCOL, b"ACK", b"\xdd\xff\xff\xff\xff"],  # four billion entries announced
        [PROTOCOL, b"PING", bytes(messages.MAX_MESSAGE_BYTES + 1)],
        _submit(id="text"),
        _submit(texts=[b"bytes"]),
        _submit(texts=["x"] * (messages.MAX_TEXTS + 1)),
        _submit(lane=True),
        _submit(lane=2),
        _submit(deadline=float("nan")),
        _submit(deadline=float("inf")),
        _submit(deadline=-1),
        _submit(deadline="soon"),
        _submit(tenant=None),
        _submit(route=""),
        _submit(route="de\nen"),
        _submit(reply_to=bytes(messages.MAX_REPLY_TO_BYTES + 1)),
        _submit(alternatives=messages.MAX_ALTERNATIVES + 1),
        _submit(alternatives=False),
        _submit(waited_ms=-1),
        _report(kind=""),
        _report(kind="two\nlines"),
        _report(servers=-1),
        _report(servers=1.0),
        _report(latency_ms=-1.5),
        _report(latency_ms=float("nan")),
        _report(latency_ms=float("inf")),
        _report(queued=True),
        _report(answered=None),
        _report(failed=2**53 + 1),
        _report(more=1),
        [PROTOCOL, b"HELLO", msgpack.packb({"gateway": "g"}) + b""],
        [PROTOCOL, b"HELLO", b"\x82\xa7gateway\xa3\xed\xa0\x80\xabincarnation\xa1i"],  # a lone surrogate
    ],
)
def test_what_is_wrong_is_refused(frames: list[bytes]) -> None:
    with pytest.raises(RemoteError) as caught:
        decode(frames)
    assert caught.value.code == "bad_message"
    assert "\n" not in caught.value.detail


def test_a_well_formed_submit_is_taken() -> None:
    assert isinstance(decode(_submit()), Submit)


def test_a_well_formed_report_is_taken_also_without_a_latency() -> None:
    assert decode(_report()) == Report(kind="discord", servers=2, latency_ms=48.5, queued=1, answered=20, failed=3)
    for none in (NO_LATENCY_MS, -1, 0, 0.0):
        report = decode(_report(latency_ms=none))
        assert isinstance(report, Report)
        assert report.latency_ms == none


def test_another_version_is_told_so() -> None:
    with pytest.raises(RemoteError) as caught:
        decode([b"dolm2", b"PING", b"\x80"])
    assert caught.value.code == "wrong_version"


@settings(deadline=None, derandomize=True, max_examples=500)
@given(st.lists(st.binary(max_size=64), max_size=5))
def test_arbitrary_frames_raise_remote_error_only(frames: list[bytes]) -> None:
    with pytest.raises(RemoteError):
        decode(frames)


@settings(deadline=None, derandomize=True, max_examples=1000)
@given(st.sampled_from(sorted(_SCHEMA)), st.binary(max_size=200))
def test_arbitrary_bodies_raise_remote_error_only(kind: bytes, body: bytes) -> None:
    with contextlib.suppress(RemoteError):
        decode([PROTOCOL, kind, body])


_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats() | st.text(max_size=9)
    | st.binary(max_size=17),
    lambda inner: st.lists(inner, max_size=9) | st.dictionaries(st.text(max_size=9), inner, max_size=4),
    max_leaves=20,
)  # fmt: skip


def _slots(value: Any) -> Iterator[tuple[Any, Any]]:
    """Each place in ``value`` that holds something, and what holds it: a field, or a value within one."""
    for key in value if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ():
        yield value, key
        yield from _slots(value[key])


@settings(deadline=None, derandomize=True, max_examples=600)
@given(st.sampled_from(every_message()), st.lists(st.tuples(st.integers(0, 999), _values), min_size=1, max_size=2))
def test_arbitrary_values_in_a_message_raise_remote_error_only(message: Any, changes: list[tuple[int, Any]]) -> None:
    frames = encode(message)
    body = msgpack.unpackb(frames[2], strict_map_key=False)
    for number, value in changes:
        if slots := list(_slots(body)):
            holder, key = slots[number % len(slots)]
            holder[key] = value
    try:
        taken = decode([*frames[:2], msgpack.packb(body)])
    except RemoteError:
        return
    assert repr(decode(encode(taken))) == repr(taken)  # equal tuples need not be the same records


@settings(deadline=None, derandomize=True, max_examples=300)
@given(st.data())
def test_one_flipped_byte_raises_remote_error_or_decodes(data: st.DataObject) -> None:
    frames = encode(data.draw(st.sampled_from(every_message())))
    body = bytearray(frames[2])
    if body:
        body[data.draw(st.integers(0, len(body) - 1))] = data.draw(st.integers(0, 255))
    with contextlib.suppress(RemoteError):
        decode([frames[0], frames[1], bytes(body)])


def test_a_lone_surrogate_of_ours_is_our_bug() -> None:
    with pytest.raises(LocalError):
        encode(Hello(gateway="\ud800", incarnation="i"))


def test_batches_keep_order_count_and_size() -> None:
    items = list(range(600))
    assert [len(part) for part in batches(items)] == [256, 256, 88]
    assert [one for part in batches(items, weigh=lambda _: 1) for one in part] == items
    big = messages.BATCH_BYTES // 2
    assert [len(part) for part in batches(items[:5], weigh=lambda _: big)] == [2, 2, 1]
    assert [len(part) for part in batches(items[:3], weigh=lambda _: 3 * big)] == [1, 1, 1]
    assert list(batches([])) == [] == list(batches([], weigh=lambda _: 1))


def test_equal_messages_are_equal() -> None:
    assert Ping() == Ping(edition=0)
    assert Ack(jobs=(ID,)) == decode(encode(Ack(jobs=(ID,))))
    assert Accepted(jobs=(JobState(ID, "done"),)) != Accepted(jobs=())
    assert JobSpec(ID, "de→en", ("a",), 0, "", 1.0, b"").texts == ("a",)
