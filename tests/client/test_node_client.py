"""The contract serves other languages: a Node client made from the .proto files alone."""

from __future__ import annotations

import json

import grpc
from client.fake_server import PATIENCE, Failure, FakeServer, endless
from client.node import FOLDER, run_node_client


def test_node_streams_a_completion(server: FakeServer) -> None:
    run = run_node_client(server.address, "stream", "def héllo(", "4")
    assert (run.code, run.errors) == (0, "")
    assert run.lines == [
        {"started": {"requestId": "made-up", "seed": "7", "maxNewTokens": 4}},
        {"chunk": {"text": "<10><11>", "tokenIds": [10, 11], "drafted": [True, False]}},
        {"chunk": {"text": "<12><13>", "tokenIds": [12, 13], "drafted": [True, False]}},
        {
            "complete": {
                "finishReason": "FINISH_REASON_LENGTH",
                "completionTokens": 4,
                "numDrafts": "2",
                "numAcceptedTokens": "2",
            }
        },
    ]
    assert server.received[0].request.text == "def héllo("
    assert server.received[0].request.generation_config.max_new_tokens == 4


def test_node_sends_token_ids(server: FakeServer) -> None:
    assert run_node_client(server.address, "stream", "[5, 6]", "4").code == 0
    assert list(server.received[0].request.token_ids.ids) == [5, 6]


def test_node_cancels_and_the_server_sees_it(server: FakeServer) -> None:
    server.script = endless
    run = run_node_client(server.address, "cancel", "def main(")
    assert (run.code, run.errors) == (0, "")
    assert [(line["received"], line["status"]) for line in run.lines] == [(2, "CANCELLED")]
    assert server.ended.get(timeout=PATIENCE) == ""


def test_node_sees_statuses(server: FakeServer) -> None:
    server.failures.append(Failure(grpc.StatusCode.INVALID_ARGUMENT, "top_p: too large"))
    run = run_node_client(server.address, "stream", "x", "4")
    assert run.code == 1
    assert run.lines == [{"status": "INVALID_ARGUMENT", "details": "top_p: too large"}]


def test_the_lock_file_names_no_registry() -> None:
    """A lock file made elsewhere must not send installations there."""
    packages = json.loads((FOLDER / "package-lock.json").read_text())["packages"]
    assert len(packages) > 10
    assert not [name for name, package in packages.items() if "resolved" in package]
    assert all("integrity" in package for name, package in packages.items() if name)
