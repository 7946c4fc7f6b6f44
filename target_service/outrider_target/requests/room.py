"""How much the server can hold at once, for requests whose sequences have several branches."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Room:
    """Limits of the batch and of the KV pool."""

    max_num_seqs: int
    num_blocks: int
    block_size: int
