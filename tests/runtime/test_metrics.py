"""Metrics have the promised names, and an exporter shows them."""

from __future__ import annotations

import socket
import urllib.request

import pytest
from outrider_draft.metrics import DraftMetrics
from outrider_runtime.errors import StartupError
from outrider_runtime.metrics import MetricsExporter, new_registry
from prometheus_client import CollectorRegistry, generate_latest


def test_two_services_fit_into_one_process() -> None:
    for _ in range(2):
        DraftMetrics(new_registry())


def test_every_metric_of_ours_is_named_and_explained() -> None:
    registry = CollectorRegistry()
    DraftMetrics(registry)
    metrics = list(registry.collect())
    assert len(metrics) > 10
    for metric in metrics:
        assert metric.name.startswith("outrider_"), metric.name
        assert metric.documentation.endswith("."), metric.name


def test_the_exporter_shows_the_registry_and_gives_the_port_back() -> None:
    registry = CollectorRegistry()
    DraftMetrics(registry).proposed_tokens.inc(5)
    exporter = MetricsExporter(registry, host="127.0.0.1", port=0)
    port = exporter.start()
    try:
        url = f"http://127.0.0.1:{port}/metrics"
        with urllib.request.urlopen(url, timeout=20) as answer:
            body = answer.read()
    finally:
        exporter.stop()
    assert b"outrider_draft_proposed_tokens_total 5.0" in body
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
