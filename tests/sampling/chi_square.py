"""Pearson's test, with a threshold that a right implementation practically never misses."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch

FALSE_ALARM = 1e-9
"""Probability that a test on truly random numbers fails; ours are fixed, so it never changes."""


def p_value(counts: npt.ArrayLike, law: npt.ArrayLike) -> float:
    """Probability of counts at least as far from the law as these.

    Args:
        counts: how often each outcome was seen.
        law: its probability. An outcome of probability 0 that was seen gives 0.
    """
    seen, probability = np.ravel(np.asarray(counts, float)), np.ravel(np.asarray(law, float))
    assert probability.sum() == 1 or abs(probability.sum() - 1) < 1e-9
    if seen[probability == 0].any():
        return 0.0
    seen, expected = seen[probability > 0], probability[probability > 0] * seen.sum()
    assert expected.min() >= 5  # below, the approximation by a continuous law is poor
    statistic = float(((seen - expected) ** 2 / expected).sum())
    halves = torch.tensor([(len(expected) - 1) / 2, statistic / 2], dtype=torch.float64)
    return float(torch.special.gammaincc(halves[0], halves[1]))
