"""Metrics for Prometheus: what the broker counts, in base units, all named ``dolmetsch_``.

They are rendered from the last TELEMETRY, so counters are the broker's own and outlive the dashboard's restart. While
the broker is silent there is ``dolmetsch_up`` 0 and nothing that would be stale. Labels are bounded: lanes, states,
kinds of gateways, names of nodes; no user, guild or key.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Final

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, InfoMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.process_collector import ProcessCollector
from prometheus_client.registry import Collector

from dashboard.rates import reading
from dolmetsch import __version__
from dolmetsch.messages import LANES, Telemetry
from dolmetsch.reports import LATENCY_MS, NO_TEMPERATURE_C, Histogram, NodeReport

NODE_STATES: Final = ("ready", "draining", "lost", "left")
GATEWAY_KINDS: Final = (
    "discord",
    "http",
    "cli",
    "dashboard",
    "other",
)  # a kind comes from the network: an unknown one is "other"
BOUNDS_S: Final = tuple([str(bound / 1000) for bound in LATENCY_MS] + ["+Inf"])

_process: Final = ProcessCollector(namespace="dolmetsch_dashboard", registry=None)


class _Families(Collector):
    def __init__(self, families: Iterable[Metric]) -> None:
        self._families = families

    def collect(self) -> Iterable[Metric]:
        return self._families


def exposition(telemetry: Telemetry | None, states: Mapping[str, str], heard: int, refused: int) -> bytes:
    """All metrics as text. ``telemetry`` is None while the broker is silent; ``states`` are those of all nodes seen."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Families([*_of_us(telemetry is not None, heard, refused), *_process.collect()]))
    if telemetry is not None:
        registry.register(
            _Families([*_of_the_broker(telemetry), *_of_nodes(telemetry, states), *_of_gateways(telemetry)])
        )
    return generate_latest(registry)


def _of_us(up: bool, heard: int, refused: int) -> Iterator[Metric]:
    yield _gauge("up", "1 while the broker is heard, 0 while it is silent", int(up))
    yield InfoMetricFamily("dolmetsch_build", "The version of this dashboard", {"version": __version__})
    yield _counter("dashboard_telemetry", "Messages heard from the broker since the dashboard started", heard)
    yield _counter("dashboard_telemetry_refused", "Messages that were not understood, likewise", refused)


def _of_the_broker(telemetry: Telemetry) -> Iterator[Metric]:
    counts, health = telemetry.counts, telemetry.health
    yield _counter("jobs_accepted", "Jobs taken in", counts.accepted)
    yield _counter("jobs_rejected", "Jobs refused", counts.rejected)
    yield _counter("jobs_done", "Jobs translated", counts.done)
    yield _counter("jobs_failed", "Jobs that failed for good", counts.failed)
    yield _counter("jobs_requeued", "Dead letters sent round again by an operator", counts.requeued)
    yield _counter("cache_hits", "Jobs answered from the cache", counts.cache_hits)
    yield _counter("characters_translated", "Characters of the jobs translated", counts.chars_done)
    yield _counter("bad_frames", "Messages that the broker did not understand", counts.bad_frames)
    queue = GaugeMetricFamily("dolmetsch_queue_jobs", "Jobs that wait for a node", labels=["lane"])
    for lane, jobs in zip(LANES, (counts.queued_interactive, counts.queued_bulk), strict=True):
        queue.add_metric([lane], jobs)
    yield queue
    yield _gauge("leased_jobs", "Jobs that nodes hold", counts.leased)
    yield _gauge("undelivered_results", "Results that their gateways have not acked yet", counts.undelivered)
    yield _gauge("dead_letters", "Jobs that failed for good and are kept for an operator", counts.dead_letters)
    yield _gauge("held_jobs_bytes", "Memory that jobs take in the broker, as it estimates", counts.held_bytes)
    yield _latency(telemetry)
    yield _gauge("waiting_computers", "Computers that wait to be let in", len(health.waiting))
    yield _gauge("routes", "Language routes that nodes offer", len(telemetry.routes))
    yield _gauge("broker_uptime_seconds", "How long the broker has been up", telemetry.up_s)
    yield _gauge("broker_draining", "1 while the broker is stopping", int(telemetry.draining))
    yield _gauge("broker_cpu_ratio", "Load of one core by the broker's process", health.cpu_percent / 100)
    yield _gauge("broker_resident_memory_bytes", "Memory of the broker's process", health.rss_bytes)
    yield _gauge("broker_disk_free_bytes", "Free space where the ledger is", health.disk_free_bytes)
    yield _gauge("ledger_bytes", "Size of the ledger", health.ledger_bytes)


def _latency(telemetry: Telemetry) -> Metric:
    family = HistogramMetricFamily(
        "dolmetsch_job_duration_seconds", "How long jobs took, from accepted to translated", labels=["lane"]
    )
    for lane, histogram in zip(LANES, reading(telemetry).latency, strict=True):
        family.add_metric([lane], _cumulative(histogram), sum_value=histogram.sum_ms / 1000)
    return family


def _cumulative(histogram: Histogram) -> list[tuple[str, float]]:
    buckets, total = [], 0
    for bound, count in zip(BOUNDS_S, histogram.counts, strict=True):
        total += count
        buckets.append((bound, float(total)))
    return buckets


def _of_nodes(telemetry: Telemetry, states: Mapping[str, str]) -> Iterator[Metric]:
    nodes = GaugeMetricFamily("dolmetsch_nodes", "Nodes by state", labels=["state"])
    for state in NODE_STATES:
        nodes.add_metric([state], list(states.values()).count(state))
    yield nodes
    present = telemetry.nodes
    yield _per_node("cpu_ratio", "Load of a node's cores, 0 to 1", present, lambda one: one.cpu_percent / 100)
    yield _per_node(
        "memory_ratio", "Part of a node's memory in use, 0 to 1", present, lambda one: one.ram_percent / 100
    )
    with_sensor = [one for one in present if one.temperature_c > NO_TEMPERATURE_C]
    yield _per_node(
        "temperature_celsius", "Temperature of a node's processor", with_sensor, lambda one: one.temperature_c
    )
    yield _per_node("throttled", "1 while a node's firmware slows it down", present, lambda one: int(one.throttled))
    yield _per_node("workers", "Translation processes of a node", present, lambda one: one.workers)
    yield _per_node("leased_jobs", "Jobs that a node holds", present, lambda one: one.leased)
    yield _per_node("jobs_in_flight", "Jobs in the hands of a node's processes", present, lambda one: one.in_flight)
    yield _per_node("characters_per_second", "Speed of a node at work", present, lambda one: one.chars_per_s)


def _of_gateways(telemetry: Telemetry) -> Iterator[Metric]:
    """By kind: a gateway's name may be new for each command somebody types."""
    kinds = {name: [one for one in telemetry.gateways if _kind(one.kind) == name] for name in GATEWAY_KINDS}
    up = {kind: [one for one in found if one.state == "up"] for kind, found in kinds.items()}
    yield _per_kind("gateways", "Gateways that are connected", {kind: len(found) for kind, found in up.items()})
    yield _per_kind(
        "gateways_silent", "Gateways that are not heard and have something to come",
        {kind: len(found) - len(up[kind]) for kind, found in kinds.items()},
    )  # fmt: skip
    yield _per_kind(
        "gateway_servers",
        "Servers that gateways are in",
        {kind: sum([g.servers for g in found]) for kind, found in up.items()},
    )
    yield _per_kind(
        "gateway_queued_requests", "Requests at gateways without an answer yet",
        {kind: sum([g.queued for g in found]) for kind, found in up.items()},
    )  # fmt: skip
    slow = {kind: max([g.latency_ms for g in found], default=-1.0) for kind, found in up.items()}
    yield _per_kind(
        "gateway_latency_seconds", "Time to the gateway's own service, of the slowest",
        {kind: latency_ms / 1000 for kind, latency_ms in slow.items() if latency_ms >= 0},
    )  # fmt: skip


def _kind(kind: str) -> str:
    return kind if kind in GATEWAY_KINDS else "other"


def _gauge(name: str, words: str, value: float) -> Metric:
    return GaugeMetricFamily(f"dolmetsch_{name}", words, value)


def _counter(name: str, words: str, value: float) -> Metric:
    return CounterMetricFamily(f"dolmetsch_{name}", words, value)


def _per_node(name: str, words: str, nodes: Iterable[NodeReport], value: Callable[[NodeReport], float]) -> Metric:
    family = GaugeMetricFamily(f"dolmetsch_node_{name}", words, labels=["node"])
    for node in nodes:
        family.add_metric([node.name], value(node))
    return family


def _per_kind(name: str, words: str, values: Mapping[str, float]) -> Metric:
    family = GaugeMetricFamily(f"dolmetsch_{name}", words, labels=["kind"])
    for kind, value in values.items():
        family.add_metric([kind], value)
    return family
