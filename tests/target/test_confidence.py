"""The confidence threshold moves as in transformers, for each sequence by itself."""

from __future__ import annotations

import math

import numpy as np
from exactness.reference import roc_curve
from hypothesis import given
from hypothesis import strategies as st
from outrider_target.drafting.pricing.confidence import ConfidenceThreshold, best_threshold


@given(
    st.lists(
        st.tuples(st.sampled_from([0.0, 0.1, 0.25, 0.5, 0.9, 1.0]) | st.floats(0, 1), st.booleans())
    ).filter(lambda judged: len({match for _, match in judged}) == 2)
)
def test_the_threshold_is_the_cheapest_of_the_roc_curve(judged: list[tuple[float, bool]]) -> None:
    judged = sorted(judged)
    probabilities, matched = [p for p, _ in judged], [m for _, m in judged]
    fpr, tpr, thresholds = roc_curve([int(m) for m in matched], probabilities)
    costs = fpr + 3 * (1 - tpr)
    found = best_threshold(probabilities, matched)
    assert costs[list(thresholds).index(found)] <= costs.min() + 1e-12
    if np.sum(costs <= costs.min() + 1e-12) == 1:
        assert found == thresholds[np.argmin(costs)]


def test_only_tokens_up_to_the_first_rejected_one_are_judged() -> None:
    threshold = ConfidenceThreshold(0.4)
    for _ in range(3):
        log_probs = [math.log(p) for p in (0.9, 0.2, 0.1)]
        threshold.observe([1, 2, 3], log_probs, [1, 7])  # what follows the 7 nobody knows
    assert threshold.value == np.float64(0.9)


def test_the_threshold_stays_until_there_is_evidence_and_off_for_good() -> None:
    threshold, off = ConfidenceThreshold(0.4), ConfidenceThreshold(0.0)
    threshold.observe([1, 2, 3, 4, 5], [-0.1] * 5, [1, 2, 3, 4, 9])
    for _ in range(9):
        off.observe([1, 2], [-0.1, -0.2], [1, 3])
    assert threshold.value == 0.4
    assert off.value == 0.0


def test_sequences_learn_by_themselves() -> None:
    one, other = ConfidenceThreshold(0.4), ConfidenceThreshold(0.4)
    for _ in range(9):
        one.observe([1, 2], [math.log(0.9), math.log(0.2)], [1, 3])
    assert one.value > 0.8
    assert other.value == 0.4
