"""Classifier-free guidance with every drafter: the text of plain decoding, transformers' own."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from exactness.prompts import random_prompts
from exactness.reference import Reference
from exactness.running import (
    PLAIN,
    SYNCHRONOUS,
    RunningTarget,
    accepted_by_drafter,
    num_drafted,
    outcome,
    tokens,
)
from outrider_client import (
    Completion,
    GenerationConfig,
    SpeculationConfig,
    StructuredOutput,
)
from outrider_runtime.model.selection import RowGroup, select_tokens
from outrider_runtime.sampling_parameters import SamplingParameters
from outrider_target.decoding.guidance import guide

PROMPTS = random_prompts(6, seed=5, longest=30)
NEGATIVES: list[list[int] | None] = [None, *random_prompts(5, seed=6, longest=60)]
SCALES = [1.5, 4.0, 0.0, -0.5, 1.2, 2.0]
DRAFTING: dict[str, Any] = {
    "num_assistant_tokens": 5,
    "num_assistant_tokens_schedule": "constant",
    "assistant_confidence_threshold": 0.0,
}
OPTIONS: dict[str, dict[str, Any]] = {
    "greedy": {},
    "processed": {"repetition_penalty": 1.3, "no_repeat_ngram_size": 3, "min_new_tokens": 4},
    "sampled": {"do_sample": True, "top_k": 20, "temperature": 0.6, "num_return_sequences": 2},
}


def generate(
    running: RunningTarget, number: int, options: dict[str, Any], speculation: SpeculationConfig
) -> Completion:
    config = GenerationConfig(
        **{"max_new_tokens": 20, **DRAFTING, "guidance_scale": SCALES[number], **options}
    )
    return running.client.generate(
        PROMPTS[number],
        config,
        seed=number,
        speculation=speculation,
        negative_prompt=NEGATIVES[number],
    )


@pytest.mark.parametrize("kind", OPTIONS)
def test_no_drafter_changes_a_guided_text(
    kind: str,
    reference: Reference,
    drafted_target: RunningTarget,
    perfectly_drafted_target: RunningTarget,
) -> None:
    options, numbers = OPTIONS[kind], range(len(PROMPTS))
    plain = [generate(drafted_target, number, options, PLAIN) for number in numbers]
    assert num_drafted(plain) == 0
    if kind != "sampled":
        for number, completion in enumerate(plain):
            theirs = {"max_new_tokens": 20, "guidance_scale": SCALES[number], **options}
            if NEGATIVES[number] is not None:
                theirs["negative_prompt_ids"] = torch.tensor([NEGATIVES[number]])
            assert completion.token_ids == reference.greedy(PROMPTS[number], theirs)
    accepted: Counter[str] = Counter()
    for running, speculation in (
        (drafted_target, SYNCHRONOUS),
        (perfectly_drafted_target, SYNCHRONOUS),
        (perfectly_drafted_target, SpeculationConfig(method="combined", run_ahead=4)),
        (drafted_target, SpeculationConfig(method="prompt-lookup")),
        (drafted_target, SpeculationConfig(method="early-exit")),
    ):
        extra = {"assistant_early_exit": 1} if speculation.method == "early-exit" else {}
        with ThreadPoolExecutor(len(numbers)) as threads:
            drafted = list(
                threads.map(
                    generate,
                    [running] * len(numbers),
                    numbers,
                    [{**options, **extra}] * len(numbers),
                    [speculation] * len(numbers),
                )
            )
        assert tokens(drafted) == tokens(plain)
        assert num_drafted(drafted) > 0
        accepted.update(accepted_by_drafter(drafted))
        running.assert_nothing_left()
    assert accepted["remote"] > 0


def test_sampling_is_from_the_guided_distribution(
    reference: Reference, drafted_target: RunningTarget
) -> None:
    """Token for token what the seeded sample of `softmax(guided)` is, computed by hand."""
    for number in (1, 3):
        completion = generate(drafted_target, number, {"do_sample": True, "top_k": 0}, SYNCHRONOUS)
        prompt, negative = PROMPTS[number], list(NEGATIVES[number] or ())
        for position, token_id in enumerate(completion.token_ids):
            before = completion.token_ids[:position]
            own, other = (
                torch.tensor([reference.next_logits([*start, *before])], dtype=torch.float64)
                for start in (prompt, negative)
            )
            guided = guide(own, other, SCALES[number])
            by_hand = SCALES[number] * own.log_softmax(-1) + (
                1 - SCALES[number]
            ) * other.log_softmax(-1)
            assert torch.allclose(guided, by_hand)
            group = RowGroup(
                parameters=SamplingParameters(do_sample=True, max_length=10**6),
                seed=number,
                sample_index=0,
                token_ids=[*prompt, *before],
                num_rows=1,
                num_prompt_tokens=len(prompt),
            )
            assert select_tokens(guided, [group]).token_ids == [token_id]


def test_guided_or_not_requests_of_one_batch_do_not_touch_each_other(
    drafted_target: RunningTarget,
) -> None:
    each: Sequence[dict[str, Any]] = [
        {},
        {"guidance_scale": 1.0, "do_sample": True},
        {"do_sample": True, "num_return_sequences": 3},
        {"repetition_penalty": 1.5},
    ]

    def ask(number: int) -> Completion:
        scale = each[number].get("guidance_scale", SCALES[number])
        config = GenerationConfig(
            **{"max_new_tokens": 24, **DRAFTING, **each[number], "guidance_scale": scale}
        )
        return drafted_target.client.generate(
            PROMPTS[number],
            config,
            seed=number,
            speculation=SYNCHRONOUS,
            negative_prompt=NEGATIVES[number] if scale != 1.0 else None,
        )

    alone = [ask(number) for number in range(4)]
    with ThreadPoolExecutor(4) as threads:
        together = list(threads.map(ask, range(4)))
    assert [outcome(one) for one in together] == [outcome(one) for one in alone]
    assert num_drafted(together) > 0


def test_a_guided_text_may_have_a_form_and_a_healed_prompt(drafted_target: RunningTarget) -> None:
    def ask(speculation: SpeculationConfig, negative: str | list[int]) -> Completion:
        config = GenerationConfig(
            max_new_tokens=40, guidance_scale=2.5, token_healing=True, **DRAFTING
        )
        return drafted_target.client.generate(
            "the tar",
            config,
            speculation=speculation,
            negative_prompt=negative,
            structured_output=StructuredOutput(regex="[a-f]{8,12}(-target){2}[0-9]"),
        )

    for negative in ("a drafter that is slow", [5, 6, 7]):
        plain, drafted = ask(PLAIN, negative), ask(SYNCHRONOUS, negative)
        assert outcome(plain) == outcome(drafted)
        assert plain.healed_prompt == drafted.healed_prompt
        assert accepted_by_drafter([drafted])["grammar"] > 0
