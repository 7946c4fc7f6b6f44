"""Tiny random decoders of many architectures, made in milliseconds and without a download.

`build_tiny("llama")` returns the same weights every time. Weights are enlarged, so that logits
differ visibly between tokens and a mistake in attention cannot hide in rounding.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

VOCAB_SIZE = 97
MAX_POSITIONS = 128
WINDOW = 7

_BASE: Mapping[str, Any] = {
    "vocab_size": VOCAB_SIZE,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": MAX_POSITIONS,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
_NO_GROUPS: Mapping[str, Any] = {k: v for k, v in _BASE.items() if k != "num_key_value_heads"}
_EXPERTS: Mapping[str, Any] = {
    **_BASE,
    "num_experts": 4,
    "num_local_experts": 4,
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 32,
}
_GPT2: Mapping[str, Any] = {
    "vocab_size": VOCAB_SIZE,
    "n_embd": 64,
    "n_layer": 3,
    "n_head": 4,
    "n_positions": MAX_POSITIONS,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
_MIXED_LAYERS = ["sliding_attention", "full_attention", "sliding_attention"]

SUPPORTED: Mapping[str, Mapping[str, Any]] = {
    "llama": _BASE,
    "qwen3": {**_BASE, "head_dim": 32},
    "gpt2": _GPT2,
    "mistral": {**_BASE, "sliding_window": WINDOW},
    "gemma2": {
        **_BASE,
        "head_dim": 16,
        "sliding_window": WINDOW,
        "attn_logit_softcapping": 2.0,
        "query_pre_attn_scalar": 16,
    },
    "mixtral": _EXPERTS,
    "qwen3_moe": {**_EXPERTS, "head_dim": 16},
    "qwen2": {**_BASE, "use_sliding_window": True, "sliding_window": 6, "max_window_layers": 1},
    "gemma": {**_BASE, "head_dim": 16},
    "gemma3_text": {
        **_BASE,
        "head_dim": 16,
        "sliding_window": WINDOW,
        "layer_types": _MIXED_LAYERS,
    },
    "gemma3n_text": {
        **_BASE,
        "head_dim": 16,
        "num_hidden_layers": 5,
        "intermediate_size": [96] * 5,
        "num_kv_shared_layers": 2,
        "hidden_size_per_layer_input": 8,
        "vocab_size_per_layer_input": VOCAB_SIZE,
        "laurel_rank": 8,
        "altup_num_inputs": 2,
        "sliding_window": WINDOW,
        "layer_types": [
            "sliding_attention",
            "sliding_attention",
            "full_attention",
            "sliding_attention",
            "full_attention",
        ],
        "activation_sparsity_pattern": [0.0] * 5,
    },
    "gpt_oss": {
        **_EXPERTS,
        "head_dim": 16,
        "sliding_window": WINDOW,
        "layer_types": _MIXED_LAYERS,
    },
    "deepseek_v3": {
        **_EXPERTS,
        "num_key_value_heads": 4,
        "kv_lora_rank": 16,
        "q_lora_rank": 16,
        "qk_rope_head_dim": 8,
        "qk_nope_head_dim": 16,
        "v_head_dim": 16,
        "n_group": 1,
        "topk_group": 1,
        "first_k_dense_replace": 1,
    },
    "phi": _BASE,
    "phi3": _BASE,
    "olmo2": _BASE,
    "olmo3": {**_BASE, "sliding_window": WINDOW},
    "granite": _BASE,
    "cohere": _BASE,
    "cohere2": {**_BASE, "sliding_window": WINDOW},
    "glm4": _BASE,
    "smollm3": _BASE,
    "stablelm": _BASE,
    "starcoder2": {**_BASE, "sliding_window": WINDOW},
    "nemotron": _BASE,
    "exaone4": {**_BASE, "sliding_window": WINDOW},
    "gpt_neox": _NO_GROUPS,
    "gpt_bigcode": _GPT2,
    "opt": {**_NO_GROUPS, "ffn_dim": 96, "word_embed_proj_dim": 64},
    "biogpt": _NO_GROUPS,
}
"""Architectures the ragged engine runs, by transformers' model type."""

REFUSED: Mapping[str, Mapping[str, Any]] = {
    "mamba": {"vocab_size": VOCAB_SIZE, "hidden_size": 64, "num_hidden_layers": 2},
    "mamba2": {
        "vocab_size": VOCAB_SIZE,
        "hidden_size": 64,
        "num_hidden_layers": 2,
        "num_heads": 8,
        "head_dim": 16,
        "state_size": 16,
        "n_groups": 1,
    },
    "qwen3_next": {
        **_EXPERTS,
        "head_dim": 16,
        "linear_num_key_heads": 2,
        "linear_num_value_heads": 4,
        "linear_key_head_dim": 16,
        "linear_value_head_dim": 16,
        "shared_expert_intermediate_size": 32,
    },
    "jamba": {
        **_EXPERTS,
        "attn_layer_period": 2,
        "attn_layer_offset": 1,
        "use_mamba_kernels": False,
    },
    "recurrent_gemma": {**_BASE, "lru_width": 64},
    "lfm2": {**_BASE, "layer_types": ["conv", "full_attention", "conv"]},
    "rwkv": {
        "vocab_size": VOCAB_SIZE,
        "hidden_size": 64,
        "num_hidden_layers": 2,
        "attention_hidden_size": 64,
    },
    "llama4_text": {**_EXPERTS, "head_dim": 16, "attention_chunk_size": 8},
    "bart": {
        "vocab_size": VOCAB_SIZE,
        "d_model": 64,
        "decoder_layers": 2,
        "decoder_attention_heads": 4,
        "decoder_ffn_dim": 96,
        "max_position_embeddings": MAX_POSITIONS,
        "is_decoder": True,
    },
    "roberta": {**_NO_GROUPS, "is_decoder": True},
    "gptj": {**_GPT2, "rotary_dim": 8},
    "codegen": {**_GPT2, "rotary_dim": 8},
    "gpt_neo": {
        "vocab_size": VOCAB_SIZE,
        "hidden_size": 64,
        "num_layers": 2,
        "num_heads": 4,
        "max_position_embeddings": MAX_POSITIONS,
        "attention_types": [[["global", "local"], 1]],
    },
    "bloom": {"vocab_size": VOCAB_SIZE, "hidden_size": 64, "n_layer": 3, "n_head": 4},
    "mpt": {"vocab_size": VOCAB_SIZE, "d_model": 64, "n_layers": 3, "n_heads": 4},
    "falcon": {
        "vocab_size": VOCAB_SIZE,
        "hidden_size": 64,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "alibi": False,
    },
    "xglm": {
        "vocab_size": VOCAB_SIZE,
        "d_model": 64,
        "ffn_dim": 96,
        "num_layers": 3,
        "attention_heads": 4,
    },
}
"""Architectures the ragged engine has to refuse, for one reason or another."""


def build_tiny(name: str, **overrides: Any) -> PreTrainedModel:
    """Returns a tiny random float32 model in evaluation mode, on transformers' eager attention.

    Args:
        name: transformers' model type, a key of `SUPPORTED` or `REFUSED`.
        **overrides: config attributes, plus `dtype` (torch.dtype) and `seed` (int).
    """
    dtype = overrides.pop("dtype", torch.float32)
    seed = overrides.pop("seed", 0)
    settings = {**(SUPPORTED.get(name) or REFUSED[name]), **overrides}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        config = AutoConfig.for_model(name, **settings)
        # The fused expert kernels know no float64.
        model = AutoModelForCausalLM.from_config(
            config,
            attn_implementation="eager",
            experts_implementation="eager" if dtype == torch.float64 else None,
        )
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim >= 2:
                parameter.mul_(4.0)
    return model.eval().to(dtype)
