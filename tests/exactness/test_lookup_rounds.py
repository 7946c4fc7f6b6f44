"""By transformers' rule, prompt lookup drafts and accepts round by round what transformers does.

But for the end: transformers drafts beyond the last token that it may generate, here nobody does.
"""

from __future__ import annotations

import random
from collections.abc import Iterable

import pytest
from exactness.prompts import random_prompts
from exactness.reference import Reference, Round
from exactness.running import Request, RunningTarget
from outrider_client import SpeculationConfig

TRANSFORMERS_RULE = SpeculationConfig(
    method="prompt-lookup", lookup_rule="first", report_rounds=True, max_assistant_tokens=64
)

NEW_TOKENS = 32


def within(rounds: Iterable[Round], num_tokens: int) -> list[Round]:
    """Rounds without what they drafted beyond the end."""
    kept = []
    for each in rounds:
        most = num_tokens - 1
        kept.append(Round(min(each.num_candidates, most), min(each.num_matches, most)))
        num_tokens -= kept[-1].num_matches + 1
    return kept


@pytest.mark.parametrize(("num_tokens", "ngram_size"), [(1, 1), (4, 2), (10, 3)])
def test_lookup_goes_round_as_in_transformers(
    drafted_target: RunningTarget, reference: Reference, num_tokens: int, ngram_size: int
) -> None:
    options = {
        "max_new_tokens": NEW_TOKENS,
        "prompt_lookup_num_tokens": num_tokens,
        "max_matching_ngram_size": ngram_size,
    }
    chance = random.Random(num_tokens)
    num_accepted = num_different = 0
    for prompt in random_prompts(6, seed=num_tokens):
        words = [chance.choice(prompt) for _ in range(30)]  # few tokens, met again and again
        token_ids, rounds = reference.looked_up(words, options)
        completion = drafted_target.generate(Request(words, options), TRANSFORMERS_RULE)
        assert completion.token_ids == token_ids
        own = [
            Round(each.num_draft_tokens, each.num_accepted_tokens)
            for each in completion.speculation.rounds
        ]
        assert own == within(rounds, NEW_TOKENS)
        num_accepted += completion.speculation.num_accepted_tokens
        latest = drafted_target.generate(
            Request(words, options), SpeculationConfig(method="prompt-lookup")
        )
        assert latest.token_ids == token_ids
        num_different += latest.speculation != completion.speculation
    assert num_accepted > 0
    assert num_different > 0
