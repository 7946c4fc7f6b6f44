"""A row of scores that gets a watermark."""

from __future__ import annotations

from typing import NamedTuple

from outrider_runtime.model.row_group import RowGroup


class MarkedRow(NamedTuple):
    """Which row, and what it sees."""

    row: int
    """Its place among the scores given."""
    group: RowGroup
    length: int
    """Number of tokens it sees: `group.token_ids[:length]`."""
