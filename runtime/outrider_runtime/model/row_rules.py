"""What a forward may be asked for: refused before anything was changed.

Knows nothing of how it is run.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from outrider_runtime.model.batch import Places, SequenceRows
from outrider_runtime.model.layer_reader import LayerReader


class RowRules(NamedTuple):
    """What a model can take."""

    num_input_ids: int
    """Token ids that its embedding knows."""
    max_model_len: int
    """Positions that it has."""

    def check(
        self,
        batch: Sequence[SequenceRows],
        *,
        places: Places,
        first_positions: Mapping[int, int],
        reader: LayerReader | None,
    ) -> None:
        """Refuses rows that the model cannot take.

        Args:
            batch: the new tokens of sequences.
            places: where these are, the new tokens not yet among them.
            first_positions: by handle, the position of a sequence's first token where it is not 0.
            reader: what reads layers; None: nothing does.

        Raises:
            ValueError: naming the sequence and what is wrong.
        """
        if not batch:
            raise ValueError("a batch holds at least one sequence")
        for handle, token_ids, num_logits, readings in batch:
            if not token_ids:
                raise ValueError(f"sequence {handle}: no new tokens")
            if not 0 <= num_logits <= len(token_ids):
                raise ValueError(
                    f"sequence {handle}: {num_logits} logits wanted of {len(token_ids)} rows"
                )
            for reading in readings:
                if reader is None:
                    raise ValueError(
                        f"sequence {handle}: nothing can be read of this model's layers"
                    )
                reader.check(reading, handle=handle, num_rows=len(token_ids))
            if min(token_ids) < 0 or max(token_ids) >= self.num_input_ids:
                raise ValueError(f"sequence {handle}: token id out of range")
            length = first_positions.get(handle, 0) + places.length(handle) + len(token_ids)
            if length > self.max_model_len:
                raise ValueError(
                    f"sequence {handle}: longer than the model's {self.max_model_len} positions"
                )
