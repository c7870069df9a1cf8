"""Metrics: the exposition, and that what is made for Prometheus and Grafana asks for metrics that exist."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

import pytest
import yaml  # type: ignore[import-untyped]
from msgspec.structs import replace
from prometheus_client.metrics_core import Metric
from prometheus_client.parser import text_string_to_metric_families

from bench.cluster import HOUSE
from bench.telemetry import NO_COUNTS, Scene, dead, node
from dashboard.metrics import exposition
from dolmetsch.messages import LANES
from dolmetsch.reports import LATENCY_MS, NO_TEMPERATURE_C, GatewayStatus

MONITORING = HOUSE / "deploy" / "monitoring"


def a_scene() -> Scene:
    gateways = [
        GatewayStatus("discord", "up", "discord", 2, 48.5, 1, 20, 3, 0, 0.4),
        GatewayStatus("http-host-5050", "up", "http", 3, -1.0, 2, 20, 3, 0, 0.4),
        GatewayStatus("cli-0badcafe", "silent", "cli", 0, -1.0, 0, 1, 0, 2, 99.0),
        GatewayStatus("guild-4711", "up", "somebody's own 4711", 1, -1.0, 0, 1, 0, 0, 0.1),
    ]
    counts = replace(
        NO_COUNTS,
        accepted=12, rejected=1, failed=2, cache_hits=4, queued_interactive=5, queued_bulk=6, leased=7, undelivered=8,
    )  # fmt: skip
    nodes = (node("pi-1", throttled=True), node('pi "2"\\', temperature_c=NO_TEMPERATURE_C))
    return Scene(nodes=nodes, gateways=tuple(gateways), counts=counts, dead=(dead(1),), jobs_a_turn=6)


def parsed(text: bytes) -> dict[str, Metric]:
    return {family.name: family for family in text_string_to_metric_families(text.decode())}


@pytest.fixture(scope="module")
def families() -> dict[str, Metric]:
    states = {"pi-1": "ready", 'pi "2"\\': "draining", "pi-3": "lost"}
    return parsed(exposition(a_scene().telemetry(), states, 9, 1))


def value(families: dict[str, Metric], name: str, **labels: str) -> float:
    (found,) = [
        sample.value
        for family in families.values()
        for sample in family.samples
        if sample.name == name and sample.labels == labels
    ]
    return float(found)


def test_the_brokers_counters_and_gauges(families: dict[str, Metric]) -> None:
    expected = {
        "dolmetsch_up": 1, "dolmetsch_jobs_accepted_total": 18, "dolmetsch_jobs_done_total": 6,
        "dolmetsch_jobs_failed_total": 2, "dolmetsch_jobs_rejected_total": 1, "dolmetsch_cache_hits_total": 4,
        "dolmetsch_characters_translated_total": 252, "dolmetsch_leased_jobs": 7, "dolmetsch_undelivered_results": 8,
        "dolmetsch_dead_letters": 1, "dolmetsch_broker_resident_memory_bytes": 60_000_000,
        "dolmetsch_ledger_bytes": 4096, "dolmetsch_broker_cpu_ratio": 0.035, "dolmetsch_dashboard_telemetry_total": 9,
        "dolmetsch_dashboard_telemetry_refused_total": 1,
    }  # fmt: skip
    assert {name: value(families, name) for name in expected} == expected
    assert value(families, "dolmetsch_queue_jobs", lane="interactive") == 5
    assert value(families, "dolmetsch_queue_jobs", lane="bulk") == 6
    assert families["dolmetsch_build_info"].samples[0].labels.keys() == {"version"}


def test_latency_is_a_histogram_in_seconds_by_lane(families: dict[str, Metric]) -> None:
    family = families["dolmetsch_job_duration_seconds"]
    assert family.type == "histogram"
    for lane in LANES:
        buckets = [
            (float(one.labels["le"]), one.value)
            for one in family.samples
            if one.name.endswith("_bucket") and one.labels["lane"] == lane
        ]
        assert [bound for bound, _ in buckets] == [bound / 1000 for bound in LATENCY_MS] + [float("inf")]
        assert [count for _, count in buckets] == sorted(count for _, count in buckets)
        count = value(families, "dolmetsch_job_duration_seconds_count", lane=lane)
        assert buckets[-1][1] == count == (6 if lane == "interactive" else 0)
    assert value(families, "dolmetsch_job_duration_seconds_sum", lane="interactive") == 0.096


def test_nodes_and_gateways(families: dict[str, Metric]) -> None:
    found = {state: value(families, "dolmetsch_nodes", state=state) for state in ("ready", "draining", "lost", "left")}
    assert found == {"ready": 1, "draining": 1, "lost": 1, "left": 0}
    assert value(families, "dolmetsch_node_cpu_ratio", node='pi "2"\\') == 0.715
    assert value(families, "dolmetsch_node_throttled", node="pi-1") == 1
    assert len(families["dolmetsch_node_temperature_celsius"].samples) == 1, "one has no sensor"
    assert value(families, "dolmetsch_gateway_servers", kind="http") == 3
    assert value(families, "dolmetsch_gateways_silent", kind="cli") == 1
    assert value(families, "dolmetsch_gateways", kind="other") == 1
    assert value(families, "dolmetsch_gateway_latency_seconds", kind="discord") == 0.0485


def test_names_help_and_labels_keep_the_rules(families: dict[str, Metric]) -> None:
    for name, family in families.items():
        assert name.startswith("dolmetsch_") and family.documentation, name
        for sample in family.samples:
            assert sample.labels.keys() <= {"lane", "state", "node", "kind", "le", "version"}, sample
            assert (family.type == "counter") == sample.name.endswith("_total"), sample.name
    told = json.dumps([sample.labels for family in families.values() for sample in family.samples])
    assert "cli-0badcafe" not in told and "4711" not in told and "http-host" not in told


def test_a_silent_broker_leaves_nothing_that_would_be_stale() -> None:
    silent = parsed(exposition(None, {"pi-1": "ready"}, 9, 0))
    assert value(silent, "dolmetsch_up") == 0
    assert not [name for name in silent if not re.match("dolmetsch_(up|build|dashboard)", name)]


def test_fifty_nodes_are_told_quickly_enough_for_a_scrape_a_second() -> None:
    scene = Scene(nodes=tuple([node(f"pi-{number}") for number in range(50)]))
    text = exposition(scene.telemetry(), {}, 1, 0)
    assert len(text) < 2**17 and len(parsed(text)["dolmetsch_node_workers"].samples) == 50


# ---- what is asked of them ----


def test_alert_rules_ask_for_metrics_that_exist(families: dict[str, Metric]) -> None:
    groups = yaml.safe_load((MONITORING / "alerts.yml").read_text(encoding="utf-8"))["groups"]
    rules = [rule for group in groups for rule in group["rules"]]
    assert len(rules) >= 10 and len({rule["alert"] for rule in rules}) == len(rules)
    for rule in rules:
        check(rule["expr"], families)
        assert rule["labels"]["severity"] in ("critical", "warning", "info")
        assert rule["annotations"].keys() == {"summary", "description"} and re.fullmatch(r"\d+m", rule["for"])


def test_the_grafana_dashboard_asks_for_metrics_that_exist(families: dict[str, Metric]) -> None:
    found = json.loads((MONITORING / "grafana.json").read_text(encoding="utf-8"))
    panels = found["panels"]
    expressions = list(all_of(found, "expr"))
    assert len(expressions) >= 20 and len({panel["id"] for panel in panels}) == len(panels)
    for expression in expressions:
        check(expression, families)
    taken: set[tuple[int, int]] = set()
    for panel in panels:
        place = panel["gridPos"]
        cells = {(place["x"] + x, place["y"] + y) for x in range(place["w"]) for y in range(place["h"])}
        assert not cells & taken and place["x"] + place["w"] <= 24, panel["title"]
        taken |= cells
        assert panel["datasource"] == {"type": "prometheus", "uid": "${datasource}"}


def all_of(value: Any, key: str) -> Iterator[str]:
    """Every string under ``key``, wherever it is."""
    if isinstance(value, dict):
        for name, inner in value.items():
            if name == key and isinstance(inner, str):
                yield inner
            yield from all_of(inner, key)
    elif isinstance(value, list):
        for inner in value:
            yield from all_of(inner, key)


def check(expression: str, families: dict[str, Metric]) -> None:
    """Each metric is there, with the labels that are asked for, and brackets are closed."""
    samples: dict[str, set[str]] = {}
    for family in families.values():
        for sample in family.samples:
            samples.setdefault(sample.name, set()).update(sample.labels)
    names = re.findall(r"dolmetsch_\w+", expression)
    assert names, expression
    for name in names:
        assert name in samples, name
    for name, labels in re.findall(r"(dolmetsch_\w+)\{([^}]*)\}", expression):
        assert set(re.findall(r"(\w+)\s*[!=]", labels)) <= samples[name], expression
    for opened, closed in ("()", "[]", "{}"):
        assert expression.count(opened) == expression.count(closed), expression
