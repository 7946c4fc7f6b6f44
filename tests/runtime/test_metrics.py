"""Metrics have the promised names, and an exporter shows them."""

from __future__ import annotations

import socket
import urllib.request

import pytest
from outrider_runtime.errors import StartupError
from outrider_runtime.metrics import (
    DraftMetrics,
    MetricsExporter,
    TargetMetrics,
    new_registry,
)
from prometheus_client import CollectorRegistry, generate_latest


def test_the_target_has_the_names_that_dashboards_know() -> None:
    registry = CollectorRegistry()
    metrics = TargetMetrics(registry)
    metrics.count_draft(4, 2)
    metrics.count_draft(3, 1)
    names = {
        "outrider_spec_decode_num_drafts_total": 2,
        "outrider_spec_decode_num_draft_tokens_total": 7,
        "outrider_spec_decode_num_accepted_tokens_total": 3,
        "outrider_num_requests_running": 0,
        "outrider_num_requests_waiting": 0,
        "outrider_time_to_first_token_seconds_count": 0,
        "outrider_time_per_output_token_seconds_count": 0,
        "outrider_e2e_request_latency_seconds_count": 0,
    }
    assert {name: registry.get_sample_value(name) for name in names} == names
    per_position = "outrider_spec_decode_num_accepted_tokens_per_pos_total"
    counts = [registry.get_sample_value(per_position, {"position": str(i)}) for i in range(3)]
    assert counts == [2, 1, None]


def test_both_services_fit_into_one_process() -> None:
    TargetMetrics(new_registry())
    DraftMetrics(new_registry())


def test_every_metric_of_ours_is_named_and_explained() -> None:
    for bundle in (TargetMetrics, DraftMetrics):
        registry = CollectorRegistry()
        bundle(registry)
        for metric in registry.collect():
            assert metric.name.startswith("outrider_"), metric.name
            assert metric.documentation.endswith("."), metric.name


def test_the_exporter_shows_the_registry_and_gives_the_port_back() -> None:
    registry = CollectorRegistry()
    TargetMetrics(registry).generation_tokens.inc(5)
    exporter = MetricsExporter(registry, host="127.0.0.1", port=0)
    port = exporter.start()
    try:
        url = f"http://127.0.0.1:{port}/metrics"
        with urllib.request.urlopen(url, timeout=20) as answer:
            body = answer.read()
    finally:
        exporter.stop()
    assert b"outrider_generation_tokens_total 5.0" in body
    assert body.count(b"# HELP") == generate_latest(registry).count(b"# HELP")
    with socket.create_server(("127.0.0.1", port)):
        pass


def test_a_taken_metrics_port_is_one_clear_line() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        exporter = MetricsExporter(CollectorRegistry(), host="127.0.0.1", port=port)
        with pytest.raises(StartupError, match=f"metrics port {port}"):
            exporter.start()
    exporter.stop()
