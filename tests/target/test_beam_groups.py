"""Group beam search: what transformers 4.56 gave, alone, in company and in a crowded pool."""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import golden
import pytest
from golden.seeded_models import build
from outrider_runtime.errors import InvalidRequest
from outrider_runtime.model.ragged_runner import RaggedRunner
from outrider_target.requests.request import FinishReason
from target.batch import Answer, Batch, request
from target.beam_requests import beam_request

Case = dict[str, Any]
CASES: list[Case] = json.loads(Path(golden.__path__[0], "groups.json").read_text())
NEW_TOKENS = 12
ONE_DONE_EARLY = CASES[-2:]
"""The same search, but for the token that pads a group."""


@functools.cache
def model_of(name: str) -> Any:
    return build(name, sharpness=1.5)


def runner_of(case: Case, *, num_blocks: int = 200) -> RaggedRunner:
    return RaggedRunner(model_of(case["model"]), num_blocks=num_blocks, block_size=4)


def generation(case: Case) -> Any:
    return beam_request(case["prompt"], {"max_new_tokens": NEW_TOKENS, **case["options"]})


def assert_found(answer: Answer, case: Case) -> None:
    assert answer.error is None
    options, found = case["options"], case["found"]
    eos = options.get("eos_token_id", [])
    ends = {eos} if isinstance(eos, int) else set(eos)
    group_size = options["num_beams"] // options["num_beam_groups"]
    assert [beam.score for beam in answer.beams] == pytest.approx(
        [one["score"] for one in found], abs=1e-4, rel=1e-5
    )
    for token_ids, beam, finish, theirs in zip(
        answer.token_ids, answer.beams, answer.finishes, found, strict=True
    ):
        # transformers puts down the first end-of-sequence token, whichever it was.
        ended = bool(token_ids) and token_ids[-1] in ends
        last = [next(iter(eos if isinstance(eos, list) else [eos]))] if ended else token_ids[-1:]
        assert [*token_ids[:-1], *last] == theirs["token_ids"]
        assert finish is not None
        assert finish.reason is (FinishReason.STOP if ended else FinishReason.LENGTH)
        assert len(beam.beam_indices) == len(token_ids)
        # Its beam indices count within a group; ours, through all of them.
        assert len({index // group_size for index in beam.beam_indices}) == 1
        if theirs["beam_indices"] is not None:
            within = [index % group_size for index in beam.beam_indices]
            assert within == theirs["beam_indices"]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_the_groups_find_what_transformers_found(case: Case) -> None:
    [answer] = Batch(runner_of(case)).run(generation(case))
    assert_found(answer, case)


def test_what_a_group_that_is_done_is_taken_to_say_matters() -> None:
    answers = [Batch(runner_of(case)).run(generation(case))[0] for case in ONE_DONE_EARLY]
    assert answers[0].token_ids != answers[1].token_ids


def test_company_and_a_crowded_pool_change_nothing() -> None:
    cases = [case for case in CASES if case["model"] == "llama"]
    batch = Batch(runner_of(cases[0], num_blocks=44), max_num_seqs=40, max_batched_tokens=7)
    other = request([7, 8, 9], do_sample=True, num_sequences=2)
    answers = batch.run(other, *map(generation, cases))
    assert sum(answer.num_preemptions for answer in answers) > 0
    for answer, case in zip(answers[1:], cases, strict=True):
        assert_found(answer, case)


def test_a_stop_string_or_a_cancelled_search_gives_what_there_is() -> None:
    options = {"num_beams": 4, "num_beam_groups": 2, "diversity_penalty": 1.0}
    batch = Batch(runner_of(CASES[0]))
    state = batch.submit(
        beam_request(
            CASES[0]["prompt"],
            {**options, "max_new_tokens": 50, "num_return_sequences": 4},
            progress=1,
        )
    )
    for _ in range(6):
        batch.rounds.step()
    batch.rounds.cancel(state, report=True)
    answer = batch.answers[state]
    assert [len(token_ids) for token_ids in answer.token_ids] == [6] * 4
    assert list(answer.token_ids[0]) == list(answer.progress[-1].token_ids)
    assert {finish and finish.reason for finish in answer.finishes} == {FinishReason.CANCELLED}


GROUPS = {"num_beams": 4, "num_beam_groups": 2, "diversity_penalty": 0.5}


@pytest.mark.parametrize(
    ("options", "field"),
    [
        ({**GROUPS, "num_beam_groups": 3}, "num_beam_groups"),
        ({**GROUPS, "num_beam_groups": 8}, "num_beam_groups"),
        ({**GROUPS, "num_beam_groups": 0}, "num_beam_groups"),
        ({**GROUPS, "do_sample": True}, "num_beam_groups"),
        ({**GROUPS, "num_beams": 1}, "num_beam_groups"),
        ({**GROUPS, "diversity_penalty": 0.0}, "diversity_penalty"),
        ({**GROUPS, "diversity_penalty": -1.0}, "diversity_penalty"),
        ({"num_beams": 4, "diversity_penalty": 0.5}, "diversity_penalty"),
        ({"diversity_penalty": 0.5}, "diversity_penalty"),
        ({**GROUPS, "num_return_sequences": 5}, "num_return_sequences"),
    ],
)
def test_what_cannot_be_is_refused_by_name(options: Mapping[str, Any], field: str) -> None:
    with pytest.raises(InvalidRequest) as refusal:
        beam_request([3, 4, 5], options)
    assert refusal.value.field == f"generation_config.{field}"
