"""A batch whose tensors stay where they are: what a recorded forward reads in place of a new one.

Knows nothing of how it is filled.
"""

from __future__ import annotations

import torch

from outrider_runtime.model.attention_groups import AttentionGroup
from outrider_runtime.model.paged_attention import PagedKeys


class NotPaged(Exception):
    """A layer asked for something other than paged attention."""


class StaticBatch:
    """What a model and paged attention ask a `RaggedBatch` for.

    There are as many sequences as rows, which is always enough: those that are not needed have no
    rows, or one that is padding.

    Attributes:
        input_ids: int64 [1, rows].
        position_ids: int64 [1, rows].
        write_slots: int64 [rows].
        logits_rows: int64 [rows]; those that are wanted, and behind them others.
        paged_keys: of as many sequences.
    """

    def __init__(self, rows: torch.Tensor, paged_keys: PagedKeys) -> None:
        """Takes `rows`, int64 [4, rows]: tokens, positions, slots to write, wanted rows."""
        self.input_ids = rows[:1]
        self.position_ids = rows[1:2]
        self.write_slots = rows[2]
        self.logits_rows = rows[3]
        self.paged_keys = paged_keys

    def groups(self, window: int | None) -> list[AttentionGroup]:
        """Groups follow from lengths, so a graph could not know them.

        Raises:
            NotPaged: always.
        """
        raise NotPaged("a layer does not attend where its keys lie")
