"""Callers are labels only where the operator wants it, and never too many."""

from __future__ import annotations

import dataclasses
import urllib.request
from pathlib import Path

import grpc
import pytest
from observability.pages import Page
from outrider_client import AuthenticationError, Client, GenerationConfig, InvalidRequestError
from outrider_runtime.interceptors import CallEnd
from outrider_target.serving.caller_metrics import MOST_CALLERS, CallerMetrics
from prometheus_client import CollectorRegistry, generate_latest
from service.asking import ENDLESS
from service.harness import PATIENCE, RunningService, settings_for, until

KEYS = {"anna": "k" * 16, "bert": "x" * 16}


def test_requests_and_tokens_are_told_by_caller_if_wanted(tiny: Path, tmp_path: Path) -> None:
    file = tmp_path / "keys"
    file.write_text("".join(f"{name} {key}\n" for name, key in KEYS.items()))
    settings = settings_for(tiny, metrics_port=0, metrics_by_caller=True)
    server = dataclasses.replace(settings.server, api_keys_file=file)
    config = GenerationConfig(max_new_tokens=5, clear_fields=ENDLESS)
    with RunningService(dataclasses.replace(settings, server=server)) as service:

        def page() -> Page:
            url = f"http://127.0.0.1:{service.metrics_port}/metrics"
            with urllib.request.urlopen(url, timeout=PATIENCE) as answer:
                return Page.of(answer.read().decode())

        for name, count in (("anna", 2), ("bert", 1)):
            with Client(service.address, api_key=KEYS[name]) as client:
                for _ in range(count):
                    client.generate([5, 6, 7], config)
                client.loads()
        with (
            Client(service.address, api_key=KEYS["bert"]) as client,
            pytest.raises(InvalidRequestError),
        ):
            client.generate("")
        with (
            Client(service.address, api_key="wrong") as client,
            pytest.raises(AuthenticationError),
        ):
            client.generate([5, 6, 7], config)
        name = "caller_requests_total"
        until(page, lambda now: now.value(name) == 5)  # a call is counted once it is over
        now = page()
    assert now.value(name, caller="anna", code="OK") == 2
    assert now.value(name, caller="bert", code="OK") == 1
    assert now.value(name, caller="bert", code="INVALID_ARGUMENT") == 1
    assert now.value(name, caller="(unknown)", code="UNAUTHENTICATED") == 1
    assert now.value("caller_prompt_tokens_total", caller="anna") == 6
    assert now.value("caller_generation_tokens_total", caller="anna") == 10
    assert now.value("caller_generation_tokens_total", caller="bert") == 5


def test_names_beyond_a_bound_are_counted_together() -> None:
    registry = CollectorRegistry()
    metrics = CallerMetrics(registry)
    for number in range(MOST_CALLERS + 50):
        end = CallEnd("/a.Service/Generate", grpc.StatusCode.OK, 1.0, None, f"caller {number}")
        metrics.observe(end)
    page = Page.of(generate_latest(registry).decode())
    assert page.value("caller_requests_total", caller="(others)") == 50
    assert len(page.families["caller_requests"].samples) == MOST_CALLERS + 1
