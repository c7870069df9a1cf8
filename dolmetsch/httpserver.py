"""The HTTP gateway's server: aiohttp, and what it leaves to us: limits on bodies, connections and time, and refusals in
our own form."""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import Awaitable, Callable
from typing import Any, Final

from aiohttp import web
from aiohttp.http_exceptions import LineTooLong

from dolmetsch import logs
from dolmetsch.httpapi import Reply, refusal
from dolmetsch.httpspec import HttpError, Request, too_large

MAX_LINE_BYTES: Final = 64 * 2**10  # of a request's first line: a form may come in the query
MAX_FIELD_BYTES: Final = 8 * 2**10  # of each of its headers
MAX_FIELDS: Final = 64
READ_S: Final = 30.0  # for the body, once the head is there
IDLE_S: Final = 60.0  # without a request, or with half a head
LINGER_S: Final = 2.0  # what is left of a refused body is read for so long, or its sender would not see why
PAUSE_S: Final = 1.0  # when no connection can be accepted: too many open files

log = logging.getLogger("http")


class _Connection(web.RequestHandler):
    """aiohttp's, with the end of it told, and refusals in our form."""

    def __init__(self, server: web.Server, ended: Callable[[], None], **options: Any) -> None:
        super().__init__(server, loop=asyncio.get_running_loop(), **options)
        self._ended = ended

    def connection_lost(self, exc: BaseException | None) -> None:
        super().connection_lost(exc)
        self._ended()

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,
    ) -> web.StreamResponse:
        """What aiohttp itself refuses. Its own words may quote the request."""
        if isinstance(exc, LineTooLong):
            return _farewell(HttpError(431, "the head is too long"))
        if status < 500:
            return _farewell(HttpError(status, "this is not HTTP"))
        log.error("a bug: %s", "" if exc is None else logs.trace(exc))
        return _farewell(HttpError(status, "Internal error"))


class HttpServer:
    """Serves ``answer``, with at most ``most_bytes`` in a body and ``connections`` at once; others wait."""

    def __init__(self, answer: Callable[[Request], Awaitable[Reply]], *, most_bytes: int, connections: int) -> None:
        self._answer = answer
        self._most_bytes = most_bytes
        self._places = asyncio.Semaphore(connections)
        # A caller who hangs up takes the request along: nobody would read the answer.
        self._server = web.Server(self._handle, request_factory=self._received, handler_cancellation=True)
        self._runner = web.ServerRunner(self._server)

    async def serve(self, listener: socket.socket) -> None:
        """Accept connections, for ever."""
        await self._runner.setup()
        loop = asyncio.get_running_loop()
        listener.setblocking(False)
        while True:
            await self._places.acquire()
            try:
                accepted, _ = await loop.sock_accept(listener)
            except OSError as error:
                self._places.release()
                log.error("cannot accept a connection: %s", error.strerror)
                await asyncio.sleep(PAUSE_S)
                continue
            await loop.connect_accepted_socket(self._connection, accepted)

    async def close(self) -> None:
        """Hang up on who waits for nothing, and on the others once they have their answers."""
        await self._runner.cleanup()

    def _connection(self) -> _Connection:
        return _Connection(
            self._server,
            self._places.release,
            access_log=None,
            keepalive_timeout=IDLE_S,
            lingering_time=LINGER_S,
            max_line_size=MAX_LINE_BYTES,
            max_field_size=MAX_FIELD_BYTES,
            max_headers=MAX_FIELDS,
            auto_decompress=False,
        )

    def _received(
        self, message: Any, payload: Any, connection: web.RequestHandler, writer: Any, task: asyncio.Task[None]
    ) -> web.BaseRequest:
        loop = asyncio.get_running_loop()
        return web.BaseRequest(message, payload, connection, writer, task, loop, client_max_size=self._most_bytes)

    async def _handle(self, request: web.BaseRequest) -> web.StreamResponse:
        try:
            body = await self._body(request)
        except HttpError as error:
            return _farewell(error)
        return _response(await self._answer(_request(request, body)))

    async def _body(self, request: web.BaseRequest) -> bytes:
        """Raises ``HttpError``."""
        if (request.content_length or 0) > self._most_bytes:
            raise too_large(self._most_bytes)
        if request.headers.get("Expect", "").lower() == "100-continue":
            await request.writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
            request.writer.output_size = 0  # the answer has yet to begin
        try:
            async with asyncio.timeout(READ_S):
                return await request.read()
        except web.HTTPRequestEntityTooLarge:
            raise too_large(self._most_bytes) from None
        except TimeoutError:
            raise HttpError(408, f"the body was not here within {READ_S:g} s") from None
        except web.RequestPayloadError:
            raise HttpError(400, "Invalid request: the body is broken") from None


def _request(request: web.BaseRequest, body: bytes) -> Request:
    return Request(
        request.method,
        request.path,
        request.raw_path.partition("?")[2].encode(errors="surrogateescape"),
        request.headers.get("Content-Type", ""),
        body,
        request.remote or "",
        ",".join(request.headers.getall("X-Forwarded-For", ())),
    )


def _farewell(error: HttpError) -> web.Response:
    """A refusal after which nothing more of this connection can be understood."""
    response = _response(refusal(error))
    response.force_close()
    return response


def _response(reply: Reply) -> web.Response:
    return web.Response(status=reply.status, headers={**reply.headers, "Server": "dolmetsch"}, body=reply.body)
