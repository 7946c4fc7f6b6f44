"""Guidance over the wire: what is told of it, and what is refused."""

from __future__ import annotations

from typing import Any

import grpc
import pytest
from outrider.v1 import generation_pb2 as pb
from outrider_client import Client, GenerationConfig
from outrider_contract.errors import Reason
from outrider_target.serving.text import MAX_TEXT_LENGTH
from service.asking import LOOKUP, PLAIN, ask, collect
from service.harness import PATIENCE, Caller, RunningService
from service.refusals import refusal, refused
from service.tiny_folder import BOS, MAX_MODEL_LEN, VOCAB_SIZE, ids_of


def guided(
    negative: str | list[int] | None = None, prompt: Any = "abcabcab", **options: Any
) -> pb.GenerateRequest:
    request = ask(prompt, **{"max_new_tokens": 12, "guidance_scale": 2.0, **options})
    if isinstance(negative, str):
        request.negative_text = negative
    elif negative is not None:
        request.negative_token_ids.ids.extend(negative)
        request.negative_token_ids.SetInParent()
    return request


def test_text_and_token_ids_guide_alike_and_by_default_the_last_token_does(caller: Caller) -> None:
    def token_ids(request: pb.GenerateRequest) -> list[int]:
        return collect(caller.open(request)).token_ids

    by_text = token_ids(guided("xyz"))
    assert token_ids(guided([BOS, *ids_of("xyz")])) == by_text
    by_default = token_ids(guided())
    assert token_ids(guided(ids_of("b"))) == by_default
    unguided = token_ids(ask("abcabcab", max_new_tokens=12))
    assert token_ids(guided(guidance_scale=1.0)) == unguided
    assert len({tuple(by_text), tuple(by_default), tuple(unguided)}) == 3


def test_a_drafted_text_tells_the_same_numbers_as_a_plain_one(caller: Caller) -> None:
    config = {"output_scores": True, "output_logits": True, "output_hidden_states": True}
    answers = []
    for speculation in (PLAIN, LOOKUP):
        request = guided("xyz", speculation=speculation, **config)
        request.log_probs.num_top = 2
        messages = list(caller.open(request))
        chunks = [message.chunk for message in messages if message.HasField("chunk")]
        answers.append(
            (
                [i for chunk in chunks for i in chunk.token_ids],
                [
                    (known.raw, known.processed, known.top_raw, known.top_processed)
                    for chunk in chunks
                    for known in chunk.log_probs
                ],
                sorted(part.SerializeToString() for chunk in chunks for part in chunk.tensors),
            )
        )
    plain, drafted = answers
    assert plain[0] == drafted[0]
    assert plain[1] == drafted[1]
    assert len(plain[2]) == len(drafted[2]) > 0
    assert messages[-1].complete.speculation.num_draft_tokens > 0


def test_raw_log_probabilities_are_the_models_own_and_processed_ones_are_guided(
    client: Client,
) -> None:
    config = GenerationConfig(max_new_tokens=1, guidance_scale=3.0)
    known = client.generate("abc", config, negative_prompt="xyz", log_probs=5).log_probs[0]
    plain = client.generate("abc", GenerationConfig(max_new_tokens=1), log_probs=5).log_probs[0]
    assert known.top_raw == plain.top_raw
    assert known.top_processed != plain.top_processed


REFUSED: dict[str, tuple[pb.GenerateRequest, str, Reason]] = {
    "text with a scale of 1": (
        guided("xyz", guidance_scale=1.0),
        "negative_text",
        Reason.INVALID_FIELD,
    ),
    "with a scale of 1": (
        guided([5], guidance_scale=1.0),
        "negative_token_ids",
        Reason.INVALID_FIELD,
    ),
    "empty text": (guided(""), "negative_text", Reason.EMPTY_PROMPT),
    "no ids": (guided([]), "negative_token_ids", Reason.EMPTY_PROMPT),
    "unknown id": (guided([5, VOCAB_SIZE]), "negative_token_ids", Reason.INVALID_FIELD),
    "too long": (
        guided([5] * (MAX_MODEL_LEN - 11)),
        "negative_token_ids",
        Reason.PROMPT_TOO_LONG,
    ),
    "much too long": (
        guided("a" * (MAX_TEXT_LENGTH + 1)), "negative_text", Reason.INVALID_FIELD,
    ),
    "contrastive": (
        guided(penalty_alpha=0.6, top_k=4),
        "generation_config.guidance_scale",
        Reason.UNSUPPORTED_FIELD,
    ),
    "DoLa": (
        guided(dola_layers="high"), "generation_config.guidance_scale", Reason.UNSUPPORTED_FIELD,
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_is_refused_by_name(caller: Caller, name: str) -> None:
    request, field, reason = REFUSED[name]
    got = refused(caller, request)
    assert (got.code, got.field, got.reason) == (grpc.StatusCode.INVALID_ARGUMENT, field, reason)


def test_a_negative_prompt_alone_is_refused(caller: Caller) -> None:
    request = ask("abc")
    request.negative_text = "xyz"
    assert refused(caller, request).field == "negative_text"


def test_just_inside_its_length_a_negative_prompt_is_served(caller: Caller) -> None:
    answer = collect(caller.open(guided([5] * (MAX_MODEL_LEN - 12), max_new_tokens=12)))
    assert len(answer.token_ids) == 12


def test_a_given_text_is_scored_without_guidance(caller: Caller) -> None:
    request = pb.ScoreRequest(text="abc")
    request.generation_config.guidance_scale = 2.0
    got = refusal(lambda: caller.stub.Score(request, timeout=PATIENCE))
    assert (got.field, got.reason) == (
        "generation_config.guidance_scale",
        Reason.UNSUPPORTED_FIELD,
    )


def test_who_goes_away_leaves_neither_branch(service: RunningService, caller: Caller) -> None:
    with service.gate.held(after=3):
        call = caller.open(guided("xyz" * 20, max_new_tokens=300))
        service.gate.wait_until_held()
        call.cancel()
    caller.wait_until_idle()
    assert len(service.requests) == 0
