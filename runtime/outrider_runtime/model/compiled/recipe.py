"""What a compiled forward depends on, and where it is kept. Knows nothing of how it is made."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
import transformers
from transformers import PreTrainedModel

from outrider_runtime import cpp
from outrider_runtime.model.kernels import library
from outrider_runtime.model.kernels.mode import Quantization

_SOURCES = Path(__file__).parent.parent
_TRACED = (
    "attention.py",
    "compiled/compiler.py",
    "compiled/joined_products.py",
    "compiled/step.py",
    "kernels/int8_linear.py",
    "kernels/packed_linear.py",
    "kernels/quantization.py",
    "kernels/replacement.py",
    "kernels/row_norm.py",
)
"""How it is traced and called, and what is traced in place of the model's own modules."""
_VOLATILE = ("_name_or_path",)
"""Entries of a configuration that say nothing of what the model computes."""
_INLINED = 8
"""Numbers in a tensor up to which the compiler may write them into the program."""


class Recipe(NamedTuple):
    """A forward to compile: of a model's shape, whatever its weights are."""

    config: str
    """The model's configuration, JSON."""
    quantization: Quantization
    """How the kernels hold the weights of its linear layers."""
    block_size: int
    """Positions per block of the KV cache."""
    kv_widths: Sequence[int]
    """Numbers that a position takes in the KV cache, layer by layer."""
    small_tensors: Mapping[str, Any]
    """Parameters and buffers of few numbers, by name: these are a part of the program."""

    @staticmethod
    def of(
        model: PreTrainedModel,
        *,
        quantization: Quantization,
        block_size: int,
        kv_widths: Sequence[int],
    ) -> Recipe:
        """The recipe for a model."""
        config = {k: v for k, v in model.config.to_dict().items() if k not in _VOLATILE}
        tensors = [*model.named_parameters(), *model.named_buffers()]
        return Recipe(
            config=json.dumps(config, sort_keys=True, default=str),
            quantization=quantization,
            block_size=block_size,
            kv_widths=list(kv_widths),
            small_tensors={n: t.tolist() for n, t in sorted(tensors) if t.numel() <= _INLINED},
        )

    @property
    def place(self) -> Path:
        """The file that the compiled forward has, or would have, in the user's cache.

        Raises:
            KernelsUnavailable: there are no kernels.
        """
        versions = (library.load().name, torch.__version__, transformers.__version__)
        digest = hashlib.sha256(json.dumps([*versions, *self]).encode() + cpp.processor())
        for source in _TRACED:
            digest.update((_SOURCES / source).read_bytes())
        return cpp.cache_folder("compiled") / f"{digest.hexdigest()[:24]}.pt2"

    def write(self, file: Path) -> None:
        """Keep it for another process."""
        file.write_text(json.dumps(self._asdict()))

    @staticmethod
    def read(file: Path) -> Recipe:
        """What `write` kept."""
        values = json.loads(file.read_text())
        return Recipe(**values | {"quantization": Quantization(values["quantization"])})
