"""Defects of transformers' assisted generation that ours must not have.

Each test is a property that a user expects. Here it must hold; in transformers, as pinned, it does
not, which shows that the test can fail. One that passes there some day has served its purpose.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol
from unittest import mock

import pytest
import torch
from exactness.model_pairs import VOCAB_SIZE, ModelPair
from exactness.prompts import random_prompts
from exactness.reference import Reference, own_types
from exactness.running import SYNCHRONOUS, Request, RunningTarget
from outrider_client import SpeculationConfig
from transformers.generation import candidate_generator

LOOKUP = SpeculationConfig(method="prompt-lookup", report_rounds=True)
NUM_TOKENS = 40


class Drafted(NamedTuple):
    """A text, and how it was drafted."""

    token_ids: list[int]
    num_drafted: list[int]
    """Draft tokens of each round."""
    num_accepted: int


class Assisting(Protocol):
    """Whoever generates with a drafter."""

    def assisted(self, prompt: Sequence[int], options: dict[str, Any]) -> Drafted:
        """With a draft model that always agrees."""

    def looked_up(self, prompt: Sequence[int], options: dict[str, Any]) -> Drafted:
        """With prompt lookup."""


class Ours:
    """The service, its drafter the target model itself."""

    def __init__(self, running: RunningTarget) -> None:
        self._running = running

    def assisted(self, prompt: Sequence[int], options: dict[str, Any]) -> Drafted:
        return self._generate(prompt, options, SYNCHRONOUS)

    def looked_up(self, prompt: Sequence[int], options: dict[str, Any]) -> Drafted:
        return self._generate(prompt, options, LOOKUP)

    def _generate(
        self, prompt: Sequence[int], options: dict[str, Any], speculation: SpeculationConfig
    ) -> Drafted:
        completion = self._running.generate(Request(prompt, options, seed=5), speculation)
        stats = completion.speculation
        drafted = [each.num_draft_tokens for each in stats.rounds]
        return Drafted(completion.token_ids, drafted, stats.num_accepted_tokens)


class Theirs:
    """transformers, its assistant the target model itself."""

    def __init__(self, pair: ModelPair) -> None:
        self._tokenizer = pair.tokenizer
        self._model = Reference(pair.target).model
        self._assistant = Reference(pair.target).model

    def assisted(self, prompt: Sequence[int], options: dict[str, Any]) -> Drafted:
        generator = candidate_generator.AssistedCandidateGenerator
        return self._generate(prompt, options, generator, assistant_model=self._assistant)

    def looked_up(self, prompt: Sequence[int], options: dict[str, Any]) -> Drafted:
        generator = candidate_generator.PromptLookupCandidateGenerator
        window = options["num_assistant_tokens"]
        return self._generate(prompt, options, generator, prompt_lookup_num_tokens=window)

    def _generate(
        self, prompt: Sequence[int], options: dict[str, Any], generator: Any, **extras: Any
    ) -> Drafted:
        drafted: list[int] = []
        accepted: list[int] = []
        original = generator.update_candidate_strategy

        def spy(this: Any, input_ids: Any, scores: Any, num_matches: Any) -> None:
            drafted.append(scores.shape[1] - 1)
            accepted.append(int(num_matches))
            original(this, input_ids, scores, num_matches)

        prompt_ids = torch.tensor([list(prompt)])
        torch.manual_seed(5)
        if "stop_strings" in options:
            extras["tokenizer"] = self._tokenizer
        with mock.patch.object(generator, "update_candidate_strategy", spy), torch.no_grad():
            output = self._model.generate(
                prompt_ids,
                attention_mask=torch.ones_like(prompt_ids),
                **own_types(options),
                **extras,
            )
        return Drafted(output[0, len(prompt) :].tolist(), drafted, sum(accepted))


@pytest.fixture(scope="module")
def theirs(pair: ModelPair) -> Theirs:
    return Theirs(pair)


@pytest.fixture
def assisting(
    request: pytest.FixtureRequest, perfectly_drafted_target: RunningTarget, theirs: Theirs
) -> Assisting:
    return theirs if request.param == "theirs" else Ours(perfectly_drafted_target)


def defect(why: str) -> pytest.MarkDecorator:
    """Runs a test on both; theirs must fail."""
    broken = pytest.param("theirs", marks=pytest.mark.xfail(strict=True, reason=why))
    return pytest.mark.parametrize("assisting", ["ours", broken], indirect=True)


def options(**further: Any) -> dict[str, Any]:
    return {"max_new_tokens": NUM_TOKENS, "do_sample": False, **further}


def drafting(window: int) -> dict[str, Any]:
    return {
        "num_assistant_tokens": window,
        "num_assistant_tokens_schedule": "constant",
        "assistant_confidence_threshold": 0.0,
    }


@defect("the window is read from the assistant's own configuration")
def test_the_request_says_how_many_tokens_are_drafted(assisting: Assisting) -> None:
    (prompt,) = random_prompts(1, seed=21)
    done = assisting.assisted(prompt, options(**drafting(3)))
    assert done.num_accepted > 0
    assert max(done.num_drafted) == 3


def stop_strings_of(reference: Reference, pair: ModelPair, prompt: Sequence[int]) -> list[str]:
    """Texts of the tokens at each offset of the plain continuation."""
    plain = reference.greedy(prompt, {"max_new_tokens": NUM_TOKENS})
    texts = [pair.tokenizer.decode([token_id]) for token_id in plain]
    return [text for text in texts if text and "\ufffd" not in text]


@defect("stop strings with an assistant are refused, or missed within an accepted run")
def test_stop_strings_work_at_every_offset_of_an_accepted_run(
    assisting: Assisting, reference: Reference, pair: ModelPair
) -> None:
    cuts = set()
    for prompt in random_prompts(8, seed=22):
        for stop in sorted(set(stop_strings_of(reference, pair, prompt)))[:4]:
            plain = reference.greedy(
                prompt, {"max_new_tokens": NUM_TOKENS, "stop_strings": [stop]}, pair.tokenizer
            )
            done = assisting.assisted(prompt, options(stop_strings=[stop], **drafting(7)))
            assert done.token_ids == plain
            cuts.add(len(plain) % 8)
    assert len(cuts) > 3, "the stops lie at different offsets of a run of 8"


@defect("a stop string within an accepted run is looked for at its last token only")
def test_stop_strings_work_with_prompt_lookup(
    assisting: Assisting, reference: Reference, pair: ModelPair
) -> None:
    drafted = 0
    for prompt in random_prompts(3, seed=23):
        plain_text = reference.greedy(prompt, {"max_new_tokens": NUM_TOKENS})
        repeated = [*prompt, *plain_text, *prompt]  # lookup drafts what it wrote before
        for stop in stop_strings_of(reference, pair, repeated)[:10]:
            plain = reference.greedy(
                repeated, {"max_new_tokens": NUM_TOKENS, "stop_strings": [stop]}, pair.tokenizer
            )
            done = assisting.looked_up(repeated, options(stop_strings=[stop], **drafting(7)))
            assert done.token_ids == plain
            drafted += sum(done.num_drafted)
    assert drafted > 0


@defect("the cache of the negative prompt keeps what was rejected")
def test_guidance_is_the_same_with_a_drafter(assisting: Assisting, reference: Reference) -> None:
    guided = {"guidance_scale": 2.0}
    drafted = 0
    for prompt in random_prompts(4, seed=27):
        plain = reference.greedy(prompt, {"max_new_tokens": NUM_TOKENS, **guided})
        done = assisting.assisted(prompt, options(**guided, **drafting(5)))
        assert done.token_ids == plain
        drafted += sum(done.num_drafted)
    assert drafted > 0


@defect("its processor counts its calls, and the drafts' calls with them")
def test_a_synthid_watermark_is_the_same_with_a_drafter(
    assisting: Assisting, reference: Reference
) -> None:
    mark = {"ngram_len": 4, "keys": [654, 400, 836, 123, 340]}
    drafted = 0
    for prompt in random_prompts(3, seed=26):
        plain = reference.greedy(
            prompt, {"max_new_tokens": NUM_TOKENS, "watermarking_config": mark}
        )
        done = assisting.assisted(prompt, options(watermarking_config=mark, **drafting(5)))
        assert done.token_ids == plain
        drafted += done.num_accepted
    assert drafted > 0


@defect("made-up scores of looked-up tokens pass through top_p, which cuts the draft at random")
def test_truncation_does_not_shorten_what_was_looked_up(assisting: Assisting) -> None:
    prompt = [7, 8, 9, 10, 11, 12] * 4
    greedy = assisting.looked_up(prompt, options(**drafting(5)))
    # One token survives top_k, so the text is the greedy one whatever top_p does.
    sampled = assisting.looked_up(
        prompt, options(**drafting(5)) | {"do_sample": True, "top_k": 1, "top_p": 0.5}
    )
    assert sampled.token_ids == greedy.token_ids
    assert sampled.num_drafted == greedy.num_drafted
    assert sum(sampled.num_drafted) > 0


def sampled_by_itself(assisting: Assisting, temperature: float) -> Drafted:
    """A model that drafts for itself agrees with itself, whatever is drawn."""
    (prompt,) = random_prompts(1, seed=24)
    further = {"do_sample": True, "temperature": temperature, "top_k": 0}
    done = assisting.assisted(prompt, options(**drafting(5)) | further)
    assert sum(done.num_drafted) > 0
    return done


@defect("the assistant applies the temperature twice: it draws at the square of it")
def test_the_drafter_draws_at_the_temperature_that_was_asked_for(assisting: Assisting) -> None:
    done = sampled_by_itself(assisting, 0.5)
    assert done.num_accepted == sum(done.num_drafted)


@pytest.mark.parametrize("assisting", ["ours", "theirs"], indirect=True)
def test_where_the_temperature_changes_nothing_both_agree_with_themselves(
    assisting: Assisting,
) -> None:
    done = sampled_by_itself(assisting, 1.0)
    assert done.num_accepted == sum(done.num_drafted)


def test_what_p_and_q_agree_on_exactly_is_no_special_case(
    perfectly_drafted_target: RunningTarget,
) -> None:
    """Nor is what differs by rounding: `test_upstream_arithmetic`."""
    for seed, prompt in enumerate(random_prompts(6, seed=25)):
        sampled = options(**drafting(4)) | {"do_sample": True, "top_k": VOCAB_SIZE}
        drafted = perfectly_drafted_target.generate(
            Request(prompt, sampled, seed=seed), SYNCHRONOUS
        )
        plain = perfectly_drafted_target.generate(Request(prompt, sampled, seed=seed))
        assert drafted.token_ids == plain.token_ids
        assert drafted.speculation.num_accepted_tokens > 0
