"""Target and drafter share noise, so they agree as often as theory says and no less.

Daliri, Musco, Suresh, "Coupling without Communication and Drafter-Invariant Speculative Decoding",
2024, arXiv 2408.07978.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt
import pytest
import torch
from outrider_runtime.model.selection import RowGroup, select_tokens
from outrider_runtime.sampling_parameters import SamplingParameters

VOCAB = 12
POSITIONS = 20_000

Law = npt.NDArray[np.float64]


def laws(case: int) -> tuple[Law, Law]:
    """A target's distribution, and a drafter's that is like it (0) or less so (1, 2)."""
    rng = np.random.default_rng(case)
    logits = rng.normal(size=VOCAB) * 1.5
    draft = logits * (1 - 0.2 * case) + rng.normal(size=VOCAB) * 0.4 * (case + 1)
    p, q = np.exp(logits), np.exp(draft)
    return p / p.sum(), q / q.sum()


def coupled_match_probability(p: Law, q: Law) -> float:
    """sum_i 1 / sum_j max(p_j / p_i, q_j / q_i)."""
    ratios = np.maximum(p[None, :] / p[:, None], q[None, :] / q[:, None])
    return float((1 / ratios.sum(-1)).sum())


def sample(law: Law, *, seed: int, draft_temperature: float = 1.0) -> npt.NDArray[np.int64]:
    """One token at each of many positions of one text."""
    logits = torch.from_numpy(np.log(law)).float().expand(POSITIONS, -1)
    group = RowGroup(
        SamplingParameters(do_sample=True),
        seed,
        0,
        [0] * POSITIONS,
        num_rows=POSITIONS,
        num_prompt_tokens=1,
        draft_temperature=draft_temperature,
    )
    return np.array(select_tokens(logits, [group]).token_ids)


@pytest.mark.parametrize("case", [0, 1, 2])
def test_shared_noise_matches_as_often_as_the_exact_coupling_probability(case: int) -> None:
    p, q = laws(case)
    expected = coupled_match_probability(p, q)
    measured = (sample(p, seed=3) == sample(q, seed=3)).mean()
    assert measured == pytest.approx(expected, abs=6 * math.sqrt(0.25 / POSITIONS))
    distance = np.abs(p - q).sum() / 2
    assert (1 - distance) / (1 + distance) <= expected <= 1 - distance + 1e-12
    # Without the shared noise they would only match by chance, far less often.
    by_chance = (sample(p, seed=3) == sample(q, seed=4)).mean()
    assert by_chance == pytest.approx(float(p @ q), abs=6 * math.sqrt(0.25 / POSITIONS))
    assert measured > by_chance + 0.1


def test_the_right_draft_temperature_makes_a_flat_drafter_agree() -> None:
    """q is p flattened; dividing its scores by the flattening restores p, and full agreement."""
    p, _ = laws(0)
    flat = p**0.6 / (p**0.6).sum()
    target = sample(p, seed=5)
    plain = (target == sample(flat, seed=5)).mean()
    calibrated = (target == sample(flat, seed=5, draft_temperature=0.6)).mean()
    assert plain == pytest.approx(
        coupled_match_probability(p, flat), abs=6 * math.sqrt(0.25 / POSITIONS)
    )
    assert plain < 0.9
    assert calibrated > 0.999


def test_draft_temperature_zero_takes_the_highest_score() -> None:
    p, _ = laws(1)
    assert set(sample(p, seed=5, draft_temperature=0.0).tolist()) == {int(p.argmax())}


def test_draft_temperature_leaves_the_reported_probability_alone() -> None:
    p, _ = laws(1)
    logits = torch.from_numpy(np.log(p)).float()[None]
    group = RowGroup(SamplingParameters(do_sample=True), 1, 0, [0], 1, 1, draft_temperature=0.5)
    chosen = select_tokens(logits, [group])
    assert chosen.log_probs[0] == pytest.approx(math.log(p[chosen.token_ids[0]]), abs=1e-5)
