"""Greedy output of the service is transformers' `generate`, whatever the architecture."""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import pytest
import torch
from exactness.loop_thread import ServiceThreads
from exactness.model_pairs import make_pair
from exactness.prompts import random_prompts
from exactness.reference import Reference
from exactness.running import (
    SYNCHRONOUS,
    Request,
    RunningTarget,
    draft_service,
    model_drafter,
    num_accepted,
    num_drafted,
    target,
)
from outrider_client import Completion, GenerationConfig, SpeculationConfig
from outrider_demo import DRAFT_DIR, TARGET_DIR, held_out_prompts
from transformers import AutoTokenizer

SHIPPED = "the shipped pair"
ARCHITECTURES = ["llama", "qwen3", "gpt2", "mistral", "gemma2", "mixtral", "qwen3_moe"]

NUM_PROMPTS = 8

SPECULATIONS = [
    SYNCHRONOUS,
    SpeculationConfig(),
    SpeculationConfig(run_ahead=8),
    SpeculationConfig(method="prompt-lookup"),
    SpeculationConfig(enabled=False),
]


class Parity(NamedTuple):
    """A target with its drafter, the same model in transformers, and prompts for both."""

    target: RunningTarget
    reference: Reference
    prompts: Sequence[Sequence[int]]


@pytest.fixture(scope="module", params=[SHIPPED, *ARCHITECTURES])
def parity(
    request: pytest.FixtureRequest,
    threads: ServiceThreads,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Parity]:
    if request.param == SHIPPED:
        target_folder, draft_folder = TARGET_DIR, DRAFT_DIR
        prompts = shipped_prompts(NUM_PROMPTS)
    else:
        pair = make_pair(tmp_path_factory.mktemp(request.param), request.param)
        target_folder, draft_folder = pair.target, pair.draft
        prompts = random_prompts(NUM_PROMPTS, seed=1)
    with (
        draft_service(threads, model_drafter(draft_folder)) as drafter,
        target(threads, target_folder, drafts=[drafter.address]) as running,
    ):
        yield Parity(running, Reference(target_folder), prompts)


def shipped_prompts(count: int) -> list[list[int]]:
    """Held-out code as the shipped pair's tokens, cut to different lengths."""
    tokenizer = AutoTokenizer.from_pretrained(TARGET_DIR)
    chance = random.Random(0)
    texts = itertools.islice(itertools.cycle(held_out_prompts()), count)
    return [list(tokenizer.encode(prompt.text))[: chance.randint(1, 60)] for prompt in texts]


def test_a_request_alone_gets_what_generate_gives(parity: Parity) -> None:
    completions = []
    for prompt in parity.prompts[:2]:
        options = {"max_new_tokens": 24}
        completions.append(parity.target.generate(Request(prompt, options), SYNCHRONOUS))
        assert completions[-1].token_ids == parity.reference.greedy(prompt, options)
    assert num_drafted(completions) > 0
    assert num_accepted(completions) > 0


def test_requests_in_a_mixed_batch_get_what_generate_gives(parity: Parity) -> None:
    requests = [
        Request(
            prompt,
            {
                "max_new_tokens": 6 + 3 * number,
                "num_assistant_tokens": 1 + 2 * number,
                "assistant_confidence_threshold": [0.0, 0.4][number % 2],
            },
        )
        for number, prompt in enumerate(parity.prompts)
    ]
    speculations = [SPECULATIONS[number % len(SPECULATIONS)] for number in range(len(requests))]
    completions = parity.target.generate_together(requests, speculations)
    for request, completion in zip(requests, completions, strict=True):
        expected = parity.reference.greedy(
            request.prompt, {"max_new_tokens": request.options["max_new_tokens"]}
        )
        assert completion.token_ids == expected
    assert num_drafted(completions) > 0
    assert num_accepted(completions) > 0
    parity.target.assert_nothing_left()


def test_guided_requests_get_what_generate_gives(parity: Parity) -> None:
    """In one batch with others; by a negative prompt, or the last token of the prompt."""
    prompts, negatives = parity.prompts[:5], [None, *parity.prompts[4:]]
    scales = [1.5, 3.0, 0.5, -1.0, None]

    def options(number: int) -> dict[str, Any]:
        scale = {} if scales[number] is None else {"guidance_scale": scales[number]}
        return {"max_new_tokens": 10 + 2 * number, "repetition_penalty": 1.2, **scale}

    def generate(number: int) -> Completion:
        return parity.target.client.generate(
            list(prompts[number]),
            GenerationConfig(**options(number), assistant_confidence_threshold=0.0),
            negative_prompt=negatives[number] if number < 4 else None,
            speculation=SYNCHRONOUS if number % 2 else SpeculationConfig(method="prompt-lookup"),
        )

    with ThreadPoolExecutor(5) as threads:
        completions = list(threads.map(generate, range(5)))
    for number, (prompt, completion) in enumerate(zip(prompts, completions, strict=True)):
        theirs = options(number)
        if number < 4 and negatives[number] is not None:
            theirs["negative_prompt_ids"] = torch.tensor([list(negatives[number] or ())])
        assert completion.token_ids == parity.reference.greedy(prompt, theirs)
    assert num_drafted(completions[:4]) > 0
    parity.target.assert_nothing_left()


NEAR_TIE = 1e-3
"""Logits this close may swap places between float32 forwards of different shapes."""


def test_in_single_precision_the_shipped_pair_differs_at_near_ties_at_most(
    threads: ServiceThreads,
) -> None:
    """As it is served by default: the first difference, if there is one, is between near equals."""
    reference = Reference(TARGET_DIR, dtype=torch.float32)
    requests = [Request(prompt, {"max_new_tokens": 32}) for prompt in shipped_prompts(4)]
    with (
        draft_service(threads, model_drafter(DRAFT_DIR, dtype="float32")) as drafter,
        target(threads, TARGET_DIR, drafts=[drafter.address], dtype="float32") as running,
    ):
        completions = running.generate_together(requests, SYNCHRONOUS)
    assert num_accepted(completions) > 0
    for request, completion in zip(requests, completions, strict=True):
        ours, theirs = completion.token_ids, reference.greedy(request.prompt, request.options)
        for position, (own, other) in enumerate(zip(ours, theirs, strict=True)):
            if own != other:
                logits = reference.next_logits([*request.prompt, *theirs[:position]])
                assert abs(logits[own] - logits[other]) < NEAR_TIE
                break
