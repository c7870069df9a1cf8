"""The Gateway: WebSocket connections, the sessions on them, and the events they get.

A session outlives its connection: what happens while the client is away is kept, up to ``KEPT_EVENTS``, and sent when
it RESUMEs. Nothing here knows what the events are about; whoever publishes one says which intent it takes, and gives
its data as a function of whether the reader may read message content.
"""

from __future__ import annotations

import asyncio
import importlib
import json
import secrets
import time
import zlib
from collections import OrderedDict, deque
from collections.abc import Callable
from typing import Any, Final

from aiohttp import WSCloseCode, WSMessage, WSMsgType, web

from tests.discord_server.world import Json

DISPATCH, HEARTBEAT, IDENTIFY, PRESENCE, VOICE, RESUME, RECONNECT = 0, 1, 2, 3, 4, 6, 7
REQUEST_MEMBERS, INVALID_SESSION, HELLO, HEARTBEAT_ACK = 8, 9, 10, 11

# Intents.
GUILDS: Final = 1 << 0
GUILD_MEMBERS: Final = 1 << 1
GUILD_PRESENCES: Final = 1 << 8
GUILD_MESSAGES: Final = 1 << 9
GUILD_MESSAGE_REACTIONS: Final = 1 << 10
DIRECT_MESSAGES: Final = 1 << 12
DIRECT_MESSAGE_REACTIONS: Final = 1 << 13
MESSAGE_CONTENT: Final = 1 << 15
ALWAYS: Final = 0  # an event that takes no intent
KNOWN_INTENTS: Final = sum(1 << bit for bit in (*range(17), 20, 21, 24, 25))

KEPT_EVENTS: Final = 20_000
KEPT_SESSIONS: Final = 8
MAX_WAITING: Final = 50_000  # a client that reads no more is cut off
SENT_PER_MINUTE: Final = 120
CLOSE_S: Final = 2.0  # a client that is told to go has so long to say goodbye

Render = Callable[[bool], Json]


class CloseConnection(Exception):
    """The connection is to be closed, with a close code of Discord's."""

    def __init__(self, code: int, reason: str) -> None:
        super().__init__(reason)
        self.code = code


class Session:
    """What one IDENTIFY began: its intents, its numbering of events, and the events themselves for a RESUME."""

    def __init__(self, intents: int) -> None:
        self.id = secrets.token_hex(16)
        self.intents = intents
        self.sequence = 0
        self.events: deque[tuple[int, str]] = deque(maxlen=KEPT_EVENTS)
        self.connection: Connection | None = None

    def dispatch(self, name: str, data: str) -> None:
        """Number an event, keep it, and send it if somebody listens."""
        self.sequence += 1
        frame = f'{{"t":"{name}","s":{self.sequence},"op":0,"d":{data}}}'
        self.events.append((self.sequence, frame))
        if self.connection is not None:
            self.connection.send(frame)

    def since(self, sequence: int) -> list[str] | None:
        """The events after a number, or None if they are no longer all there (or the number is of no event)."""
        if sequence > self.sequence or (self.events and sequence < self.events[0][0] - 1):
            return None
        return [frame for number, frame in self.events if number > sequence]


class _Plain:
    def __call__(self, frame: str) -> str | bytes:
        return frame


class _Zlib:
    """One stream over the whole connection; each message ends with a flush."""

    def __init__(self) -> None:
        self._stream = zlib.compressobj()

    def __call__(self, frame: str) -> str | bytes:
        return self._stream.compress(frame.encode()) + self._stream.flush(zlib.Z_SYNC_FLUSH)


class _Zstd:
    """As zlib, where there is a library for it: clients ask for it only if they have one."""

    def __init__(self) -> None:
        library: Any = importlib.import_module("zstandard")
        self._stream = library.ZstdCompressor().compressobj()
        self._flush = library.COMPRESSOBJ_FLUSH_BLOCK

    def __call__(self, frame: str) -> str | bytes:
        packed: bytes = self._stream.compress(frame.encode()) + self._stream.flush(self._flush)
        return packed


_TRANSPORTS: Final[dict[str, Callable[[], Callable[[str], str | bytes]]]] = {
    "": _Plain,
    "zlib-stream": _Zlib,
    "zstd-stream": _Zstd,
}


class Connection:
    """One WebSocket: what is to be sent waits in order, and one task sends it."""

    def __init__(self, request: web.Request, latency_s: float) -> None:
        transport = _TRANSPORTS.get(request.query.get("compress", ""))
        if transport is None or request.query.get("encoding", "json") != "json":
            raise web.HTTPBadRequest(text="this gateway speaks JSON, plain or zlib-stream or zstd-stream")
        self.socket = web.WebSocketResponse(compress=False, max_msg_size=65_536, timeout=CLOSE_S)
        self.session: Session | None = None
        self._request = request
        self._pack = transport()
        self._latency_s = latency_s
        self._waiting: deque[tuple[float, str]] = deque()
        self._more = asyncio.Event()
        self._close: tuple[int, bytes] | None = None

    def send(self, frame: str) -> None:
        if len(self._waiting) >= MAX_WAITING:
            self.abort()
            return
        self._waiting.append((time.monotonic() + self._latency_s, frame))
        self._more.set()

    def send_op(self, op: int, data: Any = None) -> None:
        self.send(json.dumps({"op": op, "d": data, "s": None, "t": None}))

    @property
    def closing(self) -> bool:
        return self._close is not None

    def close(self, code: int, reason: str) -> None:
        """Close once all that waits is sent; nothing more is taken from or for the session."""
        self.detach()
        self._close = (code, reason.encode())
        self._more.set()

    def abort(self) -> None:
        """End the connection as a cable does that is pulled."""
        self.detach()
        if self._request.transport is not None:
            self._request.transport.abort()

    def detach(self) -> None:
        if self.session is not None and self.session.connection is self:
            self.session.connection = None

    async def sender(self) -> None:
        """Send what waits, until the connection is to be closed or is gone."""
        try:
            while self._waiting or self._close is None:
                if self._waiting:
                    await self._send_next()
                else:
                    self._more.clear()
                    await self._more.wait()
            await self.socket.close(code=self._close[0], message=self._close[1])
        except ConnectionError:
            self.detach()

    async def _send_next(self) -> None:
        due, frame = self._waiting.popleft()
        if self._latency_s and due > time.monotonic():
            await asyncio.sleep(due - time.monotonic())
        packed = self._pack(frame)
        if isinstance(packed, bytes):
            await self.socket.send_bytes(packed)
        else:
            await self.socket.send_str(packed)


class Gateway:
    """All sessions and connections. ``token`` and what is allowed are read anew at each IDENTIFY."""

    def __init__(self, token: str, heartbeat_interval_ms: int, latency_s: float) -> None:
        self._token = token
        self._heartbeat_ms = heartbeat_interval_ms
        self._latency_s = latency_s
        self.sessions: OrderedDict[str, Session] = OrderedDict()
        self.connections: set[Connection] = set()
        self.ready_count = 0
        self.resume_count = 0
        self.presence: Json | None = None
        self.identified: Json | None = None
        self.privileged_allowed = MESSAGE_CONTENT
        self.on_ready: Callable[[Session, Json], None] = lambda session, identify: None
        self.on_members_wanted: Callable[[Session, Json], None] = lambda session, wanted: None

    @property
    def connected(self) -> bool:
        return any(session.connection is not None for session in self.sessions.values())

    def publish(self, name: str, intent: int, render: Render) -> None:
        """Give an event to each session whose intents cover it."""
        rendered: dict[bool, str] = {}
        for session in self.sessions.values():
            if intent and not session.intents & intent:
                continue
            reads = bool(session.intents & MESSAGE_CONTENT)
            if reads not in rendered:
                rendered[reads] = json.dumps(render(reads), ensure_ascii=False, separators=(",", ":"))
            session.dispatch(name, rendered[reads])

    def drop(self, resumable: bool) -> None:
        if not resumable:
            self.sessions.clear()
        for connection in tuple(self.connections):
            connection.abort()

    def reconnect(self) -> None:
        for connection in self.connections:
            connection.send_op(RECONNECT)

    def invalidate(self, resumable: bool) -> None:
        if not resumable:
            self.sessions.clear()
        for connection in self.connections:
            connection.send_op(INVALID_SESSION, resumable)

    async def serve(self, request: web.Request) -> web.WebSocketResponse:
        """One connection from its beginning to its end."""
        connection = Connection(request, self._latency_s)
        await connection.socket.prepare(request)
        self.connections.add(connection)
        sender = asyncio.create_task(connection.sender())
        connection.send_op(HELLO, {"heartbeat_interval": self._heartbeat_ms, "_trace": ["[]"]})
        try:
            await self._receive(connection)
            if connection.closing:
                await sender
        finally:
            connection.detach()
            self.connections.discard(connection)
            sender.cancel()
            await asyncio.gather(sender, return_exceptions=True)
        return connection.socket

    async def _receive(self, connection: Connection) -> None:
        sent: deque[float] = deque(maxlen=SENT_PER_MINUTE)
        while True:
            try:
                message = await connection.socket.receive(timeout=self._heartbeat_ms / 1000 * 2)
            except TimeoutError:
                connection.close(4009, "Session timed out.")
                return
            if message.type is not WSMsgType.TEXT:
                self._end(connection, message)
                return
            try:
                frame = _decoded(message.data)
                if frame["op"] != HEARTBEAT:  # they do not count, so that a test can make them quick
                    _count(sent)
                self._handle(connection, frame)
            except CloseConnection as error:
                connection.close(error.code, str(error))
                return

    def _end(self, connection: Connection, message: WSMessage) -> None:
        """The client is gone. If it said a proper goodbye, its session ends too."""
        connection.detach()
        goodbye = message.type is WSMsgType.CLOSE and message.data in (WSCloseCode.OK, WSCloseCode.GOING_AWAY)
        if goodbye and connection.session is not None:
            self.sessions.pop(connection.session.id, None)

    def _handle(self, connection: Connection, frame: Json) -> None:
        op: int = frame["op"]
        data: Any = frame.get("d")
        if op == HEARTBEAT:
            connection.send_op(HEARTBEAT_ACK)
        elif op == IDENTIFY:
            self._identify(connection, data)
        elif op == RESUME:
            self._resume(connection, data)
        elif connection.session is None:
            raise CloseConnection(4003, "Not authenticated.")
        elif op == PRESENCE:
            self.presence = data
        elif op == REQUEST_MEMBERS:
            self.on_members_wanted(connection.session, data)
        elif op != VOICE:
            raise CloseConnection(4001, "Unknown opcode.")

    def _identify(self, connection: Connection, data: Json) -> None:
        if connection.session is not None:
            raise CloseConnection(4005, "Already authenticated.")
        self._check(data)
        session = connection.session = Session(data["intents"])
        session.connection = connection
        self.sessions[session.id] = session
        while len(self.sessions) > KEPT_SESSIONS:
            self.sessions.popitem(last=False)
        self.identified = data
        self.presence = data.get("presence") or self.presence
        self.ready_count += 1
        self.on_ready(session, data)

    def _check(self, data: Json) -> None:
        if data.get("token") != self._token:
            raise CloseConnection(4004, "Authentication failed.")
        intents = data.get("intents")
        if not isinstance(intents, int) or not isinstance(data.get("properties"), dict):
            raise CloseConnection(4002, "Error while decoding payload.")
        if intents & ~KNOWN_INTENTS:
            raise CloseConnection(4013, "Invalid intent(s).")
        if intents & (MESSAGE_CONTENT | GUILD_MEMBERS | GUILD_PRESENCES) & ~self.privileged_allowed:
            raise CloseConnection(4014, "Disallowed intent(s).")

    def _resume(self, connection: Connection, data: Json) -> None:
        if connection.session is not None:
            raise CloseConnection(4005, "Already authenticated.")
        if data.get("token") != self._token:
            raise CloseConnection(4004, "Authentication failed.")
        session = self.sessions.get(str(data.get("session_id")))
        missed = session.since(int(data.get("seq") or 0)) if session is not None else None
        if session is None or missed is None:
            connection.send_op(INVALID_SESSION, False)
            return
        if session.connection is not None:
            session.connection.abort()
        for frame in missed:
            connection.send(frame)
        connection.session, session.connection = session, connection
        self.resume_count += 1
        session.dispatch("RESUMED", '{"_trace":["[]"]}')


def _decoded(text: str) -> Json:
    try:
        frame = json.loads(text)
    except ValueError:
        raise CloseConnection(4002, "Error while decoding payload.") from None
    if not isinstance(frame, dict) or not isinstance(frame.get("op"), int):
        raise CloseConnection(4002, "Error while decoding payload.")
    return frame


def _count(sent: deque[float]) -> None:
    """So many messages a minute, not more."""
    now = time.monotonic()
    if len(sent) == SENT_PER_MINUTE and now - sent[0] < 60:
        raise CloseConnection(4008, "Rate limited.")
    sent.append(now)
