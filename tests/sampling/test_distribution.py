"""What is sampled follows the processed scores: jointly, over consecutive positions.

Every test of a law comes with wrong implementations that the same test must refuse.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import pytest
import torch
from outrider_runtime.model.arrays import NUMPY
from outrider_runtime.model.batch_parts import Part
from outrider_runtime.model.noise import NoiseRow, gumbel_of_all
from outrider_runtime.model.scores import processed_scores
from outrider_runtime.model.selection import RowGroup, select_tokens
from outrider_runtime.sampling_parameters import SamplingParameters
from sampling.chi_square import FALSE_ALARM, p_value

VOCAB = 5
PROMPT = (0, 3)
DEPTH = 3
SEQUENCES = 10_000
# A model whose logits depend on the last two tokens, by table.
TABLE = torch.randn(VOCAB, VOCAB, VOCAB, generator=torch.Generator().manual_seed(5)) * 1.3

REQUESTS = {
    "temperature alone": SamplingParameters(do_sample=True, temperature=0.9),
    "top_k": SamplingParameters(do_sample=True, top_k=4, temperature=1.3),
    "top_k, top_p and a penalty": SamplingParameters(
        do_sample=True, top_k=4, top_p=0.95, repetition_penalty=1.2, temperature=1.5
    ),
    "typical_p": SamplingParameters(do_sample=True, typical_p=0.9),
}


def logits_after(prefixes: npt.NDArray[np.int64]) -> torch.Tensor:
    return TABLE[prefixes[:, -2], prefixes[:, -1]]


def group_of(parameters: SamplingParameters, prefix: list[int], seed: int) -> RowGroup:
    return RowGroup(parameters, seed, 0, prefix, 1, len(PROMPT))


def exact_law(parameters: SamplingParameters) -> npt.NDArray[np.float64]:
    """Probability of every continuation of DEPTH tokens, by enumeration in float64."""
    law = np.zeros((VOCAB,) * DEPTH)
    for continuation in itertools.product(range(VOCAB), repeat=DEPTH):
        probability = 1.0
        for depth, token in enumerate(continuation):
            prefix = [*PROMPT, *continuation[:depth]]
            logits = logits_after(np.array([prefix]))
            scores = processed_scores(logits, [group_of(parameters, prefix, 0)])
            probability *= float(scores.double().softmax(-1)[0, token])
        law[continuation] = probability
    return law


def sampled_counts(parameters: SamplingParameters) -> npt.NDArray[np.int64]:
    """How often each continuation is sampled, over as many seeds as there are sequences."""
    prefixes = np.tile(np.array(PROMPT), (SEQUENCES, 1))
    for _ in range(DEPTH):
        groups = [
            group_of(parameters, prefix, seed) for seed, prefix in enumerate(prefixes.tolist())
        ]
        chosen = select_tokens(logits_after(prefixes), groups).token_ids
        prefixes = np.column_stack([prefixes, chosen])
    counts = np.zeros((VOCAB,) * DEPTH, np.int64)
    np.add.at(counts, tuple(prefixes[:, len(PROMPT) :].T), 1)
    return counts


def pooled_p_value(counts: npt.NDArray[np.int64], law: npt.NDArray[np.float64]) -> float:
    """Chi-square with the rarest outcomes as one; an impossible one that was seen gives 0."""
    if counts[law == 0].any():
        return 0.0
    rare = law * SEQUENCES < 10
    seen = [*counts[~rare], counts[rare].sum()]
    probabilities = [*law[~rare], law[rare].sum()]
    if probabilities[-1] * SEQUENCES < 10:
        seen[-2:], probabilities[-2:] = [sum(seen[-2:])], [sum(probabilities[-2:])]
    return p_value(seen, probabilities)


@pytest.mark.parametrize("name", REQUESTS)
def test_three_consecutive_tokens_follow_the_exact_joint_law(name: str) -> None:
    parameters = REQUESTS[name]
    law = exact_law(parameters)
    assert np.count_nonzero(law * SEQUENCES >= 10) > 20
    assert pooled_p_value(sampled_counts(parameters), law) > FALSE_ALARM


def _noise_rows(key: Callable[[int, RowGroup, int], NoiseRow]) -> Callable[[Part], list[NoiseRow]]:
    return lambda part: [
        key(row, group, position)
        for row, group, position in zip(part.rows, part.groups, part.positions, strict=True)
    ]


@pytest.mark.parametrize(
    "wrong",
    [
        pytest.param(lambda row, group, t: NoiseRow(group.seed, 0, 0), id="position left out"),
        pytest.param(lambda row, group, t: NoiseRow(row, 0, 0), id="row of the batch"),
        pytest.param(lambda row, group, t: NoiseRow(0, 0, t), id="step without the seed"),
    ],
)
def test_the_same_test_refuses_noise_under_a_wrong_key(
    wrong: Callable[[int, RowGroup, int], NoiseRow], monkeypatch: pytest.MonkeyPatch
) -> None:
    parameters = REQUESTS["top_k"]
    monkeypatch.setattr(Part, "noise_rows", _noise_rows(wrong))
    assert pooled_p_value(sampled_counts(parameters), exact_law(parameters)) < FALSE_ALARM


# One position, drafted from Q and verified against P. The residual holds two tokens: were it one,
# its noise would not matter.
P = np.array([0.10, 0.60, 0.30])
Q = np.array([0.50, 0.40, 0.10])
TRIALS = 40_000


def noise(sample_index: int) -> npt.NDArray[np.float64]:
    rows = [NoiseRow(seed, sample_index, 11) for seed in range(TRIALS)]
    values: npt.NDArray[np.float64] = gumbel_of_all(NUMPY, len(P), rows)
    return values


def verified_by_ratio(residual_noise: npt.NDArray[np.float64]) -> npt.NDArray[np.int64]:
    """Speculative sampling: the draft uses `noise(0)`, its residual the noise that is given."""
    drafted = (np.log(Q) + noise(0)).argmax(-1)
    uniform = np.exp(-np.exp(-noise(2)[:, 0]))
    with np.errstate(divide="ignore"):
        residual = np.log(np.maximum(P - Q, 0))
    recovered = (residual + residual_noise).argmax(-1)
    emitted: npt.NDArray[np.int64] = np.where(uniform < (P / Q)[drafted], drafted, recovered)
    return emitted


def test_noise_shared_with_the_drafter_is_exact_where_drafts_must_equal_the_targets_sample() -> (
    None
):
    drafted = (np.log(Q) + noise(0)).argmax(-1)
    own = (np.log(P) + noise(0)).argmax(-1)
    accepted = drafted == own
    assert 0.2 < accepted.mean() < 0.9
    emitted = np.where(accepted, drafted, own)
    assert p_value(np.bincount(emitted, minlength=3), P) > FALSE_ALARM


def test_noise_shared_with_the_drafter_is_biased_under_a_ratio_test() -> None:
    """Why the stream is part of the key, and this stream lawful for one rule only."""
    disjoint = np.bincount(verified_by_ratio(noise(1)), minlength=3)
    assert p_value(disjoint, P) > FALSE_ALARM
    shared = np.bincount(verified_by_ratio(noise(0)), minlength=3)
    assert p_value(shared, P) < FALSE_ALARM
