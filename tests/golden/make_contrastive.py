"""Writes contrastive.json: contrastive search in transformers 4.55.4, the last release that has it.

python -m venv /tmp/old && /tmp/old/bin/pip install torch transformers==4.55.4
cd tests && /tmp/old/bin/python -m golden.make_contrastive
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
import transformers
from golden.seeded_models import MODELS, build, prompts

CASES: list[tuple[str, dict[str, Any]]] = [
    *((name, {"penalty_alpha": 0.6, "top_k": 4}) for name in MODELS),
    *((name, {"penalty_alpha": 0.3, "top_k": 9, "repetition_penalty": 1.2}) for name in MODELS),
    ("llama", {"penalty_alpha": 0.9, "top_k": 2, "low_memory": True}),
    ("gpt2", {"penalty_alpha": 0.6, "top_k": 5, "no_repeat_ngram_size": 2}),
    ("mistral", {"penalty_alpha": 1.0, "top_k": 6, "suppress_tokens": [3, 4, 5]}),
    ("qwen3", {"penalty_alpha": 0.05, "top_k": 3, "min_new_tokens": 5, "eos_token_id": [9, 31]}),
]
NEW_TOKENS = 20


def case(name: str, options: dict[str, Any], prompt: list[int]) -> dict[str, Any]:
    output = build(name).generate(
        torch.tensor([prompt]),
        max_new_tokens=NEW_TOKENS,
        do_sample=False,
        return_dict_in_generate=True,
        output_scores=True,
        pad_token_id=0,
        trust_remote_code=True,
        **options,
    )
    token_ids = output.sequences[0, len(prompt) :].tolist()
    scores = [float(step[0, i]) for step, i in zip(output.scores, token_ids, strict=True)]
    return {
        "model": name,
        "options": options,
        "prompt": prompt,
        "token_ids": token_ids,
        "scores": [round(score, 4) for score in scores],
    }


def main() -> None:
    assert transformers.__version__ == "4.55.4"
    several = prompts(4)
    found = [
        case(name, options, several[number % len(several)])
        for number, (name, options) in enumerate(CASES)
    ]
    text = ",\n".join(map(json.dumps, found))
    Path(__file__).with_name("contrastive.json").write_text(f"[\n{text}\n]\n")


if __name__ == "__main__":
    main()
