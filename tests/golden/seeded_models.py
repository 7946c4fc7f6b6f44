"""Tiny models with the same weights under any release of transformers: by name, not by order.

Imported by the tests, and by the scripts here, which run under an old release.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM

VOCAB_SIZE = 61
_SHAPE: Mapping[str, Any] = {
    "vocab_size": VOCAB_SIZE,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "bos_token_id": None,
    "eos_token_id": None,
    "pad_token_id": None,
}

MODELS: Mapping[str, Mapping[str, Any]] = {
    "llama": {"model_type": "llama", **_SHAPE, "num_hidden_layers": 4},
    "llama_tied": {
        "model_type": "llama",
        **_SHAPE,
        "num_hidden_layers": 7,
        "tie_word_embeddings": True,
    },
    "qwen3": {
        "model_type": "qwen3",
        **_SHAPE,
        "head_dim": 16,
        "num_hidden_layers": 2,
        "tie_word_embeddings": False,
    },
    "mistral": {"model_type": "mistral", **_SHAPE, "num_hidden_layers": 5, "sliding_window": 6},
    "gpt2": {
        "model_type": "gpt2",
        "vocab_size": VOCAB_SIZE,
        "n_embd": 32,
        "n_layer": 4,
        "n_head": 4,
        "n_positions": 128,
        "bos_token_id": None,
        "eos_token_id": None,
    },
}


def build(name: str, *, sharpness: float = 3.0) -> Any:
    """A float64 model in evaluation mode.

    Args:
        name: A key of `MODELS`.
        sharpness: Size of the weights, in initial ones: larger makes clearer choices.
    """
    settings = dict(MODELS[name])
    config = AutoConfig.for_model(settings.pop("model_type"), **settings)
    model = AutoModelForCausalLM.from_config(config, attn_implementation="eager").eval()
    with torch.no_grad():
        for key, parameter in model.named_parameters():
            if parameter.ndim < 2:
                continue
            drawn = torch.Generator().manual_seed(zlib.crc32(key.encode()))
            noise = torch.randn(parameter.shape, generator=drawn)
            parameter.copy_(sharpness * 0.05 * noise)
    return model.to(torch.float64)


def prompts(count: int) -> list[list[int]]:
    """Prompts of different lengths, always the same."""
    drawn = torch.Generator().manual_seed(5)
    return [
        torch.randint(3, VOCAB_SIZE, (3 + 4 * i,), generator=drawn).tolist() for i in range(count)
    ]
