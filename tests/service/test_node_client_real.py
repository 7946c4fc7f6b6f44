"""Stubs made from the .proto files alone, in another language, against the real service."""

from __future__ import annotations

import json

from client.node import run_node_client
from service.asking import ask, collect
from service.harness import Caller, RunningService
from service.tiny_folder import EOS, VOCAB_SIZE, ids_of


def test_node_streams_what_python_gets(service: RunningService, caller: Caller) -> None:
    run = run_node_client(service.address, "stream", "def héllo(", "12")
    assert (run.code, run.errors) == (0, "")
    first, *chunks, last = run.lines
    answer = collect(caller.open(ask("def héllo(", max_new_tokens=12, clear=())))
    assert first["started"]["maxNewTokens"] == 12
    assert 0 <= int(first["started"]["seed"]) < 2**64
    token_ids = [i for line in chunks for i in line["chunk"]["tokenIds"]]
    assert token_ids == answer.token_ids
    assert "".join(line["chunk"].get("text", "") for line in chunks) == answer.text
    assert last["complete"]["completionTokens"] == len(token_ids)
    ended_itself = token_ids[-1] == EOS
    assert last["complete"]["finishReason"] == (
        "FINISH_REASON_STOP" if ended_itself else "FINISH_REASON_LENGTH"
    )


def test_node_cancels_and_the_service_lets_go(service: RunningService, caller: Caller) -> None:
    with service.gate.held(after=5):
        run = run_node_client(service.address, "cancel", json.dumps(ids_of("abc")), "900")
    assert (run.code, run.errors) == (0, "")
    (line,) = run.lines
    assert line["status"] == "CANCELLED"
    assert 1 <= line["received"] <= 5
    caller.wait_until_idle()


def test_node_is_told_what_is_wrong(service: RunningService) -> None:
    run = run_node_client(service.address, "stream", json.dumps([VOCAB_SIZE]), "4")
    assert run.code == 1
    (line,) = run.lines
    assert line["status"] == "INVALID_ARGUMENT"
    assert str(VOCAB_SIZE) in line["details"]
