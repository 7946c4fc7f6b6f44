"""Two steps that hold everything a ragged batch can: the engine's standard exercise.

Step one mixes a decode of one token, a verification of five rows, a whole prefill and the second
chunk of a prefill. Then two of four drafted tokens are rolled back, and step two mixes again.
"""

from __future__ import annotations

import torch
from engine.plain_model import PlainModel, random_ids
from outrider_runtime.model.batch import SequenceRows
from outrider_runtime.model.ragged_runner import RaggedRunner

_A, _B, _C, _D = (random_ids(n, seed=seed) for seed, n in enumerate((17, 9, 23, 30)))
_DRAFT, _BONUS = random_ids(4, seed=5), random_ids(1, seed=6)
_ACCEPTED = 2


def expected_logits(plain: PlainModel) -> torch.Tensor:
    """What one sequence at a time gives for the rows of both steps."""
    verified = _B + _DRAFT[:_ACCEPTED] + _BONUS
    return torch.cat(
        [
            plain.logits(_A, last=1),
            plain.logits(_B + _DRAFT, last=5),
            plain.logits(_C, last=23),
            plain.logits(_D, last=11),
            plain.logits(_A + _BONUS, last=1),
            plain.logits(verified + _DRAFT[::-1], last=5),
            plain.logits(_C + _DRAFT, last=4),
            plain.logits(_D + _BONUS, last=1),
        ]
    )


def run_mixed_batches(runner: RaggedRunner, *, roll_back: bool = True) -> torch.Tensor:
    """The same rows from the engine.

    Args:
        runner: the engine, with room for about 100 tokens.
        roll_back: leave it out to see what the comparison is worth.
    """
    pool = runner.pool
    num_free = pool.num_free_blocks
    a, b, c, d = (pool.create() for _ in range(4))
    nothing = runner.forward(
        [SequenceRows(d, _D[:19], 0), SequenceRows(a, _A[:16], 0), SequenceRows(b, _B[:8], 0)]
    )
    assert nothing.shape == (0, runner.vocab_size)
    first = runner.forward(
        [
            SequenceRows(a, _A[16:], 1),
            SequenceRows(b, _B[8:] + _DRAFT, 5),
            SequenceRows(c, _C, 23),
            SequenceRows(d, _D[19:], 11),
        ]
    )
    if roll_back:
        pool.truncate(b, len(_B) + _ACCEPTED)
    second = runner.forward(
        [
            SequenceRows(a, _BONUS, 1),
            SequenceRows(b, _BONUS + _DRAFT[::-1], 5),
            SequenceRows(c, _DRAFT, 4),
            SequenceRows(d, _BONUS, 1),
        ]
    )
    for handle in (a, b, c, d):
        pool.free(handle)
    pool.check_integrity()
    assert pool.num_free_blocks == num_free
    return torch.cat([first, second])
