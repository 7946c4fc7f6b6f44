"""What the server receives for each argument, and which are refused before it is asked."""

from __future__ import annotations

import array
from collections.abc import Callable
from typing import Any

import pytest
from client.fake_server import FakeServer
from client.twins import Twin
from outrider.v1 import generation_config_pb2, speculation_pb2
from outrider_client import GenerationConfig, InvalidRequestError, SpeculationConfig
from transformers import GenerationConfig as TransformersConfig


async def test_text_and_token_ids_are_sent_as_they_are(twin: Twin, server: FakeServer) -> None:
    prompts: list[Any] = ["def main(\0é", [1, 2, 2**32 - 1], (4, 5), array.array("I", [6]), ""]
    for prompt in [*prompts, []]:
        await twin.call("generate", prompt)
    sent = [call.request for call in server.received]
    assert sent[0].text == "def main(\0é"
    assert [list(request.token_ids.ids) for request in sent[1:4]] == [
        [1, 2, 2**32 - 1],
        [4, 5],
        [6],
    ]
    # An empty prompt is the server's to refuse, in whichever form it came.
    assert [request.WhichOneof("prompt") for request in sent[4:]] == ["text", "token_ids"]


async def test_nothing_is_sent_that_was_not_said(twin: Twin, server: FakeServer) -> None:
    await twin.call("generate", "x")
    request = server.received[0].request
    assert {field.name for field, _ in request.ListFields()} == {"request_id", "text"}


async def test_everything_said_is_sent(twin: Twin, server: FakeServer) -> None:
    await twin.call(
        "generate",
        "x",
        GenerationConfig(max_new_tokens=8, top_p=0.9, do_sample=True, clear_fields=["top_k"]),
        seed=2**64 - 1,
        speculation=SpeculationConfig(
            method="prompt-lookup", pacing="synchronous", verification="exact", run_ahead=0
        ),
        request_id="mine",
        skip_special_tokens=False,
    )
    request = server.received[0].request
    expected = generation_config_pb2.GenerationConfig(
        max_new_tokens=8, top_p=0.9, do_sample=True, clear_fields=["top_k"]
    )
    assert request.generation_config == expected
    assert request.speculation == speculation_pb2.SpeculationConfig(
        method=speculation_pb2.DRAFT_METHOD_PROMPT_LOOKUP,
        pacing=speculation_pb2.DRAFT_PACING_SYNCHRONOUS,
        verification=speculation_pb2.VERIFICATION_EXACT,
        run_ahead=0,
    )
    assert (request.seed, request.request_id) == (2**64 - 1, "mine")
    assert request.HasField("skip_special_tokens")
    assert not request.skip_special_tokens


async def test_seed_zero_is_a_seed(twin: Twin, server: FakeServer) -> None:
    assert (await twin.call("generate", "x", seed=0)).seed == 0
    assert server.received[0].request.HasField("seed")


async def test_a_transformers_object_is_as_good_as_our_own(twin: Twin, server: FakeServer) -> None:
    await twin.call("generate", "x", TransformersConfig(max_new_tokens=3, do_sample=True))
    await twin.call("generate", "x", GenerationConfig(max_new_tokens=3, do_sample=True))
    theirs, ours = [call.request.generation_config for call in server.received]
    assert theirs == ours
    assert ours.max_new_tokens == 3


async def test_plain_decoding_is_one_argument(twin: Twin, server: FakeServer) -> None:
    await twin.call("generate", "x", speculation=SpeculationConfig(enabled=False))
    request = server.received[0].request
    assert request.speculation == speculation_pb2.SpeculationConfig(enabled=False)


async def test_every_call_is_named_in_its_metadata(twin: Twin, server: FakeServer) -> None:
    await twin.call("generate", "x", request_id="mine")
    await twin.call("generate", "x")
    await twin.call("loads")
    ids = [call.metadata["x-request-id"] for call in server.received]
    assert ids[0] == "mine"
    assert ids[1] == server.received[1].request.request_id
    assert len(set(ids)) == 3
    assert all("authorization" not in call.metadata for call in server.received)


async def test_every_call_carries_the_api_key_and_the_user_agent(
    connect: Callable[..., Any], server: FakeServer
) -> None:
    async with connect(server.address, api_key="s3cret") as twin:
        await twin.call("generate", "x")
        await twin.call("tokenize", "x")
        await twin.call("abort", "x")
    assert [call.metadata["authorization"] for call in server.received] == ["Bearer s3cret"] * 3
    assert all(call.metadata["user-agent"].startswith("outrider-") for call in server.received)


@pytest.mark.parametrize(
    ("arguments", "field"),
    [
        ({"prompt": [1, -1]}, "prompt"),
        ({"prompt": [2**32]}, "prompt"),
        ({"prompt": "\ud800"}, "prompt"),
        ({"seed": -1}, "seed"),
        ({"seed": 2**64}, "seed"),
        ({"timeout": 0}, "timeout"),
        ({"timeout": -1.0}, "timeout"),
        ({"timeout": float("nan")}, "timeout"),
        ({"timeout": float("inf")}, "timeout"),
        ({"timeout": 1e12}, "timeout"),
        ({"timeout": True}, "timeout"),
        ({"timeout": "5"}, "timeout"),
        ({"request_id": ""}, "request_id"),
        ({"request_id": "x" * 129}, "request_id"),
        ({"request_id": "line\nbreak"}, "request_id"),
        ({"request_id": "naïve"}, "request_id"),
        ({"request_id": 5}, "request_id"),
    ],
)
async def test_an_argument_that_cannot_be_right_is_refused_by_name(
    twin: Twin, server: FakeServer, arguments: dict[str, Any], field: str
) -> None:
    with pytest.raises(InvalidRequestError, match=field) as caught:
        await twin.call("generate", **{"prompt": "x", **arguments})
    assert caught.value.field == field
    assert isinstance(caught.value, ValueError)
    assert server.received == []


@pytest.mark.parametrize(
    "arguments",
    [
        {"prompt": b"bytes"},
        {"prompt": 5},
        {"prompt": None},
        {"prompt": ["a"]},
        {"prompt": [[1, 2]]},
        {"prompt": [1.0]},
        {"config": {"max_new_tokens": 3}},
        {"config": TransformersConfig},
        {"speculation": {"enabled": False}},
        {"seed": "7"},
        {"seed": 7.0},
    ],
)
async def test_an_argument_of_the_wrong_type_is_a_type_error(
    twin: Twin, server: FakeServer, arguments: dict[str, Any]
) -> None:
    with pytest.raises(TypeError):
        await twin.call("generate", **{"prompt": "x", **arguments})
    assert server.received == []


async def test_a_config_that_was_made_wrong_later_is_refused_when_used(
    twin: Twin, server: FakeServer
) -> None:
    config = GenerationConfig()
    config.temperature = -1.0
    with pytest.raises(InvalidRequestError, match="temperature") as caught:
        await twin.call("generate", "x", config)
    assert caught.value.field == "temperature"
    assert server.received == []


@pytest.mark.parametrize(
    "arguments",
    [
        {"address": ""},
        {"address": " "},
        {"address": "a\nb"},
        {"address": None},
        {"api_key": ""},
        {"api_key": "käy"},
        {"api_key": "two\nlines"},
        {"timeout": 0},
        {"max_retries": -1},
        {"max_retries": 1.5},
        {"max_retries": True},
    ],
)
async def test_a_client_refuses_arguments_that_cannot_be_right(
    connect: Callable[..., Any], arguments: dict[str, Any]
) -> None:
    name = next(iter(arguments))
    with pytest.raises(ValueError, match=name):
        async with connect(**{"address": "127.0.0.1:1", **arguments}):
            pass


async def test_an_api_key_is_not_shown_by_accident(connect: Callable[..., Any]) -> None:
    async with connect("127.0.0.1:1", api_key="s3cret") as twin:
        assert "s3cret" not in repr(vars(twin.client))
