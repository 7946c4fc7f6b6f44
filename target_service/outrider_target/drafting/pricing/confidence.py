"""Where a drafter should stop: transformers' confidence threshold and its adaptation. Pure.

Source: `AssistedCandidateGenerator.update_candidate_strategy` in transformers. There the state
belongs to the assistant model and needs scikit-learn; here it belongs to a sequence.
"""

from __future__ import annotations

import bisect
import math
from collections.abc import Sequence

_MIN_JUDGED = 6
_MISS_COST = 3.0
"""A draft token not proposed that would have been accepted, against one that is rejected."""

_GROWTH = 64
"""The threshold is computed again when so much of the sample is new: at first after each round, as
in transformers, later less often, because it takes time and hardly moves."""


class ConfidenceThreshold:
    """The draft probability below which a draft ends, learned from one sequence's drafts."""

    def __init__(self, start: float) -> None:
        """Start.

        Args:
            start: What the request says, in [0, 1]. 0 is off for good.
        """
        self._value = start
        self._probabilities: list[float] = []  # of judged tokens, ascending
        self._matched: list[bool] = []  # whether each was the target's own
        self._num_computed_from = 0

    @property
    def value(self) -> float:
        """The threshold, in [0, 1]."""
        judged = len(self._probabilities)
        if judged >= _MIN_JUDGED and judged - self._num_computed_from > judged // _GROWTH:
            self._num_computed_from = judged
            if 0 < sum(self._matched) < judged:
                self._value = best_threshold(self._probabilities, self._matched)
        return self._value

    def observe(
        self, draft: Sequence[int], log_probs: Sequence[float], decided: Sequence[int]
    ) -> None:
        """Judge a draft's tokens up to the first that the target did not choose.

        Args:
            draft: Token ids.
            log_probs: The drafter's, of each of them.
            decided: The tokens that the target decided at the same positions.
        """
        if self._value == 0:
            return
        for token_id, log_prob, own in zip(draft, log_probs, decided, strict=False):
            probability = min(1.0, math.exp(min(0.0, log_prob)))
            place = bisect.bisect_left(self._probabilities, probability)
            self._probabilities.insert(place, probability)
            self._matched.insert(place, token_id == own)
            if token_id != own:
                return


def best_threshold(probabilities: Sequence[float], matched: Sequence[bool]) -> float:
    """The threshold at which false alarms and misses cost least.

    Drafting on at or above a threshold, a share `fpr` of the rejected tokens is proposed all the
    same and a share `fnr` of the accepted ones is not; the cost is `fpr + 3 fnr`. Of equal costs
    the highest threshold is taken, as with the first minimum of scikit-learn's `roc_curve`.

    Args:
        probabilities: Of draft tokens, ascending.
        matched: Whether each was accepted; some were and some were not.
    """
    positives = sum(matched)
    negatives = len(matched) - positives
    best, least = 1.0, math.inf
    true_positives = false_positives = 0
    for index in range(len(matched) - 1, -1, -1):
        if matched[index]:
            true_positives += 1
        else:
            false_positives += 1
        if index and probabilities[index - 1] == probabilities[index]:
            continue  # tokens of one probability stand or fall together
        cost = false_positives / negatives + _MISS_COST * (1 - true_positives / positives)
        if cost < least:
            best, least = probabilities[index], cost
    return best
