"""A request's spans in client, target and draft service share one trace."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import pytest
from draft import harness
from exactness.loop_thread import PATIENCE, ServiceThreads
from exactness.running import wait_until
from observability.conftest import running_target
from observability.pages import REMOTE
from opentelemetry import trace
from opentelemetry.proto.collector.trace.v1 import (
    trace_service_pb2,
    trace_service_pb2_grpc,
)
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from outrider_client import (
    AsyncClient,
    Client,
    DraftLinkState,
    GenerationConfig,
    InvalidRequestError,
)
from outrider_draft import drafter as drafting
from outrider_draft.metrics import DraftMetrics
from outrider_draft.session_trace import MOST_ANSWERS
from outrider_draft.settings import ModelSettings
from outrider_runtime.errors import StartupError
from outrider_runtime.otel import OtelTracer
from outrider_runtime.tracing import TracingSettings, open_tracer
from outrider_target.engine.round_trace import EVERY, FIRST_ROUNDS, MOST_ROUNDS, RoundTrace
from prometheus_client import CollectorRegistry
from service.asking import ENDLESS

SECRET = "whisper"


@dataclass(frozen=True, slots=True)
class Traced:
    """Services that are traced, an application that traces, and what all of them recorded."""

    address: str
    spans: InMemorySpanExporter

    def finished(self, name: str) -> list[ReadableSpan]:
        return [span for span in self.spans.get_finished_spans() if span.name == name]

    def until(self, name: str, count: int = 1) -> list[ReadableSpan]:
        """A call's span ends after its caller has heard of it."""
        deadline = time.monotonic() + PATIENCE
        while len(self.finished(name)) < count:
            assert time.monotonic() < deadline, f"no {name}"
            time.sleep(0.005)
        return self.finished(name)


@pytest.fixture(scope="module")
def application() -> Iterator[InMemorySpanExporter]:
    """The application's own provider, which is global and can be set once in a process."""
    exporter = InMemorySpanExporter()
    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    trace.set_tracer_provider(provider)
    yield exporter
    exporter.shutdown()  # the provider cannot be taken back


@pytest.fixture(scope="module")
def services(
    threads: ServiceThreads, tiny: Path, application: InMemorySpanExporter
) -> Iterator[str]:
    tracers = [
        OtelTracer(f"outrider-{name}", SimpleSpanProcessor(application), sample_ratio=0.0)
        for name in ("target", "draft")
    ]
    metrics = DraftMetrics(CollectorRegistry())
    drafter = drafting.build(ModelSettings(str(tiny), dtype="float64"), metrics)
    with (
        threads.drafters.entered(
            harness.draft_service(drafter, metrics=metrics, tracer=tracers[1])
        ) as draft,
        threads.targets.entered(running_target(tiny, draft.address, tracer=tracers[0])) as target,
        Client(f"127.0.0.1:{target.port}") as client,
    ):
        wait_until(lambda: client.server_info().draft_links[0].state is DraftLinkState.READY)
        yield f"127.0.0.1:{target.port}"


@pytest.fixture
def traced(services: str, application: InMemorySpanExporter) -> Traced:
    application.clear()
    return Traced(services, application)


CONFIG = GenerationConfig(max_new_tokens=24, clear_fields=ENDLESS)
GENERATE = "outrider.v1.GenerationService/Generate"


def check_trace(traced: Traced, request_id: str) -> None:
    """One trace from the application over both services, each span under its caller's."""
    (session,) = traced.until("draft session")
    calls = traced.until(GENERATE, 2)
    (application,) = traced.finished("application")
    (client,) = [span for span in calls if span.kind is trace.SpanKind.CLIENT]
    (target,) = [span for span in calls if span.kind is trace.SpanKind.SERVER]
    (decode,) = traced.finished("decode")
    expected = [(client, application), (target, client), (session, target), (decode, target)]
    expected += [(part, target) for name in ("queue", "prefill") for part in traced.finished(name)]
    expected += [(each, decode) for each in traced.finished("round")]
    expected += [(each, session) for each in traced.finished("draft")]
    assert len(expected) > 12
    for span, parent in expected:
        assert span.parent is not None
        assert span.context is not None
        assert parent.context is not None
        assert span.context.trace_id == parent.context.trace_id
        assert span.parent.span_id == parent.context.span_id, span.name
        assert span.start_time is not None
        assert span.end_time is not None
        assert span.start_time <= span.end_time
    assert len(traced.spans.get_finished_spans()) == len(expected) + 1, "nothing else"
    for span in (client, target, session):
        assert span.attributes is not None
        assert span.attributes["outrider.request_id"] == request_id
    assert target.resource.attributes["service.name"] == "outrider-target"
    assert session.resource.attributes["service.name"] == "outrider-draft"
    for span in traced.spans.get_finished_spans():
        assert SECRET not in f"{span.name} {dict(span.attributes or {})}"


def figures(spans: Sequence[ReadableSpan], name: str) -> list[int]:
    found = [(span.attributes or {})[f"outrider.{name}"] for span in spans]
    return [each for each in found if isinstance(each, int)]


def test_a_requests_spans_share_one_trace(traced: Traced) -> None:
    with (
        Client(traced.address) as client,
        trace.get_tracer("test").start_as_current_span("application"),
    ):
        completion = client.generate(SECRET, CONFIG, request_id="r-1", speculation=REMOTE)
    check_trace(traced, "r-1")
    rounds = traced.finished("round")
    stats = completion.speculation
    assert figures(rounds, "round") == list(range(len(rounds)))
    for name in ("num_draft_tokens", "num_accepted_tokens"):
        # All rounds are there: there were few.
        assert sum(figures(rounds, name)) == getattr(stats, name)
    assert sum(figures(rounds, "num_tokens")) == 24
    assert stats.num_accepted_tokens > 8


async def test_the_asyncio_clients_likewise(traced: Traced) -> None:
    async with AsyncClient(traced.address) as client:
        with trace.get_tracer("test").start_as_current_span("application"):
            await client.generate(SECRET, CONFIG, request_id="r-2", speculation=REMOTE)
    await asyncio.to_thread(check_trace, traced, "r-2")


def test_a_refusal_is_an_error_in_the_trace(traced: Traced) -> None:
    with (
        Client(traced.address) as client,
        trace.get_tracer("test").start_as_current_span("application"),
        pytest.raises(InvalidRequestError),
    ):
        client.generate("")
    for span in traced.until(GENERATE, 2):
        assert span.status.status_code is trace.StatusCode.ERROR
        assert span.status.description == "INVALID_ARGUMENT"


def test_what_is_not_sampled_leaves_nothing(traced: Traced) -> None:
    """Neither at random nor because its caller says so."""
    silent = trace.NonRecordingSpan(trace.SpanContext(trace_id=1, span_id=1, is_remote=False))
    with Client(traced.address) as client, trace.use_span(silent):
        completion = client.generate(SECRET, CONFIG, request_id="r-3", speculation=REMOTE)
        assert completion.speculation.num_accepted_tokens > 8
        client.loads()
    assert not traced.spans.get_finished_spans()


def test_a_long_request_has_few_rounds_in_its_trace() -> None:
    kept = RoundTrace()
    numbers: list[int] = []
    for _ in range(10_000):
        if (number := kept.next_number(0)) is not None:
            numbers.append(number)
            kept.rounds.append(None)  # type: ignore[arg-type]  # only counted here
    assert numbers[:FIRST_ROUNDS] == list(range(FIRST_ROUNDS))
    assert all(number % EVERY == 0 for number in numbers[FIRST_ROUNDS:])
    assert len(numbers) == MOST_ROUNDS
    assert kept.next_number(1) is None, "all sequences together"
    assert MOST_ANSWERS <= MOST_ROUNDS


class Collector(trace_service_pb2_grpc.TraceServiceServicer):
    """Takes spans over OTLP."""

    def __init__(self) -> None:
        self.names: list[str] = []

    def Export(self, request: Any, context: Any) -> Any:
        self.names += [
            span.name
            for resource in request.resource_spans
            for scope in resource.scope_spans
            for span in scope.spans
        ]
        return trace_service_pb2.ExportTraceServiceResponse()


def test_spans_are_sent_to_a_collector_at_the_latest_at_the_end() -> None:
    server = grpc.server(ThreadPoolExecutor(1))
    collector = Collector()
    trace_service_pb2_grpc.add_TraceServiceServicer_to_server(  # type: ignore[no-untyped-call]  # generated
        collector, server
    )
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        tracer = open_tracer("x", TracingSettings(f"http://127.0.0.1:{port}"))
        assert tracer is not None
        span = tracer.begin_call("/a.Service/Method", {}, "r")
        assert span is not None
        span.part("a part", 1.0, 2.0, {})
        span.end({})
        assert tracer.begin_call("/grpc.health.v1.Health/Check", {}, "r") is None
        tracer.close()
    finally:
        server.stop(0)
    assert sorted(collector.names) == ["a part", "a.Service/Method"]


def test_without_an_endpoint_opentelemetry_is_not_even_imported() -> None:
    program = (
        "import sys, outrider_target.service, outrider_draft.service, outrider_client;"
        "from outrider_runtime.tracing import TracingSettings, open_tracer;"
        "assert open_tracer('x', TracingSettings()) is None;"
        "assert not [name for name in sys.modules if name.startswith('opentelemetry')]"
    )
    subprocess.run([sys.executable, "-c", program], check=True, timeout=100)


def test_an_endpoint_that_is_none_is_one_clear_line() -> None:
    with pytest.raises(StartupError, match="--otlp-traces-endpoint collector:4317: must be http"):
        open_tracer("x", TracingSettings("collector:4317"))


def test_without_the_extra_an_endpoint_is_one_clear_line(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.startswith("opentelemetry")]:
        monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.delitem(sys.modules, "outrider_runtime.otel", raising=False)
    import outrider_runtime

    monkeypatch.delattr(outrider_runtime, "otel", raising=False)
    with pytest.raises(StartupError, match=r"outrider\[tracing\]"):
        open_tracer("x", TracingSettings("http://127.0.0.1:4317"))
