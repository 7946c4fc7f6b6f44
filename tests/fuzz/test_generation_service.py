"""Wild requests to a target: each is served or refused by name, and none is an error of ours."""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
import pytest
from fuzz.figures import told
from fuzz.lengths import SEED, lengths
from fuzz.random_messages import MessageMaker
from google.protobuf import message_factory
from google.protobuf.message import Message
from outrider.v1 import generation_pb2 as pb
from outrider.v1.speculation_pb2 import DRAFT_METHOD_COMBINED
from outrider_target.settings import BatchSettings
from service.asking import ask, collect
from service.harness import Caller, RunningService, settings_for
from service.tiny_folder import save_tiny_folder

SERVICE = pb.DESCRIPTOR.services_by_name["GenerationService"]
SERVED = {grpc.StatusCode.OK, grpc.StatusCode.DEADLINE_EXCEEDED}
REFUSED = {
    grpc.StatusCode.INVALID_ARGUMENT,
    grpc.StatusCode.ALREADY_EXISTS,  # a request id that is in use
    grpc.StatusCode.NOT_FOUND,
    grpc.StatusCode.RESOURCE_EXHAUSTED,
    grpc.StatusCode.FAILED_PRECONDITION,
}
TIMEOUT = 5.0
"""Seconds for a request: some ask for more than the tiny model gives in this time."""

NUM_STREAMS = 8
BATCH = 400


@pytest.fixture(scope="module")
def fuzzed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningService]:
    folder = save_tiny_folder(tmp_path_factory.mktemp("fuzzed"))
    settings = settings_for(folder)
    model = dataclasses.replace(settings.model, max_model_len=48)
    batch = BatchSettings(max_num_seqs=16, max_waiting_requests=NUM_STREAMS)
    with RunningService(dataclasses.replace(settings, model=model, batch=batch)) as running:
        yield running


def requests() -> dict[str, Message]:
    """A request that makes sense, for each method."""
    generate = ask(
        "abc", max_new_tokens=3, do_sample=True, top_p=0.5, stop_strings=["x"], num_beams=1
    )
    generate.speculation.method = DRAFT_METHOD_COMBINED
    found: dict[str, Message] = {"Generate": generate}
    for method in SERVICE.methods:
        if method.name not in found:
            found[method.name] = message_factory.GetMessageClass(method.input_type)()
    return found


def wild(maker: MessageMaker, sensible: Message) -> bytes:
    """A request: changed here and there, random altogether, or with damaged bytes."""
    kind = maker.chance.random()
    message = maker.changed(sensible) if kind < 0.7 else maker.message(type(sensible))
    data = message.SerializeToString()
    return maker.damaged(data) if kind > 0.9 or 0.6 < kind < 0.7 else data


def outcome(caller: Caller, method: str, data: bytes) -> grpc.StatusCode:
    """How a call ends."""
    path = f"/{SERVICE.full_name}/{method}"
    try:
        if SERVICE.methods_by_name[method].server_streaming:
            stream: Any = caller.channel.unary_stream(path)
            for _ in stream(data, timeout=TIMEOUT):
                pass
        else:
            unary: Any = caller.channel.unary_unary(path)
            unary(data, timeout=TIMEOUT)
    except grpc.RpcError as error:
        code: grpc.StatusCode = error.code()
        if code not in SERVED | REFUSED:
            pytest.fail(f"{method} {data!r}: {code.name} {error.details()}")
        return code
    return grpc.StatusCode.OK


@lengths(2000, share=0.02)
def test_wild_requests_are_served_or_refused(fuzzed: RunningService, num_frames: int) -> None:
    maker = MessageMaker(SEED)
    sensible = requests()
    methods = ["Generate"] * len(sensible) + list(sensible)
    seen: collections.Counter[str] = collections.Counter()
    with (
        told("target service", num_frames, seen),
        Caller(fuzzed.address) as caller,
        ThreadPoolExecutor(NUM_STREAMS) as threads,
    ):
        for start in range(0, num_frames, BATCH):
            batch = []
            for _ in range(min(BATCH, num_frames - start)):
                method = maker.chance.choice(methods)
                batch.append((method, wild(maker, sensible[method])))
            codes = threads.map(lambda each: outcome(caller, *each), batch)
            seen.update(code.name for code in codes)
            caller.wait_until_idle()
            assert len(collect(caller.open(ask("abc", max_new_tokens=2))).token_ids) == 2
    # Were nearly all refused, nothing behind the validation was tried.
    assert seen["OK"] > num_frames // 20
    assert seen["INVALID_ARGUMENT"] > num_frames // 20
