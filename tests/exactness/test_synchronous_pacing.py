"""Paced synchronously, windows and accepted counts are those of transformers' assisted generation.

Round by round, on greedy requests: how many tokens were drafted, how many were accepted.

One difference is a matter of counting: when the draft ends in an accepted end-of-sequence token,
transformers calls that token the round's own and counts one match less. Here it counts as the
accepted draft token that it is. The text is the same, and no round follows.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import pytest
from exactness.loop_thread import ServiceThreads
from exactness.model_pairs import ModelPair
from exactness.prompts import random_prompts
from exactness.reference import Reference, Round
from exactness.running import (
    SYNCHRONOUS,
    Request,
    RunningTarget,
    draft_service,
    model_drafter,
    target,
)
from outrider_client import Completion
from outrider_demo import DRAFT_DIR, TARGET_DIR
from transformers import AutoTokenizer

PROMPT_TEXTS = ["def main(", "import os\n\nclass ", "    return self."]


class Assistance(NamedTuple):
    """A target with its drafter, and both models in transformers."""

    target: RunningTarget
    reference: Reference
    assistant: Reference
    prompts: Sequence[Sequence[int]]


@pytest.fixture(scope="module")
def tiny(drafted_target: RunningTarget, reference: Reference, pair: ModelPair) -> Assistance:
    prompts = random_prompts(3, seed=2)
    return Assistance(drafted_target, reference, Reference(pair.draft), prompts)


@pytest.fixture(scope="module")
def shipped(threads: ServiceThreads) -> Iterator[Assistance]:
    tokenizer = AutoTokenizer.from_pretrained(TARGET_DIR)
    with (
        draft_service(threads, model_drafter(DRAFT_DIR)) as drafter,
        target(threads, TARGET_DIR, drafts=[drafter.address]) as running,
    ):
        yield Assistance(
            running,
            Reference(TARGET_DIR),
            Reference(DRAFT_DIR),
            [list(tokenizer.encode(text)) for text in PROMPT_TEXTS],
        )


def rounds_of(completion: Completion) -> list[Round]:
    return [
        Round(each.num_draft_tokens, each.num_accepted_tokens)
        for each in completion.speculation.rounds
    ]


def assert_same_rounds(
    where: Assistance, *, window: int, schedule: str, threshold: float, num_tokens: int
) -> tuple[list[Round], set[float]]:
    """Serve the prompts both ways; returns all rounds, and the thresholds in the end."""
    seen: list[Round] = []
    thresholds: set[float] = set()
    for prompt in where.prompts:
        expected = where.reference.assisted(
            where.assistant,
            prompt,
            {"max_new_tokens": num_tokens},
            num_assistant_tokens=window,
            schedule=schedule,
            threshold=threshold,
        )
        options = {
            "max_new_tokens": num_tokens,
            "num_assistant_tokens": window,
            "num_assistant_tokens_schedule": schedule,
            "assistant_confidence_threshold": threshold,
        }
        completion = where.target.generate(Request(prompt, options), SYNCHRONOUS)
        assert completion.token_ids == expected.token_ids
        assert rounds_of(completion) == expected.rounds
        seen += expected.rounds
        thresholds.add(expected.threshold)
    assert sum(one.num_candidates for one in seen) > 0
    assert sum(one.num_matches for one in seen) > 0
    return seen, thresholds


@pytest.mark.parametrize(
    ("window", "schedule", "threshold"),
    [
        (1, "constant", 0.0),
        (1, "heuristic", 0.4),
        (5, "constant", 0.4),
        (5, "heuristic", 0.0),
        (5, "heuristic_transient", 0.2),
    ],
)
def test_a_tiny_pair_goes_round_as_in_transformers(
    tiny: Assistance, window: int, schedule: str, threshold: float
) -> None:
    seen, _ = assert_same_rounds(
        tiny, window=window, schedule=schedule, threshold=threshold, num_tokens=24
    )
    if schedule != "constant":
        assert len({one.num_candidates for one in seen}) > 1


@pytest.mark.parametrize(
    ("window", "schedule", "threshold"),
    [(5, "heuristic", 0.4), (4, "constant", 0.0), (20, "constant", 0.4)],
)
def test_the_shipped_pair_goes_round_as_in_transformers(
    shipped: Assistance, window: int, schedule: str, threshold: float
) -> None:
    _, thresholds = assert_same_rounds(
        shipped, window=window, schedule=schedule, threshold=threshold, num_tokens=32
    )
    assert (thresholds == {threshold}) == (threshold == 0.0), "it moves unless it is off"


def test_an_accepted_end_of_sequence_token_is_counted_once_more_than_in_transformers(
    perfectly_drafted_target: RunningTarget, reference: Reference
) -> None:
    prompt = [3, 1, 4, 1, 5]
    plain = reference.greedy(prompt, {"max_new_tokens": 12})
    end = next(i for i, token in enumerate(plain) if i >= 6 and token not in plain[:i])
    options = {"max_new_tokens": 12, "eos_token_id": plain[end]}
    expected = reference.assisted(
        reference, prompt, options, num_assistant_tokens=4, schedule="constant", threshold=0.0
    )
    completion = perfectly_drafted_target.generate(
        Request(
            prompt,
            {
                **options,
                "num_assistant_tokens": 4,
                "assistant_confidence_threshold": 0.0,
                "num_assistant_tokens_schedule": "constant",
            },
        ),
        SYNCHRONOUS,
    )
    assert completion.token_ids == expected.token_ids == plain[: end + 1]
    ours, theirs = rounds_of(completion), expected.rounds
    assert ours[:-1] == theirs[:-1]
    assert ours[-1].num_candidates == theirs[-1].num_candidates
    accepted_end = completion.drafted[-1]
    assert ours[-1].num_matches == theirs[-1].num_matches + accepted_end
