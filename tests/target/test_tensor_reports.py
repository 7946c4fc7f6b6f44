"""Hidden states and attention weights of a crowded pool: each told once, and right."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from outrider_target.requests.request import TensorKind, TensorWishes
from target.batch import Answer, Batch, request
from target.conftest import NewRunner
from target.drafters import sometimes_right
from transformers import PreTrainedModel

NUM_LAYERS = 3
WISHES = TensorWishes(
    frozenset({TensorKind.HIDDEN_STATES, TensorKind.ATTENTIONS, TensorKind.LOGITS}), NUM_LAYERS
)
PROMPTS = [[5 + i, 9, 20, 7, 5 + i, 9, 31, 8, 14] for i in range(4)]


def told(answer: Answer, kind: TensorKind) -> list[torch.Tensor]:
    """The tensors of a kind, which must have come in order and once each."""
    found = [tensor for tensor in answer.tensors if tensor.kind is kind]
    assert [tensor.index for tensor in found] == list(range(len(found)))
    return [tensor.values for tensor in found]


def assert_true(answer: Answer, prompt: Sequence[int], model: PreTrainedModel) -> None:
    [output] = answer.token_ids
    with torch.inference_mode():
        known = model(
            torch.tensor([[*prompt, *output[:-1]]]),
            use_cache=False,
            output_hidden_states=True,
            output_attentions=True,
        )
    states = torch.stack(told(answer, TensorKind.HIDDEN_STATES), 1)
    expected = torch.stack([state[0] for state in known.hidden_states])
    torch.testing.assert_close(states, expected, atol=1e-6, rtol=0)
    weights = told(answer, TensorKind.ATTENTIONS)
    assert len(weights) == expected.shape[1]
    for position, own in enumerate(weights):
        row = torch.stack([layer[0, :, position, : position + 1] for layer in known.attentions])
        torch.testing.assert_close(own, row, atol=1e-6, rtol=0)
    logits = torch.stack(told(answer, TensorKind.LOGITS))
    torch.testing.assert_close(
        logits, known.logits[0, len(prompt) - 1 :].float(), atol=1e-5, rtol=0
    )


def test_preempted_and_drafted_sequences_tell_each_position_once(
    new_runner: NewRunner, tiny_model: PreTrainedModel
) -> None:
    generations = [request(prompt, tensors=WISHES) for prompt in PROMPTS]
    plain = Batch(new_runner()).run(*generations)
    truth = {
        (generation.id, 0): [*generation.prompt, *answer.token_ids[0]]
        for generation, answer in zip(generations, plain, strict=True)
    }
    drafter = sometimes_right(truth, probability=0.7, vocab_size=97, seed=3)
    crowded = Batch(new_runner(num_blocks=12), drafter, max_batched_tokens=12).run(*generations)
    assert sum(answer.num_preemptions for answer in crowded) > 0
    assert sum(answer.counters.num_accepted_tokens for answer in crowded if answer.counters) > 0
    model = type(tiny_model)(tiny_model.config).to(torch.float64).eval()
    model.load_state_dict(tiny_model.state_dict())
    model.set_attn_implementation("eager")
    for prompt, answer, alone in zip(PROMPTS, crowded, plain, strict=True):
        assert answer.token_ids == alone.token_ids
        assert_true(answer, prompt, model)
