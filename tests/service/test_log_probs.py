"""Log-probabilities of generated tokens: transformers' own numbers, with speculation on."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import grpc
import pytest
import torch
from outrider_client import (
    Client,
    Completion,
    GenerationConfig,
    InvalidRequestError,
    SpeculationConfig,
)
from outrider_contract.errors import Reason
from service.asking import ENDLESS, ask
from service.harness import Caller
from service.refusals import refused
from transformers import AutoModelForCausalLM, PreTrainedModel
from transformers.generation import (
    LogitsProcessorList,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
)

PROMPT = [5, 9, 5, 9, 5, 9, 7, 5, 9]
LOOKUP = SpeculationConfig(method="prompt-lookup")
PLAIN = SpeculationConfig(enabled=False)
NUM_TOP = 5

GREEDY: dict[str, Any] = {"repetition_penalty": 1.1}
SAMPLED: dict[str, Any] = {"do_sample": True, "temperature": 0.7, "top_k": 4}


@pytest.fixture(scope="module")
def model(folder: Path) -> PreTrainedModel:
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float64).eval()


def generate(
    client: Client, options: dict[str, Any], speculation: SpeculationConfig, *, top: int | None
) -> Completion:
    config = GenerationConfig(max_new_tokens=24, clear_fields=ENDLESS, **options)
    return client.generate(PROMPT, config, seed=11, speculation=speculation, log_probs=top)


def warpers(options: dict[str, Any]) -> LogitsProcessorList:
    chain = LogitsProcessorList()
    if "repetition_penalty" in options:
        chain.append(RepetitionPenaltyLogitsProcessor(options["repetition_penalty"]))
    if options.get("do_sample"):
        chain.append(TemperatureLogitsWarper(options["temperature"]))
        chain.append(TopKLogitsWarper(options["top_k"]))
    return chain


@torch.inference_mode()
def scores_of(
    model: PreTrainedModel, token_ids: list[int], options: dict[str, Any]
) -> tuple[torch.Tensor, torch.Tensor]:
    """Raw and processed scores [tokens, vocab] behind each generated token."""
    whole = torch.tensor([PROMPT + token_ids])
    logits = model(whole, use_cache=False).logits[0, len(PROMPT) - 1 : -1]
    chain = warpers(options)
    processed = [
        chain(whole[:, : len(PROMPT) + i], row[None].float())[0] for i, row in enumerate(logits)
    ]
    return logits, torch.stack(processed)


@pytest.mark.parametrize("options", [GREEDY, SAMPLED], ids=["greedy", "sampled"])
@pytest.mark.parametrize("speculation", [PLAIN, LOOKUP], ids=["plain", "drafted"])
def test_they_are_those_of_transformers(
    client: Client,
    model: PreTrainedModel,
    options: dict[str, Any],
    speculation: SpeculationConfig,
) -> None:
    completion = generate(client, options, speculation, top=NUM_TOP)
    if speculation is LOOKUP:
        assert completion.speculation.num_accepted_tokens > 0
    logits, processed = scores_of(model, completion.token_ids, options)
    raw_log, processed_log = logits.log_softmax(-1), processed.double().log_softmax(-1)
    assert len(completion.log_probs) == len(completion.token_ids) == 24
    for i, (token_id, known) in enumerate(
        zip(completion.token_ids, completion.log_probs, strict=True)
    ):
        assert known.raw == pytest.approx(float(raw_log[i, token_id]), abs=1e-5)
        assert known.processed == pytest.approx(float(processed_log[i, token_id]), abs=1e-5)
        assert known.score == pytest.approx(float(processed[i, token_id]), rel=1e-5, abs=1e-5)
        best = raw_log[i].topk(NUM_TOP)
        assert [each.token_id for each in known.top_raw] == best.indices.tolist()
        assert [each.log_prob for each in known.top_raw] == pytest.approx(
            best.values.tolist(), abs=1e-5
        )
        possible = min(NUM_TOP, int((processed_log[i] > -math.inf).sum()))
        best = processed_log[i].topk(possible)
        assert [each.token_id for each in known.top_processed] == best.indices.tolist()
    scores = completion.sequences[0].compute_transition_scores()
    assert scores == [known.score for known in completion.log_probs]
    normalised = completion.sequences[0].compute_transition_scores(normalize_logits=True)
    assert normalised == [known.processed for known in completion.log_probs]


@pytest.mark.parametrize("options", [GREEDY, SAMPLED], ids=["greedy", "sampled"])
def test_asking_for_them_changes_no_token(client: Client, options: dict[str, Any]) -> None:
    without = generate(client, options, PLAIN, top=None)
    assert without.log_probs == []
    with pytest.raises(ValueError, match="did not ask"):
        without.sequences[0].compute_transition_scores()
    asked = generate(client, options, LOOKUP, top=0)
    assert asked.token_ids == without.token_ids
    assert asked.speculation.num_accepted_tokens > 0
    assert all(known.top_raw == known.top_processed == () for known in asked.log_probs)


def test_transition_scores_are_those_of_transformers(
    client: Client, model: PreTrainedModel
) -> None:
    output = model.generate(
        torch.tensor([PROMPT]),
        max_new_tokens=24,
        do_sample=False,
        num_beams=1,
        eos_token_id=None,
        return_dict_in_generate=True,
        output_scores=True,
        **GREEDY,
    )
    completion = generate(client, GREEDY, LOOKUP, top=0)
    assert completion.token_ids == output.sequences[0, len(PROMPT) :].tolist()
    for normalize in (False, True):
        expected = model.compute_transition_scores(
            output.sequences, output.scores, normalize_logits=normalize
        )[0]
        own = completion.sequences[0].compute_transition_scores(normalize_logits=normalize)
        assert own == pytest.approx(expected.tolist(), rel=1e-5, abs=1e-5)


def test_they_end_where_the_tokens_end(client: Client) -> None:
    """An accepted run is cut by a limit: nothing is told of tokens that were not emitted."""
    long = generate(client, GREEDY, LOOKUP, top=1)
    for limit in range(1, 12):
        config = GenerationConfig(max_new_tokens=limit, clear_fields=ENDLESS, **GREEDY)
        cut = client.generate(PROMPT, config, speculation=LOOKUP, log_probs=1)
        assert cut.token_ids == long.token_ids[:limit]
        assert len(cut.log_probs) == limit
        raw = [known.raw for known in cut.log_probs]
        assert raw == pytest.approx([known.raw for known in long.log_probs[:limit]], abs=1e-6)


def test_sequences_have_their_own(client: Client) -> None:
    config = GenerationConfig(
        max_new_tokens=8, num_return_sequences=3, clear_fields=ENDLESS, **SAMPLED
    )
    with client.stream(PROMPT, config, seed=3, log_probs=2) as stream:
        for chunk in stream:
            assert len(chunk.log_probs) == len(chunk.token_ids)
        completion = stream.final
    for sequence in completion.sequences:
        assert len(sequence.log_probs) == 8
    assert len({tuple(sequence.log_probs) for sequence in completion.sequences}) > 1


def test_too_many_alternatives_are_refused_by_name(client: Client, caller: Caller) -> None:
    request = ask(PROMPT, max_new_tokens=2)
    request.log_probs.num_top = 21
    got = refused(caller, request)
    assert (got.code, got.reason) == (grpc.StatusCode.INVALID_ARGUMENT, Reason.INVALID_FIELD)
    assert got.field == "log_probs.num_top"
    with pytest.raises(InvalidRequestError) as caught:
        client.generate(PROMPT, log_probs=-1)
    assert caught.value.field == "log_probs"
