"""Which continuations a step of beam search looks at: the best ones, or sampled ones.

Sampling is without replacement, in proportion to the exponentials of the scores, like
`torch.multinomial`: the k highest of scores plus Gumbel noise are such a sample, in the order in
which they would be drawn (Kool et al., "Stochastic Beams and Where to Find Them", 2019,
arXiv 1903.06059). The noise is keyed by seed, beam, position and token, and by nothing else.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Protocol

import torch
from outrider_runtime.model.arrays import arrays_of
from outrider_runtime.model.noise import NoiseRow, gumbel_of, gumbel_of_all

from outrider_target.decoding.beams.beam import Beam


class Candidates(NamedTuple):
    """The continuations of a step, in the order in which they were drawn.

    Attributes:
        values: Their scores, float32, on CPU.
        places: Where they are in the flattened scores: beam times vocabulary plus token.
    """

    values: torch.Tensor
    places: torch.Tensor


class Draw(Protocol):
    """The port."""

    def candidates(self, totals: torch.Tensor, beams: Sequence[Beam], number: int) -> Candidates:
        """So many continuations, of float32 scores [beams, vocab]."""


class HighestScores:
    """The best ones, best first."""

    def candidates(self, totals: torch.Tensor, beams: Sequence[Beam], number: int) -> Candidates:
        """See `Draw`."""
        found = totals.flatten().topk(min(number, totals.numel()))
        return Candidates(found.values.cpu(), found.indices.cpu())


class SeededSample:
    """A sample without replacement, the same for the same seed."""

    def __init__(self, seed: int) -> None:
        self._seed = seed

    def candidates(self, totals: torch.Tensor, beams: Sequence[Beam], number: int) -> Candidates:
        """See `Draw`."""
        rows = [
            NoiseRow(self._seed, index, len(beam.branch.token_ids))
            for index, beam in enumerate(beams)
        ]
        keys = (totals.double() + _noise(totals, rows)).flatten()
        places = keys.topk(min(number, keys.numel())).indices
        return Candidates(totals.flatten()[places].cpu(), places.cpu())


def _noise(totals: torch.Tensor, rows: Sequence[NoiseRow]) -> torch.Tensor:
    """Float64 [beams, vocab]; 0 where nothing can be drawn."""
    xp, _ = arrays_of(totals)
    vocab_size = totals.shape[1]
    most = int((totals > -torch.inf).sum(-1).max())
    if most > vocab_size // 4:
        return torch.as_tensor(gumbel_of_all(xp, vocab_size, rows))
    token_ids = totals.topk(max(1, most)).indices
    ids = token_ids.numpy() if token_ids.device.type == "cpu" else token_ids
    noise = torch.as_tensor(gumbel_of(xp, ids, rows))
    return torch.zeros_like(totals, dtype=torch.float64).scatter(1, token_ids, noise)
