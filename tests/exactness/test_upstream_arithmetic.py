"""What transformers' assisted generation computes wrongly: ratios that round, positions of axes.

As in `test_upstream_limits`, each property is tried on transformers too, where it must fail.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
from exactness.sides import sides
from outrider_runtime.model.loader import load
from outrider_runtime.model.selection import RowGroup, select_tokens
from outrider_runtime.model.support import UnsupportedModel, check_supported
from outrider_runtime.sampling_parameters import SamplingParameters
from outrider_target.decoding.acceptance import accept
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.generation.candidate_generator import _prepare_position_ids
from transformers.generation.utils import _speculative_sampling

NUM_TOKENS = 4
HIGHEST = 1 - 2.0**-24
"""That `torch.rand` draws."""

QWEN = {
    "vocab_size": 97,
    "hidden_size": 32,
    "intermediate_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 64,
    "layer_types": ["full_attention"],
}


@contextmanager
def highest_draw() -> Iterator[None]:
    """`torch.rand` gives the highest number it can give."""

    def highest(like: torch.Tensor) -> torch.Tensor:
        return torch.full_like(like, HIGHEST)

    with mock.patch.object(torch, "rand_like", highest):
        yield


def nearly_alike() -> tuple[torch.Tensor, torch.Tensor]:
    """Target's and drafter's logits: the drafter thinks one token likelier, by rounding alone.

    The other tokens have the same probabilities, bit for bit. How a softmax rounds is looked for.
    """
    for seed, exponent in itertools.product(range(20), range(24, 18, -1)):
        p = torch.randn(NUM_TOKENS, generator=torch.Generator().manual_seed(seed))
        q = p.clone()
        q[0] += 2.0**-exponent
        of_p, of_q = p.softmax(-1), q.softmax(-1)
        rejected = of_p[0] / of_q[0] < HIGHEST
        if rejected and torch.equal(of_p[1:], of_q[1:]):
            return p, q
    raise AssertionError("no rounding found")


@sides("rejected by rounding, the token is recovered from a residual of 0 / 0")
def test_a_draft_that_only_rounding_rejects_is_replaced_by_a_token(side: str) -> None:
    p, q = nearly_alike()
    if side == "theirs":
        with highest_draw():
            tokens, _ = _speculative_sampling(
                torch.tensor([[0]]), q[None, None], 1, torch.stack([p, p])[None]
            )
        assert 0 <= int(tokens[0, 0]) < NUM_TOKENS
        return
    num_accepted = 0
    for seed in range(200):
        drawn = SamplingParameters(do_sample=True)
        (drafted,) = select_tokens(q[None], [RowGroup(drawn, seed, 0, [0], 1, 1)]).token_ids
        group = RowGroup(drawn, seed, 0, [0, drafted], 2, 1)
        decided, accepted = accept([drafted], select_tokens(torch.stack([p, p]), [group]).token_ids)
        assert all(0 <= token < NUM_TOKENS for token in decided)
        num_accepted += accepted
    assert num_accepted > 190


@sides("too long a table of positions is cut in the wrong one of its dimensions")
def test_positions_of_several_axes_are_cut_with_the_text_or_their_models_refused(
    side: str, tmp_path: Path
) -> None:
    """Multimodal rotary positions: none of the models that have them is served."""
    if side == "theirs":
        positions = torch.arange(8).expand(3, 1, 8)
        cut = _prepare_position_ids({"position_ids": positions}, 6, is_encoder_decoder=False)
        assert torch.equal(cut["position_ids"], positions[..., :6])
        return
    sections = {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [2, 3, 3]}
    for name, why in {
        "qwen2_vl": "no causal language model",
        "qwen2_5_vl": "no causal language model",
        "qwen3_vl": "no causal language model",
    }.items():
        config = AutoConfig.for_model(name)
        config.get_text_config().rope_parameters = sections
        config.save_pretrained(folder := tmp_path / name)
        with pytest.raises(UnsupportedModel, match=f"{name}.*{why}"):
            load(str(folder))
    text: Any = AutoConfig.for_model("qwen3_5_text", **QWEN)
    text.rope_parameters |= sections
    with pytest.raises(UnsupportedModel, match="recurrent state, which cannot be rolled back"):
        check_supported(AutoModelForCausalLM.from_config(text))
