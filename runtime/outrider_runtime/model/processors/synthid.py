"""The SynthID watermark: a tournament between tokens, judged by keyed random bits.

transformers' processor counts its calls and remembers the contexts it met. Both follow from what
was generated: the n-th call sees n - 1 generated tokens, after zeros where there are fewer than a
context has. So a row's context, and whether it is a repeated one, are computed from the tokens the
row sees; a rejected draft leaves no trace. The work grows with `context_history_size`, not with the
text.

Random numbers are those of transformers on CPU. Dathathri et al., 2024, doi
10.1038/s41586-024-08025-4.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from outrider_runtime.model.arrays import Array, Arrays
from outrider_runtime.model.processors.marked_row import MarkedRow
from outrider_runtime.watermarks import SynthId

_MULTIPLIER = 6364136223846793005
"""Of the congruential generator that hashes, in 64 bits with a sign: `h -> (h + x) * m + 1`."""


class _Tournament(NamedTuple):
    """Rows and what keys their random bits.

    Scores become log probabilities. What has no chance becomes minus infinity (in transformers the
    lowest finite number).
    """

    rows: Array
    """Int64 [marked rows]."""
    contexts: Array
    """Int64 [marked rows, 1]: hash of the tokens before."""
    mark: SynthId

    def apply(self, xp: Arrays, values: Array, token_ids: Array | None) -> None:
        """See `watermarking.Marking`."""
        mark = self.mark
        ids = xp.arange(values.shape[-1])[None] if token_ids is None else token_ids[self.rows]
        hashes = (self.contexts + ids) * _MULTIPLIER + 1  # [rows, n]
        bits = _bits_at(xp, mark.sampling_table_seed, mark.sampling_table_size)
        probs = xp.softmax(values[self.rows])
        for key in mark.keys:
            won = bits[((hashes + key) * _MULTIPLIER + 1) % mark.sampling_table_size]
            probs = probs * (1 + won - xp.sum(won * probs))
        possible = probs > 0
        values[self.rows] = xp.where(possible, xp.log(xp.where(possible, probs, 1.0)), -np.inf)


def tournament_of(rows: Sequence[MarkedRow], mark: SynthId) -> _Tournament | None:
    """What holds the tournament, as a `watermarking.Marking`."""
    contexts = [(one.row, context_hash(one, mark)) for one in rows]
    marked = [(row, context) for row, context in contexts if context is not None]
    if not marked:
        return None
    both = np.array(marked, np.int64)
    return _Tournament(both[:, 0], both[:, 1:], mark)


def context_hash(one: MarkedRow, mark: SynthId) -> int | None:
    """Hash of the tokens before a row's, or None where the row is not to be marked."""
    width = mark.ngram_len - 1
    number = max(0, one.length - one.group.num_prompt_tokens)  # generated tokens the row sees
    first = width if mark.skip_first_ngram_calls else 0
    if number < first:
        return None
    oldest = max(first, number - mark.context_history_size)
    start = oldest - width
    seen = one.group.token_ids[one.length - number + max(start, 0) : one.length]
    tokens = np.zeros(width + number - oldest, dtype=np.int64)
    tokens[max(-start, 0) :] = seen
    count = number - oldest + 1  # contexts from the oldest remembered to the row's own
    hashes = np.ones(count, dtype=np.int64)
    for offset in range(width):
        hashes = (hashes + tokens[offset : offset + count]) * _MULTIPLIER + 1
    own, before = hashes[-1], hashes[:-1]
    # The memory begins full of zeros.
    never_seen = own != 0 or len(before) >= mark.context_history_size
    return int(own) if never_seen and not (before == own).any() else None


@lru_cache(maxsize=8)
def _bits(seed: int, size: int) -> npt.NDArray[np.uint8]:
    """The table that turns hashes into random bits; up to 16 MB."""
    generator = torch.Generator().manual_seed(seed)
    table: npt.NDArray[np.uint8] = torch.randint(0, 2, (size,), generator=generator).byte().numpy()
    return table


@lru_cache(maxsize=8)
def _bits_at(xp: Arrays, seed: int, size: int) -> Array:
    """The table where it is used: it stays there, since it is the same for all that is written."""
    return xp.send(_bits(seed, size))
