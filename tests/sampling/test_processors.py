"""Processed scores are those of transformers' processors, called one position at a time."""

from __future__ import annotations

import random
from collections.abc import Sequence

import numpy as np
import pytest
import torch
from outrider_runtime.model.scores import processed_scores
from outrider_runtime.model.selection import select_tokens
from sampling.oracle import (
    EDITS,
    WARPERS,
    Request,
    marked_by_synthid,
    oracle_scores,
    random_logits,
    random_request,
)


def assert_same_scores(actual: torch.Tensor, expected: torch.Tensor) -> None:
    """Equal, but for which of several tokens with one score a truncation keeps.

    transformers sorts with an unstable sort, so that choice is nobody's promise.
    """
    exchanged = (actual == -torch.inf) != (expected == -torch.inf)
    for row in exchanged.any(-1).nonzero().flatten().tolist():
        kept = torch.maximum(actual[row], expected[row])[exchanged[row]]
        assert (kept == kept[0]).all()
        assert (actual[row] == -torch.inf).sum() == (expected[row] == -torch.inf).sum()
    actual, expected = actual[~exchanged], expected[~exchanged]
    torch.testing.assert_close(actual, expected, rtol=2e-6, atol=2e-6, equal_nan=True)


def assert_same_chances(actual: torch.Tensor, expected: torch.Tensor) -> None:
    """Equal as probabilities. SynthID's tournament takes differences of nearly equal numbers, so a
    token with hardly a chance has few digits; and transformers gives the lowest finite score to
    those without any."""
    torch.testing.assert_close(actual.softmax(-1), expected.softmax(-1), rtol=1e-4, atol=2e-6)


def check(requests: Sequence[Request], logits: torch.Tensor) -> torch.Tensor:
    """Compare with the oracle; returns our scores."""
    expected = oracle_scores(logits, requests)
    before = logits.clone()
    groups = [request.group() for request in requests]
    actual = processed_scores(logits, groups)
    first = 0
    for request in requests:
        rows = slice(first, first := first + request.num_rows)
        compare = assert_same_chances if marked_by_synthid(request) else assert_same_scores
        compare(actual[rows], expected[rows])
    torch.testing.assert_close(logits, before, rtol=0, atol=0, equal_nan=True)
    return actual


@pytest.mark.parametrize("name", [*EDITS, *WARPERS])
@pytest.mark.parametrize("vocab_size", [7, 60, 700])
@pytest.mark.usefixtures("either_side")
def test_every_processor_alone_is_transformers_own(name: str, vocab_size: int) -> None:
    rng = random.Random(f"{name} {vocab_size}")
    changed = 0
    for _ in range(15):
        request = random_request(
            rng, vocab_size=vocab_size, names=[name], do_sample=name in WARPERS
        )
        logits = random_logits(rng, request.num_rows, vocab_size)
        if name == "remove_invalid_values":
            logits[rng.randrange(request.num_rows), rng.randrange(vocab_size)] = rng.choice(
                [np.nan, np.inf, -np.inf]
            )
        changed += not torch.equal(check([request], logits), logits)
    assert changed > 0


@pytest.mark.usefixtures("either_side")
def test_random_mixes_in_mixed_batches_are_transformers_own() -> None:
    for case in range(150):
        rng = random.Random(case)
        vocab_size = rng.choice([7, 60, 700])
        requests = []
        for _ in range(rng.randint(1, 5)):
            do_sample = rng.random() < 0.7
            available = [*EDITS, *WARPERS] if do_sample else EDITS
            names = rng.sample(available, rng.randint(0, 6))
            requests.append(
                random_request(rng, vocab_size=vocab_size, names=names, do_sample=do_sample)
            )
        rows = sum(request.num_rows for request in requests)
        scores = check(requests, logits := random_logits(rng, rows, vocab_size))
        if not scores.amax(-1).isfinite().all():
            continue  # the options contradict each other: nothing to choose
        chosen = select_tokens(logits, [request.group() for request in requests])
        log_probs = scores.log_softmax(-1)
        first = 0
        for request in requests:
            for row in range(first, first + request.num_rows):
                token_id = chosen.token_ids[row]
                if not request.options["do_sample"]:
                    assert token_id == int(scores[row].argmax())
                assert chosen.log_probs[row] == pytest.approx(
                    float(log_probs[row, token_id]), abs=1e-5
                )
            first += request.num_rows
