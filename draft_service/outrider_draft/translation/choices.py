"""A draft model's scores as scores of what its target may choose. Needs torch.

Knows nothing of sessions, text or noise.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import NamedTuple

import torch
from outrider_runtime.model.arrays import on_device

from outrider_draft.translation.shared_items import SharedItems


class ChoicesKey(NamedTuple):
    """What a session's tokens are chosen from."""

    tokenizer: str
    """Fingerprint of the target's."""
    vocab_size: int
    """Token ids the target can emit."""
    target_only: bool
    """A watermark is spread over exactly the target's vocabulary."""


class Choices:
    """The target's token ids, then draft ids of which the target's beginning is not known."""

    def __init__(self, items: SharedItems, key: ChoicesKey, *, num_logits: int) -> None:
        """Arrange what there is to choose from.

        Args:
            items: What the two vocabularies have in common.
            key: Whose choice it is.
            num_logits: Columns of the draft model's scores.
        """
        others = [] if key.target_only else items.without_beginning
        self._size = key.vocab_size + len(others)
        self._members: dict[int, list[int]] = defaultdict(list)
        for draft_id, token_id in items.begins_with.items():
            if token_id < key.vocab_size:
                self._members[token_id].append(draft_id)
        for place, draft_id in enumerate(others):
            self._members[key.vocab_size + place].append(draft_id)
        columns = torch.full((num_logits,), self._size)  # the last column is nobody's
        for column, members in self._members.items():
            columns[members] = column
        self._columns = columns

    def scores(self, logits: torch.Tensor) -> torch.Tensor:
        """Add up the draft model's probabilities of each choice.

        Args:
            logits: [rows, draft vocabulary].

        Returns:
            [rows, choices], on the scale of `logits`; minus infinity where there is nothing.
        """
        self._columns = self._columns.to(logits.device)
        highest = logits.amax(dim=-1, keepdim=True)
        added = torch.zeros((len(logits), self._size + 1), dtype=logits.dtype, device=logits.device)
        added.index_add_(1, self._columns, torch.exp(logits - highest))
        return (added.log() + highest)[:, : self._size]

    def draft_ids(self, logits: torch.Tensor, chosen: Sequence[int]) -> list[int]:
        """The most probable draft token of each row's choice.

        Args:
            logits: [rows, draft vocabulary].
            chosen: For each row one of the choices, of a finite score.
        """
        members = [self._members[column] for column in chosen]
        widest = max(map(len, members))
        if widest == 1:
            return [some[0] for some in members]
        # A device is asked one question. What is padded ties with the first, and loses.
        padded = [[*some, *some[:1] * (widest - len(some))] for some in members]
        side = on_device(logits.device)
        (best,) = side.lists(logits.gather(1, side.integers(padded)).argmax(-1))
        return [some[place] for some, place in zip(members, best, strict=True)]
