"""Problems: what is wrong, in words that say what to look at. Pure.

The worst come first. A node that drains, or left, is no problem: somebody wanted it so.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple

from dashboard.attendance import GRACE_S, LEFT, LOST, Sight
from dashboard.rates import Change
from dolmetsch.messages import Telemetry
from dolmetsch.reports import NO_TEMPERATURE_C, GatewayStatus, Waiting

ERROR: Final = "error"
WARNING: Final = "warning"
MAX_PROBLEMS: Final = 50  # nobody reads more

HOT_C: Final = 80.0  # a Raspberry Pi begins to throttle here
FULL_RAM_PERCENT: Final = 95.0
RESTARTS: Final = 3  # of a node's children in a minute: more than chance
FEW_JOBS: Final = 20  # a rate of errors means little below
SOME_ERRORS: Final = 0.05
MANY_ERRORS: Final = 0.25
LONG_QUEUE_S: Final = 30.0  # of interactive work
STUCK_S: Final = 30.0  # nothing done for so long while jobs wait
DISK_LOW_BYTES: Final = 2**30
DISK_FULL_BYTES: Final = 200 * 2**20
SLOW_GATEWAY_MS: Final = 2000.0
GATEWAY_SILENT_S: Final = 15.0  # it reports once a second
SPOKEN_CHARS: Final = 40  # of a name that a stranger has given itself
SHORT_LIVED: Final = ("cli", "dashboard")  # kinds of gateways that come and go


class Problem(NamedTuple):
    """``node`` is the node that has it, if one has."""

    level: str
    text: str
    node: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class View:
    """What is looked at. ``telemetry`` is the latest, None before the first; ``minute`` what happened lately."""

    alive: bool
    address: str
    telemetry: Telemetry | None
    sights: Sequence[Sight]
    minute: Change | None
    now: float
    misunderstood: str = ""  # why the broker's words were not understood
    history: str = ""  # why the history is not written


def problems(view: View) -> list[Problem]:
    """All that is wrong, errors first."""
    found = list(_all(view))
    found.sort(key=lambda one: one.level != ERROR)
    return found[:MAX_PROBLEMS]


def _all(view: View) -> Iterator[Problem]:
    if view.misunderstood:
        yield Problem(ERROR, f"the broker is not understood ({view.misunderstood}): update it or the dashboard")
    elif not view.alive:
        yield Problem(ERROR, f"no word from the broker at {view.address}: is it running?")
    if view.telemetry is not None and view.alive:
        yield from _of_the_broker(view.telemetry, view.minute)
        yield from _of_the_door(view.telemetry.health.waiting)
        yield from _of_the_work(view.telemetry, view.minute)
        for sight in view.sights:
            yield from _of_a_node(sight, view.telemetry, view.now)
        for gateway in view.telemetry.gateways:
            yield from _of_a_gateway(gateway)
    if view.history:
        yield Problem(WARNING, f"the history is not written: {view.history}")


def _of_the_broker(telemetry: Telemetry, minute: Change | None) -> Iterator[Problem]:
    if telemetry.draining:
        yield Problem(WARNING, "the broker is stopping: it takes no more jobs")
    free = telemetry.health.disk_free_bytes
    if 0 < free < DISK_LOW_BYTES:
        level = ERROR if free < DISK_FULL_BYTES else WARNING
        yield Problem(level, f"the broker's disk is nearly full: {free >> 20} MiB are free")
    if minute is not None and minute.bad_frames:
        yield Problem(WARNING, f"the broker did not understand {_count(minute.bad_frames, 'message')} in a minute")


def _of_the_door(waiting: Sequence[Waiting]) -> Iterator[Problem]:
    """One line for all: strangers must not push other problems off the list."""
    if len(waiting) == 1:
        name, address = _spoken(waiting[0].name), waiting[0].address
        yield Problem(WARNING, f"a computer called {name} at {address} waits to be let in")
    elif waiting:
        yield Problem(WARNING, f"{len(waiting)} computers wait to be let in")


def _of_the_work(telemetry: Telemetry, minute: Change | None) -> Iterator[Problem]:
    counts = telemetry.counts
    queued = counts.queued_interactive + counts.queued_bulk
    workers = sum([node.workers for node in telemetry.nodes])
    wait = f": {_count(queued, 'job')} {'waits' if queued == 1 else 'wait'}" if queued else ""
    if not telemetry.nodes and telemetry.up_s < GRACE_S:
        return  # the nodes of a restarted broker are on their way back
    if not telemetry.nodes:
        yield Problem(ERROR, f"no node is here, so nothing can be translated{wait}")
    elif not any([node.state == "ready" for node in telemetry.nodes]):
        yield Problem(ERROR, f"every node drains, so nothing can be translated{wait}")
    elif not workers:
        yield Problem(ERROR, f"no node has a worker, so nothing can be translated{wait}")
    elif minute is not None:
        yield from _of_the_queue(counts.queued_interactive, queued, minute)
    if counts.dead_letters:
        word = "waits" if counts.dead_letters == 1 else "wait"
        yield Problem(WARNING, f"{_count(counts.dead_letters, 'dead letter')} {word} to be requeued or purged")
    if minute is not None and minute.done + minute.failed >= FEW_JOBS and minute.error_rate >= SOME_ERRORS:
        level = ERROR if minute.error_rate >= MANY_ERRORS else WARNING
        yield Problem(level, f"{minute.error_rate:.0%} of the jobs of the last minute failed".replace("%", " %"))


def _of_the_queue(interactive: int, queued: int, minute: Change) -> Iterator[Problem]:
    if queued and not minute.done and minute.seconds >= STUCK_S:
        verb = "waits" if queued == 1 else "wait"
        yield Problem(ERROR, f"{_count(queued, 'job')} {verb}, and none was done for {minute.seconds:.0f} s")
    elif minute.done and interactive / minute.translations_per_s > LONG_QUEUE_S:
        wait_s = interactive / minute.translations_per_s
        yield Problem(WARNING, f"people wait: {_count(interactive, 'job')} queued, about {_span(wait_s)} of work")


def _of_a_node(sight: Sight, telemetry: Telemetry, now: float) -> Iterator[Problem]:
    report, name = sight.report, sight.report.name
    if sight.state == LOST:
        why = f" ({sight.why})" if sight.why and sight.why != f"{name} was lost" else ""
        yield Problem(ERROR, f"{name} is lost: not heard for {_span(max(0.0, sight.seen_s_ago(now)))}{why}", name)
    if sight.state in (LOST, LEFT) or not sight.here:
        return
    degrees = "" if report.temperature_c <= NO_TEMPERATURE_C else f"{report.temperature_c:.0f} °C"
    if report.throttled:
        yield Problem(WARNING, f"{name} is throttled: {degrees or 'too hot, or its power supply is too weak'}", name)
    elif report.temperature_c >= HOT_C:
        yield Problem(WARNING, f"{name} is hot: {degrees}", name)
    if report.ram_percent >= FULL_RAM_PERCENT:
        yield Problem(WARNING, f"{name} has hardly any memory left: {report.ram_percent:.0f} % used", name)
    if not report.workers and report.state == "ready":
        yield Problem(WARNING, f"{name} has no worker", name)
    restarts = sight.restarts_lately()
    if restarts >= RESTARTS:
        yield Problem(WARNING, f"{name}: workers died or were restarted {restarts} times in a minute", name)
    version = report.about.version.partition(",")[0]
    if version and telemetry.health.version and version != telemetry.health.version:
        yield Problem(WARNING, f"{name} runs version {version}, the broker {telemetry.health.version}", name)


def _of_a_gateway(gateway: GatewayStatus) -> Iterator[Problem]:
    if gateway.kind in SHORT_LIVED:
        return
    if gateway.state != "up" or gateway.seen_s_ago > GATEWAY_SILENT_S:
        yield Problem(WARNING, f"the gateway {gateway.name} is silent: not heard for {_span(gateway.seen_s_ago)}")
    elif gateway.latency_ms > SLOW_GATEWAY_MS:
        yield Problem(WARNING, f"the gateway {gateway.name} is {gateway.latency_ms:.0f} ms away from its service")


def _spoken(name: str) -> str:
    """A name that a stranger has given itself, so that the words around it stay there and in their order."""
    words = " ".join(name.split()) or "?"
    short = words if len(words) <= SPOKEN_CHARS else f"{words[: SPOKEN_CHARS - 1]}…"
    return short if short.isascii() else f"\u2068{short}\u2069"  # an isolate: it may be written from right to left


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'s' * (number != 1)}"


def _span(seconds: float) -> str:
    """A length of time, in the largest unit of which there are two."""
    for unit, length in (("days", 86_400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:.0f} {unit}"
    return f"{seconds:.0f} s"
