"""What a forward tells of its layers is what transformers tells, and costs nobody else anything."""

from __future__ import annotations

import pytest
import torch
from engine.plain_model import largest_difference, random_ids
from engine.tiny_models import SUPPORTED, build_tiny
from outrider_runtime.model.batch import SequenceRows
from outrider_runtime.model.layer_reading import LayerReading
from outrider_runtime.model.ragged_runner import RaggedRunner
from transformers import PreTrainedModel

TOLERANCE = 2e-5
UNREADABLE = {"gemma3n_text"}
"""Four vectors per token pass between its layers."""
READABLE = [name for name in SUPPORTED if name not in UNREADABLE]

_A, _B, _C = (random_ids(n, seed=seed) for seed, n in enumerate((17, 9, 14)))


class Known:
    """All hidden states and attention weights of one sequence, from transformers."""

    def __init__(self, name: str, token_ids: list[int]) -> None:
        with torch.inference_mode():
            output = build_tiny(name)(
                input_ids=torch.tensor([token_ids]),
                use_cache=False,
                output_hidden_states=True,
                output_attentions=True,
            )
        self.hidden = [state[0] for state in output.hidden_states]
        self.weights = [weights[0] for weights in output.attentions]


def runner_of(model: PreTrainedModel) -> RaggedRunner:
    return RaggedRunner(model, num_blocks=64, block_size=4)


@pytest.mark.parametrize("name", READABLE)
def test_hidden_states_and_attention_weights_are_those_of_transformers(name: str) -> None:
    runner = runner_of(build_tiny(name))
    assert runner.layers is not None
    every = range(runner.layers.num_layers + 1)
    a, b, c = (runner.pool.create() for _ in range(3))
    first = LayerReading(11, hidden_of=every, weights=True)
    runner.forward([SequenceRows(b, _B[:8], 0), SequenceRows(a, _A[:11], 0, [first])])
    rest, last = (LayerReading(n, hidden_of=every, weights=True) for n in (6, 3))
    runner.forward(
        [
            SequenceRows(b, _B[8:], 1),
            SequenceRows(a, _A[11:], 2, [rest]),
            SequenceRows(c, _C, 1, [last]),
        ]
    )
    known_a, known_c = Known(name, _A), Known(name, _C)
    for reading, end, known in ((first, 11, known_a), (rest, 17, known_a), (last, 14, known_c)):
        rows = slice(end - reading.num_rows, end)
        for layer, expected in zip(every, known.hidden, strict=True):
            assert largest_difference(reading.hidden_states[layer], expected[rows]) < TOLERANCE
        for own, expected in zip(reading.attentions, known.weights, strict=True):
            assert largest_difference(own, expected[:, rows, :end]) < TOLERANCE


@pytest.mark.parametrize("name", ["llama", "gpt2", "gemma2", "gpt_oss", "deepseek_v3", "opt"])
def test_the_first_layers_alone_are_a_smaller_model(name: str) -> None:
    """As transformers' early exit: the keys of the first layers are there already."""
    runner = runner_of(build_tiny(name))
    handle = runner.pool.create()
    runner.forward([SequenceRows(handle, _A, 0)])
    early = runner.forward([SequenceRows(handle, _C[:2], 2)], num_layers=2)
    runner.pool.truncate(handle, len(_A))
    whole = runner.forward([SequenceRows(handle, _C[:2], 2)])
    model = build_tiny(name)
    with torch.inference_mode():
        ids = torch.tensor([_A + _C[:2]])
        assert largest_difference(whole, model(ids, use_cache=False).logits[0, -2:]) < TOLERANCE
        shorten(model, 2)
        assert largest_difference(early, model(ids, use_cache=False).logits[0, -2:]) < TOLERANCE


def shorten(model: PreTrainedModel, count: int) -> None:
    """Take away all layers but the first."""
    for module in model.modules():
        for child in module.children():
            if isinstance(child, torch.nn.ModuleList) and any(
                hasattr(part, "layer_idx") for part in child[0].modules()
            ):
                del child[count:]


def test_the_head_alone_scores_hidden_states() -> None:
    model = build_tiny("llama")
    runner = runner_of(model)
    reading = LayerReading(4, hidden_of=[1], logits_of=[1, 3])
    logits = runner.forward([SequenceRows(runner.pool.create(), _A, 4, [reading])])
    assert set(reading.hidden_states) == {1}
    with torch.inference_mode():
        expected = model.lm_head(reading.hidden_states[1])
    assert largest_difference(reading.logits[1], expected) == 0
    assert largest_difference(reading.logits[3], logits) < TOLERANCE


@pytest.mark.parametrize("name", UNREADABLE)
def test_a_model_without_one_state_per_token_says_so(name: str) -> None:
    runner = runner_of(build_tiny(name))
    assert runner.layers is None
    with pytest.raises(ValueError, match="nothing can be read"):
        runner.forward([SequenceRows(runner.pool.create(), _A, 1, [LayerReading(1, [0])])])


def test_nobody_is_watched_who_did_not_ask() -> None:
    model = build_tiny("llama")
    runner = runner_of(model)
    handle = runner.pool.create()
    runner.forward([SequenceRows(handle, _A, 1, [LayerReading(1, [0, 1, 3], weights=True)])])
    hooks = [
        hook
        for module in model.modules()
        for hook in (*module._forward_hooks, *module._forward_pre_hooks)
    ]
    assert hooks == []


@pytest.mark.parametrize(
    "reading", [LayerReading(0, [1]), LayerReading(18, [1]), LayerReading(1, [4])]
)
def test_a_reading_that_makes_no_sense_changes_nothing(reading: LayerReading) -> None:
    runner = runner_of(build_tiny("llama"))
    handle = runner.pool.create()
    with pytest.raises(ValueError, match="read"):
        runner.forward([SequenceRows(handle, _A, 1, [reading])])
    assert runner.pool.length(handle) == 0


def test_a_fault_on_the_way_leaves_the_model_whole_and_unwatched() -> None:
    model = build_tiny("llama")
    runner = runner_of(model)
    handle = runner.pool.create()
    expected = runner.forward([SequenceRows(handle, _A, 2)])
    runner.pool.truncate(handle, 0)

    def fail(*_: object) -> None:
        raise RuntimeError("a fault in a layer")

    hook = model.model.layers[1].register_forward_hook(fail)
    for num_layers in (2, None):
        rows = SequenceRows(handle, _A, 2, [LayerReading(3, [0, 1, 2, 3])])
        with pytest.raises(RuntimeError, match="in a layer"):
            runner.forward([rows], num_layers=num_layers)
        assert runner.pool.length(handle) == 0
    hook.remove()
    assert torch.equal(runner.forward([SequenceRows(handle, _A, 2)]), expected)
    assert not any(module._forward_hooks for module in model.modules())
