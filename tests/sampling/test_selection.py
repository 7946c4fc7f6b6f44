"""The choice itself: greedy, seeded, and clear about rows that allow no choice."""

from __future__ import annotations

import array
import math

import numpy as np
import pytest
import torch
from outrider_runtime.model.scores import processed_scores
from outrider_runtime.model.selection import InvalidScores, RowGroup, Selection, select_tokens
from outrider_runtime.sampling_parameters import SamplingParameters

pytestmark = pytest.mark.usefixtures("either_side")

GREEDY = SamplingParameters()
SAMPLED = SamplingParameters(do_sample=True)
KINDS = {
    "greedy": GREEDY,
    "whole": SAMPLED,
    "windowed": SamplingParameters(do_sample=True, top_k=3, top_p=0.9),
    "truncated": SamplingParameters(do_sample=True, min_p=0.1),
}


def group(
    parameters: SamplingParameters, *, rows: int = 1, seed: int = 1, sample_index: int = 0
) -> RowGroup:
    return RowGroup(parameters, seed, sample_index, list(range(5, 9 + rows)), rows, 4)


def random_rows(rows: int, vocab_size: int) -> torch.Tensor:
    return torch.randn(rows, vocab_size, generator=torch.Generator().manual_seed(1)) * 2


def test_greedy_takes_the_highest_score_and_the_lowest_id_of_equals() -> None:
    logits = torch.tensor([[0.0, 2.0, 1.0, 2.0], [-3.0, -1.0, -2.0, -0.5]])
    chosen = select_tokens(logits, [group(GREEDY, rows=2)])
    assert chosen.token_ids == [1, 3]
    assert chosen.log_probs == pytest.approx(
        [float(logits.log_softmax(-1)[0, 1]), float(logits.log_softmax(-1)[1, 3])], abs=1e-6
    )


@pytest.mark.parametrize("kind", ["whole", "windowed", "truncated"])
def test_seed_and_sample_decide_and_repeat(kind: str) -> None:
    logits = random_rows(1, 50).expand(40, -1)

    def chosen(seed: int, sample_index: int) -> list[int]:
        one = group(KINDS[kind], rows=40, seed=seed, sample_index=sample_index)
        return select_tokens(logits, [one]).token_ids

    assert chosen(1, 0) == chosen(1, 0)
    assert len({tuple(chosen(s, i)) for s in (1, 2, 2**63 + 1, 2**32 + 1) for i in (0, 1)}) == 8
    assert len(set(chosen(1, 0))) > 1  # positions differ as well


def test_a_token_depends_on_its_absolute_position_not_on_how_it_was_reached() -> None:
    """A client that sends prompt plus partial output again goes on with the same text."""
    logits = random_rows(6, 50)
    whole = RowGroup(SAMPLED, 9, 0, list(range(9)), num_rows=6, num_prompt_tokens=4)
    resumed = RowGroup(SAMPLED, 9, 0, list(range(9)), num_rows=2, num_prompt_tokens=8)
    assert (
        select_tokens(logits[4:], [resumed]).token_ids
        == select_tokens(logits, [whole]).token_ids[4:]
    )


@pytest.mark.parametrize("kind", KINDS)
def test_a_nan_is_an_error_that_names_the_group(kind: str) -> None:
    logits = random_rows(4, 300)
    logits[3, 200] = math.nan
    groups = [group(GREEDY), group(SAMPLED), group(KINDS[kind], rows=2)]
    with pytest.raises(InvalidScores, match="NaN") as caught:
        select_tokens(logits, groups)
    assert caught.value.group_index == 2
    removing = SamplingParameters(remove_invalid_values=True, do_sample=kind != "greedy")
    select_tokens(logits, [*groups[:2], group(removing, rows=2)])


@pytest.mark.parametrize("kind", KINDS)
def test_a_row_without_a_possible_token_is_an_error(kind: str) -> None:
    logits = random_rows(2, 300)
    logits[1] = -math.inf
    with pytest.raises(InvalidScores, match="no token") as caught:
        select_tokens(logits, [group(SAMPLED), group(KINDS[kind])])
    assert caught.value.group_index == 1


@pytest.mark.parametrize("kind", KINDS)
def test_an_infinite_score_wins_when_greedy_and_cannot_be_sampled(kind: str) -> None:
    logits = random_rows(1, 300)
    logits[0, 7] = math.inf
    if kind == "greedy":
        assert select_tokens(logits, [group(GREEDY)]) == Selection([7], [0.0])
        assert select_tokens(logits, [group(GREEDY)], with_log_probs=False) == Selection([7], [])
    else:
        with pytest.raises(InvalidScores, match="infinite"):
            select_tokens(logits, [group(KINDS[kind])])


@pytest.mark.parametrize("kind", KINDS)
def test_a_single_possible_token_is_taken(kind: str) -> None:
    logits = torch.full((1, 300), -math.inf)
    logits[0, 0] = -5.0
    chosen = select_tokens(logits, [group(KINDS[kind])])
    assert chosen.token_ids == [0]
    assert chosen.log_probs == pytest.approx([0.0], abs=1e-6)


def test_more_ties_than_any_window_are_all_kept() -> None:
    logits = torch.zeros(2, 3000)
    logits[:, 1500] = 1.0
    logits[1, 100:] -= 5
    one = group(SamplingParameters(do_sample=True, top_k=5), rows=2)
    assert (processed_scores(logits, [one]) > -math.inf).sum(-1).tolist() == [3000, 100]
    many = [one._replace(seed=seed) for seed in range(100)]
    chosen = select_tokens(logits.repeat(100, 1), many)
    assert len(set(chosen.token_ids[::2])) > 50
    assert max(chosen.token_ids[1::2]) < 100


def test_scores_that_only_the_temperature_makes_equal_are_ties() -> None:
    """top_k compares tempered scores, and dividing rounds neighbouring floats to one."""
    temperature = 0.6
    floats = torch.arange(64) * 2.0**-21 + 5  # neighbours, every one
    equal = floats[1:] / temperature == floats[:-1] / temperature
    low = int(equal.nonzero()[0])
    logits = random_rows(1, 3000).clamp(max=4)
    logits[0, 1000], logits[0, 2000] = floats[low + 1], floats[low]
    one = group(SamplingParameters(do_sample=True, top_k=1, temperature=temperature))
    kept = (processed_scores(logits, [one]) > -math.inf).nonzero()[:, 1]
    assert kept.tolist() == [1000, 2000]


def test_logits_are_left_as_they_were_and_half_precision_is_read_as_float() -> None:
    logits = random_rows(3, 40).bfloat16()
    before = logits.clone()
    every = SamplingParameters(
        do_sample=True, repetition_penalty=1.3, suppress_tokens=(3,), top_p=0.8
    )
    chosen = select_tokens(logits, [group(every, rows=3)])
    assert torch.equal(logits, before)
    assert chosen == select_tokens(logits.float(), [group(every, rows=3)])


@pytest.mark.parametrize("kind", [list, tuple, np.array, lambda ids: array.array("q", ids)])
def test_the_prefix_may_be_any_sequence_of_ints(kind: object) -> None:
    assert callable(kind)
    logits = random_rows(3, 40)
    every = SamplingParameters(
        repetition_penalty=1.5,
        no_repeat_ngram_size=2,
        bad_words_ids=((6, 7, 8),),
    )
    ids = [5, 6, 7, 5, 6, 7]
    expected = processed_scores(logits, [RowGroup(every, 1, 0, ids, 3, 2)])
    actual = processed_scores(logits, [RowGroup(every, 1, 0, kind(ids), 3, 2)])
    assert torch.equal(actual, expected)
    assert actual[2, 8] == -math.inf


def test_ids_beyond_the_vocabulary_are_ignored_where_they_cannot_be_chosen() -> None:
    """A prompt may hold them, and a draft model's vocabulary may be the smaller one."""
    logits = random_rows(2, 40)
    far = SamplingParameters(
        repetition_penalty=1.5,
        no_repeat_ngram_size=1,
        bad_words_ids=((50,), (45, 60)),
        suppress_tokens=(99,),
        begin_suppress_tokens=(40,),
        min_new_tokens=5,
        eos_token_ids=(41, 3),
    )
    scores = processed_scores(logits, [RowGroup(far, 1, 0, [4, 45, 39, 45], 2, 3)])
    assert (scores == -math.inf).nonzero().tolist() == [
        [0, 3],
        [0, 4],
        [0, 39],
        [1, 3],
        [1, 4],
        [1, 39],
    ]


def test_log_probabilities_may_be_left_out() -> None:
    logits = random_rows(8, 300)
    groups = [group(parameters, rows=2) for parameters in KINDS.values()]
    chosen = select_tokens(logits, groups, with_log_probs=False)
    assert chosen.log_probs == []
    assert chosen.token_ids == select_tokens(logits, groups).token_ids


def test_rows_and_groups_must_add_up() -> None:
    with pytest.raises(ValueError, match="2 rows"):
        select_tokens(random_rows(3, 10), [group(GREEDY, rows=2)])


def test_a_batch_without_rows_is_empty() -> None:
    assert select_tokens(torch.empty(0, 10), []) == Selection([], [])
