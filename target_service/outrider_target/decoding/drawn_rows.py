"""Drafts whose tokens were drawn from known distributions, and the rows that verify them.

Knows nothing of how they are verified.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from outrider_runtime.model.row_group import RowGroup
from outrider_runtime.sparse_distribution import SparseDistribution


class DrawnToken(NamedTuple):
    """A draft token.

    Attributes:
        token_id: The token.
        distribution: What it was drawn from. A token that nobody drew counts as certain.
    """

    token_id: int
    distribution: SparseDistribution

    @classmethod
    def of(cls, token_id: int, distribution: SparseDistribution | None) -> DrawnToken:
        """With the distribution that a drafter told, if it told one."""
        return cls(token_id, distribution or SparseDistribution((token_id,), (1,)))


class DrawnRows(NamedTuple):
    """The rows of one sequence, and the draft they verify.

    Attributes:
        group: One row for each token of the draft, and one behind it. The last may be missing where
            the last token is impossible.
        draft: The draft.
    """

    group: RowGroup
    draft: Sequence[DrawnToken]
