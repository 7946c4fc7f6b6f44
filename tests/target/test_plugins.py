"""Processors and criteria of a request's own, under drafts of every kind and under preemption."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import pytest
import torch
from outrider_runtime.model.row_group import NamedProcessor
from outrider_target.requests.request import NamedCriterion, RequestPlugins
from target.batch import Answer, Batch, request
from target.conftest import NewRunner
from target.drafters import ScriptedDrafter, repeating, sometimes_right

VOCAB_SIZE = 97


def shift(token_ids: Sequence[int], prompt_length: int, scores: torch.Tensor) -> torch.Tensor:
    """Depends on the whole prefix."""
    favoured = (sum(token_ids) + prompt_length) % len(scores)
    scores[favoured] += 4.0
    return scores


def sums_up(token_ids: Sequence[int], prompt_length: int) -> bool:
    return len(token_ids) > prompt_length + 8 and sum(token_ids) % 9 == 0


PLUGINS = RequestPlugins((NamedProcessor("shift", shift),), (NamedCriterion("sums", sums_up),))


@pytest.mark.parametrize("blocks", [256, 16], ids=["roomy", "preempting"])
def test_no_drafter_and_no_preemption_changes_what_they_make_of_a_text(
    new_runner: NewRunner, blocks: int
) -> None:
    requests = [
        dataclasses.replace(
            request(
                [3 + index, 5, 7, 9, 11],
                new_tokens=30,
                seed=index,
                num_sequences=1 + index % 2,
                do_sample=index % 2 == 1,
            ),
            plugins=PLUGINS if index < 4 else RequestPlugins(),
        )
        for index in range(6)
    ]

    def served(drafter: ScriptedDrafter | None) -> list[Answer]:
        batch = Batch(new_runner(num_blocks=blocks))
        if drafter is not None:
            batch.drafter = drafter
            batch.__post_init__()
        return batch.run(*requests)

    plain = served(None)
    ended = [finish for answer in plain for finish in answer.finishes]
    assert any(finish is not None and finish.criterion == "sums" for finish in ended)
    truth = {
        (one.id, index): [*one.prompt, *token_ids, 5, 5, 5]
        for one, answer in zip(requests, plain, strict=True)
        for index, token_ids in enumerate(answer.token_ids)
    }
    num_preemptions = num_accepted = 0
    for drafter in (
        sometimes_right(truth, probability=1.0, vocab_size=VOCAB_SIZE, seed=2),
        sometimes_right(truth, probability=0.6, vocab_size=VOCAB_SIZE, seed=2),
        repeating(5),
    ):
        drafted = served(drafter)
        assert [answer.token_ids for answer in drafted] == [answer.token_ids for answer in plain]
        assert [answer.finishes for answer in drafted] == [answer.finishes for answer in plain]
        num_preemptions += sum(answer.num_preemptions for answer in drafted)
        for answer in drafted:
            assert answer.counters is not None
            num_accepted += answer.counters.num_accepted_tokens
    assert num_accepted > 0
    assert (num_preemptions > 0) == (blocks < 100)
