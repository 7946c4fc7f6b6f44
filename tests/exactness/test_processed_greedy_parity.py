"""Greedy output under every option that edits scores is transformers' `generate` with that option.

Each option is made from the plain output of its prompt, so that it has something to bite on, and
the test insists that it did.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pytest
from exactness.model_pairs import ModelPair
from exactness.prompts import random_prompts
from exactness.reference import Reference
from exactness.running import (
    SYNCHRONOUS,
    Request,
    RunningTarget,
    num_accepted,
    num_drafted,
)
from outrider_client import SpeculationConfig

NUM_TOKENS = 20
PROMPTS = [*random_prompts(2, seed=5), [7]]

Options = Mapping[str, Any]
Make = Callable[[Sequence[int]], Options]
"""From the plain output to options."""

BITING: dict[str, Make] = {
    "repetition_penalty": lambda plain: {"repetition_penalty": 1.5},
    "encoder_repetition_penalty": lambda plain: {"encoder_repetition_penalty": 3.0},
    "encoder_no_repeat_ngram_size": lambda plain: {"encoder_no_repeat_ngram_size": 1},
    "lefthash": lambda plain: {"watermarking_config": {"bias": 4.0}},
    "selfhash": lambda plain: {
        "watermarking_config": {
            "greenlist_ratio": 0.5,
            "bias": 4.0,
            "seeding_scheme": "selfhash",
            "context_width": 3,
        }
    },
    "synthid": lambda plain: {
        "watermarking_config": {
            "ngram_len": 4,
            "keys": [654, 400, 836, 123, 340, 443, 597, 160, 57],
        }
    },
    "synthid that forgets": lambda plain: {
        "watermarking_config": {
            "ngram_len": 2,
            "keys": [17, 4, 83],
            "context_history_size": 3,
            "skip_first_ngram_calls": True,
        }
    },
    "repetition_reward": lambda plain: {"repetition_penalty": 0.7},
    "no_repeat_ngram_size": lambda plain: {"no_repeat_ngram_size": 2},
    "bad_words_ids": lambda plain: {"bad_words_ids": [[plain[0]], [plain[3], plain[4]]]},
    "sequence_bias": lambda plain: {
        "sequence_bias": [[[plain[1]], -7.5], [[plain[5], plain[6]], -20.0], [[11], 2.5]]
    },
    "suppress_tokens": lambda plain: {"suppress_tokens": [plain[2], plain[7]]},
    "begin_suppress_tokens": lambda plain: {"begin_suppress_tokens": [plain[0]]},
    "eos_token_id": lambda plain: {"eos_token_id": [plain[6], plain[9]]},
    "min_new_tokens": lambda plain: {"eos_token_id": plain[3], "min_new_tokens": 12},
    "min_length": lambda plain: {"eos_token_id": [plain[3]], "min_length": 15},
    "forced_eos_token_id": lambda plain: {"eos_token_id": 319, "forced_eos_token_id": 319},
    "forced_eos_token_id_list": lambda plain: {"forced_eos_token_id": [318, 317]},
    "exponential_decay_length_penalty": lambda plain: {
        "eos_token_id": 319,
        "exponential_decay_length_penalty": (8, 1.5),
    },
    "max_length": lambda plain: {"max_new_tokens": None, "max_length": 50},
    "all together": lambda plain: {
        "repetition_penalty": 1.2,
        "no_repeat_ngram_size": 3,
        "bad_words_ids": [[plain[1]], [plain[3], plain[4]]],
        "sequence_bias": [[[plain[2]], -4.0]],
        "suppress_tokens": [plain[5]],
        "begin_suppress_tokens": [plain[0]],
        "eos_token_id": [plain[8], 319],
        "min_new_tokens": 5,
        "forced_eos_token_id": 319,
        "exponential_decay_length_penalty": (12, 1.1),
        "renormalize_logits": True,
        "remove_invalid_values": True,
        "watermarking_config": {"bias": 1.0},
        "encoder_repetition_penalty": 1.2,
        "encoder_no_repeat_ngram_size": 3,
    },
}
NEUTRAL: dict[str, Make] = {
    "renormalize_logits": lambda plain: {"renormalize_logits": True},
    "remove_invalid_values": lambda plain: {"remove_invalid_values": True},
    "prefill_chunk_size": lambda plain: {"prefill_chunk_size": 3},
    "sampling options without sampling": lambda plain: {"temperature": 0.5, "top_k": 3},
}


@pytest.fixture(scope="module")
def plain(reference: Reference) -> list[list[int]]:
    return [reference.greedy(prompt, {"max_new_tokens": NUM_TOKENS}) for prompt in PROMPTS]


@pytest.mark.parametrize("name", [*BITING, *NEUTRAL])
def test_an_option_does_what_it_does_in_generate(
    name: str, drafted_target: RunningTarget, reference: Reference, plain: list[list[int]]
) -> None:
    make = BITING.get(name) or NEUTRAL[name]
    requests = [
        Request(prompt, given({"max_new_tokens": NUM_TOKENS, **make(plainly)}))
        for prompt, plainly in zip(PROMPTS, plain, strict=True)
    ]
    expected = [reference.greedy(request.prompt, request.options) for request in requests]
    assert (expected != plain) is (name in BITING)
    # The same requests twice, in one batch: one waits for its drafter, the other does not.
    completions = drafted_target.generate_together(
        [request for request in requests for _ in range(2)],
        [SYNCHRONOUS, SpeculationConfig(run_ahead=4)] * len(requests),
    )
    assert [each.token_ids for each in completions] == [one for one in expected for _ in range(2)]
    assert num_drafted(completions) > 0
    assert num_accepted(completions) > 0


def test_a_forced_first_token_comes_as_in_generate(
    drafted_target: RunningTarget, reference: Reference
) -> None:
    options = {"max_new_tokens": 8, "forced_bos_token_id": 123}
    completion = drafted_target.generate(Request([9], options), SYNCHRONOUS)
    assert completion.token_ids == reference.greedy([9], options)
    assert completion.token_ids[0] == 123
    assert completion.speculation.num_draft_tokens > 0


def test_a_stop_string_ends_the_text_where_generate_ends_it(
    drafted_target: RunningTarget,
    reference: Reference,
    pair: ModelPair,
    plain: list[list[int]],
) -> None:
    completions = []
    for prompt, token_ids in zip(PROMPTS, plain, strict=True):
        text = longest_clean_piece(pair.tokenizer.decode(token_ids[2:16]))
        options = {"max_new_tokens": NUM_TOKENS, "stop_strings": [text, "not to be found"]}
        expected = reference.greedy(prompt, options, pair.tokenizer)
        completions.append(drafted_target.generate(Request(prompt, options), SYNCHRONOUS))
        assert completions[-1].token_ids == expected
        assert len(expected) < NUM_TOKENS
    assert num_drafted(completions) > 0


def given(options: Options) -> Options:
    """Options without those that are None: transformers takes them for "explicitly none"."""
    return {name: value for name, value in options.items() if value is not None}


def longest_clean_piece(text: str) -> str:
    """The longest part of a text that is not an unfinished character."""
    return max(text.split("\N{REPLACEMENT CHARACTER}"), key=len)
