from __future__ import annotations

from typing import Any

import pytest
import torch
from engine.plain_model import largest_difference
from engine.tiny_models import REFUSED, SUPPORTED, build_tiny
from outrider_runtime.errors import StartupError
from outrider_runtime.model.attention import forward_context, ragged_attention
from outrider_runtime.model.batch import RaggedBatch, SequenceRows
from outrider_runtime.model.causal_bias import CausalBias
from outrider_runtime.model.kv_pool import KVPool
from outrider_runtime.model.kv_storage import KVStorage
from outrider_runtime.model.ragged_runner import RaggedRunner
from outrider_runtime.model.self_check import self_check
from outrider_runtime.model.support import (
    UnsupportedModel,
    check_config,
    check_shareable,
    check_supported,
)
from transformers import AutoConfig, PreTrainedModel

REASONS = {
    "mamba": "layers other than full and sliding attention",
    "mamba2": "layers other than full and sliding attention",
    "qwen3_next": "layers other than full and sliding attention",
    "jamba": "layers other than full and sliding attention",
    "recurrent_gemma": "layers other than full and sliding attention",
    "lfm2": "layers other than full and sliding attention",
    "rwkv": "recurrent state",
    "llama4_text": "chunked",
    "bart": "position_ids",
    "roberta": "its logits are off by",
    "gptj": "cannot be replaced",
    "codegen": "cannot be replaced",
    "gpt_neo": "layer_idx",
    "bloom": "position_ids",
    "mpt": "position_ids",
    "falcon": "cannot be replaced",
    "xglm": "cannot be replaced",
}

DYNAMIC_NTK = {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 10000.0}
LONG_ROPE = {
    "rope_type": "longrope",
    "rope_theta": 10000.0,
    "short_factor": [1.0] * 8,
    "long_factor": [3.0] * 8,
    "original_max_position_embeddings": 32,
    "factor": 4.0,
}


@pytest.mark.parametrize("name", SUPPORTED)
def test_supported_architectures_pass_both_checks_and_keep_their_attention(name: str) -> None:
    model = build_tiny(name)
    check_supported(model)
    assert model.config._attn_implementation == "eager"
    assert self_check(model) > 0


@pytest.mark.parametrize("name", REFUSED)
def test_what_would_go_wrong_is_refused_in_one_line_with_name_and_reason(name: str) -> None:
    def check(model: PreTrainedModel) -> None:
        check_supported(model)
        self_check(model)

    with pytest.raises(UnsupportedModel, match=REASONS[name]) as caught:
        check(build_tiny(name))
    assert repr(name) in str(caught.value)
    assert "\n" not in str(caught.value)
    assert isinstance(caught.value, StartupError)


@pytest.mark.parametrize(
    ("name", "overrides"),
    [
        ("llama", {"rope_parameters": DYNAMIC_NTK}),
        ("phi3", {"rope_parameters": LONG_ROPE, "original_max_position_embeddings": 32}),
        (
            "gemma3_text",
            {
                "rope_parameters": {
                    "full_attention": DYNAMIC_NTK,
                    "sliding_attention": {"rope_type": "default", "rope_theta": 10000.0},
                }
            },
        ),
    ],
)
def test_rotary_scaling_that_follows_the_batch_is_refused(
    name: str, overrides: dict[str, Any]
) -> None:
    with pytest.raises(UnsupportedModel, match="rotary scaling"):
        check_supported(build_tiny(name, **overrides))


@pytest.mark.parametrize("rope_type", ["llama3", "yarn", "linear"])
def test_rotary_scaling_that_does_not_follow_the_batch_is_right(rope_type: str) -> None:
    parameters = {
        "rope_type": rope_type,
        "rope_theta": 10000.0,
        "factor": 4.0,
        "original_max_position_embeddings": 32,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
    }
    wanted = {"llama3": 6, "yarn": 4, "linear": 3}[rope_type]
    chosen = dict(list(parameters.items())[:wanted])
    model = build_tiny("llama", rope_parameters=chosen)
    check_supported(model)
    self_check(model)


def test_encoder_decoders_are_refused_before_any_weights_are_read() -> None:
    with pytest.raises(UnsupportedModel, match="encoder-decoder"):
        check_config(AutoConfig.for_model("t5"))


@pytest.mark.parametrize(
    ("name", "size", "why"),
    [
        ("llama", 4, "its 2 key heads cannot be shared out evenly over 4 ranks"),
        ("llama", 3, "its 4 attention heads"),
        ("gpt2", 2, "no plan"),
    ],
)
def test_what_cannot_be_shared_out_is_refused(name: str, size: int, why: str) -> None:
    config = build_tiny(name).config
    with pytest.raises(UnsupportedModel, match=why):
        check_shareable(config, size)
    check_shareable(build_tiny("llama").config, 2)


SELF_CHECK_CATCHES = ["jamba", "recurrent_gemma", "lfm2", "llama4_text", "bart", "roberta"]
KEEPS_ITS_ATTENTION = ["mamba", "mamba2", "qwen3_next", "rwkv", "gptj", "bloom", "falcon", "xglm"]


class TestTheSelfCheckAlone:
    """The second net has to hold what the first one would have caught, and what nobody listed."""

    @pytest.mark.parametrize("name", SELF_CHECK_CATCHES)
    def test_notices_architectures_that_fail_silently(self, name: str) -> None:
        with pytest.raises(UnsupportedModel, match="its logits are off by"):
            self_check(build_tiny(name))

    @pytest.mark.parametrize("name", KEEPS_ITS_ATTENTION)
    def test_notices_models_that_keep_their_own_attention(self, name: str) -> None:
        with pytest.raises(UnsupportedModel, match="does not call the attention function"):
            self_check(build_tiny(name))

    def test_notices_frequencies_that_follow_the_largest_position_of_the_batch(self) -> None:
        model = build_tiny("phi3", rope_parameters=LONG_ROPE, original_max_position_embeddings=32)
        with pytest.raises(UnsupportedModel, match="its logits are off by"):
            self_check(model)

    def test_notices_layers_that_mix_the_rows_of_a_batch(self) -> None:
        model = build_tiny("llama")
        mix = 0.05

        def mix_rows(_: object, __: object, output: torch.Tensor) -> torch.Tensor:
            return output + mix * output.cumsum(1)

        model.model.layers[1].mlp.register_forward_hook(mix_rows)
        with pytest.raises(UnsupportedModel, match="its logits are off by"):
            self_check(model)

    def test_notices_a_window_that_never_reaches_attention(self) -> None:
        model = build_tiny("llama")
        model.config.sliding_window = 64  # wider than the tokens that are tried
        with pytest.raises(UnsupportedModel, match="sliding window 64"):
            self_check(model)

    def test_notices_weights_that_are_not_numbers(self) -> None:
        model = build_tiny("llama")
        with torch.no_grad():
            model.lm_head.weight[3, 3] = float("nan")
        with pytest.raises(UnsupportedModel, match="not numbers"):
            self_check(model)

    @pytest.mark.parametrize("name", ["llama", "gpt_oss", "mixtral"])
    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
    def test_allows_for_the_rounding_of_other_dtypes(self, name: str, dtype: torch.dtype) -> None:
        self_check(build_tiny(name, dtype=dtype))

    def test_refuses_a_model_with_next_to_no_positions(self) -> None:
        with pytest.raises(UnsupportedModel, match="only 3 positions"):
            self_check(build_tiny("llama", max_position_embeddings=3))

    def test_fits_into_very_few_positions(self) -> None:
        assert self_check(build_tiny("gpt2", n_positions=4)) > 0


def test_the_runner_refuses_a_model_that_keeps_its_own_attention() -> None:
    with pytest.raises(UnsupportedModel, match="does not call the attention function"):
        RaggedRunner(build_tiny("gptj"), num_blocks=4, block_size=4)


class TestAttentionArguments:
    """What an unknown model may hand over decides which keys are seen: better none than wrong."""

    def attend(self, **arguments: Any) -> torch.Tensor:
        pool, storage = KVPool(4, 4), KVStorage(4, 4)
        handle = pool.create()
        pool.append(handle, 3)
        device = torch.device("cpu")
        batch = RaggedBatch(
            [SequenceRows(handle, [1, 2, 3], 3)],
            pool=pool,
            bias=CausalBias(device=device, dtype=torch.float32),
            device=device,
            first_positions={},
        )
        module = torch.nn.Module()
        module.layer_idx = 0  # type: ignore[assignment]  # as models do
        ones = torch.ones(1, 2, 3, 4)
        mask = arguments.pop("attention_mask", None)
        with forward_context(batch, storage):
            out, weights = ragged_attention(module, ones, ones, ones, mask, **arguments)
        assert weights is None
        return out

    def test_flags_and_the_known_are_harmless(self) -> None:
        out = self.attend(dropout=0.0, output_attentions=False, position_ids=torch.ones(1), x=None)
        assert largest_difference(out, torch.ones(1, 3, 2, 4)) < 1e-6

    @pytest.mark.parametrize(
        "arguments",
        [
            {"position_bias": torch.ones(1)},
            {"indices": torch.ones(1)},
            {"attention_chunk_size": 8},
            {"attention_mask": torch.ones(1)},
        ],
    )
    def test_anything_else_is_refused(self, arguments: dict[str, Any]) -> None:
        with pytest.raises(RuntimeError, match=r"does not know|mask of its own"):
            self.attend(**arguments)
