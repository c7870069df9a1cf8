"""The HTTP gateway's server by itself, byte for byte: what aiohttp leaves to us."""

from __future__ import annotations

import asyncio
import contextlib
import random
import socket
from collections.abc import AsyncIterator, Callable, Coroutine
from functools import wraps
from typing import Any

import pytest

from dolmetsch import httpserver
from dolmetsch.httpapi import Reply
from dolmetsch.httpserver import HttpServer
from dolmetsch.httpspec import Request
from dolmetsch.listening import listen

HEAD = b"HTTP/1.1\r\nHost: x\r\n"


class Site:
    """A server that says what it heard, or waits."""

    def __init__(self, most_bytes: int, connections: int) -> None:
        self.heard: list[Request] = []
        self.go_on = asyncio.Event()
        self.go_on.set()
        self.given_up = asyncio.Event()
        self.server = HttpServer(self._answer, most_bytes=most_bytes, connections=connections)
        self._listener = listen("127.0.0.1:0")
        self.port = self._listener.getsockname()[1]

    async def _answer(self, request: Request) -> Reply:
        self.heard.append(request)
        try:
            await self.go_on.wait()
        except asyncio.CancelledError:
            self.given_up.set()
            raise
        return Reply(200, {"Content-Type": "text/plain"}, b"heard " + request.body)

    @contextlib.asynccontextmanager
    async def serving(self) -> AsyncIterator[Site]:
        task = asyncio.create_task(self.server.serve(self._listener))
        try:
            async with asyncio.timeout(20):
                yield self
        finally:
            task.cancel()
            await asyncio.wait({task})
            self._listener.close()
            await self.server.close()

    async def connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        return await asyncio.open_connection("127.0.0.1", self.port)

    async def ask(self, request: bytes) -> bytes:
        """All that comes back until the server hangs up, which the request asks for."""
        reader, writer = await self.connect()
        writer.write(request)
        reply = await reader.read()
        writer.close()
        return reply


def site(most_bytes: int = 1024, connections: int = 64) -> contextlib.AbstractAsyncContextManager[Site]:
    return Site(most_bytes, connections).serving()


def in_loop(test: Callable[..., Coroutine[Any, Any, None]]) -> Callable[..., None]:
    @wraps(test)
    def run(*arguments: Any, **more: Any) -> None:
        asyncio.run(test(*arguments, **more))

    return run


async def until(done: Callable[[], bool]) -> None:
    """The loop turns until it is so; ``serving`` has the deadline."""
    while not done():
        await asyncio.sleep(0.005)


@in_loop
async def test_what_is_asked_and_what_is_heard() -> None:
    async with site() as one:
        reply = await one.ask(
            b"POST /a%20b?q=%ff&x=1 " + HEAD + b"Content-Type: text/x; y=1\r\nX-Forwarded-For: 192.0.2.1\r\n"
            b"X-Forwarded-For: 192.0.2.2\r\nConnection: close\r\nContent-Length: 3\r\n\r\nabc"
        )
        head, _, body = reply.partition(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 200 OK\r\n") and b"\r\nServer: dolmetsch\r\n" in head
        assert body == b"heard abc"
        assert one.heard == [
            Request("POST", "/a b", b"q=%ff&x=1", "text/x; y=1", b"abc", "127.0.0.1", "192.0.2.1,192.0.2.2")
        ]
        reply = await one.ask(b"HEAD / " + HEAD + b"Connection: close\r\n\r\n")
        assert reply.endswith(b"\r\n\r\n"), "no body"


@in_loop
async def test_many_requests_of_one_connection_are_answered_in_order() -> None:
    async with site() as one:
        request = b"POST / " + HEAD + b"Content-Length: 1\r\n\r\n"
        last = b"GET / " + HEAD + b"Connection: close\r\n\r\n"
        reply = await one.ask(b"".join(request + b"%d" % number for number in range(5)) + last)
        assert [reply.count(b"heard %d" % number) for number in range(5)] == [1] * 5
        assert reply.index(b"heard 1") < reply.index(b"heard 3")


@pytest.mark.parametrize("target", [b"/a%0ab", b"*", b"http://x/a", b"//", b"/\xff", b"/%ff", b"/a?b=\xff"])
@in_loop
async def test_every_path_is_the_apis_to_know(target: bytes) -> None:
    async with site() as one:
        reply = await one.ask(b"OPTIONS " + target + b" " + HEAD + b"Connection: close\r\n\r\n")
        assert reply.endswith(b"heard ") or b" 400 " in reply.split(b"\r\n")[0], reply
        assert b"application/json" in reply or one.heard


@in_loop
async def test_who_would_rather_speak_http_2_is_answered_in_http_1() -> None:
    async with site() as one:
        reader, writer = await one.connect()
        wish = b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABk\r\n"
        for _ in range(2):
            writer.write(b"POST / " + HEAD + wish + b"Content-Length: 3\r\n\r\nabc")
            assert (await reader.readuntil(b"heard abc")).startswith(b"HTTP/1.1 200 ")
        writer.close()


@in_loop
async def test_bodies_in_pieces_and_on_demand() -> None:
    async with site() as one:
        chunked = b"POST / " + HEAD + b"Connection: close\r\nTransfer-Encoding: chunked\r\n\r\n"
        assert (await one.ask(chunked + b"2\r\nab\r\n1\r\nc\r\n0\r\n\r\n")).endswith(b"heard abc")
        reader, writer = await one.connect()
        writer.write(b"POST / " + HEAD + b"Expect: 100-continue\r\nContent-Length: 3\r\n\r\n")
        assert await reader.readline() == b"HTTP/1.1 100 Continue\r\n"
        writer.write(b"abc")
        assert b"heard abc" in await reader.readuntil(b"abc")
        writer.write(b"POST / " + HEAD + b"Expect: \xff\r\nContent-Length: 3\r\n\r\nabc")
        assert b"heard abc" in await reader.readuntil(b"heard abc"), "what is not understood is not expected"
        writer.close()


@pytest.mark.parametrize(
    ("request_", "status"),
    [
        (b"POST / " + HEAD + b"Content-Length: 1025\r\n\r\n", 413),
        (b"POST / " + HEAD + b"Expect: 100-continue\r\nContent-Length: 1025\r\n\r\n", 413),
        (b"POST / " + HEAD + b"Transfer-Encoding: chunked\r\n\r\n401\r\n" + b"x" * 1025 + b"\r\n", 413),
        (b"POST / " + HEAD + b"Transfer-Encoding: chunked\r\n\r\nnonsense\r\n", 400),
        (b"GET /" + b"x" * 70_000 + b" " + HEAD + b"\r\n", 431),
        (b"GET / " + HEAD + b"X: " + b"x" * 9000 + b"\r\n\r\n", 431),
        (b"GET / " + HEAD + b"X: x\r\n" * 100 + b"\r\n", 400), (b"\x16\x03\x01\x02\x00", 400),
        (b"\r\n\r\nx\r\n\r\n", 400), (b"GET / HTTP/1.1\r\n\r\n", 400), (b"GET / HTTP/9.9\r\n\r\n", 400),
    ],
)  # fmt: skip
@in_loop
async def test_what_is_refused_and_why(request_: bytes, status: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(httpserver, "LINGER_S", 0.1)
    async with site() as one:
        head, _, body = (await one.ask(request_)).partition(b"\r\n\r\n")
        assert b" %d " % status in head.split(b"\r\n")[0]
        assert b"application/json" in head and b"Access-Control-Allow-Origin: *" in head
        assert body.startswith(b'{"error":"')
        assert one.heard == []


@in_loop
async def test_who_sends_nothing_or_half_of_it_does_not_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("IDLE_S", "READ_S", "LINGER_S"):
        monkeypatch.setattr(httpserver, name, 0.2)
    async with site() as one:
        whole = b"GET / " + HEAD + b"\r\n"
        assert await one.ask(b"") == b""
        assert await one.ask(whole[:9]) == b""
        assert (await one.ask(whole)).endswith(b"heard "), "and hung up on, later"
        assert b" 408 " in await one.ask(b"POST / " + HEAD + b"Content-Length: 3\r\n\r\na")


@in_loop
async def test_more_connections_than_places_wait_for_one() -> None:
    async with site(connections=2) as one:
        first, second = await one.connect(), await one.connect()
        for reader, writer in (first, second):
            writer.write(b"GET / " + HEAD + b"\r\n")
            await reader.readuntil(b"heard ")
        third = await one.connect()
        third[1].write(b"POST / " + HEAD + b"Content-Length: 5\r\n\r\nthird")
        first[1].write(b"POST / " + HEAD + b"Content-Length: 5\r\n\r\nfirst")
        await first[0].readuntil(b"heard first")
        assert [request.body for request in one.heard] == [b"", b"", b"first"]
        second[1].close()
        await third[0].readuntil(b"heard third")
        for _, writer in (first, third):
            writer.close()


@in_loop
async def test_who_hangs_up_takes_the_request_along() -> None:
    async with site() as one:
        one.go_on.clear()
        _, writer = await one.connect()
        writer.write(b"GET / " + HEAD + b"\r\n")
        await until(lambda: len(one.heard) == 1)
        writer.close()
        await one.given_up.wait()


@in_loop
async def test_the_end_answers_what_was_asked_and_hangs_up_on_the_others() -> None:
    async with site() as one:
        one.go_on.clear()
        idle, busy = await one.connect(), await one.connect()
        busy[1].write(b"GET / " + HEAD + b"\r\n")
        await until(lambda: len(one.heard) == 1)
        ending = asyncio.create_task(one.server.close())
        assert await idle[0].read() == b""
        assert not ending.done()
        one.go_on.set()
        assert (await busy[0].read()).endswith(b"heard ")
        await ending
        for _, writer in (idle, busy):
            writer.close()


@in_loop
async def test_a_connection_that_cannot_be_accepted_costs_no_place(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(httpserver, "PAUSE_S", 0.01)
    accept, failures = asyncio.get_running_loop().sock_accept, [OSError(24, "Too many open files")] * 3

    async def fail(listener: socket.socket) -> tuple[socket.socket, Any]:
        if failures:
            raise failures.pop()
        return await accept(listener)

    monkeypatch.setattr(asyncio.get_running_loop(), "sock_accept", fail)
    async with site(connections=1) as one:
        assert (await one.ask(b"GET / " + HEAD + b"Connection: close\r\n\r\n")).endswith(b"heard ")
        assert (await one.ask(b"GET / " + HEAD + b"Connection: close\r\n\r\n")).endswith(b"heard ")
    assert "cannot accept a connection: Too many open files" in caplog.text


PARTS = (
    b"\r\n", b"\n", b"\0", b"\xff", b":", b" ", b"Content-Length: 5\r\n", b"Content-Length: -1\r\n",
    b"Transfer-Encoding: chunked\r\n", b"Connection: close\r\n", b"Connection: Upgrade\r\nUpgrade: websocket\r\n",
    b"Expect: 100-continue\r\n", b"Expect: \xff\r\n", b"Content-Encoding: gzip\r\n", b"HTTP/2.0", b"ffffffffff\r\n",
    b"X-Forwarded-For: \xff\r\n", b"Content-Type: \xff\r\n",
)  # fmt: skip
WHOLE = (
    b"POST / " + HEAD + b"Content-Length: 3\r\n\r\nabc", b"GET /a?b=c " + HEAD + b"\r\n",
    b"POST / " + HEAD + b"Transfer-Encoding: chunked\r\n\r\n2\r\nab\r\n0\r\n\r\n", b"OPTIONS * " + HEAD + b"\r\n",
)  # fmt: skip


def broken(chance: random.Random) -> bytes:
    """Requests that came to harm on their way."""
    request = bytearray(b"".join(chance.choices(WHOLE, k=chance.randint(1, 3))))
    for _ in range(chance.randint(1, 4)):
        at = chance.randrange(len(request) + 1)
        request[at : at + chance.choice((0, 0, 1, 4))] = chance.choice(PARTS)
    return bytes(request)


@in_loop
async def test_whatever_bytes_come_it_is_no_bug(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    for name in ("IDLE_S", "READ_S", "LINGER_S"):
        monkeypatch.setattr(httpserver, name, 0.05)
    chance = random.Random(1)
    async with site() as one:
        for _ in range(20):
            for reply in await asyncio.gather(*[one.ask(broken(chance)) for _ in range(50)], return_exceptions=True):
                assert isinstance(reply, bytes | ConnectionError)
                assert b" 500 " not in (reply.split(b"\r\n")[0] if isinstance(reply, bytes) else b"")
    assert "a bug" not in caplog.text and "Traceback" not in caplog.text


def test_who_does_not_read_an_answer_is_given_up_by_the_kernel() -> None:
    with listen("127.0.0.1:0") as listener, socket.create_connection(listener.getsockname()):
        accepted, _ = listener.accept()
        with accepted:
            assert 0 < accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT) <= 60_000
