"""Attention weights, written out for the few rows that ask for them.

The engine's own attention never has them: fused kernels do not give them away. So they are computed
once more, beside it, and only for the asking rows. Knows nothing of whole models.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch

from outrider_runtime.model.kv_storage import LayerKV


class AskingRows(NamedTuple):
    """The last new rows of one sequence, whose weights are wanted.

    Attributes:
        first_row: Of them in the batch.
        num_rows: How many; the last of them is the sequence's last position.
        slots: int64 [keys], of all positions of the sequence.
    """

    first_row: int
    num_rows: int
    slots: torch.Tensor


class ScoreRule(NamedTuple):
    """How a layer scores keys; see `attention.ragged_attention`."""

    scaling: float
    softcap: float | None
    sinks: torch.Tensor | None
    window: int | None


class AttentionWeights:
    """Collects weights over the layers of one forward.

    Attributes:
        by_rows: for each of the asking rows, layer after layer, [heads, num_rows, keys].
    """

    def __init__(self, asking: Sequence[AskingRows]) -> None:
        self._asking = asking
        self.by_rows: list[list[torch.Tensor]] = [[] for _ in asking]

    def record(self, query: torch.Tensor, kv: LayerKV, rule: ScoreRule) -> None:
        """Takes a layer's queries [1, heads, rows, key_dim], its keys already in storage."""
        for rows, found in zip(self._asking, self.by_rows, strict=True):
            found.append(_weights(query[0], kv, rows, rule))


def _weights(query: torch.Tensor, kv: LayerKV, rows: AskingRows, rule: ScoreRule) -> torch.Tensor:
    heads, num_keys = query.shape[0], len(rows.slots)
    keys = kv.keys[rows.slots, :, 0].permute(1, 2, 0)  # [key heads, key_dim, keys]
    own = query[:, rows.first_row : rows.first_row + rows.num_rows]
    folded = own.reshape(kv.num_heads, -1, own.shape[-1])  # [key heads, repeats * rows, key_dim]
    scores = (folded * rule.scaling @ keys).view(heads, rows.num_rows, num_keys)
    if rule.softcap is not None:
        scores = torch.tanh(scores / rule.softcap) * rule.softcap
    scores = scores.masked_fill(_hidden(rows, rule, scores.device), float("-inf"))
    if rule.sinks is not None:
        sinks = rule.sinks.to(scores.dtype).view(heads, 1, 1).expand(-1, rows.num_rows, -1)
        scores = torch.cat([scores, sinks], dim=2)
    precise = torch.promote_types(scores.dtype, torch.float32)
    return scores.softmax(2, dtype=precise)[..., :num_keys].to(query.dtype)


def _hidden(rows: AskingRows, rule: ScoreRule, device: torch.device) -> torch.Tensor:
    """[num_rows, keys], what each row does not see."""
    num_keys = len(rows.slots)
    keys = torch.arange(num_keys, device=device)
    own = torch.arange(num_keys - rows.num_rows, num_keys, device=device)[:, None]
    hidden = keys > own
    return hidden if rule.window is None else hidden | (keys <= own - rule.window)
