"""Token healing over the wire: what comes back, what is refused, and what ends it halfway."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import grpc
import pytest
from outrider.v1 import generation_pb2 as pb
from outrider_contract.errors import Reason
from service.asking import Config, ask, collect
from service.harness import Caller, RunningService
from service.refusals import refused
from service.tiny_folder import BOS, FIRST_BYTE, VOCAB_SIZE, ids_of


def test_the_prompt_in_use_is_told_only_where_healing_was_asked_for(caller: Caller) -> None:
    healed = collect(caller.open(ask(" ab \n", max_new_tokens=2, token_healing=True))).started
    assert list(healed.healed_prompt.token_ids) == [BOS, *ids_of("ab")]
    assert healed.healed_prompt.text == "ab"
    assert healed.num_prompt_tokens == 3
    configs: tuple[Config, ...] = ({}, {"token_healing": False})
    for config in configs:
        plain = collect(caller.open(ask(" ab \n", max_new_tokens=2, **config))).started
        assert not plain.HasField("healed_prompt")
        assert plain.num_prompt_tokens == 6


def test_without_a_tokenizer_it_is_refused_by_name(
    service: RunningService, caller: Caller, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = dataclasses.replace(service.serving.model, has_tokenizer=False)
    monkeypatch.setattr(service.serving, "model", model)
    got = refused(caller, ask([5, 6], token_healing=True))
    assert (got.reason, got.field) == (Reason.UNSUPPORTED_FIELD, "generation_config.token_healing")


@pytest.fixture
def healing(service: RunningService, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A tokenizer of single bytes has nothing to heal with: every byte may end the prompt here."""
    healer = service.serving.healer
    assert healer is not None
    letters = list(range(FIRST_BYTE, VOCAB_SIZE - 10))
    monkeypatch.setattr(healer, "_beginning_with", lambda token_id: letters)


def test_who_aborts_it_while_it_heals_is_told_so(
    service: RunningService, caller: Caller, healing: None
) -> None:
    with service.gate.held():
        call = caller.open(ask("abc", request_id="healing", token_healing=True))
        service.gate.wait_until_held()
        aborted = caller.stub.Abort(pb.AbortRequest(request_ids=["healing"]))
        assert list(aborted.aborted_request_ids) == ["healing"]
    with pytest.raises(grpc.RpcError) as caught:
        list(call)
    error: Any = caught.value
    assert error.code() is grpc.StatusCode.CANCELLED
    caller.wait_until_idle()
    assert len(service.requests) == 0


def test_the_time_it_takes_counts(service: RunningService, caller: Caller, healing: None) -> None:
    with service.gate.held():
        call = caller.open(ask("abc", max_new_tokens=900, max_time=0.2, token_healing=True))
        service.gate.wait_until_held()
    answer = collect(call)
    assert answer.finish_reasons == ["TIME"]
    assert answer.complete.usage.total_seconds >= 0.2


def test_a_fault_in_the_forward_that_heals_ends_that_request_alone(
    service: RunningService, caller: Caller, healing: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(batch: object) -> None:
        raise RuntimeError("as scripted")

    monkeypatch.setattr(service.gate, "before", fail)
    with pytest.raises(grpc.RpcError) as caught:
        list(caller.open(ask("abc", token_healing=True)))
    error: Any = caught.value
    assert error.code() is grpc.StatusCode.INTERNAL
    monkeypatch.undo()
    assert len(collect(caller.open(ask("abc", max_new_tokens=2))).token_ids) == 2


def test_healing_chooses_a_token_that_may_stand_there(
    service: RunningService, caller: Caller, healing: None, folder: Path
) -> None:
    first, second = (
        collect(caller.open(ask("abc", max_new_tokens=4, token_healing=True))) for _ in range(2)
    )
    token_ids = list(first.started.healed_prompt.token_ids)
    assert token_ids[:-1] == [BOS, *ids_of("ab")]
    assert token_ids == list(second.started.healed_prompt.token_ids)
    plain = collect(caller.open(ask(token_ids, max_new_tokens=4)))
    assert plain.token_ids == first.token_ids == second.token_ids


def test_tensors_are_those_of_the_text_and_not_of_the_healing(
    caller: Caller, healing: None
) -> None:
    request = ask("abc", max_new_tokens=3, token_healing=True, output_scores=True)
    messages = list(caller.open(request))
    told = [m.chunk for m in messages if m.HasField("chunk") and m.chunk.tensors]
    assert told
    healed = list(messages[0].chunk.started.healed_prompt.token_ids)
    plain = list(caller.open(ask(healed, max_new_tokens=3, output_scores=True)))
    assert told == [m.chunk for m in plain if m.HasField("chunk") and m.chunk.tensors]
