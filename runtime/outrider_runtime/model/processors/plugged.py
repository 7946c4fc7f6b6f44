"""Processors that came with the request: plug-ins, one row at a time.

What a row may not choose stays so, whatever they do. Knows nothing of where they come from. On a
device what they do is theirs: one that looks at a number makes the round wait.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch

from outrider_runtime.errors import PluginFailed
from outrider_runtime.model.arrays import Array, Arrays
from outrider_runtime.model.row_group import NamedProcessor, PlacedGroup


class _Plugged(NamedTuple):
    """Rows with processors of their own: an `Edit`."""

    rows: list[int]
    runs: list[Callable[[torch.Tensor], torch.Tensor]]
    """For each row what is done to its scores, a tensor [vocab] that may be kept."""
    masks: list[Array | None]
    """For each row bool [vocab], what it may choose; None is all."""

    def apply(self, xp: Arrays, scores: Array) -> None:
        """See `Edit`."""
        for row, run, mask in zip(self.rows, self.runs, self.masks, strict=True):
            # A copy: a plug-in may keep what it gets, and the scores' memory is used again.
            values = run(torch.as_tensor(scores[row]).clone())
            if mask is not None:
                values = values.masked_fill(~torch.as_tensor(mask), -math.inf)
            scores[row] = values if isinstance(scores, torch.Tensor) else values.numpy()


def run_plugins(placed: Sequence[PlacedGroup], _vocab_size: int) -> _Plugged | None:
    """Each row's scores through its request's own processors, in their order.

    Applied, it raises `PluginFailed`: one raised, or what it returned is no row of scores.
    """
    plugged = _Plugged([], [], [])
    for place in placed:
        group, first_row = place
        for row in range(group.num_rows if group.processors else 0):
            plugged.rows.append(first_row + row)
            plugged.runs.append(_all_of(place, row))
            plugged.masks.append(None if group.allowed is None else group.allowed[row])
    return plugged if plugged.rows else None


def _all_of(place: PlacedGroup, row: int) -> Callable[[torch.Tensor], torch.Tensor]:
    group = place.group

    def run(values: torch.Tensor) -> torch.Tensor:
        prefix = list(group.token_ids[: group.first_length + row])
        for processor in group.processors:
            values = _run(processor, prefix, group.num_prompt_tokens, values)
        return values

    return run


def _run(
    processor: NamedProcessor, prefix: list[int], prompt_length: int, scores: torch.Tensor
) -> torch.Tensor:
    shape = scores.shape
    try:
        values = processor.run(prefix, prompt_length, scores)
        if not isinstance(values, torch.Tensor) or values.shape != shape:
            raise TypeError(f"it must return a tensor of shape {tuple(shape)}")
        return values.detach().to(device=scores.device, dtype=torch.float32)
    except Exception as fault:  # a plug-in may raise anything
        raise PluginFailed(processor.name) from fault
