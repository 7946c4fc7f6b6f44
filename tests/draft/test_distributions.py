"""What a token was drawn from goes over the wire as it is, or not at all."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from outrider.v1 import draft_pb2
from outrider_draft import frames
from outrider_draft.updates import Grown, SessionKey
from outrider_runtime.draft_tree import DraftTree, Proposal
from outrider_runtime.model.drawing import draw_tokens
from outrider_runtime.model.row_group import RowGroup
from outrider_runtime.sampling_parameters import SamplingParameters
from outrider_runtime.sparse_distribution import MAX_SUPPORT, MAX_WEIGHT, SparseDistribution
from outrider_target.drafting.remote import wire

VOCAB_SIZE = 1000


def group(seed: int, *, draft_temperature: float = 1.0) -> RowGroup:
    parameters = SamplingParameters(do_sample=True)
    return RowGroup(parameters, seed, 0, [1, 2, 3], 1, 3, draft_temperature)


def sent(proposals: list[Proposal]) -> draft_pb2.SpeculateResponse:
    return frames.response([Grown(SessionKey(0, 1), 3, proposals, complete=True)])


distributions = st.lists(
    st.tuples(st.integers(0, VOCAB_SIZE - 1), st.integers(1, MAX_WEIGHT)),
    min_size=1,
    max_size=MAX_SUPPORT,
    unique_by=lambda entry: entry[0],
).map(lambda entries: SparseDistribution(*map(tuple, zip(*entries, strict=True))))


@given(st.lists(st.none() | distributions, max_size=5))
def test_it_arrives_as_it_was_drawn_from(drawn: list[SparseDistribution | None]) -> None:
    proposals = [
        Proposal(number, number - 1, one.token_ids[-1] if one else 7, -1.0, one)
        for number, one in enumerate(drawn, start=1)
    ]
    (growth,) = wire.link_frame(0, sent(proposals)).growths
    assert [
        p.distribution and SparseDistribution(*map(tuple, p.distribution)) for p in growth.proposals
    ] == drawn
    tree = DraftTree([1, 2, 3])
    assert tree.grow(3, growth.proposals, vocab_size=VOCAB_SIZE, max_nodes=9).offences == 0


def missing_size(grow: draft_pb2.Grow) -> None:
    grow.distribution_sizes.pop()


def wrong_size(grow: draft_pb2.Grow) -> None:
    grow.distribution_sizes[0] = 2**32 - 1


def missing_token(grow: draft_pb2.Grow) -> None:
    grow.distribution_token_ids.pop()


def odd_byte(grow: draft_pb2.Grow) -> None:
    grow.distribution_weights += b"\0"


def tokens_without_sizes(grow: draft_pb2.Grow) -> None:
    grow.ClearField("distribution_sizes")


@pytest.mark.parametrize(
    "spoil", [missing_size, wrong_size, missing_token, odd_byte, tokens_without_sizes]
)
def test_arrays_that_do_not_fit_are_an_offence(spoil: Callable[[draft_pb2.Grow], None]) -> None:
    one = SparseDistribution((5, 6), (1, 1))
    frame = sent([Proposal(1, 0, 5, -1.0, one), Proposal(2, 1, 6, -1.0, one)])
    spoil(frame.grows[0])
    (growth,) = wire.link_frame(0, frame).growths
    outcome = DraftTree([1, 2, 3]).grow(3, growth.proposals, vocab_size=VOCAB_SIZE, max_nodes=9)
    assert outcome.added == 0
    assert outcome.offences == 1


def test_what_is_told_is_close_to_the_models_and_holds_the_token() -> None:
    logits = 3 * torch.randn((40, VOCAB_SIZE), generator=torch.Generator().manual_seed(0))
    law = logits.double().softmax(-1)
    for row, one in enumerate(draw_tokens(logits, [group(row) for row in range(40)], [3] * 40)):
        assert one is not None
        assert one.distribution.gave(one.token_id, vocab_size=VOCAB_SIZE)
        ids, weights = one.distribution
        told = torch.tensor(weights, dtype=torch.float64) / sum(weights)
        best = law[row].topk(MAX_SUPPORT)
        assert set(ids) <= set(best.indices.tolist())
        kept = law[row][list(ids)] / best.values.sum()
        assert (told - kept).abs().sum() < 2e-3
        assert one.log_prob == pytest.approx(math.log(max(weights) / sum(weights)))
        size = sent([Proposal(1, 0, one.token_id, -1.0, one.distribution)]).ByteSize()
        assert size < 400, "a few hundred bytes a token"


def test_a_sharpened_drafter_tells_what_it_is_sharpened_to() -> None:
    logits = torch.tensor([[0.0, -1.0, -2.0]])
    (one,) = draw_tokens(logits, [group(1, draft_temperature=0.5)], [3])
    assert one is not None
    weights = dict(zip(*one.distribution, strict=True))
    assert weights[1] / weights[0] == pytest.approx(math.exp(-2), abs=1e-4)
    assert weights[2] / weights[0] == pytest.approx(math.exp(-4), abs=1e-4)


def test_a_position_that_is_drawn_for_again_is_drawn_for_anew() -> None:
    logits = torch.zeros((1, VOCAB_SIZE))
    drawn = [draw_tokens(logits, [group(1)], [base])[0] for base in range(8)]
    assert len({one.token_id for one in drawn if one}) > 4
    again = [draw_tokens(logits, [group(1)], [base])[0] for base in range(8)]
    assert drawn == again


def test_from_scores_that_allow_nothing_nothing_is_drawn() -> None:
    lawless = torch.tensor([[-math.inf] * 3, [math.nan, 0.0, 0.0], [math.inf, 0.0, 0.0], [0.0] * 3])
    drawn = draw_tokens(lawless, [group(seed) for seed in range(4)], [3] * 4)
    assert [one is None for one in drawn] == [True, True, True, False]
