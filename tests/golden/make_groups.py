"""Writes groups.json: group beam search in transformers 4.56.2, the last release that has it.

python -m venv /tmp/old && /tmp/old/bin/pip install torch transformers==4.56.2
cd tests && /tmp/old/bin/python -m golden.make_groups
"""

from __future__ import annotations

from typing import Any

from golden.beam_cases import MODELS, write

GROUPS: dict[str, Any] = {"num_beams": 4, "num_beam_groups": 2, "diversity_penalty": 0.7}
EOS: dict[str, Any] = {"eos_token_id": [9, 35, 43, 60, 39, 4]}
CASES: list[tuple[str, dict[str, Any]]] = [
    *((name, {**GROUPS, "num_return_sequences": 4}) for name in MODELS),
    *(
        (name, {**GROUPS, **EOS, "early_stopping": early, "num_return_sequences": 3})
        for name in ("llama", "gpt2", "qwen3")
        for early in (True, False, "never")
    ),
    *(
        ("llama_tied", {**GROUPS, **EOS, "length_penalty": penalty, "early_stopping": early})
        for penalty in (-1.0, 0.0, 2.0)
        for early in (False, "never")
    ),
    ("llama", {"num_beams": 6, "num_beam_groups": 6, "diversity_penalty": 2.5, **EOS}),
    ("llama", {"num_beams": 6, "num_beam_groups": 2, "diversity_penalty": 0.1, **EOS}),
    ("mistral", {**GROUPS, "eos_token_id": 9, "repetition_penalty": 1.3}),
    ("mistral", {**GROUPS, **EOS, "no_repeat_ngram_size": 2, "num_return_sequences": 2}),
    ("qwen3", {**GROUPS, **EOS, "min_new_tokens": 6, "suppress_tokens": [3, 5]}),
    ("gpt2", {**GROUPS, "eos_token_id": 31, "forced_eos_token_id": 31, "early_stopping": True}),
]
ONE_DONE_EARLY: list[tuple[str, dict[str, Any]]] = [
    (
        "gpt2",
        {
            **GROUPS,
            **EOS,
            **pad,
            "diversity_penalty": 1.7,
            "early_stopping": True,
            "num_return_sequences": 4,
        },
    )
    for pad in ({}, {"pad_token_id": 44})
]

if __name__ == "__main__":
    numbered = [(*case, number) for number, case in enumerate(CASES)]
    write("groups.json", [*numbered, *((*case, 1) for case in ONE_DONE_EARLY)])
