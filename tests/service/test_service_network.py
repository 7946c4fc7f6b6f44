"""Keys, certificates, health, reflection and metrics of a running service."""

from __future__ import annotations

import dataclasses
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.protobuf import message_factory
from google.protobuf.descriptor_pool import DescriptorPool
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import (
    ProtoReflectionDescriptorDatabase,
)
from outrider.v1 import generation_pb2 as pb
from outrider_client import (
    AuthenticationError,
    Client,
    GenerationConfig,
    SpeculationConfig,
    TLSConfig,
    UnavailableError,
)
from outrider_contract.errors import Reason
from outrider_runtime.server import ServerSettings
from prometheus_client.parser import text_string_to_metric_families
from service.asking import ENDLESS, LOOKUP, ask, collect
from service.harness import PATIENCE, Caller, RunningService, settings_for, until
from service.refusals import refusal
from service.tiny_folder import ids_of

CERTIFICATES = Path(__file__).parents[1] / "runtime" / "certificates"
SERVICE = pb.DESCRIPTOR.services_by_name["GenerationService"]
KEY = "open sesame"
SHORT = GenerationConfig(max_new_tokens=3, clear_fields=ENDLESS)


def server(**changes: Any) -> dict[str, ServerSettings]:
    return {"server": dataclasses.replace(ServerSettings(), **changes)}


# --- keys


@pytest.fixture(scope="module")
def locked(folder: Path) -> Iterator[RunningService]:
    with RunningService(settings_for(folder, **server(api_key=KEY))) as running:
        yield running


@pytest.mark.parametrize("key", [None, "", "open sesam", "open sesame ", "Open Sesame"])
@pytest.mark.parametrize("method", [method.name for method in SERVICE.methods])
def test_no_method_answers_without_the_key(
    locked: RunningService, method: str, key: str | None
) -> None:
    metadata = () if key is None else (("authorization", f"Bearer {key}"),)
    with Caller(locked.address) as caller:
        path = f"/{SERVICE.full_name}/{method}"
        data = ask("abc").SerializeToString() if method == "Generate" else b""
        if method == "Generate":
            stream: Any = caller.channel.unary_stream(path)
            got = refusal(lambda: next(stream(data, timeout=PATIENCE, metadata=metadata)))
        else:
            unary: Any = caller.channel.unary_unary(path)
            got = refusal(lambda: unary(data, timeout=PATIENCE, metadata=metadata))
    assert (got.code, got.reason) == (grpc.StatusCode.UNAUTHENTICATED, Reason.UNAUTHENTICATED)
    assert KEY not in got.message


def test_the_key_opens_and_probes_need_none(locked: RunningService) -> None:
    with Client(locked.address, api_key=KEY) as client:
        assert len(client.generate("abc", SHORT).token_ids) == 3
    with Client(locked.address, api_key="wrong") as client, pytest.raises(AuthenticationError):
        client.generate("abc", SHORT)
    with Caller(locked.address) as caller:
        stub = health_pb2_grpc.HealthStub(caller.channel)
        answer = stub.Check(health_pb2.HealthCheckRequest(), timeout=PATIENCE)
        assert answer.status == health_pb2.HealthCheckResponse.SERVING
        describing = reflection_pb2_grpc.ServerReflectionStub(caller.channel)
        question = reflection_pb2.ServerReflectionRequest(list_services="")
        got = refusal(
            lambda: next(describing.ServerReflectionInfo(iter([question]), timeout=PATIENCE))
        )
        assert got.code is grpc.StatusCode.UNAUTHENTICATED


def test_keys_change_over_while_streams_are_open(folder: Path, tmp_path: Path) -> None:
    """Whoever was let in stays until the end; the next call needs a key that is still good."""
    old, new = "the-old-key-of-anna", "the-new-key-of-anna"
    keys = tmp_path / "keys"
    keys.write_text(f"anna {old}\n")
    settings = settings_for(folder, **server(api_keys_file=keys))

    def opens(key: str) -> bool:
        with Client(running.address, api_key=key) as client:
            try:
                return bool(client.tokenize("abc"))
            except AuthenticationError:
                return False

    with RunningService(settings) as running, Caller(running.address) as caller:

        def opened(key: str) -> Any:
            metadata = (("authorization", f"Bearer {key}"),)
            call = caller.stub.Generate(
                ask(max_new_tokens=100), timeout=PATIENCE, metadata=metadata
            )
            next(call)
            return call

        with running.gate.held():
            streams = [opened(old)]
            assert not opens(new)
            keys.write_text(f"anna {old}\nanna {new}\n")
            until(lambda: opens(new), bool)
            assert opens(old), "both are good while callers change over"
            streams += [opened(old), opened(new)]
            keys.write_text(f"anna {new}\n")
            until(lambda: opens(old), lambda good: not good)
            assert opens(new)
        for stream in streams:
            *_, last = stream
            assert last.complete.usage.completion_tokens == 100


# --- certificates


@pytest.fixture(scope="module", params=[False, True], ids=["tls", "mutual tls"])
def encrypted(folder: Path, request: pytest.FixtureRequest) -> Iterator[RunningService]:
    changes = server(
        ssl_keyfile=CERTIFICATES / "server.key",
        ssl_certfile=CERTIFICATES / "server.pem",
        ssl_ca_certs=CERTIFICATES / "authority.pem" if request.param else None,
    )
    with RunningService(settings_for(folder, **changes)) as running:
        yield running


def pem(ca: str = "authority", who: str | None = None) -> TLSConfig:
    own: dict[str, Any] = {} if who is None else {"cert": CERTIFICATES / f"{who}.pem"}
    if who is not None:
        own["key"] = CERTIFICATES / f"{who}.key"
    return TLSConfig(ca=CERTIFICATES / f"{ca}.pem", **own)


def test_text_travels_encrypted(encrypted: RunningService) -> None:
    with Client(encrypted.address, tls=pem(who="client")) as client:
        assert len(client.generate("abc", SHORT).token_ids) == 3


@pytest.mark.parametrize("tls", [None, pem(ca="stranger", who="client")], ids=["plain", "other CA"])
def test_a_client_that_does_not_fit_gets_nothing(
    encrypted: RunningService, tls: TLSConfig | None
) -> None:
    with (
        Client(encrypted.address, tls=tls, max_retries=0) as client,
        pytest.raises(UnavailableError),
    ):
        client.generate("abc", SHORT, timeout=20)


@pytest.mark.parametrize("who", [None, "stranger"])
def test_mutual_tls_turns_strangers_away(
    encrypted: RunningService, who: str | None, request: pytest.FixtureRequest
) -> None:
    mutual = "mutual" in request.node.callspec.id
    with Client(encrypted.address, tls=pem(who=who), max_retries=0) as client:
        if mutual:
            with pytest.raises(UnavailableError):
                client.generate("abc", SHORT, timeout=20)
        else:
            assert len(client.generate("abc", SHORT).token_ids) == 3


# --- health and reflection


@pytest.mark.parametrize("name", ["", SERVICE.full_name, "grpc.health.v1.Health", "nobody"])
def test_health_is_told_by_name(caller: Caller, name: str) -> None:
    stub = health_pb2_grpc.HealthStub(caller.channel)

    def check() -> Any:
        return stub.Check(health_pb2.HealthCheckRequest(service=name), timeout=PATIENCE)

    if name in ("", SERVICE.full_name):
        assert check().status == health_pb2.HealthCheckResponse.SERVING
    else:
        assert refusal(check).code is grpc.StatusCode.NOT_FOUND


def test_health_answers_while_the_engine_works(service: RunningService, caller: Caller) -> None:
    stub = health_pb2_grpc.HealthStub(caller.channel)
    with service.gate.held():
        call = caller.open(ask(max_new_tokens=2))
        next(call)
        service.gate.wait_until_held()
        answer = stub.Check(health_pb2.HealthCheckRequest(), timeout=PATIENCE)
        assert answer.status == health_pb2.HealthCheckResponse.SERVING
    list(call)


def test_reflection_is_enough_for_a_caller_that_has_no_stubs(caller: Caller) -> None:
    pool = DescriptorPool(ProtoReflectionDescriptorDatabase(caller.channel))
    method = pool.FindServiceByName(SERVICE.full_name).methods_by_name["Tokenize"]
    request_type = message_factory.GetMessageClass(method.input_type)
    response_type = message_factory.GetMessageClass(method.output_type)
    call = caller.channel.unary_unary(
        f"/{SERVICE.full_name}/{method.name}",
        request_serializer=request_type.SerializeToString,
        response_deserializer=response_type.FromString,
    )
    request: Any = request_type()
    request.text, request.add_special_tokens = "abc", False
    response: Any = call(request, timeout=PATIENCE)
    assert list(response.token_ids) == ids_of("abc")
    names = pool.FindServiceByName(SERVICE.full_name).methods_by_name
    assert set(names) == {method.name for method in SERVICE.methods}


# --- metrics


@pytest.fixture(scope="module")
def measured(folder: Path) -> Iterator[RunningService]:
    with RunningService(settings_for(folder, metrics_port=0)) as running:
        yield running


Samples = dict[tuple[str, frozenset[tuple[str, str]]], float]


@pytest.fixture
def page(measured: RunningService) -> Callable[[], Samples]:
    """The metrics page as it is now: values by name and labels."""

    def read() -> Samples:
        url = f"http://127.0.0.1:{measured.metrics_port}/metrics"
        with urllib.request.urlopen(url, timeout=PATIENCE) as answer:
            text = answer.read().decode()
        return {
            (sample.name, frozenset(sample.labels.items())): sample.value
            for family in text_string_to_metric_families(text)
            for sample in family.samples
        }

    return read


def value(samples: Samples, name: str, **labels: str) -> float:
    return samples.get((f"outrider_{name}", frozenset(labels.items())), 0.0)


def test_the_metrics_page_agrees_with_what_requests_were_told(
    measured: RunningService, page: Callable[[], Samples]
) -> None:
    before = page()
    with Caller(measured.address) as caller:
        answers = [
            collect(caller.open(ask("abcabcabc", seed=i, max_new_tokens=30, speculation=LOOKUP)))
            for i in range(3)
        ]
        answers.append(
            collect(
                caller.open(
                    ask("xyz", do_sample=True, top_k=3, num_return_sequences=3, max_new_tokens=9)
                )
            )
        )
        after = page()
        loads = caller.loads()

    def gained(name: str, **labels: str) -> float:
        return value(after, name, **labels) - value(before, name, **labels)

    stats = [answer.complete.speculation for answer in answers]
    for name in ("num_drafts", "num_draft_tokens", "num_accepted_tokens", "num_plain_rounds"):
        told = sum(getattr(each, name) for each in stats)
        assert gained(f"spec_decode_{name}_total") == told
        assert value(after, f"spec_decode_{name}_total") == getattr(loads.speculation, name)
    assert sum(each.num_accepted_tokens for each in stats) > 0
    for position in range(3):
        told = sum([*each.num_accepted_tokens_per_pos, 0, 0, 0][position] for each in stats)
        name = "spec_decode_num_accepted_tokens_per_pos_total"
        assert gained(name, position=str(position)) == told
    assert gained("generation_tokens_total") == 3 * 30 + 3 * 9
    assert gained("prompt_tokens_total") == 3 * 10 + 4
    assert gained("sequences_total", finish_reason="length") == 6
    assert gained("e2e_request_latency_seconds_count") == 4
    assert gained("time_to_first_token_seconds_count") == 4
    for gauge in ("num_sequences_running", "num_requests_waiting", "kv_cache_usage"):
        assert value(after, gauge) == 0


def test_calls_are_counted_by_how_they_end(
    measured: RunningService, page: Callable[[], Samples]
) -> None:
    def count(samples: Samples, code: str) -> float:
        method = f"/{SERVICE.full_name}/Generate"
        return value(samples, "grpc_server_handled_total", method=method, code=code)

    before = page()
    with Caller(measured.address) as caller:
        for _ in range(3):
            assert refusal(lambda: next(caller.open(ask("", request_id="secret"))))
        collect(caller.open(ask("abc", request_id="secret", max_new_tokens=1)))
    # A call is counted once it is over, which its caller may hear a moment before.
    after = until(page, lambda now: count(now, "OK") - count(before, "OK") == 1)
    assert count(after, "INVALID_ARGUMENT") - count(before, "INVALID_ARGUMENT") == 3
    assert not [labels for _, labels in after if "secret" in str(labels)]


def test_the_numbers_of_a_completion_are_those_of_the_page(
    measured: RunningService, page: Callable[[], Samples]
) -> None:
    before = page()
    with Client(measured.address) as client:
        completion = client.generate(
            "abcabc",
            GenerationConfig(max_new_tokens=20, clear_fields=ENDLESS),
            speculation=SpeculationConfig(method="prompt-lookup"),
        )
    after = page()
    name = "spec_decode_num_accepted_tokens_total"
    gained = value(after, name) - value(before, name)
    assert completion.speculation.num_accepted_tokens == gained == sum(completion.drafted)
    assert completion.speculation.num_draft_tokens > 0
