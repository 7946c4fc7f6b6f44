"""Whole processes: they announce themselves, drain on SIGTERM, and stop at once on a second one."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from outrider_client import (
    Client,
    FinishReason,
    GenerationConfig,
    StreamInterruptedError,
    UnavailableError,
)
from outrider_contract.errors import Reason
from outrider_demo.processes import Service
from service.asking import ENDLESS
from service.harness import PATIENCE


def asking_for(tokens: int) -> GenerationConfig:
    """Six sequences of so many tokens: a second or more."""
    return GenerationConfig(
        max_new_tokens=tokens, do_sample=True, num_return_sequences=6, clear_fields=ENDLESS
    )


SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING


@pytest.fixture(scope="module")
def two(folder: Path) -> Iterator[list[Service]]:
    """Two services, started side by side; each is there for one test to end."""
    services = [
        Service("outrider_target", ["--model", str(folder), "--threads", "1", "--grace", "90"])
        for _ in range(2)
    ]
    faults: list[Exception] = []

    def start(service: Service) -> None:
        try:
            service.start()
        except Exception as fault:  # raised in a thread, judged in the test
            faults.append(fault)

    threads = [threading.Thread(target=start, args=(service,)) for service in services]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    try:
        assert not faults
        yield services
    finally:
        for service in services:
            service.stop()


def process_of(service: Service) -> subprocess.Popen[str]:
    process = service._process
    assert process is not None
    return process


def terminate(service: Service, channel: grpc.Channel) -> None:
    """SIGTERM, until the service says that it does not serve any more."""
    stub = health_pb2_grpc.HealthStub(channel)
    watching = stub.Watch(health_pb2.HealthCheckRequest(), timeout=PATIENCE)
    assert next(watching).status == SERVING
    os.kill(service.pid, signal.SIGTERM)
    assert next(watching).status == NOT_SERVING
    watching.cancel()


def test_a_terminated_service_finishes_what_it_runs_and_refuses_what_is_new(
    two: list[Service], folder: Path
) -> None:
    service = two[0]
    assert re.fullmatch(
        rf"outrider-target serving {folder.name} on 127\.0\.0\.1:\d+", service.announcement
    )
    with (
        Client(service.address, max_retries=0) as client,
        grpc.insecure_channel(service.address) as channel,
    ):
        with client.stream("abc", asking_for(400), seed=1) as stream:
            next(stream)
            terminate(service, channel)
            with pytest.raises(UnavailableError) as caught:
                client.generate("abc")
            assert caught.value.reason == Reason.DRAINING
            assert client.loads().num_running_sequences == 6, "the first one still runs"
            completion = stream.collect()
        assert completion.usage.completion_tokens == 6 * 400
        assert {s.finish_reason for s in completion.sequences} == {FinishReason.LENGTH}
    assert process_of(service).wait(PATIENCE) == 0
    events = service.log()
    assert "drain_started" in events
    assert "Traceback" not in events


def test_a_second_signal_ends_the_service_at_once(two: list[Service]) -> None:
    service = two[1]
    with (
        Client(service.address, max_retries=0) as client,
        grpc.insecure_channel(service.address) as channel,
        client.stream("abc", asking_for(900), seed=1) as stream,
    ):
        next(stream)
        terminate(service, channel)
        os.kill(service.pid, signal.SIGTERM)
        with pytest.raises(StreamInterruptedError) as caught:
            stream.collect()
        assert caught.value.partial is not None
        assert 0 < caught.value.partial.usage.completion_tokens < 6 * 900
    assert process_of(service).wait(PATIENCE) == 0
    assert "Traceback" not in service.log()
