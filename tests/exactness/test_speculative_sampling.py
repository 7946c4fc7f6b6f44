"""Drafts accepted by ratio, through real services: the law of the text, the company, the drafters.

What whole engines write in a small world is tested in `tests/target`, with what would be wrong.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import torch
from draft.hostile import AdversarialDrafter, serving
from exactness.loop_thread import ServiceThreads
from exactness.model_pairs import ModelPair
from exactness.reference import Reference
from exactness.running import (
    PLAIN,
    SYNCHRONOUS,
    Request,
    RunningTarget,
    num_accepted,
    num_drafted,
    target,
    tokens,
)
from outrider_client import SpeculationConfig
from sampling.chi_square import FALSE_ALARM, p_value

PROMPT = [40, 41, 42]
TOP_K = 3
DEPTH = 4
"""Tokens whose joint law is compared. The first is decided before anything is drafted."""

BY_RATIO = replace(SYNCHRONOUS, verification="speculative-sampling", draft_temperature=1.0)
"""Synchronous, and of a fixed sharpness: what is drafted depends on nothing but the request."""


def law(reference: Reference) -> dict[tuple[int, ...], float]:
    """Of the first tokens under top_k, from the model itself."""
    texts: dict[tuple[int, ...], float] = {(): 1.0}
    for _ in range(DEPTH):
        known = list(texts)
        with torch.no_grad():
            logits = reference.model(torch.tensor([[*PROMPT, *text] for text in known])).logits
        best = logits[:, -1].topk(TOP_K)
        rows = zip(known, best.indices.tolist(), best.values.softmax(-1).tolist(), strict=True)
        texts = {
            (*text, token_id): texts[text] * share
            for text, ids, shares in rows
            for token_id, share in zip(ids, shares, strict=True)
        }
    return texts


def sampled(seed: int, *, num_sequences: int = 1, new_tokens: int = 24) -> Request:
    options = {
        "do_sample": True,
        "top_k": TOP_K,
        "max_new_tokens": new_tokens,
        "num_return_sequences": num_sequences,
    }
    return Request(PROMPT, options, seed)


def test_texts_have_the_models_law(drafted_target: RunningTarget, reference: Reference) -> None:
    requests = [sampled(seed, num_sequences=8, new_tokens=DEPTH + 1) for seed in range(60)]
    answers = drafted_target.generate_together(requests, BY_RATIO)
    seen = Counter(tuple(text[:DEPTH]) for answer in tokens(answers) for text in answer)
    expected = law(reference)
    assert set(seen) <= set(expected)
    common = [text for text in expected if expected[text] * seen.total() >= 8]
    counts, shares = [seen[text] for text in common], [expected[text] for text in common]
    rare = [seen.total() - sum(counts)], [1 - sum(shares)]
    assert p_value(counts + rare[0], shares + rare[1]) > FALSE_ALARM
    assert 0 < num_accepted(answers) < num_drafted(answers)


def test_the_same_drafts_give_the_same_text(drafted_target: RunningTarget) -> None:
    requests = [sampled(seed) for seed in range(6)]
    first = drafted_target.generate_together(requests, BY_RATIO)
    again = [drafted_target.generate(one, BY_RATIO) for one in requests]
    assert tokens(first) == tokens(again), "in any company"
    assert num_accepted(first) == num_accepted(again) > 0
    assert tokens(first) != tokens(drafted_target.generate_together(requests, SYNCHRONOUS))


def test_what_agrees_with_the_target_is_all_accepted(
    perfectly_drafted_target: RunningTarget,
) -> None:
    requests = [sampled(seed) for seed in range(6)]
    answers = perfectly_drafted_target.generate_together(requests, BY_RATIO)
    # A drafter that is the target differs from it by the rounding of weights alone.
    assert num_accepted(answers) > 0.99 * num_drafted(answers) > 0


def test_it_changes_nothing_for_others_and_where_nothing_is_sampled(
    drafted_target: RunningTarget,
) -> None:
    greedy = [Request([*PROMPT, n], {"max_new_tokens": 24}) for n in range(4)]
    requests = [*greedy, *(sampled(seed) for seed in range(8))]
    plain = drafted_target.generate_together(requests, PLAIN)
    how = [BY_RATIO] * 4 + [BY_RATIO, SYNCHRONOUS] * 4
    answers = drafted_target.generate_together(requests, how)
    assert num_drafted(answers[:4]) > 0
    assert num_drafted(answers[5::2]) > 0
    assert tokens(answers[:4]) == tokens(plain[:4])
    assert tokens(answers[5::2]) == tokens(plain[5::2])


def test_a_drafter_with_broken_distributions_fails_no_request(
    threads: ServiceThreads, pair: ModelPair
) -> None:
    drafter = AdversarialDrafter(seed=3)
    drafter.repertoire = ["wrong_tokens", "broken_distributions", "impossible_probabilities"]
    how = SpeculationConfig(verification="speculative-sampling", draft_timeout_ms=50)
    with (
        threads.drafters.entered(serving(drafter)) as hostile,
        target(threads, pair.target, drafts=[hostile.address]) as running,
    ):
        answers = running.generate_together([sampled(seed) for seed in range(8)], how)
        assert all(len(text) == 24 for answer in tokens(answers) for text in answer)
        assert num_drafted(answers) > 0
        assert drafter.attacks["broken_distributions"] > 0
        running.assert_nothing_left()
