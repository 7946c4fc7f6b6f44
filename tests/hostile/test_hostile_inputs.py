"""Hostile inputs and the status of each: whatever is sent, both services go on as if nothing was.

One table for both services. What a refusal says, and where exactly the border of each field lies,
is tested with the services themselves.
"""

from __future__ import annotations

import math
from typing import Any

import grpc
import pytest
from draft.hostile import ATTACKS
from draft.reference import MAX_POSITIONS
from draft.reference import VOCAB_SIZE as DRAFT_VOCAB
from hostile.ground import (
    DRAFTING,
    GENERATION,
    HEALTH,
    KEY,
    KEYED,
    Ground,
    Send,
    attacked,
    completions,
    hello,
    link,
    opening,
    to_drafter,
    to_target,
    twice,
    updates,
)
from outrider.v1 import draft_pb2, generation_config_pb2, speculation_pb2
from outrider.v1 import generation_pb2 as pb
from outrider.v1.structured_output_pb2 import StructuredOutput
from outrider_contract.generation_config import from_json_dict
from service.asking import ask
from service.tiny_folder import MAX_MODEL_LEN, VOCAB_SIZE

OK = grpc.StatusCode.OK
INVALID = grpc.StatusCode.INVALID_ARGUMENT
UNAUTHENTICATED = grpc.StatusCode.UNAUTHENTICATED
EXHAUSTED = grpc.StatusCode.RESOURCE_EXHAUSTED
UNIMPLEMENTED = grpc.StatusCode.UNIMPLEMENTED
MISMATCH = grpc.StatusCode.FAILED_PRECONDITION
EXPIRED = grpc.StatusCode.DEADLINE_EXCEEDED

GZIP = grpc.Compression.Gzip
MAX_UINT32 = 2**32 - 1


def generate(prompt: Any = "abc", **config: Any) -> Send:
    return to_target("Generate", ask(prompt, **({"max_new_tokens": 4} | config)))


def parsed(**config: Any) -> Send:
    """Fields as the message has them, not in transformers' form."""
    message = generation_config_pb2.GenerationConfig(max_new_tokens=4, **config)
    return to_target("Generate", pb.GenerateRequest(text="abc", generation_config=message))


def speculating(**fields: Any) -> Send:
    return generate(speculation=speculation_pb2.SpeculationConfig(**fields))


def formed(**form: Any) -> Send:
    request = ask("abc", max_new_tokens=100)
    request.structured_output.CopyFrom(StructuredOutput(**form))
    return to_target("Generate", request)


def scoring(token_ids: list[int], **fields: Any) -> Send:
    request = pb.ScoreRequest(**fields)
    request.token_ids.ids.extend(token_ids)
    return to_target("Score", request)


def with_key(authorization: str) -> dict[str, Any]:
    return {"metadata": (("authorization", authorization),)}


def with_metadata(name: str, value: str | bytes) -> dict[str, Any]:
    return {"metadata": (*KEYED, (name, value))}


def opened(**changes: Any) -> Send:
    return updates(opens=[opening(**changes)])


def limited(**limits: Any) -> Send:
    return opened(limits=draft_pb2.Limits(**({"window": 4, "depth": 4, "max_nodes": 8} | limits)))


def committed(*, after_opening: bool = True, **fields: Any) -> Send:
    opens = [opening()] if after_opening else []
    return updates(opens=opens, commits=[draft_pb2.Commit(session=1, **fields)])


ENDLESS = ask("abc", max_new_tokens=900)
NAMED = ask("abc", max_new_tokens=900, request_id="the same")
DESCRIBE = draft_pb2.DescribeRequest()
CLOSE = draft_pb2.Close(session=1)

INPUTS: dict[str, tuple[Send, grpc.StatusCode]] = {
    # --- the target: bytes that are no message, or too many
    "a tag of nothing": (to_target("Generate", b"\xff"), INVALID),
    "a length without its bytes": (to_target("Generate", b"\x12\x05ab"), INVALID),
    "a varint that does not end": (to_target("Generate", b"\x80" * 20), INVALID),
    "a text that is not UTF-8": (to_target("Generate", b"\x12\x02\xff\xfe"), INVALID),
    "a group that is not closed": (to_target("Score", b"\x0b"), INVALID),
    "no message to Abort": (to_target("Abort", b"\x0a\xff"), INVALID),
    "no message to the health check": (to_target(f"{HEALTH}/Check", b"\x0a\xff"), INVALID),
    "five megabytes": (generate("a" * (5 << 20)), EXHAUSTED),
    "what grows when unpacked": (
        to_target("Generate", ask("a" * (20 << 20)), compression=GZIP),
        EXHAUSTED,
    ),
    # --- methods and metadata
    "a method that is not there": (to_target("Nothing", b""), UNIMPLEMENTED),
    "a service that is not there": (to_target("/outrider.v1.Nobody/Generate", b""), UNIMPLEMENTED),
    "no name of a method": (to_target("/", b""), UNIMPLEMENTED),
    "the drafter's method": (to_target(f"{DRAFTING}/Describe", DESCRIBE), UNIMPLEMENTED),
    "health of somebody unknown": (
        to_target(f"{HEALTH}/Check", b"\x0a\x06nobody"),
        grpc.StatusCode.NOT_FOUND,
    ),
    "no key": (to_target("Generate", ask(), metadata=()), UNAUTHENTICATED),
    "an empty key": (to_target("Generate", ask(), **with_key("Bearer ")), UNAUTHENTICATED),
    "part of the key": (
        to_target("GetLoads", b"", **with_key(f"Bearer {KEY[:-1]}")),
        UNAUTHENTICATED,
    ),
    "a key of another kind": (
        to_target("GetLoads", b"", **with_key(f"Basic {KEY}")),
        UNAUTHENTICATED,
    ),
    "a key in binary metadata": (
        to_target("Generate", ask(), metadata=(("authorization-bin", f"Bearer {KEY}".encode()),)),
        UNAUTHENTICATED,
    ),
    "metadata without end": (
        to_target("GetLoads", b"", **with_metadata("x-much", "a" * 60_000)),
        EXHAUSTED,
    ),
    "an id too long, beside the message": (
        to_target("GetLoads", b"", **with_metadata("x-request-id", "a" * 500)),
        OK,  # it gets another
    ),
    "a trace that is none": (
        to_target("GetLoads", b"", **with_metadata("traceparent", "00-zz")),
        OK,
    ),
    # --- deadlines and names
    "a deadline that has passed": (to_target("Generate", ENDLESS, timeout=0), EXPIRED),
    "a deadline that is too short": (to_target("Generate", ENDLESS, timeout=0.02), EXPIRED),
    "an id that is running": (twice(NAMED), grpc.StatusCode.ALREADY_EXISTS),
    "an id that would forge a log line": (generate(request_id="a\nb"), INVALID),
    "an id too long": (generate(request_id="a" * 129), INVALID),
    "an end to requests that are not there": (
        to_target("Abort", pb.AbortRequest(request_ids=["x"] * 10_000)),
        OK,
    ),
    # --- prompts
    "no prompt": (to_target("Generate", b""), INVALID),
    "an empty text": (generate(""), INVALID),
    "no token": (generate([]), INVALID),
    "a token outside the vocabulary": (generate([5, VOCAB_SIZE]), INVALID),
    "the largest token there could be": (generate([MAX_UINT32]), INVALID),
    "a prompt that leaves no room": (generate([5] * MAX_MODEL_LEN), INVALID),
    "a million tokens": (generate([5] * 1_000_000), INVALID),
    "a score of one token": (scoring([5]), INVALID),
    "a score outside the vocabulary": (scoring([5, VOCAB_SIZE]), INVALID),
    "a score from behind the end": (scoring([5, 6], first_position=2), INVALID),
    "text of tokens that have none": (
        to_target("Detokenize", pb.DetokenizeRequest(token_ids=[MAX_UINT32])),
        INVALID,
    ),
    "a long text for the tokenizer": (
        to_target("Tokenize", pb.TokenizeRequest(text="a" * (2 << 20))),
        INVALID,
    ),
    # --- numbers that are none, or out of range
    "a temperature that is no number": (parsed(do_sample=True, temperature=math.nan), INVALID),
    "an infinite temperature": (parsed(do_sample=True, temperature=math.inf), INVALID),
    "a negative temperature": (generate(do_sample=True, temperature=-1.0), INVALID),
    "a share that is no number": (parsed(top_p=math.nan), INVALID),
    "a share above one": (generate(top_p=1.5), INVALID),
    "a negative share": (generate(min_p=-0.1), INVALID),
    "an infinite penalty": (parsed(repetition_penalty=-math.inf), INVALID),
    "a time that is no number": (parsed(max_time=math.nan), INVALID),
    "a bias that is no number": (generate(sequence_bias=[[[5], math.nan]]), INVALID),
    "no new token": (generate(max_new_tokens=0), INVALID),
    "four billion new tokens": (generate(max_new_tokens=MAX_UINT32), INVALID),
    "four billion sequences": (generate(do_sample=True, num_return_sequences=MAX_UINT32), INVALID),
    "four billion beams": (generate(num_beams=MAX_UINT32), INVALID),
    "a threshold that is no number": (parsed(assistant_confidence_threshold=math.nan), INVALID),
    "a draft temperature below zero": (speculating(draft_temperature=-1.0), INVALID),
    "four billion draft tokens": (speculating(max_assistant_tokens=MAX_UINT32), INVALID),
    "a way to draft that is not there": (speculating(method=99), INVALID),
    # --- configurations that contradict themselves
    "shorter than the shortest": (generate(max_new_tokens=5, min_new_tokens=6), INVALID),
    "many greedy sequences": (generate(num_return_sequences=2), INVALID),
    "a token forced and banned": (generate(forced_bos_token_id=7, suppress_tokens=[7]), INVALID),
    "every token banned": (generate(suppress_tokens=list(range(VOCAB_SIZE))), INVALID),
    "a drafter named by who wants none": (
        speculating(enabled=False, method=speculation_pb2.DRAFT_METHOD_REMOTE),
        INVALID,
    ),
    "a field set and cleared": (parsed(top_k=5, clear_fields=["top_k"]), INVALID),
    "a field cleared that is not there": (generate(clear=["temperatur"]), INVALID),
    "an unknown cache": (generate(cache_implementation="\0"), INVALID),
    "nothing left to choose from": (
        generate(bad_words_ids=[[i] for i in range(VOCAB_SIZE)]),
        INVALID,
    ),
    # --- lists without end
    "a stop string a megabyte long": (generate(stop_strings=["a" * 1_000_000]), INVALID),
    "a hundred thousand stop strings": (generate(stop_strings=["a"] * 100_000), INVALID),
    "a hundred thousand bad words": (generate(bad_words_ids=[[5, 6]] * 100_000), INVALID),
    "a bad word of nothing": (generate(bad_words_ids=[[]]), INVALID),
    "a banned token outside the vocabulary": (generate(suppress_tokens=[VOCAB_SIZE]), INVALID),
    "half a million names": (generate(clear=["x"] * 500_000), INVALID),
    # --- forms
    "a pattern that is none": (formed(regex="a(b"), INVALID),
    "a pattern that looks ahead": (formed(regex="(?=a)b"), INVALID),
    "a pattern of a thousand parentheses": (formed(regex="(" * 1000 + ")" * 1000), INVALID),
    "a pattern of many ways": (formed(regex="(.|.)*" * 341), INVALID),
    "a schema that is no JSON": (formed(json_schema="{"), INVALID),
    "a schema of no type": (formed(json_schema='{"type": "foo"}'), INVALID),
    "a schema too deep": (formed(json_schema='{"items":' * 1600 + "{}" + "}" * 1600), INVALID),
    "a schema somewhere else": (formed(json_schema='{"$ref": "https://127.0.0.1:1/x"}'), INVALID),
    "a schema of itself": (formed(json_schema='{"$ref": "#"}'), INVALID),
    "a schema that nothing fits": (formed(json_schema='{"enum": []}'), INVALID),
    "a grammar of an unknown rule": (formed(grammar="start: foo"), INVALID),
    "a form of no kind": (formed(), INVALID),
    # --- what a drafter does to its target: nothing
    **{f"a drafter that does {name}": (attacked(name), OK) for name in ATTACKS},
    # --- the drafter: how a link begins
    "a link of nothing": (link(), INVALID),
    "a link of bytes": (link(b"\x0a\xff"), INVALID),
    "a link without a hello": (link(draft_pb2.SpeculateRequest(opens=[opening()])), INVALID),
    "an empty frame for a hello": (link(b""), INVALID),
    "updates beside the hello": (
        link(draft_pb2.SpeculateRequest(hello=hello().hello, closes=[CLOSE])),
        INVALID,
    ),
    "a second hello": (link(hello(), hello()), INVALID),
    "no vocabulary": (link(hello(vocab_size=0)), INVALID),
    "version 0": (link(hello(protocol_version=0)), MISMATCH),
    "version four billion": (link(hello(protocol_version=MAX_UINT32)), MISMATCH),
    "another tokenizer": (link(hello(tokenizer_fingerprint="another")), MISMATCH),
    "no tokenizer": (link(hello(tokenizer_fingerprint="")), MISMATCH),
    "a link without a key": (link(hello(), metadata=()), UNAUTHENTICATED),
    "a link with a wrong key": (link(hello(), **with_key("Bearer x")), UNAUTHENTICATED),
    "a link whose deadline has passed": (link(hello(), timeout=0), EXPIRED),
    # --- and how it goes on
    "bytes after the hello": (link(hello(), b"\x12\xff"), INVALID),
    "a frame of twenty thousand updates": (
        link(hello(), draft_pb2.SpeculateRequest(closes=[CLOSE] * 20_000)),
        INVALID,
    ),
    "a frame of five megabytes": (
        link(hello(), b"\xfa\x3f\x80\x80\xc0\x02" + bytes(5 << 20)),
        EXHAUSTED,
    ),
    "a session nobody opened": (committed(after_opening=False, base_length=3, token_ids=[4]), OK),
    "an end to a session nobody opened": (updates(told=False, closes=[CLOSE]), OK),
    "a session of no token": (opened(token_ids=[], num_prompt_tokens=0), OK),
    "a prompt longer than its text": (opened(num_prompt_tokens=4), OK),
    "a session without a prompt": (opened(num_prompt_tokens=0), OK),
    "a session outside the vocabulary": (opened(token_ids=[1, 2, DRAFT_VOCAB]), OK),
    "a session too long": (opened(token_ids=[1] * (MAX_POSITIONS + 1)), OK),
    "a session without limits": (opened(limits=None), OK),
    "a window of nothing": (limited(window=0), OK),
    "a window deeper than the tree": (limited(window=5), OK),
    "a limit that is no number": (limited(confidence_threshold=math.nan), OK),
    "a session at no temperature": (opened(draft_temperature=math.nan), OK),
    "a session of an endless tenant": (opened(tenant=b"x" * 65), OK),
    "a session of a sample too far": (opened(sample_index=MAX_UINT32), OK),
    "a session whose config is no number": (
        opened(
            generation_config=generation_config_pb2.GenerationConfig(
                do_sample=True, temperature=math.nan
            )
        ),
        OK,
    ),
    "a session whose config biases to infinity": (
        opened(generation_config=from_json_dict({"sequence_bias": [[[5], math.inf]]})),
        OK,
    ),
    "a session whose config names a token outside": (
        opened(
            generation_config=generation_config_pb2.GenerationConfig(forced_bos_token_id=MAX_UINT32)
        ),
        OK,
    ),
    "a decision far ahead": (committed(base_length=MAX_UINT32, token_ids=[4]), OK),
    "a decision outside the vocabulary": (committed(base_length=3, token_ids=[DRAFT_VOCAB]), OK),
    "a drafter's method that is not there": (to_drafter("Nothing", b""), UNIMPLEMENTED),
    "the target's method": (to_drafter(f"{GENERATION}/Generate", ask()), UNIMPLEMENTED),
    "no message to Describe": (to_drafter("Describe", b"\xff"), INVALID),
    "a description without a key": (to_drafter("Describe", DESCRIBE, metadata=()), UNAUTHENTICATED),
}


@pytest.fixture(scope="session")
def untouched(ground: Ground) -> tuple[list[int], list[int]]:
    """What both services say before anything was sent."""
    return completions(ground)


@pytest.mark.parametrize("name", INPUTS)
def test_a_hostile_input_ends_with_its_status_and_both_services_go_on(
    ground: Ground, untouched: tuple[list[int], list[int]], name: str
) -> None:
    send, expected = INPUTS[name]
    got = OK
    try:
        send(ground)
    except grpc.RpcError as error:
        got = error.code()
    assert got is expected
    assert completions(ground) == untouched
