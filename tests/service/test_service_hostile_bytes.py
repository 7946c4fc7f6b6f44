"""Bytes that are no message, or too many of them: a clear status, and the server lives on."""

from __future__ import annotations

import random
import socket
from collections.abc import Callable, Iterator
from typing import Any

import grpc
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from outrider.v1 import generation_pb2 as pb
from outrider_contract.errors import Reason
from service.asking import ask, collect
from service.harness import PATIENCE, Caller, RunningService
from service.refusals import refusal

Send = Callable[[bytes], Any]
INVALID = grpc.StatusCode.INVALID_ARGUMENT
METHODS = [method.name for method in pb.DESCRIPTOR.services_by_name["GenerationService"].methods]


@pytest.fixture(autouse=True)
def healthy_afterwards(caller: Caller) -> Iterator[None]:
    yield
    assert len(collect(caller.open(ask("abc", max_new_tokens=2))).token_ids) == 2


def sender(caller: Caller, method: str, **options: Any) -> Send:
    """Sends bytes to a method as they are; gives the first answer, and lets the call go."""
    path = f"/outrider.v1.GenerationService/{method}"
    if method == "Generate":
        stream: Any = caller.channel.unary_stream(path)

        def first(data: bytes) -> Any:
            call = stream(data, timeout=PATIENCE, **options)
            try:
                return next(call)
            finally:
                call.cancel()

        return first
    unary: Any = caller.channel.unary_unary(path)
    return lambda data: unary(data, timeout=PATIENCE, **options)


@pytest.mark.parametrize(
    "data",
    [b"\xff", b"\x0a", b"\x0a\xff", b"\x12\x05ab", b"\x80" * 20, b"\x0b", b"\x12\x02\xff\xfe"],
    ids=["tag", "no length", "short", "shorter", "varint", "group", "not UTF-8"],
)
@pytest.mark.parametrize("method", ["Generate", "Tokenize"])
def test_bytes_that_are_no_message_are_the_callers_error(
    caller: Caller, method: str, data: bytes
) -> None:
    if method == "Tokenize":
        data = data.replace(b"\x12", b"\x0a")  # its text is field 1
    got = refusal(lambda: sender(caller, method)(data))
    assert (got.code, got.reason) == (INVALID, Reason.MALFORMED_MESSAGE)
    assert "protobuf" not in got.message.lower()
    assert "Error" not in got.message


@settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(data=st.binary(max_size=200), method=st.sampled_from(METHODS))
def test_random_bytes_are_served_or_refused_and_never_an_error_of_the_server(
    caller: Caller, data: bytes, method: str
) -> None:
    outcome_of(sender(caller, method), data)


@settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(chance=st.randoms(use_true_random=False))
def test_damaged_requests_are_served_or_refused_and_never_an_error_of_the_server(
    caller: Caller, chance: random.Random
) -> None:
    request = ask(
        "abc", max_new_tokens=3, do_sample=True, top_p=0.5, eos_token_id=[5, 6], stop_strings=["x"],
        sequence_bias=[[[5], 1.0]], exponential_decay_length_penalty=[1, 1.5],
    )  # fmt: skip
    request.speculation.max_assistant_tokens = 4
    data = bytearray(request.SerializeToString())
    for _ in range(chance.randint(1, 4)):
        data[chance.randrange(len(data))] = chance.randrange(256)
    if chance.random() < 0.2:
        del data[chance.randrange(len(data)) :]
    outcome_of(sender(caller, "Generate"), bytes(data))


def outcome_of(send: Send, data: bytes) -> None:
    """Served or INVALID_ARGUMENT with our own details."""
    try:
        send(data)
    except grpc.RpcError:
        assert refusal(lambda: send(data)).code is INVALID


def test_fields_of_a_newer_client_are_passed_over(caller: Caller) -> None:
    data = ask("abc", max_new_tokens=1).SerializeToString() + b"\xfa\x3f\x03new"
    assert pb.GenerateResponse.FromString(sender(caller, "Generate")(data)).HasField("chunk")


def test_a_message_of_five_megabytes_is_turned_away(caller: Caller) -> None:
    data = ask("a" * (5 << 20)).SerializeToString()
    got = refusal(lambda: sender(caller, "Generate")(data))
    assert got.code is grpc.StatusCode.RESOURCE_EXHAUSTED


def test_a_message_that_grows_when_unpacked_is_turned_away(caller: Caller) -> None:
    data = ask("a" * (20 << 20)).SerializeToString()
    send = sender(caller, "Generate", compression=grpc.Compression.Gzip)
    assert refusal(lambda: send(data)).code is grpc.StatusCode.RESOURCE_EXHAUSTED


def test_metadata_beyond_its_limit_is_turned_away(caller: Caller) -> None:
    send = sender(caller, "GetLoads", metadata=(("x-much", "a" * 60_000),))
    assert refusal(lambda: send(b"")).code is grpc.StatusCode.RESOURCE_EXHAUSTED


@pytest.mark.parametrize(
    "path", ["/outrider.v1.GenerationService/Nothing", "/outrider.v1.Nobody/Generate", "/"]
)
def test_a_method_that_is_not_there_is_unimplemented(caller: Caller, path: str) -> None:
    method: Any = caller.channel.unary_unary(path)
    got = refusal(lambda: method(b"", timeout=PATIENCE))
    assert got.code is grpc.StatusCode.UNIMPLEMENTED


@pytest.mark.parametrize(
    "data",
    [
        b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(300),
        bytes(range(256)) * 8,
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\xff" * 200,
        b"",
    ],
    ids=["HTTP/1", "TLS", "junk", "broken HTTP/2", "nothing"],
)
def test_a_connection_that_does_not_speak_grpc_is_closed(
    service: RunningService, data: bytes
) -> None:
    host, _, port = service.address.partition(":")
    with socket.create_connection((host, int(port)), timeout=PATIENCE) as connection:
        connection.sendall(data)
        connection.shutdown(socket.SHUT_WR)
        received = bytearray()
        try:
            while chunk := connection.recv(4096):
                received += chunk
        except ConnectionResetError:
            pass
    assert len(received) < 4096


def test_streams_opened_and_reset_in_their_hundreds_leave_nothing_behind(caller: Caller) -> None:
    for _ in range(300):
        caller.open(ask("abc", max_new_tokens=900)).cancel()
    caller.wait_until_idle()
