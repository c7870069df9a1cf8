"""HTTP: the port itself, reading requests and writing answers, with the faults and limits on the way."""

from __future__ import annotations

import asyncio
import json
import time
import traceback
import zlib
from collections import deque
from typing import Any, Final, NamedTuple
from urllib.parse import unquote

from aiohttp import web

from tests.discord_server.errors import ApiError, not_found, unauthorized
from tests.discord_server.faults import Fault, Faults, Limits, Window, rate_limited_body, rate_limited_headers
from tests.discord_server.gateway import Gateway
from tests.discord_server.rest import Rest, routes
from tests.discord_server.routes import Answer, Call, Route
from tests.discord_server.world import World

API: Final = "/api/v10"
KEPT_REQUESTS: Final = 20_000
MAX_BODY: Final = 32 * 1024 * 1024
REASONS: Final = {500: "Internal Server Error", 502: "Bad Gateway", 503: "Service Unavailable", 504: "Gateway Timeout"}


class Request(NamedTuple):
    """One request that came, and how it was answered (0: it was not)."""

    method: str
    path: str
    status: int
    json: Any
    at: float


class Http:
    def __init__(self, world: World, gateway: Gateway, rest: Rest, token: str, latency_s: float) -> None:
        self.requests: deque[Request] = deque(maxlen=KEPT_REQUESTS)
        self.unknown: deque[tuple[str, str]] = deque(maxlen=KEPT_REQUESTS)
        self.errors: deque[str] = deque(maxlen=100)
        self.faults = Faults()
        self.limits = Limits()
        self.port = 0
        self._world = world
        self._gateway = gateway
        self._rest = rest
        self._authorization = f"Bot {token}"
        self._latency_s = latency_s
        self._closing = asyncio.Event()
        self._runner: web.AppRunner | None = None

    async def open(self) -> None:
        app = web.Application(client_max_size=MAX_BODY)
        app.router.add_get("/", self._serve_gateway)
        app.router.add_get("/attachments/{channel}/{attachment}/{name}", self._serve_attachment)
        app.router.add_route("*", "/{path:.*}", self._serve_rest)
        self._runner = web.AppRunner(app, access_log=None, shutdown_timeout=1.0)
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", 0).start()
        self.port = self._runner.addresses[0][1]

    async def close(self) -> None:
        self._closing.set()
        self._gateway.drop(resumable=False)
        if self._runner is not None:
            await self._runner.cleanup()

    async def _serve_gateway(self, request: web.Request) -> web.StreamResponse:
        fault = self.faults.take("GET", "/")
        if fault is not None:
            self._record(request, "/", fault.status, None)
            return self._failed(request, fault, None)
        try:
            return await self._gateway.serve(request)
        except Exception:
            self.errors.append(traceback.format_exc())
            raise

    async def _serve_attachment(self, request: web.Request) -> web.StreamResponse:
        channel = self._world.channels.get(int(request.match_info["channel"]))
        number = int(request.match_info["attachment"])
        for message in channel.messages.values() if channel is not None else ():
            if number in message.attachment_ids and not message.deleted:
                return web.Response(body=message.attachments[message.attachment_ids.index(number)][1])
        return web.Response(status=404)

    def forget_nonces(self) -> None:
        self._rest.forget_nonces()

    async def _serve_rest(self, request: web.Request) -> web.StreamResponse:
        path = request.path.removeprefix(API)
        try:
            call = await _read(request)
        except ValueError:
            self._record(request, path, 400, None)
            return _response(400, {"message": "The request body contains invalid JSON.", "code": 50109})
        seconds = self._latency_s + self.faults.delay_of(request.method, path)
        if seconds > 0 and await self._closes_within(seconds):
            return web.Response(status=503)
        found = routes.find(request.method, request.raw_path.partition("?")[0].removeprefix(API))
        fault = self.faults.take(request.method, path)
        if fault is not None:
            self._record(request, path, fault.status, call.json)
            if fault.carried_out:
                self._carry_out(request, found, call)
            return self._failed(request, fault, found[0] if found else None)
        response = self._carry_out(request, found, call)
        self._record(request, path, response.status, call.json)
        seconds = self.faults.delay_of(request.method, path, late=True)
        if seconds > 0 and await self._closes_within(seconds):
            return web.Response(status=503)
        return response

    async def _closes_within(self, seconds: float) -> bool:
        """Wait; whether the server was closed meanwhile."""
        try:
            await asyncio.wait_for(self._closing.wait(), seconds)
        except TimeoutError:
            return False
        return True

    def _carry_out(self, request: web.Request, found: tuple[Route, dict[str, str]] | None, call: Call) -> web.Response:
        if found is None or not request.path.startswith(API):
            self.unknown.append((request.method, request.path.removeprefix(API)))
            return _response(not_found().status, not_found().body)
        route, args = found
        if not route.open and request.headers.get("Authorization") != self._authorization:
            return _response(401, unauthorized().body)
        call.args = {key: unquote(value) for key, value in args.items()}
        window = self.limits.count(route.method, route.template, _major(call))
        headers = _limit_headers(route, window)
        if window.exceeded:
            more = rate_limited_headers(window.reset_after, False)
            return _response(429, rate_limited_body(window.reset_after, False), headers | more)
        try:
            answer: Answer = getattr(self._rest, route.name)(call)
        except ApiError as error:
            return _response(error.status, error.body, headers)
        except Exception:
            # Either the request is of a form that nobody sends to Discord, or the server has a fault: be loud.
            self.errors.append(traceback.format_exc())
            return _response(500, {"message": "500: Internal Server Error", "code": 0}, headers)
        return _response(answer.status, answer.body, headers)

    def _failed(self, request: web.Request, fault: Fault, route: Route | None) -> web.StreamResponse:
        if fault.status == 0 and request.transport is not None:
            request.transport.abort()
        if fault.status == 429:
            headers = rate_limited_headers(fault.retry_after, fault.is_global)
            window = Window(1, 0, fault.retry_after, True)
            bucket = {} if fault.is_global else _limit_headers(route, window)
            return _response(429, rate_limited_body(fault.retry_after, fault.is_global), headers | bucket)
        if fault.body is not None or 400 <= fault.status < 500:
            return _response(fault.status, fault.body or {"message": f"{fault.status}: Error", "code": 0})
        reason = REASONS.get(fault.status, "Error")
        return web.Response(
            status=fault.status or 500, text=f"<html>{fault.status} {reason}</html>", content_type="text/html"
        )

    def _record(self, request: web.Request, path: str, status: int, sent: Any) -> None:
        self.requests.append(Request(request.method, path, status, sent, time.monotonic()))


async def _read(request: web.Request) -> Call:
    """The body, JSON or a form with files; ValueError if it is no JSON."""
    if request.content_type.startswith("multipart/"):
        fields = await request.post()
        files: dict[str, tuple[str, bytes]] = {}
        for key, field in fields.items():
            if isinstance(field, web.FileField):
                files[key] = (field.filename, field.file.read())
                field.file.close()
        sent = fields.get("payload_json")
        return Call({}, request.query, json.loads(sent) if isinstance(sent, str) else None, files)
    body = await request.read() if request.can_read_body else b""
    return Call({}, request.query, json.loads(body) if body else None)


def _major(call: Call) -> str:
    return call.args.get("channel") or call.args.get("guild") or call.args.get("token") or ""


def _limit_headers(route: Route | None, window: Window) -> dict[str, str]:
    bucket = f"{route.method} {route.template}" if route is not None else ""
    return {
        "X-RateLimit-Limit": str(window.limit),
        "X-RateLimit-Remaining": str(window.remaining),
        "X-RateLimit-Reset": f"{time.time() + window.reset_after:.3f}",
        "X-RateLimit-Reset-After": f"{window.reset_after:.3f}",
        "X-RateLimit-Bucket": f"{zlib.crc32(bucket.encode()):08x}",
    }


def _response(status: int, body: Any, headers: dict[str, str] | None = None) -> web.Response:
    """An answer as Discord's edge sends it: with ``Via``, and JSON without a charset."""
    sent = {"Via": "1.1 google", **(headers or {})}
    if status == 204:
        return web.Response(status=status, headers=sent)
    sent["Content-Type"] = "application/json"
    return web.Response(status=status, body=json.dumps(body, ensure_ascii=False).encode(), headers=sent)
