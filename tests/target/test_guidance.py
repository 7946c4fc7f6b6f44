"""Guided sequences keep two branches: through forks, drafts, preemption, and nothing is left."""

from __future__ import annotations

import dataclasses

import pytest
from outrider_target.requests.request import Guidance
from target.batch import Answer, Batch, request
from target.conftest import NewRunner
from target.drafters import ScriptedDrafter, repeating, sometimes_right

VOCAB_SIZE = 97


@pytest.mark.parametrize("blocks", [400, 30], ids=["roomy", "preempting"])
def test_no_drafter_and_no_preemption_changes_a_guided_text(
    new_runner: NewRunner, blocks: int
) -> None:
    guidances = [
        Guidance(2.0, ()),
        Guidance(1.5, tuple(range(20, 40))),
        None,
        Guidance(-1.0, (3, 5, 7, 9, 11, 13)),  # begins as its prompt does
        Guidance(3.0, (9,)),
    ]
    requests = [
        dataclasses.replace(
            request(
                [3 + index % 2, 5, 7, 9, 11],
                new_tokens=24,
                seed=index,
                num_sequences=1 + index % 2,
                do_sample=index % 2 == 1,
            ),
            guidance=guidance,
        )
        for index, guidance in enumerate(guidances)
    ]

    def served(
        drafter: ScriptedDrafter | None, *, places: int = 16, rows: int = 512
    ) -> list[Answer]:
        batch = Batch(new_runner(num_blocks=blocks), max_num_seqs=places, max_batched_tokens=rows)
        if drafter is not None:
            batch.drafter = drafter
            batch.__post_init__()
        return batch.run(*requests)

    plain = served(None)
    truth = {
        (one.id, index): [*one.prompt, *token_ids, 5, 5, 5]
        for one, answer in zip(requests, plain, strict=True)
        for index, token_ids in enumerate(answer.token_ids)
    }
    num_preemptions = num_accepted = 0
    for right, places, rows in ((1.0, 16, 512), (0.6, 16, 512), (0.8, 3, 512), (None, 16, 7)):
        drafter = repeating(5)
        if right is not None:
            drafter = sometimes_right(truth, probability=right, vocab_size=VOCAB_SIZE, seed=2)
        drafted = served(drafter, places=places, rows=rows)
        assert [answer.error for answer in drafted] == [None] * len(drafted)
        assert [answer.token_ids for answer in drafted] == [answer.token_ids for answer in plain]
        num_preemptions += sum(answer.num_preemptions for answer in drafted)
        for answer in drafted:
            assert answer.counters is not None
            num_accepted += answer.counters.num_accepted_tokens
    assert num_accepted > 50
    assert (num_preemptions > 0) == (blocks < 100)
    assert len({tuple(map(tuple, answer.token_ids)) for answer in plain}) == len(plain)
