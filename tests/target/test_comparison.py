"""What the canary makes of a replay, by hand-made log-probabilities."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
import pytest
from outrider_runtime.model.arrays import NUMPY
from outrider_runtime.model.log_probs import TokenLogProb, TokenLogProbs
from outrider_runtime.model.noise import NoiseRow, gumbel_of
from outrider_runtime.sampling_parameters import SamplingParameters
from outrider_target.engine.events import TokensDecided
from outrider_target.requests.request import Finish, FinishReason, GenerationRequest, Guidance
from outrider_target.serving.comparison import NUM_TOP, Comparison, Difference, Result
from target.batch import request

TOLERANCE = 0.01
ENDED = Finish(FinishReason.LENGTH)
PROMPT = [5, 6, 7]


def row(chosen: int, scores: dict[int, float]) -> TokenLogProbs:
    top = [TokenLogProb(t, p) for t, p in sorted(scores.items(), key=lambda item: -item[1])]
    return TokenLogProbs(scores[chosen], scores[chosen], scores[chosen], top, top[:NUM_TOP])


def sure(token_id: int) -> TokenLogProbs:
    return row(token_id, {token_id: -0.1, 96: -9.0})


def told(
    token_ids: Sequence[int],
    log_probs: Sequence[TokenLogProbs] | None = None,
    *,
    finish: Finish | None = ENDED,
    index: int = 0,
) -> TokensDecided:
    known = [sure(token) for token in token_ids] if log_probs is None else log_probs
    return TokensDecided(index, token_ids, [False] * len(token_ids), finish, known)


def compared(
    *events: TokensDecided,
    served: Sequence[Sequence[int]],
    parameters: SamplingParameters | None = None,
) -> Comparison:
    asked = asking(parameters or SamplingParameters())
    comparison = Comparison(asked, served, tolerance=TOLERANCE)
    for event in events:
        comparison.take(event)
    return comparison


def asking(parameters: SamplingParameters) -> GenerationRequest:
    return dataclasses.replace(request(PROMPT), parameters=parameters, seed=3)


def test_the_same_in_any_pieces_is_the_same() -> None:
    comparison = compared(told([1], finish=None), told([2, 3]), served=[[1, 2, 3]])
    assert (comparison.result, comparison.settled) == (Result.SAME, True)


def test_nothing_is_said_before_all_sequences_have_ended() -> None:
    comparison = compared(told([1, 2]), told([1], finish=None, index=1), served=[[1, 2], [1, 2]])
    assert (comparison.result, comparison.settled) == (Result.INCONCLUSIVE, False)
    comparison.take(told([2], index=1))
    assert (comparison.result, comparison.settled) == (Result.SAME, True)


@pytest.mark.parametrize("reason", [FinishReason.CANCELLED, FinishReason.TIME])
def test_a_replay_that_was_cut_proves_nothing(reason: FinishReason) -> None:
    comparison = compared(told([1], finish=Finish(reason)), served=[[1, 2]])
    assert (comparison.result, comparison.settled) == (Result.INCONCLUSIVE, True)


def test_another_end_is_a_difference() -> None:
    assert compared(told([1]), served=[[1, 2]]).differences == [Difference(0, 1, near_tie=False)]
    assert compared(told([1, 2]), served=[[1]]).differences == [Difference(0, 1, near_tie=False)]


@pytest.mark.parametrize(
    ("gap", "result"), [(TOLERANCE * 0.9, Result.NEAR_TIE), (TOLERANCE * 1.1, Result.DIFFERENT)]
)
def test_greedy_scores_that_are_all_but_equal_are_a_near_tie(gap: float, result: Result) -> None:
    decided = row(2, {2: -0.7, 9: -0.7 - gap, 4: -5.0})
    comparison = compared(told([1, 2], [sure(1), decided]), served=[[1, 9]])
    assert comparison.result is result
    assert comparison.differences == [Difference(0, 1, near_tie=result is Result.NEAR_TIE)]


def test_what_could_not_be_chosen_at_all_is_a_difference() -> None:
    decided = row(2, {2: 0.0})
    assert compared(told([2], [decided]), served=[[9]]).result is Result.DIFFERENT


def test_what_is_not_listed_is_at_most_as_good_as_the_last_that_is() -> None:
    flat = row(0, dict.fromkeys(range(NUM_TOP + 3), -4.0))
    assert compared(told([0], [flat]), served=[[NUM_TOP + 1]]).result is Result.NEAR_TIE
    steep = row(0, {token: -1.0 * token for token in range(NUM_TOP + 3)})
    assert compared(told([0], [steep]), served=[[NUM_TOP + 1]]).result is Result.DIFFERENT


def noise(position: int, *token_ids: int) -> list[float]:
    keyed = [NoiseRow(3, 0, len(PROMPT) + position)]
    values: list[float] = gumbel_of(NUMPY, np.array([token_ids]), keyed)[0].tolist()
    return values


@pytest.mark.parametrize(
    ("gap", "result"), [(TOLERANCE * 0.9, Result.NEAR_TIE), (TOLERANCE * 1.1, Result.DIFFERENT)]
)
def test_where_one_samples_the_noise_counts_as_well(gap: float, result: Result) -> None:
    own, other = noise(1, 2, 9)
    # With their noise the two are `gap` apart, however far they are without it.
    decided = row(2, {2: -3.0, 9: -3.0 + own - other - gap, 4: -40.0})
    parameters = SamplingParameters(do_sample=True)
    comparison = compared(told([1, 2], [sure(1), decided]), served=[[1, 9]], parameters=parameters)
    assert comparison.result is result


@pytest.mark.parametrize(
    ("gap", "result"), [(TOLERANCE * 2.9, Result.NEAR_TIE), (TOLERANCE * 3.1, Result.DIFFERENT)]
)
def test_guidance_magnifies_rounding(gap: float, result: Result) -> None:
    asked = dataclasses.replace(asking(SamplingParameters()), guidance=Guidance(2.0, ()))
    comparison = Comparison(asked, [[9]], tolerance=TOLERANCE)
    comparison.take(told([2], [row(2, {2: -0.7, 9: -0.7 - gap, 4: -5.0})]))
    assert comparison.result is result


def test_a_token_at_the_edge_of_a_truncation_is_not_called_a_fault() -> None:
    """The one that was chosen may not have been kept when the text was served."""
    own = noise(0, 2)[0]
    served = next(token for token in range(10, 90) if own - noise(0, token)[0] > 1.0)
    decided = row(2, {2: -3.0, served: -2.5, 4: -2.0})  # 2 wins by half at least
    for top_k, result in ((3, Result.NEAR_TIE), (0, Result.DIFFERENT)):
        parameters = SamplingParameters(do_sample=True, top_k=top_k)
        comparison = compared(told([2], [decided]), served=[[served]], parameters=parameters)
        assert comparison.result is result


@pytest.mark.parametrize(
    ("raw", "result"), [(-1.0 - TOLERANCE / 2, Result.NEAR_TIE), (-5.0, Result.DIFFERENT)]
)
def test_two_tokens_may_change_places_at_the_edge(raw: float, result: Result) -> None:
    own = noise(0, 2)[0]
    served = next(token for token in range(10, 90) if own - noise(0, token)[0] > 1.0)
    decided = row(2, {2: -1.0, 4: -0.5})  # what was served is not kept
    decided = decided._replace(
        top_raw=[TokenLogProb(4, -0.5), TokenLogProb(2, -1.0), TokenLogProb(served, raw)]
    )
    parameters = SamplingParameters(do_sample=True, top_k=2)
    comparison = compared(told([2], [decided]), served=[[served]], parameters=parameters)
    assert comparison.result is result


def test_a_real_difference_outweighs_a_near_tie_and_settles_all() -> None:
    tied = row(2, {2: -0.7, 9: -0.7})
    comparison = compared(
        told([2], [tied], finish=None),
        told([1], finish=None, index=1),
        served=[[9, 1], [4, 4], [1, 1]],
    )
    assert (comparison.result, comparison.settled) == (Result.DIFFERENT, True)
    assert [each.near_tie for each in comparison.differences] == [True, False]
