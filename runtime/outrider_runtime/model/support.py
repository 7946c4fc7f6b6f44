"""The guard: which models the ragged engine may run. Refuses before anything can go wrong silently.

A ragged batch is right only for models in which nothing but attention joins the rows of a batch and
everything else follows from a row's token and position. Several families break that *without any
error*: recurrent state mixes sequences, rotary scaling looks at the largest position of the batch,
some decoders count positions themselves. What is known to break is refused here, by reading the
config and the class; what nobody listed is left to the self-check, which runs the model.
"""

from __future__ import annotations

import inspect

from transformers import PretrainedConfig, PreTrainedModel

from outrider_runtime.errors import StartupError
from outrider_runtime.model.attention import ATTENTION_NAME
from outrider_runtime.model.model_facts import (
    layer_types,
    num_attention_heads,
    num_key_value_heads,
    rope_types,
    text_config,
)

SUPPORTED_LAYER_TYPES = frozenset({"full_attention", "sliding_attention"})

BATCH_DEPENDENT_ROPE = frozenset({"dynamic", "longrope", "su"})
"""Rotary variants whose frequencies follow the largest position in the batch."""


class UnsupportedModel(StartupError):
    """The ragged engine cannot run this model correctly."""

    def __init__(self, config: PretrainedConfig, why: str) -> None:
        super().__init__(f"model type {config.model_type!r} is not supported: {why}")


def check_config(config: PretrainedConfig) -> None:
    """Refuses by what the config says, before any weights are read.

    Raises:
        UnsupportedModel: naming the model type and the reason.
    """
    text = text_config(config)
    # With defaults: a config has only what its architecture knows of.
    if getattr(config, "is_encoder_decoder", False) or getattr(text, "is_encoder_decoder", False):
        raise UnsupportedModel(config, "it is an encoder-decoder; decoder-only models are served")
    if foreign := sorted(layer_types(config) - SUPPORTED_LAYER_TYPES):
        raise UnsupportedModel(
            config, f"it has layers other than full and sliding attention ({', '.join(foreign)})"
        )
    if getattr(text, "attention_chunk_size", None):
        raise UnsupportedModel(config, "it attends in chunks (attention_chunk_size)")
    if rope := sorted(rope_types(config) & BATCH_DEPENDENT_ROPE):
        raise UnsupportedModel(
            config,
            f"its rotary scaling {rope[0]!r} depends on the longest sequence of the batch",
        )


def check_shareable(config: PretrainedConfig, size: int) -> None:
    """Refuses by what the config says of sharing the model out over so many ranks.

    Raises:
        UnsupportedModel: naming the model type and the reason.
    """
    if not getattr(text_config(config), "base_model_tp_plan", None):
        raise UnsupportedModel(config, "transformers has no plan to share it out over ranks")
    for heads, name in (
        (num_attention_heads(config), "attention"),
        (num_key_value_heads(config), "key"),
    ):
        if not heads or heads % size:
            raise UnsupportedModel(
                config, f"its {heads} {name} heads cannot be shared out evenly over {size} ranks"
            )


def check_supported(model: PreTrainedModel) -> None:
    """Refuses by config and class; leaves the model as it was.

    Raises:
        UnsupportedModel: naming the model type and the reason.
    """
    config = model.config
    check_config(config)
    if getattr(model, "_is_stateful", False):  # transformers' mark; only such models have it
        raise UnsupportedModel(config, "it keeps recurrent state, which cannot be rolled back")
    accepted = inspect.signature(model.forward).parameters
    for argument in ("position_ids", "logits_to_keep"):
        if argument not in accepted:
            raise UnsupportedModel(config, f"its forward takes no {argument}")
    if not any(hasattr(module, "layer_idx") for module in model.modules()):
        raise UnsupportedModel(config, "its attention layers have no layer_idx")
    if model.get_output_embeddings() is None:
        raise UnsupportedModel(config, "it has no output head that scores the vocabulary")
    _check_attention_replaceable(model)


def _check_attention_replaceable(model: PreTrainedModel) -> None:
    before = text_config(model.config)._attn_implementation
    model.set_attn_implementation(ATTENTION_NAME)
    # A model that cannot only logs a warning, so look whether it took effect.
    taken = text_config(model.config)._attn_implementation == ATTENTION_NAME
    model.set_attn_implementation(before)
    if not taken:
        raise UnsupportedModel(
            model.config, "its attention cannot be replaced (no AttentionInterface)"
        )
