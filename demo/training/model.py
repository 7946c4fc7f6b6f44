"""The two models: their shapes, and how they are written and read back."""

from __future__ import annotations

import copy
import tempfile
from pathlib import Path

import torch
from tokenizer import MAX_POSITIONS, VOCABULARY
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM

HEAD = 64
SHAPES: dict[str, dict[str, int]] = {
    "target": {
        "hidden_size": 256,
        "intermediate_size": 704,
        "num_hidden_layers": 8,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
    },
    "draft": {
        "hidden_size": 192,
        "intermediate_size": 1024,
        "num_hidden_layers": 1,
        "num_attention_heads": 3,
        "num_key_value_heads": 1,
    },
}


def build(name: str) -> LlamaForCausalLM:
    """A freshly initialised model of the named shape."""
    config = LlamaConfig(
        **SHAPES[name],
        vocab_size=VOCABULARY,
        head_dim=HEAD,
        max_position_embeddings=MAX_POSITIONS,
        tie_word_embeddings=True,
        bos_token_id=0,
        eos_token_id=0,
        pad_token_id=None,
    )
    return LlamaForCausalLM(config)


def export(model: LlamaForCausalLM, folder: Path) -> None:
    """Write the model in float16, every file replaced whole."""
    folder.mkdir(parents=True, exist_ok=True)
    half = copy.deepcopy(model).to(torch.float16)
    if not all(torch.isfinite(parameter).all() for parameter in half.parameters()):
        raise ValueError("a weight does not fit float16")
    half.generation_config = GenerationConfig(bos_token_id=0, eos_token_id=0, do_sample=False)
    with tempfile.TemporaryDirectory(dir=folder.parent) as written:
        half.save_pretrained(written)
        for path in Path(written).iterdir():
            path.chmod(0o644)
            path.replace(folder / path.name)


def load(folder: Path) -> LlamaForCausalLM:
    """The model a folder holds, in float32, ready to be evaluated."""
    return LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
