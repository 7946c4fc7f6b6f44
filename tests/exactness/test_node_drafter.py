"""A drafter in another language, which knows nothing of ours but the contract."""

from __future__ import annotations

from draft.node_drafter import node_drafter
from exactness.loop_thread import ServiceThreads
from exactness.model_pairs import ModelPair
from exactness.option_mixes import cases
from exactness.reference import Reference
from exactness.running import (
    SYNCHRONOUS,
    Request,
    num_accepted,
    outcome,
    target,
)


def test_a_drafter_in_another_language_drafts_and_changes_nothing(
    threads: ServiceThreads, pair: ModelPair, reference: Reference
) -> None:
    repeating = Request([7, 8, 9] * 5, {"max_new_tokens": 40})
    requests = [repeating, *(case.request for case in cases(12, seed=5))]
    with node_drafter() as address, target(threads, pair.target, drafts=[address]) as running:
        drafted = running.generate_together(requests, SYNCHRONOUS)
        plain = running.generate_together(requests)
        running.assert_nothing_left()
    assert [outcome(one) for one in drafted] == [outcome(one) for one in plain]
    assert num_accepted(drafted[:1]) > 0
    assert drafted[0].sequences[0].token_ids == reference.greedy(
        repeating.prompt, repeating.options
    )
