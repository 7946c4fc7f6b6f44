"""Constrained beam search: what transformers 4.56 gave, alone, in company and in a crowded pool."""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import golden
import pytest
from golden.seeded_models import build
from outrider_runtime.errors import InvalidRequest
from outrider_runtime.model.ragged_runner import RaggedRunner
from outrider_target.decoding.beams.forced import Phrase, Progress
from target.batch import Answer, Batch, request
from target.beam_requests import beam_request

Case = dict[str, Any]
CASES: list[Case] = json.loads(Path(golden.__path__[0], "forced.json").read_text())
NEW_TOKENS = 12


@functools.cache
def model_of(name: str) -> Any:
    return build(name, sharpness=1.5)


def runner_of(case: Case, *, num_blocks: int = 200) -> RaggedRunner:
    return RaggedRunner(model_of(case["model"]), num_blocks=num_blocks, block_size=4)


def generation(case: Case) -> Any:
    return beam_request(case["prompt"], {"max_new_tokens": NEW_TOKENS, **case["options"]})


def assert_found(answer: Answer, case: Case) -> None:
    assert answer.error is None
    ends = case["options"].get("eos_token_id", [])
    assert [beam.score for beam in answer.beams] == pytest.approx(
        [one["score"] for one in case["found"]], abs=1e-4, rel=1e-5
    )
    for token_ids, beam, theirs in zip(answer.token_ids, answer.beams, case["found"], strict=True):
        # transformers puts down the first end-of-sequence token, whichever it was.
        last = ends[:1] if token_ids[-1] in ends else token_ids[-1:]
        assert [*token_ids[:-1], *last] == theirs["token_ids"]
        if theirs["beam_indices"] is not None:
            assert list(beam.beam_indices) == theirs["beam_indices"]


def holds(text: Sequence[int], phrase: Sequence[int]) -> bool:
    return any(
        list(text[start : start + len(phrase)]) == list(phrase) for start in range(len(text))
    )


@pytest.mark.parametrize("case", CASES, ids=str)
def test_the_search_finds_what_transformers_found(case: Case) -> None:
    [answer] = Batch(runner_of(case)).run(generation(case))
    assert_found(answer, case)


def test_what_is_found_holds_every_phrase_unless_transformers_gave_up() -> None:
    number = 0
    for case in CASES:
        phrases = case["options"]["force_words_ids"]
        if case["found"][0]["beam_indices"] is None:
            continue  # it tells none of texts that lack a phrase
        text = [*case["prompt"], *case["found"][0]["token_ids"]]
        for phrase in phrases:
            forms = phrase if isinstance(phrase[0], list) else [phrase]
            assert any(holds(text, form) for form in forms)
            number += 1
    assert number > len(CASES)


def test_company_and_a_crowded_pool_change_nothing() -> None:
    cases = [case for case in CASES if case["model"] == "llama"]
    batch = Batch(runner_of(cases[0], num_blocks=40), max_num_seqs=40)
    other = request([7, 8, 9], do_sample=True, num_sequences=2)
    answers = batch.run(other, *map(generation, cases))
    assert sum(answer.num_preemptions for answer in answers) > 0
    for answer, case in zip(answers[1:], cases, strict=True):
        assert_found(answer, case)


def test_a_search_that_is_cancelled_returns_what_it_has() -> None:
    options = {"num_beams": 3, "force_words_ids": [[5, 6], [7] * 9], "num_return_sequences": 2}
    batch = Batch(runner_of(CASES[0]))
    state = batch.submit(beam_request([3, 4], {**options, "max_new_tokens": 50}, progress=1))
    for _ in range(4):
        batch.rounds.step()
    batch.rounds.cancel(state, report=True)
    answer = batch.answers[state]
    assert [len(token_ids) for token_ids in answer.token_ids] == [4, 4]
    assert list(answer.token_ids[0]) == list(answer.progress[-1].token_ids)


def test_one_phrase_is_worked_on_at_a_time_and_forms_part_where_they_differ() -> None:
    start = Progress((Phrase(((1, 2, 3), (1, 4))), Phrase(((5,),))))
    assert start.next_tokens() == [1, 5]
    begun = start.after(1)
    assert begun.next_tokens() == [2, 4]
    assert [begun.after(token_id).bank(3) for token_id in (2, 4, 5)] == [2, 3, 0]
    assert begun.after(5).after_all([1, 4]).next_tokens() == [5]
    assert begun.after_all([4, 9, 5]).complete
    assert begun.after_all([4, 9, 5]).after(1).complete


FORCED = {"num_beams": 4, "force_words_ids": [[5, 6], [[7], [8, 9]]]}


@pytest.mark.parametrize(
    "options",
    [
        {**FORCED, "num_beams": 1},
        {"force_words_ids": [[5]]},
        {**FORCED, "do_sample": True},
        {**FORCED, "num_beam_groups": 2, "diversity_penalty": 1.0},
        {**FORCED, "force_words_ids": []},
        {**FORCED, "force_words_ids": [[]]},
        {**FORCED, "force_words_ids": [[[5], []]]},
        {**FORCED, "force_words_ids": [[97]]},
        {**FORCED, "force_words_ids": [[[5, 6], [7], [5, 6, 8]]]},
        {**FORCED, "force_words_ids": [[[5, 6], [5, 6]]]},
        {**FORCED, "force_words_ids": [[5] * 600, [6] * 600]},
    ],
    ids=str,
)
def test_what_cannot_be_forced_is_refused_by_name(options: Mapping[str, Any]) -> None:
    with pytest.raises(InvalidRequest) as refusal:
        beam_request([3, 4, 5], options)
    assert refusal.value.field == "generation_config.force_words_ids"
