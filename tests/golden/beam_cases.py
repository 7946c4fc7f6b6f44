"""What transformers 4.56.2 finds with beams; imported by the scripts here, under that release."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import transformers
from golden.seeded_models import MODELS, build, prompts

__all__ = ["MODELS", "write"]

NEW_TOKENS = 12
SHARPNESS = 1.5
"""Flatter than elsewhere: beams then part ways and meet again."""


def case(name: str, options: dict[str, Any], prompt: list[int]) -> dict[str, Any]:
    """One search: sequences without padding, their scores, and the beams they continued.

    Of the end-of-sequence tokens the first is put down, whichever it was. Beams are None where
    that release tells those of another group, or none.
    """
    # That release cannot tell the scores of a float64 model.
    model = build(name, sharpness=SHARPNESS).float()
    output = model.generate(
        torch.tensor([prompt]),
        attention_mask=torch.ones(1, len(prompt), dtype=torch.long),
        do_sample=False,
        return_dict_in_generate=True,
        output_scores=True,
        **{"max_new_tokens": NEW_TOKENS, **options},
    )
    eos = options.get("eos_token_id", [])
    ends = {eos} if isinstance(eos, int) else set(eos)
    found = []
    none = torch.full_like(output.sequences, -1)
    beam_indices = none if output.beam_indices is None else output.beam_indices
    for row, indices, score in zip(
        output.sequences, beam_indices, output.sequences_scores, strict=True
    ):
        row_ids = row[len(prompt) :].tolist()
        number = next((i + 1 for i, token_id in enumerate(row_ids) if token_id in ends), None)
        token_ids = row_ids[:number]
        known = indices[indices >= 0].tolist()
        found.append(
            {
                "token_ids": token_ids,
                "beam_indices": known if len(known) == len(token_ids) else None,
                "score": round(float(score), 5),
            }
        )
    return {"model": name, "options": options, "prompt": prompt, "found": found}


def write(file: str, cases: Sequence[tuple[str, dict[str, Any], int]]) -> None:
    """Write the golden file, a case a line: of a model, options and the number of a prompt."""
    assert transformers.__version__ == "4.56.2"
    several = prompts(4)
    lines = [
        json.dumps(case(name, options, several[number % len(several)]))
        for name, options, number in cases
    ]
    text = ",\n".join(lines)
    Path(__file__).with_name(file).write_text(f"[\n{text}\n]\n")
