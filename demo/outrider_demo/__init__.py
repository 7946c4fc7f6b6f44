"""A small pair of code models, target and draft, that share one tokenizer."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

MODELS_DIR = Path(__file__).resolve().parent / "models"
TARGET_DIR = MODELS_DIR / "target"
DRAFT_DIR = MODELS_DIR / "draft"
PROMPTS_FILE = Path(__file__).resolve().parent / "prompts.json"

__all__ = ["DRAFT_DIR", "MODELS_DIR", "PROMPTS_FILE", "TARGET_DIR", "Prompt", "held_out_prompts"]


@dataclass(frozen=True)
class Prompt:
    """The start of a piece of code, from a file that neither model was trained on or by hand."""

    source: str
    """The held-out file of the standard library it comes from, or "by hand"."""

    tokens: int
    """How many tokens the pair's tokenizer makes of it."""

    text: str


def held_out_prompts() -> list[Prompt]:
    """The prompts the benchmarks continue."""
    return [Prompt(**row) for row in json.loads(PROMPTS_FILE.read_text(encoding="utf-8"))]
