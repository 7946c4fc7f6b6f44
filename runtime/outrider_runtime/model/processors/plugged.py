"""Processors that came with the request: plug-ins, one row at a time.

What a row may not choose stays so, whatever they do. Knows nothing of where they come from.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

from outrider_runtime.errors import PluginFailed
from outrider_runtime.model.arrays import Array, Arrays
from outrider_runtime.model.row_group import NamedProcessor, PlacedGroup


def run_plugins(
    xp: Arrays,  # noqa: ARG001 - what all edits take
    scores: Array,
    placed: Sequence[PlacedGroup],
) -> None:
    """In place: each row's scores through its request's own processors, in their order.

    Raises:
        PluginFailed: One raised, or what it returned is no row of scores.
    """
    for group, first_row in placed:
        if not group.processors:
            continue
        for row in range(group.num_rows):
            prefix = list(group.token_ids[: group.first_length + row])
            # A copy: a plug-in may keep what it gets, and the scores' memory is used again.
            values = torch.as_tensor(scores[first_row + row]).clone()
            for processor in group.processors:
                values = _run(processor, prefix, group.num_prompt_tokens, values)
            if group.allowed is not None:
                allowed = torch.as_tensor(group.allowed[row], device=values.device)
                values = values.masked_fill(~allowed, -math.inf)
            scores[first_row + row] = values if isinstance(scores, torch.Tensor) else values.numpy()


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
