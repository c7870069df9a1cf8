"""A broker that only publishes: made-up TELEMETRY on a real socket, for what listens to it.

``Scene`` is what is told and may be changed at any moment; ``Publisher`` tells it, in a thread of its own.
"""

from __future__ import annotations

import threading
import time
import uuid
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Final, Self

import zmq
from msgspec.structs import replace

from dolmetsch import __version__
from dolmetsch.messages import Telemetry
from dolmetsch.reports import (
    LATENCY_MS,
    About,
    BrokerHealth,
    ChildStatus,
    Counts,
    Departed,
    GatewayStatus,
    Histogram,
    JobReport,
    NodeReport,
    Route,
    StoryLine,
    Waiting,
)
from dolmetsch.transport import PubPort

ROUTES: Final = (Route("de→en", "de_en-1.0-9cfb8cb3"),)
NO_COUNTS: Final = Counts(*[0] * len(Counts.__struct_fields__))
QUICK: Final = Histogram(tuple([3 if bound == 20 else 0 for bound in (*LATENCY_MS, 0)]), 48)  # of three jobs
NOTHING: Final = Histogram(tuple([0] * (len(LATENCY_MS) + 1)), 0)


def node(name: str, **changes: Any) -> NodeReport:
    """A Raspberry Pi at work."""
    children = tuple([ChildStatus(900 + core, core, "busy", 120_000_000, 40, 0, 2) for core in (1, 2, 3)])
    found = NodeReport(
        name=name, incarnation=uuid.uuid5(uuid.NAMESPACE_DNS, name).hex, state="ready", engine="argos",
        about=About(name, "Raspberry Pi 5 Model B", "Debian 12", f"{__version__}, Python 3.11.2", 4, 8 * 2**30, 9e4),
        up_s=90_000.0, joined_s_ago=3600.0, seen_s_ago=0.4, routes=ROUTES, capacity=960, leased=6, jobs_done=120,
        workers=3, queued=2, in_flight=4, chars_per_s=2100.0, cpu_percent=71.5, core_percent=(20.0, 88.0, 90.0, 88.0),
        ram_percent=31.0, ram_used_bytes=2 * 2**30, temperature_c=61.0, throttled=False, children=children,
    )  # fmt: skip
    return replace(found, **changes)


def job(number: int, **changes: Any) -> JobReport:
    """A job that went well."""
    story = (StoryLine(2, "leased to pi-1"), StoryLine(19, "done"), StoryLine(21, "acked"))
    found = JobReport(
        job_id=number.to_bytes(16, "big"), state="done", gateway="discord", lane=0, route="de→en", chars=42,
        node="pi-1", model=ROUTES[0].model, attempts=1, cached=False, code="", detail="",
        ended_s_ago=0.2, gateway_ms=3, queue_ms=2, wire_ms=1, batch_ms=1, decode_ms=15, reply_ms=2, story=story,
    )  # fmt: skip
    return replace(found, **changes)


def dead(number: int, **changes: Any) -> JobReport:
    """One that failed for good."""
    return job(number, state="dead", attempts=3, code="child_crashed", detail="signal 11", model="", **changes)


@dataclass
class Scene:
    """What is told. Each telling ends ``jobs_a_turn`` jobs more."""

    nodes: tuple[NodeReport, ...] = ()
    gateways: tuple[GatewayStatus, ...] = (
        GatewayStatus("discord", "up", "discord", 2, 48.5, 1, 20, 3, 0, 0.4),
    )  # fmt: skip
    departed: tuple[Departed, ...] = ()
    dead: tuple[JobReport, ...] = ()
    waiting: tuple[Waiting, ...] = ()
    counts: Counts = NO_COUNTS
    jobs_a_turn: int = 3
    draining: bool = False
    disk_free_bytes: int = 10**11
    broker: str = field(default_factory=lambda: uuid.uuid4().hex)
    started: float = field(default_factory=lambda: time.monotonic() - 100.0)
    turn: int = 0

    def telemetry(self) -> Telemetry:
        """The next message."""
        self.turn += 1
        done = self.jobs_a_turn
        counts = self.counts = replace(
            self.counts,
            accepted=self.counts.accepted + done,
            done=self.counts.done + done,
            chars_done=self.counts.chars_done + 42 * done,
            dead_letters=len(self.dead),
        )
        scale = counts.done // 3
        latency = Histogram(tuple([count * scale for count in QUICK.counts]), QUICK.sum_ms * scale)
        return Telemetry(
            broker=self.broker, up_s=time.monotonic() - self.started, draining=self.draining,
            health=BrokerHealth("pi-0", __version__, 42, 3.5, 60_000_000, 4096, self.disk_free_bytes, self.waiting),
            counts=counts, latency=(latency, NOTHING), routes=ROUTES if self.nodes else (), nodes=self.nodes,
            departed=self.departed, gateways=self.gateways,
            jobs=tuple([job(self.turn * 1000 + number) for number in range(min(done, 32))]), dead=self.dead,
        )  # fmt: skip


class Publisher:
    """Tells ``scene`` at ``where`` every ``every_s`` seconds, until the ``with`` block ends or it is silenced."""

    def __init__(self, where: str, scene: Scene, every_s: float = 1.0) -> None:
        self.where = where
        self.scene = scene
        self._every_s = every_s
        self._stop = threading.Event()
        self._raw: list[list[bytes]] = []  # told once instead, as it is
        self._thread: threading.Thread | None = None

    def __enter__(self) -> Self:
        self.speak()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.silence()

    def speak(self) -> None:
        """Begin, or begin again."""
        self._stop.clear()
        self._thread = threading.Thread(target=self._run, name="publisher", daemon=True)
        self._thread.start()

    def silence(self) -> None:
        """End as a broker does that dies: the socket goes too."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join(5.0)

    def nonsense(self, *frames: bytes) -> None:
        """Tell these frames next."""
        self._raw.append(list(frames))

    def _run(self) -> None:
        context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        port = PubPort(context)
        try:
            port.bind(self.where)
            while not self._stop.wait(self._every_s):
                while self._raw:
                    port.socket.send_multipart(self._raw.pop())
                port.send(self.scene.telemetry())
        finally:
            port.close()
            context.term()
