"""Writes forced.json: constrained beam search in transformers 4.56.2, the last release that has it.

python -m venv /tmp/old && /tmp/old/bin/pip install torch transformers==4.56.2
cd tests && /tmp/old/bin/python -m golden.make_forced
"""

from __future__ import annotations

from typing import Any

from golden.beam_cases import MODELS, write
from transformers.generation.beam_constraints import DisjunctiveConstraint

EOS: dict[str, Any] = {"eos_token_id": [9, 35, 43, 60, 39, 4]}
ONE = [[17, 5, 22]]
SEVERAL = [[17, 5], [30, 30, 31], [2]]
FORMS = [[[12, 6], [14, 7, 8], [50]], [17, 5]]
ALIKE = [[[12, 6, 3], [12, 6, 8, 21], [12, 40]], [[20, 1], [20, 2]]]
CASES: list[tuple[str, dict[str, Any]]] = [
    *((name, {"num_beams": 4, "force_words_ids": ONE}) for name in MODELS),
    *((name, {"num_beams": 5, "force_words_ids": SEVERAL, **EOS}) for name in MODELS),
    *((name, {"num_beams": 6, "force_words_ids": FORMS, **EOS}) for name in MODELS),
    *((name, {"num_beams": 6, "force_words_ids": ALIKE, **EOS}) for name in MODELS),
    *(
        (
            name,
            {
                "num_beams": 4,
                "force_words_ids": [[17, 5]],
                "early_stopping": early,
                "length_penalty": penalty,
                "num_return_sequences": 2,
                **EOS,
            },
        )
        for name in ("llama", "gpt2")
        for early in (True, False, "never")
        for penalty in (0.0, 2.0)
    ),
    ("mistral", {"num_beams": 3, "force_words_ids": SEVERAL, "repetition_penalty": 1.3}),
    ("qwen3", {"num_beams": 4, "force_words_ids": SEVERAL, "no_repeat_ngram_size": 2, **EOS}),
    ("llama", {"num_beams": 2, "force_words_ids": [[5] * 14]}),
]
IN_THE_PROMPT: dict[str, Any] = {"num_beams": 2, "force_words_ids": [[24], [56, 59]], **EOS}


def copy_with_its_own_list(self: Any, stateful: bool = False) -> Any:
    """The release's copies share the list of what is there, so that one step moves all."""
    copied = DisjunctiveConstraint(self.token_ids)
    if stateful:
        copied.current_seq = list(self.current_seq)
        copied.completed = self.completed
    return copied


if __name__ == "__main__":
    DisjunctiveConstraint.copy = copy_with_its_own_list
    numbered = [(*case, number) for number, case in enumerate(CASES)]
    write("forced.json", [*numbered, ("llama", IN_THE_PROMPT, 0)])
