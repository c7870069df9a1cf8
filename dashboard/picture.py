"""The picture: what the broker tells, in the shape that the page and the API show. Pure.

Nothing of a job's text is in it, because nothing of it is in TELEMETRY.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

from msgspec.structs import asdict

from dashboard.attendance import LOST, Sight
from dashboard.rates import Change, Latency, bulk_p95_ms, latency_of
from dolmetsch.messages import Telemetry
from dolmetsch.reports import NO_TEMPERATURE_C, GatewayStatus

Shown = dict[str, Any]

NO_LATENCY: Final = Latency(None, None, None)


def latency_of_change(change: Change | None) -> Latency:
    """Percentiles over ``change``."""
    return NO_LATENCY if change is None else latency_of([lane.counts for lane in change.latency])


def broker(telemetry: Telemetry | None, address: str) -> Shown | None:
    """The broker's process."""
    if telemetry is None:
        return None
    health = telemetry.health
    return {
        "incarnation": telemetry.broker,
        "host": health.host,
        "version": health.version,
        "address": address,
        "up_s": round(telemetry.up_s, 1),
        "draining": telemetry.draining,
        "pid": health.pid,
        "cpu_percent": round(health.cpu_percent, 1),
        "rss_bytes": health.rss_bytes,
        "ledger_bytes": health.ledger_bytes,
        "disk_free_bytes": health.disk_free_bytes,
    }


def totals(telemetry: Telemetry | None, sights: Sequence[Sight], minute: Change | None) -> Shown:
    """The cluster in numbers. Rates and percentiles are of the last minute."""
    counts = telemetry.counts if telemetry is not None else None
    here = [sight for sight in sights if sight.here]
    latency = latency_of_change(minute)
    bulk = None if minute is None else bulk_p95_ms(minute)
    queued = (counts.queued_interactive, counts.queued_bulk) if counts else (0, 0)
    return {
        "nodes_up": sum([sight.state == "ready" for sight in here]),
        "nodes_draining": sum([sight.state == "draining" for sight in here]),
        "nodes_lost": sum([sight.state == LOST for sight in sights]),
        "workers": sum([sight.report.workers for sight in here]),
        "queued": sum(queued),
        "queued_interactive": queued[0],
        "queued_bulk": queued[1],
        "in_flight": counts.leased if counts else 0,
        "undelivered": counts.undelivered if counts else 0,
        "dead_letters": counts.dead_letters if counts else 0,
        "translations_per_s": round(minute.translations_per_s, 2) if minute else 0.0,
        "chars_per_s": round(minute.chars_per_s, 1) if minute else 0.0,
        "p50_ms": _round(latency.p50_ms),
        "p95_ms": _round(latency.p95_ms),
        "p99_ms": _round(latency.p99_ms),
        "bulk_p95_ms": _round(bulk),
        "error_rate": round(minute.error_rate, 4) if minute else 0.0,
        "servers": servers(telemetry),
        "accepted": counts.accepted if counts else 0,
        "rejected": counts.rejected if counts else 0,
        "done": counts.done if counts else 0,
        "failed": counts.failed if counts else 0,
        "cache_hits": counts.cache_hits if counts else 0,
        "bad_frames": counts.bad_frames if counts else 0,
    }


def servers(telemetry: Telemetry | None) -> int:
    """Servers that the gateways which are up are in."""
    return sum([one.servers for one in telemetry.gateways if one.state == "up"]) if telemetry is not None else 0


def node(sight: Sight, now: float) -> Shown:
    """One node: for one that is gone, what was known of it last."""
    report, about = sight.report, sight.report.about
    since = now - sight.at
    return {
        "name": report.name,
        "state": sight.state,
        "why": sight.why,
        "seen_s_ago": round(max(0.0, sight.seen_s_ago(now)), 1),
        "joined_s_ago": round(report.joined_s_ago + since, 1),
        "host": about.host,
        "board": about.board,
        "system": about.system,
        "version": about.version,
        "engine": report.engine,
        "up_s": round(report.up_s + (since if sight.here else 0.0), 1),
        "cores": about.cores,
        "ram_bytes": about.ram_bytes,
        "cpu_percent": round(report.cpu_percent, 1),
        "core_percent": [round(core, 1) for core in report.core_percent],
        "ram_percent": round(report.ram_percent, 1),
        "ram_used_bytes": report.ram_used_bytes,
        "temperature_c": None if report.temperature_c <= NO_TEMPERATURE_C else round(report.temperature_c, 1),
        "throttled": report.throttled,
        "workers": report.workers,
        "capacity": report.capacity,
        "leased": report.leased,
        "queued": report.queued,
        "in_flight": report.in_flight,
        "chars_per_s": round(report.chars_per_s, 1),
        "jobs_done": report.jobs_done,
        "routes": [asdict(route) for route in report.routes],
        "children": [asdict(child) for child in report.children],
    }


def gateway(status: GatewayStatus) -> Shown:
    """One gateway; ``latency_ms`` is to its own service."""
    return {
        "name": status.name,
        "state": status.state,
        "kind": status.kind,
        "servers": status.servers,
        "latency_ms": None if status.latency_ms < 0 else round(status.latency_ms, 1),
        "queued": status.queued,
        "answered": status.answered,
        "failed": status.failed,
        "unanswered": status.unanswered,
        "seen_s_ago": round(status.seen_s_ago, 1),
    }


def waiting(telemetry: Telemetry | None) -> list[Shown]:
    """Who waits to be let in. Names are as the strangers say: whoever shows them escapes them."""
    return [asdict(one) for one in telemetry.health.waiting] if telemetry is not None else []


def first_bot_stats(telemetry: Telemetry | None, totals_: Mapping[str, Any], minute: Change | None, iso: str) -> Shown:
    """The first bot's /api/stats, of the whole cluster: percentages are means over its nodes."""
    nodes = telemetry.nodes if telemetry is not None else ()
    mean_ms = minute.mean_ms if minute is not None else None
    return {
        "cpu_percent": _mean([one.cpu_percent for one in nodes]),
        "ram_percent": _mean([one.ram_percent for one in nodes]),
        "queue_count": totals_["queued"],
        "active_jobs": totals_["in_flight"],
        "avg_response_time": round((mean_ms or 0.0) / 1000, 4),
        "server_count": totals_["servers"],
        "timestamp": iso,
    }


def unready(telemetry: Telemetry | None, alive: bool) -> str:
    """Why nothing can be translated now; empty when a node can."""
    if telemetry is None or not alive:
        return "no word from the broker"
    ready = [one for one in telemetry.nodes if one.state == "ready"]
    if telemetry.draining:
        return "the broker is stopping"
    if not ready:
        return "no node is ready"
    if not any([one.workers > 0 and one.routes for one in ready]):
        return "no node has a worker"
    return ""


def _mean(values: Sequence[float]) -> float:
    return round(sum(values) / len(values), 1) if values else 0.0


def _round(value: float | None) -> float | None:
    return None if value is None else round(value, 1)
