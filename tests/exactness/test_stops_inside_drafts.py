"""The text ends exactly where plain `generate` ends it, at every offset of an accepted draft.

The drafter is the target itself, so whole windows are accepted and the end falls inside them.
transformers' own assisted generation looks for stop strings once a round and overshoots here.
"""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from exactness.model_pairs import ModelPair
from exactness.reference import Reference
from exactness.running import SYNCHRONOUS, Request, RunningTarget, num_accepted
from outrider_client import Completion, FinishReason

PROMPT = [10, 20, 30, 40]
WINDOW = 5
NUM_TOKENS = 18
"""Three rounds of a whole window and a bonus token."""

NO_REPETITION = {"no_repeat_ngram_size": 1}
"""Every token comes once, so each one is an end of its own."""

WINDOWED = {
    "num_assistant_tokens": WINDOW,
    "num_assistant_tokens_schedule": "constant",
    "assistant_confidence_threshold": 0.0,
}
OFFSETS = range(NUM_TOKENS)
TRIES = 10
"""A draft that a busy machine is late with is not waited for."""


@pytest.fixture(scope="module")
def plain(reference: Reference) -> list[int]:
    token_ids = reference.greedy(PROMPT, {"max_new_tokens": NUM_TOKENS, **NO_REPETITION})
    assert len(set(token_ids)) == NUM_TOKENS
    return token_ids


def test_the_undisturbed_run_accepts_whole_windows(
    perfectly_drafted_target: RunningTarget, plain: Sequence[int]
) -> None:
    request = Request(PROMPT, {"max_new_tokens": NUM_TOKENS, **NO_REPETITION, **WINDOWED})
    whole = [(WINDOW, WINDOW)] * 3
    rounds: list[tuple[int, int]] = []
    for _ in range(TRIES):
        completion = perfectly_drafted_target.generate(request, SYNCHRONOUS)
        assert completion.token_ids == plain
        rounds = [
            (each.num_draft_tokens, each.num_accepted_tokens)
            for each in completion.speculation.rounds
        ]
        if rounds == whole:
            break
    assert rounds == whole


def assert_drafts_were_cut(completions: Sequence[Completion]) -> None:
    """Ends fell on every position of a window, accepted and bonus."""
    assert num_accepted(completions) > 0
    cut = [each for each in completions if len(each.token_ids) % (WINDOW + 1)]
    assert all(each.drafted[-1] for each in cut)
    assert {len(each.token_ids) % (WINDOW + 1) for each in completions} == set(range(WINDOW + 1))
    # What was accepted behind the end is not counted.
    for each in completions:
        assert each.speculation.num_accepted_tokens == sum(each.drafted)


def test_an_end_token_ends_the_text_at_every_offset(
    perfectly_drafted_target: RunningTarget, reference: Reference, plain: Sequence[int]
) -> None:
    options = {"max_new_tokens": NUM_TOKENS, **NO_REPETITION}
    requests, expected = [], []
    for offset in OFFSETS:
        ending = {**options, "eos_token_id": plain[offset]}
        requests.append(Request(PROMPT, {**ending, **WINDOWED}))
        expected.append(reference.greedy(PROMPT, ending))
        assert expected[-1] == plain[: offset + 1]
    completions = perfectly_drafted_target.generate_together(requests, SYNCHRONOUS)
    assert [each.token_ids for each in completions] == expected
    assert [each.matched_stop_token_id for each in completions] == plain
    assert {each.finish_reason for each in completions} == {FinishReason.STOP}
    assert_drafts_were_cut(completions)


def test_the_length_limit_ends_the_text_at_every_offset(
    perfectly_drafted_target: RunningTarget, plain: Sequence[int]
) -> None:
    requests = [
        Request(PROMPT, {"max_new_tokens": 1 + offset, **NO_REPETITION, **WINDOWED})
        for offset in OFFSETS
    ]
    completions = perfectly_drafted_target.generate_together(requests, SYNCHRONOUS)
    assert [each.token_ids for each in completions] == [plain[: offset + 1] for offset in OFFSETS]
    assert {each.finish_reason for each in completions} == {FinishReason.LENGTH}
    assert num_accepted(completions) > 0


def test_a_stop_string_ends_the_text_at_every_offset(
    perfectly_drafted_target: RunningTarget,
    reference: Reference,
    pair: ModelPair,
    plain: Sequence[int],
) -> None:
    """Letters only: tokens are suppressed that are part of a character, or hold a space."""
    options = {"max_new_tokens": NUM_TOKENS, **NO_REPETITION, "suppress_tokens": unclean(pair)}
    clean = reference.greedy(PROMPT, options)
    pieces = [pair.tokenizer.decode([token]) for token in clean]
    requests, expected = [], []
    for offset in OFFSETS:
        # The end of one token, and the beginning of the next one where there is one.
        stop = pieces[offset - 1][-1] + pieces[offset][:1] if offset else pieces[0]
        ending = {**options, "stop_strings": [stop, "never seen"]}
        requests.append(Request(PROMPT, {**ending, **WINDOWED}))
        expected.append(reference.greedy(PROMPT, ending, pair.tokenizer))
    completions = perfectly_drafted_target.generate_together(requests, SYNCHRONOUS)
    assert [each.token_ids for each in completions] == expected
    for request, completion in zip(requests, completions, strict=True):
        assert completion.finish_reason is FinishReason.STOP
        assert completion.matched_stop_string == request.options["stop_strings"][0]
        assert completion.text == "".join(pieces[: len(completion.token_ids)])
    assert_drafts_were_cut(completions)


def test_a_stop_string_that_begins_in_the_prompt_ends_the_text_as_in_generate(
    perfectly_drafted_target: RunningTarget, reference: Reference, pair: ModelPair
) -> None:
    prompt = pair.tokenizer.encode("the draf")
    options = {"max_new_tokens": NUM_TOKENS, "suppress_tokens": unclean(pair)}
    first = pair.tokenizer.decode(reference.greedy(prompt, options)[:1])
    ending = {**options, "stop_strings": "draf" + first[:1]}
    completion = perfectly_drafted_target.generate(
        Request(prompt, {**ending, **WINDOWED}), SYNCHRONOUS
    )
    assert completion.token_ids == reference.greedy(prompt, ending, pair.tokenizer)
    assert len(completion.token_ids) == 1
    assert completion.matched_stop_string == ending["stop_strings"]
    assert completion.speculation.num_accepted_tokens == 1


def unclean(pair: ModelPair) -> list[int]:
    """Tokens whose text is not made of letters alone."""
    size = len(pair.tokenizer)
    return [i for i in range(size) if not pair.tokenizer.decode([i]).isalpha()]
