"""`output_scores` and its kin: the tensors of transformers' generate, with speculation on."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
import torch
from outrider.v1 import generation_pb2 as pb
from outrider_client import Client, Completion, GenerationConfig, SpeculationConfig, Tensor
from outrider_contract.errors import Reason
from outrider_target.settings import BatchSettings
from service.asking import ENDLESS, ask
from service.harness import Caller, RunningService, settings_for
from service.refusals import refused
from service.tiny_folder import MAX_MODEL_LEN, VOCAB_SIZE
from transformers import AutoModelForCausalLM, PreTrainedModel

PROMPT = [5, 9, 5, 9, 5, 9, 7, 5, 9]
NEW_TOKENS = 24
LOOKUP = SpeculationConfig(method="prompt-lookup")
PLAIN = SpeculationConfig(enabled=False)
ALL = ("output_scores", "output_logits", "output_hidden_states", "output_attentions")
ASKED: dict[str, Any] = dict.fromkeys(ALL, True)
GREEDY: dict[str, Any] = {"repetition_penalty": 1.1}
SAMPLED: dict[str, Any] = {"do_sample": True, "temperature": 0.7, "top_k": 4}
LAYERS, HEADS = 3, 4
LIMIT = 200_000


@pytest.fixture(scope="module")
def model(folder: Path) -> PreTrainedModel:
    return AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float64, attn_implementation="eager"
    ).eval()


@pytest.fixture(scope="module")
def narrow_service(folder: Path) -> Iterator[RunningService]:
    """Feeds few tokens a round, and sends few tensors."""
    batch = BatchSettings(max_num_seqs=4, max_num_batched_tokens=4, max_tensor_bytes=LIMIT)
    with RunningService(settings_for(folder, batch=batch)) as running:
        yield running


def generate(client: Client, speculation: SpeculationConfig = LOOKUP, **options: Any) -> Completion:
    options = {"max_new_tokens": NEW_TOKENS, "clear_fields": ENDLESS, **options}
    return client.generate(PROMPT, GenerationConfig(**options), seed=11, speculation=speculation)


def assert_close(own: Tensor, expected: torch.Tensor) -> None:
    assert own.shape == tuple(expected.shape)
    np.testing.assert_allclose(np.asarray(own), expected.double().numpy(), atol=1e-5, rtol=1e-5)


def test_they_are_those_of_generate(client: Client, model: PreTrainedModel) -> None:
    expected = model.generate(
        torch.tensor([PROMPT]),
        max_new_tokens=NEW_TOKENS,
        do_sample=False,
        num_beams=1,
        eos_token_id=None,
        return_dict_in_generate=True,
        **ASKED,
        **GREEDY,
    )
    completion = generate(client, **ASKED, **GREEDY)
    assert completion.speculation.num_accepted_tokens > 0
    assert completion.token_ids == expected.sequences[0, len(PROMPT) :].tolist()
    own = completion.sequences[0]
    for mine, theirs in ((own.scores, expected.scores), (own.logits, expected.logits)):
        assert len(mine) == len(theirs) == NEW_TOKENS
        for step in range(NEW_TOKENS):
            assert mine[step].dtype == "float32"
            assert_close(mine[step], theirs[step][0])
    for steps, known in (
        (own.hidden_states, expected.hidden_states),
        (own.attentions, expected.attentions),
    ):
        assert len(steps) == len(known) == NEW_TOKENS
        for step in range(NEW_TOKENS):
            for layer, theirs in zip(steps[step], known[step], strict=True):
                assert layer.dtype == "float64"
                assert_close(layer, theirs[0])
    assert len(own.hidden_states[0]) == LAYERS + 1
    assert own.attentions[0][0].shape == (HEADS, len(PROMPT), len(PROMPT))


def same(a: Any, b: Any) -> bool:
    """Equal but for rounding."""
    return np.allclose(np.asarray(a), np.asarray(b), atol=1e-9, equal_nan=False)


def assert_same_tensors(some: Completion, others: Completion) -> None:
    for one, other in zip(some.sequences, others.sequences, strict=True):
        assert one.token_ids == other.token_ids
        steps = range(len(one.token_ids))
        for name in ("scores", "logits", "hidden_states", "attentions"):
            mine, theirs = getattr(one, name), getattr(other, name)
            assert len(mine) == len(theirs) == len(steps)
            for step in steps:
                pairs = [(mine[step], theirs[step])]
                if isinstance(mine[step], tuple):
                    pairs = list(zip(mine[step], theirs[step], strict=True))
                assert all(same(a, b) for a, b in pairs), (name, step)


@pytest.mark.parametrize(
    "options",
    [GREEDY, {**SAMPLED, "num_return_sequences": 2}, {**GREEDY, "guidance_scale": 1.3}],
    ids=["greedy", "sampled", "guided"],
)
def test_drafts_change_none_of_them(client: Client, options: dict[str, Any]) -> None:
    plain = generate(client, PLAIN, **ASKED, **options)
    drafted = generate(client, LOOKUP, **ASKED, **options)
    assert drafted.speculation.num_accepted_tokens > 0
    assert drafted.speculation.num_draft_tokens > drafted.speculation.num_accepted_tokens
    assert_same_tensors(plain, drafted)


def test_a_prompt_fed_in_pieces_tells_the_same(
    client: Client, narrow_service: RunningService
) -> None:
    options = {**ASKED, **SAMPLED, "num_return_sequences": 2, "max_new_tokens": 6}
    with Client(narrow_service.address) as narrow:
        assert_same_tensors(generate(client, **options), generate(narrow, **options))


def test_asking_changes_no_token_and_not_asking_sends_nothing(client: Client) -> None:
    without = generate(client, **GREEDY)
    assert without.token_ids == generate(client, **ASKED, **GREEDY).token_ids
    own = without.sequences[0]
    assert not own.scores
    assert not own.logits
    assert not own.hidden_states
    assert not own.attentions


@pytest.mark.parametrize("name", ALL)
def test_each_comes_alone_and_ends_where_the_tokens_end(client: Client, name: str) -> None:
    long = generate(client, **GREEDY)
    for limit in (1, 2, 5):
        options: dict[str, Any] = {name: True, **GREEDY}
        cut = generate(client, max_new_tokens=limit, **options)
        assert cut.token_ids == long.token_ids[:limit]
        own = cut.sequences[0]
        for other in ALL:
            told = getattr(own, other.removeprefix("output_"))
            assert len(told) == (limit if other == name else 0)


def test_scores_are_minus_infinity_where_nothing_could_be_chosen(client: Client) -> None:
    completion = generate(client, output_scores=True, **SAMPLED)
    for token_id, scores in zip(completion.token_ids, completion.sequences[0].scores, strict=True):
        values = scores.tolist()
        assert sum(value > -math.inf for value in values) == SAMPLED["top_k"]
        assert values[token_id] > -math.inf


def test_large_ones_come_in_messages_of_bounded_size(caller: Caller) -> None:
    """A tensor of a megabyte and more crosses gRPC's limit for nobody."""
    prompt = [3 + i % 250 for i in range(900)]
    request = ask(prompt, max_new_tokens=1, output_attentions=True)
    sizes, parts = [], []
    for message in caller.open(request):
        assert message.ByteSize() < 2**20 + 1000
        sizes.append(sum(len(part.data) for part in message.chunk.tensors))
        parts += message.chunk.tensors
    assert sum(sizes) == LAYERS * HEADS * 8 * (900 * 901 // 2)
    assert [part.index for part in parts if not part.offset] == list(range(900))


@pytest.mark.parametrize("name", ALL)
def test_too_many_are_refused_by_name_with_the_limit(
    narrow_service: RunningService, name: str
) -> None:
    with Caller(narrow_service.address) as caller:
        options: dict[str, Any] = {"do_sample": True, "num_return_sequences": 2, name: True}
        got = refused(caller, ask(PROMPT, max_new_tokens=MAX_MODEL_LEN - 20, **options))
        assert (got.code, got.reason) == (grpc.StatusCode.INVALID_ARGUMENT, Reason.INVALID_FIELD)
        assert got.field == f"generation_config.{name}"
        assert str(LIMIT) in got.message
        assert "--max-tensor-bytes" in got.message


def test_the_limit_is_for_all_of_them_together(narrow_service: RunningService) -> None:
    size = VOCAB_SIZE * 4
    with Caller(narrow_service.address) as caller:
        most = LIMIT // size
        complete = list(caller.open(ask(PROMPT, max_new_tokens=most, output_scores=True)))
        told = sum(len(part.data) for one in complete for part in one.chunk.tensors)
        assert LIMIT - size < told <= LIMIT
        both: dict[str, Any] = dict.fromkeys(("output_scores", "output_logits"), True)
        assert refused(caller, ask(PROMPT, max_new_tokens=most + 1, output_scores=True))
        got = refused(caller, ask(PROMPT, max_new_tokens=most // 2 + 1, **both))
        assert got.field == "generation_config.output_logits"


def test_score_has_no_tensors(client: Client) -> None:
    with_them = client.score(PROMPT, GenerationConfig(**ASKED))
    assert with_them == client.score(PROMPT)


def test_messages_hold_nothing_else_when_they_are_of_the_prompt(caller: Caller) -> None:
    responses: list[pb.GenerateResponse] = list(
        caller.open(ask(PROMPT, max_new_tokens=2, output_hidden_states=True))
    )
    chunks = [response.chunk for response in responses[1:-1]]
    positions = [part.index for chunk in chunks for part in chunk.tensors]
    assert positions == list(range(len(PROMPT) + 1))
    assert sum(len(chunk.token_ids) for chunk in chunks) == 2
