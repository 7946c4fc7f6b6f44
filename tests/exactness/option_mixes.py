"""Random requests: options of every kind mixed, greedy and sampled, always the same for a seed."""

from __future__ import annotations

import random
from dataclasses import replace
from typing import Any, NamedTuple

from exactness.model_pairs import VOCAB_SIZE
from exactness.prompts import random_prompt
from exactness.running import Request
from outrider_client import SpeculationConfig

LONGEST_PROMPT = 40
LONGEST_OUTPUT = 36
_STOP_STRINGS = ["e", "th", " d", "in", "kes", "on", "z", "@"]


class Case(NamedTuple):
    """A request, and a way to speculate that must not matter."""

    request: Request
    speculation: SpeculationConfig


def cases(count: int, *, seed: int) -> list[Case]:
    """So many random cases."""
    chance = random.Random(seed)
    return [_case(chance) for _ in range(count)]


def _case(chance: random.Random) -> Case:
    options: dict[str, Any] = {"max_new_tokens": chance.randint(8, LONGEST_OUTPUT)}
    if chance.random() < 0.75:
        options |= _sampling(chance)
    options |= _edits(chance)
    options |= _ends(chance)
    options |= {
        "num_assistant_tokens": chance.randint(1, 16),
        "num_assistant_tokens_schedule": chance.choice(
            ["constant", "heuristic", "heuristic_transient", "auto"]
        ),
        "assistant_confidence_threshold": chance.choice([0.0, 0.0, 0.1, 0.4]),
    }
    prompt = random_prompt(chance, longest=LONGEST_PROMPT)
    return Case(Request(prompt, options, chance.getrandbits(64)), _speculation(chance))


def _sampling(chance: random.Random) -> dict[str, Any]:
    choices: dict[str, list[Any]] = {
        "temperature": [0.2, 0.7, 1.0, 1.5],
        "top_k": [0, 1, 5, 50],
        "top_p": [0.5, 0.9, 1.0],
        "min_p": [0.0, 0.05, 0.3],
        "top_h": [0.3, 0.9],
        "typical_p": [0.3, 0.95],
        "epsilon_cutoff": [0.001, 0.02],
        "eta_cutoff": [0.001, 0.02],
        "num_return_sequences": [2, 3],
    }
    return {"do_sample": True} | _some(chance, choices, probability=0.3)


def _edits(chance: random.Random) -> dict[str, Any]:
    def token() -> int:
        return chance.randrange(VOCAB_SIZE)

    choices: dict[str, list[Any]] = {
        "repetition_penalty": [0.8, 1.2, 1.7],
        "encoder_repetition_penalty": [0.7, 1.5],
        "no_repeat_ngram_size": [2, 3],
        "encoder_no_repeat_ngram_size": [1, 2, 3],
        "bad_words_ids": [[[token()], [token(), token()]]],
        "sequence_bias": [[[[token()], 3.0], [[token(), token()], -5.0]]],
        "suppress_tokens": [[token() for _ in range(20)]],
        "begin_suppress_tokens": [[token() for _ in range(20)]],
        "watermarking_config": [
            {"bias": 3.0},
            {"bias": 3.0, "seeding_scheme": "selfhash", "context_width": 3},
            {"ngram_len": 3, "keys": [token() for _ in range(6)], "context_history_size": 8},
            {"ngram_len": 5, "keys": [token()], "skip_first_ngram_calls": True},
        ],
        "prefill_chunk_size": [1, 7],
        "renormalize_logits": [True],
        "remove_invalid_values": [True],
    }
    return _some(chance, choices, probability=0.15)


def _ends(chance: random.Random) -> dict[str, Any]:
    ends: dict[str, Any] = {}
    if chance.random() < 0.3:
        ends["eos_token_id"] = sorted({chance.randrange(VOCAB_SIZE) for _ in range(8)})
        ends |= _some(
            chance,
            {
                "min_new_tokens": [4],
                "min_length": [8],
                "exponential_decay_length_penalty": [(4, 1.1)],
                "forced_eos_token_id": [ends["eos_token_id"][:1]],
            },
            probability=0.3,
        )
    if chance.random() < 0.2:
        ends["stop_strings"] = chance.sample(_STOP_STRINGS, 2)
    return ends


def _some(
    chance: random.Random, choices: dict[str, list[Any]], *, probability: float
) -> dict[str, Any]:
    return {
        name: chance.choice(values)
        for name, values in choices.items()
        if chance.random() < probability
    }


def _speculation(chance: random.Random) -> SpeculationConfig:
    drawn = SpeculationConfig(
        pacing=chance.choice(["adaptive", "synchronous"]),
        run_ahead=chance.choice([0, 4, 16]),
        max_assistant_tokens=chance.choice([4, 16, 64]),
        draft_temperature=chance.choice([None, 0.5, 2.0]),
        draft_timeout_ms=10_000,
    )
    shapes = random.Random(repr(drawn))  # so that the other options stay what they were
    return replace(
        drawn,
        draft_fan_out=shapes.choice([1, 2, 4]),
        draft_tree_rows=shapes.choice([0, 8, 32]),
    )
