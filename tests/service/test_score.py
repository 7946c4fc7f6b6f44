"""Scoring a given text: transformers' own numbers, whatever runs beside it."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import pytest
import torch
from outrider.v1 import generation_pb2 as pb
from outrider_client import Client, GenerationConfig, SpeculationConfig
from outrider_contract.errors import Reason
from outrider_target.decoding.scoring import WINDOW
from service.asking import ENDLESS
from service.harness import Caller, RunningService, until
from service.refusals import Refusal, refusal
from service.tiny_folder import MAX_MODEL_LEN, VOCAB_SIZE
from transformers import AutoModelForCausalLM, PreTrainedModel
from transformers.generation import TemperatureLogitsWarper, TopKLogitsWarper

TEXT = [(37 * i + i * i) % 250 + 3 for i in range(3 * WINDOW + 5)]
LOOKUP = SpeculationConfig(method="prompt-lookup")


@pytest.fixture(scope="module")
def model(folder: Path) -> PreTrainedModel:
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float64).eval()


@torch.inference_mode()
def logits_of(model: PreTrainedModel, token_ids: list[int]) -> torch.Tensor:
    """[length - 1, vocab]: row i predicts token i + 1."""
    logits: torch.Tensor = model(torch.tensor([token_ids]), use_cache=False).logits[0, :-1]
    return logits


@pytest.mark.parametrize("length", [2, 3, WINDOW, WINDOW + 1, WINDOW + 2, len(TEXT)])
def test_scores_are_those_of_transformers(
    client: Client, model: PreTrainedModel, length: int
) -> None:
    text = TEXT[:length]
    scores = client.score(text, log_probs=3)
    expected = logits_of(model, text).log_softmax(-1)
    assert scores.token_ids == text[1:]
    assert len(scores.log_probs) == length - 1
    for row, token_id, known in zip(expected, text[1:], scores.log_probs, strict=True):
        assert known.raw == pytest.approx(float(row[token_id]), abs=1e-5)
        assert [each.token_id for each in known.top_raw] == row.topk(3).indices.tolist()
    total = float(expected.gather(1, torch.tensor(text[1:])[:, None]).sum())
    assert scores.log_likelihood == pytest.approx(total, rel=1e-6)


@pytest.mark.parametrize("first", [1, 2, 40, len(TEXT) - 1])
def test_the_prompt_is_not_scored(client: Client, first: int) -> None:
    whole, rest = client.score(TEXT), client.score(TEXT, first_position=first)
    assert rest.token_ids == TEXT[first:]
    raw = [known.raw for known in rest.log_probs]
    assert raw == pytest.approx([known.raw for known in whole.log_probs[first - 1 :]], abs=1e-6)


def test_a_configuration_shapes_the_processed_scores_alone(
    client: Client, model: PreTrainedModel
) -> None:
    text = TEXT[:12]
    config = GenerationConfig(
        do_sample=True, temperature=0.5, top_k=100, stop_strings=["x"], max_new_tokens=1
    )
    scores = client.score(text, config)
    logits = logits_of(model, text).float()
    ids = torch.tensor([text])
    processed = TopKLogitsWarper(100)(ids, TemperatureLogitsWarper(0.5)(ids, logits))
    expected = processed.double().log_softmax(-1)
    raw = logits.double().log_softmax(-1)
    for i, known in enumerate(scores.log_probs):
        assert known.raw == pytest.approx(float(raw[i, text[i + 1]]), abs=1e-5)
        assert known.processed == pytest.approx(float(expected[i, text[i + 1]]), abs=1e-5)


def test_end_of_sequence_tokens_within_end_nothing(client: Client) -> None:
    ids = client.model_info().default_generation_config.eos_token_id
    assert ids is not None
    eos = ids if isinstance(ids, int) else ids[0]
    text = [5, eos, 6, eos, eos, 7]
    assert client.score(text).token_ids == text[1:]


def test_generated_tokens_score_what_generation_told(client: Client) -> None:
    config = GenerationConfig(max_new_tokens=20, clear_fields=ENDLESS)
    completion = client.generate(TEXT[:9], config, speculation=LOOKUP, log_probs=0)
    scores = client.score([*TEXT[:9], *completion.token_ids], first_position=9)
    told = [known.raw for known in completion.log_probs]
    assert [known.raw for known in scores.log_probs] == pytest.approx(told, abs=1e-6)


def test_it_shares_the_batch_and_is_not_counted_as_generation(
    service: RunningService, client: Client
) -> None:
    alone = client.score(TEXT)
    config = GenerationConfig(max_new_tokens=40, clear_fields=ENDLESS)
    plain = client.generate(TEXT[:9], config).token_ids
    before = client.loads()
    with ThreadPoolExecutor(6) as threads:
        scores = [threads.submit(client.score, TEXT) for _ in range(3)]
        texts = [
            threads.submit(client.generate, TEXT[:9], config, speculation=LOOKUP) for _ in range(3)
        ]
        for score in scores:
            assert [k.raw for k in score.result().log_probs] == pytest.approx(
                [k.raw for k in alone.log_probs], abs=1e-6
            )
        completions = [text.result() for text in texts]
    assert [each.token_ids for each in completions] == [plain] * 3
    assert sum(each.speculation.num_accepted_tokens for each in completions) > 0
    after = client.loads()
    assert after.num_generated_tokens - before.num_generated_tokens == 3 * 40
    until(client.loads, lambda loads: loads.kv_cache_usage == 0)


def scored(caller: Caller, request: pb.ScoreRequest) -> Refusal:
    return refusal(lambda: caller.stub.Score(request))


def asking(token_ids: list[int] | None = None, **fields: Any) -> pb.ScoreRequest:
    request = pb.ScoreRequest(**fields)
    if token_ids is not None:
        request.token_ids.ids.extend(token_ids)
        request.token_ids.SetInParent()
    return request


def crowded() -> pb.ScoreRequest:
    request = asking([5] * MAX_MODEL_LEN)
    request.log_probs.num_top = 21
    return request


def unsupported() -> pb.ScoreRequest:
    request = asking([5, 6])
    request.generation_config.use_mtp = True
    return request


@pytest.mark.parametrize(
    ("request_", "field"),
    [
        (asking(), "sequence"),
        (asking([]), "token_ids"),
        (asking([5]), "token_ids"),
        (asking(text="", request_id="x"), "text"),
        (asking([5, VOCAB_SIZE]), "token_ids"),
        (asking([5] * (MAX_MODEL_LEN + 1)), "token_ids"),
        (asking([5, 6], first_position=0), "first_position"),
        (asking([5, 6], first_position=2), "first_position"),
        (crowded(), "log_probs.num_top"),
        (unsupported(), "generation_config.use_mtp"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_cannot_be_scored_is_refused_by_name(
    caller: Caller, request_: pb.ScoreRequest, field: str
) -> None:
    got = scored(caller, request_)
    assert got.code is grpc.StatusCode.INVALID_ARGUMENT
    assert got.field == field


def test_the_longest_text_can_be_scored(client: Client) -> None:
    text = [5 + i % 90 for i in range(MAX_MODEL_LEN)]
    assert len(client.score(text).log_probs) == MAX_MODEL_LEN - 1


def test_an_aborted_score_says_so(service: RunningService, caller: Caller) -> None:
    with service.gate.held(after=1):
        future = caller.stub.Score.future(asking(TEXT, request_id="to be aborted"))
        until(lambda: len(service.serving.requests), lambda number: number == 1)
        aborted = caller.stub.Abort(pb.AbortRequest(request_ids=["to be aborted"]))
        assert list(aborted.aborted_request_ids) == ["to be aborted"]
    got = refusal(future.result)
    assert (got.code, got.reason) == (grpc.StatusCode.CANCELLED, Reason.ABORTED)
