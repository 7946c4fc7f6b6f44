"""Writes dola.json: what DoLa gives in transformers 4.55.4, the last release that has it.

python -m venv /tmp/old && /tmp/old/bin/pip install torch transformers==4.55.4
cd tests/golden && /tmp/old/bin/python make_dola.py
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
import transformers
from golden.seeded_models import MODELS, build, prompts

CASES: list[tuple[str, dict[str, Any]]] = [
    *((name, {"dola_layers": "low"}) for name in MODELS),
    *((name, {"dola_layers": "high", "repetition_penalty": 1.2}) for name in MODELS),
    *((name, {"dola_layers": [0, 1], "no_repeat_ngram_size": 2}) for name in MODELS),
    *((name, {"dola_layers": [1]}) for name in MODELS),
    ("llama_tied", {"dola_layers": [6, 1, 3]}),
    ("llama", {"dola_layers": "high", "do_sample": True, "temperature": 1.3, "top_k": 0}),
    ("gpt2", {"dola_layers": "low", "do_sample": True, "top_k": 5, "top_p": 0.9}),
]
NEW_TOKENS = 16
NUM_SCORES = 3


def case(name: str, options: dict[str, Any], prompt: list[int]) -> dict[str, Any]:
    torch.manual_seed(0)
    output = build(name).generate(
        torch.tensor([prompt]),
        max_new_tokens=NEW_TOKENS,
        return_dict_in_generate=True,
        output_scores=True,
        trust_remote_code=True,
        **{"do_sample": False, **options},
    )
    best = [step[0].topk(NUM_SCORES) for step in output.scores]
    return {
        "model": name,
        "options": options,
        "prompt": prompt,
        "token_ids": output.sequences[0, len(prompt) :].tolist(),
        "num_possible": [int((step[0] > -torch.inf).sum()) for step in output.scores],
        "best": [step.indices.tolist() for step in best],
        "scores": [[round(value, 4) for value in step.values.tolist()] for step in best],
    }


def main() -> None:
    assert transformers.__version__ == "4.55.4"
    several = prompts(4)
    found = [
        case(name, options, several[number % len(several)])
        for number, (name, options) in enumerate(CASES)
    ]
    text = ",\n".join(json.dumps(one).replace("-Infinity", "null") for one in found)
    Path(__file__).with_name("dola.json").write_text(f"[\n{text}\n]\n")


if __name__ == "__main__":
    main()
