"""A row's allowed tokens against transformers' prefix_allowed_tokens_fn, and beside other rows."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt
import pytest
import torch
from outrider_runtime.model.arrays import NUMPY, on_device
from outrider_runtime.model.processors.allowed import keep_allowed
from outrider_runtime.model.row_group import PlacedGroup, RowGroup
from outrider_runtime.sampling_parameters import SamplingParameters
from transformers import PrefixConstrainedLogitsProcessor

VOCAB_SIZE = 50


def group(allowed: npt.NDArray[np.bool_] | None, num_rows: int) -> RowGroup:
    return RowGroup(SamplingParameters(max_length=9), 0, 0, [1] * 8, num_rows, 3, allowed=allowed)


@pytest.mark.parametrize("seed", range(20))
def test_it_is_transformers_own_and_leaves_other_rows_alone(seed: int) -> None:
    chance = np.random.default_rng(seed)
    scores = chance.normal(size=(6, VOCAB_SIZE)).astype(np.float32)
    allowed = chance.random((3, VOCAB_SIZE)) < 0.1
    allowed[:, seed] = True
    scores[3][allowed[1]] = -math.inf  # all that is allowed was banned before
    placed = [
        PlacedGroup(group(None, 2), 0),
        PlacedGroup(group(allowed, 3), 2),
        PlacedGroup(group(None, 1), 5),
    ]
    on_numpy, on_torch = scores.copy(), torch.from_numpy(scores.copy())
    for side, scores_there in (
        (NUMPY, on_numpy),
        (on_device(torch.device("cpu")), on_torch),
    ):
        edit = side.send(keep_allowed(placed, VOCAB_SIZE))
        assert edit is not None
        edit.apply(side, scores_there)
    wanted = torch.from_numpy(scores.copy())
    for row in range(3):
        processor = PrefixConstrainedLogitsProcessor(
            lambda batch, prefix, row=row: np.flatnonzero(allowed[row]).tolist(), 1
        )
        wanted[2 + row] = processor(torch.ones(1, 4), wanted[2 + row][None])[0]
    assert torch.equal(on_torch, wanted)
    assert np.array_equal(on_numpy, wanted.numpy())
