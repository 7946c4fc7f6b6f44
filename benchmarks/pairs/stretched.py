"""The shipped target with room for longer texts, or with a larger vocabulary: what those cost.

What it says is unchanged up to the length it was trained on; beyond it only the cost counts.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import torch
from outrider_demo import TARGET_DIR
from safetensors.torch import load_file, save_file

from benchmarks.pairs.cache import cached

_WEIGHTS = "model.safetensors"
_EMBEDDING = "model.embed_tokens.weight"


def lengthened(positions: int) -> Path:
    """The target for so many positions."""

    def make(folder: Path) -> None:
        _copy(folder, max_position_embeddings=positions)

    return cached(["lengthened", positions], TARGET_DIR, make)


def with_vocabulary(size: int) -> Path:
    """The target with so many tokens, those beyond its own never the most probable.

    Their rows are zero, and so is their score; that of the best of thousands is above it.
    """

    def make(folder: Path) -> None:
        _copy(folder, vocab_size=size)
        weights = load_file(TARGET_DIR / _WEIGHTS)
        own = weights[_EMBEDDING]
        padding = torch.zeros(size - len(own), own.shape[1], dtype=own.dtype)
        weights[_EMBEDDING] = torch.cat([own, padding])
        save_file(weights, folder / _WEIGHTS, metadata={"format": "pt"})

    return cached(["vocabulary", size], TARGET_DIR, make)


def _copy(folder: Path, **changes: int) -> None:
    shutil.copytree(TARGET_DIR, folder, dirs_exist_ok=True)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | changes, indent=2) + "\n")
