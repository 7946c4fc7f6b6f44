"""A Llama checkpoint grown without changing what it says: real behaviour at a realistic cost.

Wider: the residual stream gets dimensions that stay zero, attention more heads and the MLP more
neurons that nobody listens to. Deeper: further layers that add nothing. What is multiplied by zero,
or multiplies it, is filled with noise, so that no engine is faster for finding zeros there.
"""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors.torch import load_file, save_file

_COPIED = ("generation_config.json", "tokenizer.json", "tokenizer_config.json")
_NOISE = 0.02


class Growth(NamedTuple):
    """The shape to grow to. Heads keep their size, and as many share keys and values as before."""

    hidden_size: int
    intermediate_size: int
    layers: int
    heads: int


class ShapeError(ValueError):
    """A model cannot be grown to a shape."""


def grow(source: Path, destination: Path, growth: Growth) -> None:
    """Write the grown model of a folder into another, in float32.

    RMSNorm divides by the root of the mean square over all dimensions; with zeros added the mean
    falls by `old / new`, so its weight is multiplied by the root of that, and epsilon by that.

    Raises:
        ShapeError: The growth shrinks something, or splits a group of heads.
    """
    config = json.loads((source / "config.json").read_text())
    weights = {k: v.float() for k, v in load_file(source / "model.safetensors").items()}
    grower = _Grower(config, growth)
    grown = {name: grower.grown(name, weight) for name, weight in weights.items()}
    for layer in range(config["num_hidden_layers"], growth.layers):
        grown |= grower.idle_layer(layer, grown)
    destination.mkdir(parents=True, exist_ok=True)
    save_file(grown, destination / "model.safetensors", metadata={"format": "pt"})
    (destination / "config.json").write_text(json.dumps(grower.config(), indent=2) + "\n")
    for name in _COPIED:
        shutil.copyfile(source / name, destination / name)


class _Grower:
    def __init__(self, config: dict[str, object], growth: Growth) -> None:
        self._config = config
        self._growth = growth
        self._generator = torch.Generator().manual_seed(7)
        old_heads, old_groups = (
            _number(config, "num_attention_heads"),
            _number(config, "num_key_value_heads"),
        )
        self._groups, split = divmod(growth.heads * old_groups, old_heads)
        old = (
            _number(config, "hidden_size"),
            _number(config, "intermediate_size"),
            _number(config, "num_hidden_layers"),
            old_heads,
        )
        if split or any(new < before for new, before in zip(growth, old, strict=True)):
            raise ShapeError(f"{growth} does not hold a model of {old} whole")
        self._width_ratio = old[0] / growth.hidden_size
        head = _number(config, "head_dim")
        width, inner = growth.hidden_size, growth.intermediate_size
        self._shapes = {
            "embed_tokens": (_number(config, "vocab_size"), width),
            "lm_head": (_number(config, "vocab_size"), width),
            "q_proj": (growth.heads * head, width),
            "k_proj": (self._groups * head, width),
            "v_proj": (self._groups * head, width),
            "o_proj": (width, growth.heads * head),
            "gate_proj": (inner, width),
            "up_proj": (inner, width),
            "down_proj": (width, inner),
        }

    def config(self) -> dict[str, object]:
        return {
            **self._config,
            "hidden_size": self._growth.hidden_size,
            "intermediate_size": self._growth.intermediate_size,
            "num_hidden_layers": self._growth.layers,
            "num_attention_heads": self._growth.heads,
            "num_key_value_heads": self._groups,
            "rms_norm_eps": float(str(self._config["rms_norm_eps"])) * self._width_ratio,
            "dtype": "float32",
        }

    def grown(self, name: str, weight: torch.Tensor) -> torch.Tensor:
        if weight.dim() == 1:
            padded = torch.ones(self._growth.hidden_size)
            padded[: len(weight)] = weight * math.sqrt(self._width_ratio)
            return padded
        kind = name.removesuffix(".weight").rpartition(".")[2]
        rows, columns = weight.shape
        padded = self._noise(self._shapes[kind])
        if kind in ("embed_tokens", "lm_head"):
            padded[:, columns:] = 0  # new dimensions begin at zero,
        elif kind in ("o_proj", "down_proj"):
            padded[rows:] = 0  # nothing is added to them,
            padded[:, columns:] = 0  # and nobody listens to new heads and neurons
        padded[:rows, :columns] = weight
        return padded

    def idle_layer(self, layer: int, grown: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """A layer shaped like the first that adds nothing to what passes it."""
        first = "model.layers.0."
        return {
            f"model.layers.{layer}.{name.removeprefix(first)}": self._idle(name, weight)
            for name, weight in grown.items()
            if name.startswith(first)
        }

    def _idle(self, name: str, weight: torch.Tensor) -> torch.Tensor:
        if weight.dim() == 1:
            return weight.clone()
        silent = "o_proj" in name or "down_proj" in name
        return torch.zeros(weight.shape) if silent else self._noise(tuple(weight.shape))

    def _noise(self, shape: tuple[int, ...]) -> torch.Tensor:
        return torch.empty(shape).normal_(std=_NOISE, generator=self._generator)


def _number(config: dict[str, object], key: str) -> int:
    value = config[key]
    assert isinstance(value, int)
    return value
