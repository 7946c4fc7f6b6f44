"""Lines of tokens that a sequence keeps in the KV pool.

Most sequences keep one. Classifier-free guidance keeps a second one beside it, beams are branches
that grew out of one prompt. Knows nothing of pools or models.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

from outrider_runtime.model.layer_reading import LayerReading


class Reader(Protocol):
    """Wants to know more of a branch's forwards than logits."""

    def reading(self, num_cached: int, num_fed: int) -> LayerReading | None:
        """What to read of a forward that feeds `num_fed` tokens after `num_cached`."""


@dataclass(slots=True, eq=False)
class Branch:
    """One line of tokens, grown by the strategy that owns it.

    Invariant between rounds: the KV pool holds `token_ids[:-1]` or less; the last token is fed in
    the next round, so that every branch gets at least one row of it.
    """

    token_ids: list[int]
    """All its tokens, a prompt first."""
    source: Branch | None = None
    """The branch that holds its first tokens already; None when there is none, or not any more."""
    num_shared: int = 0
    """How many of them."""
    reader: Reader | None = None
    """Asked before each forward, prefill chunks included. Such a branch is never forked off a
    sibling sequence: its positions would not be read."""
    handle: int | None = None
    """Its entry in the KV pool; the scheduler's."""
    block_names: list[bytes] = field(default_factory=list)
    """Names of its first full blocks in the KV pool; the scheduler's."""

    def continued(self, *token_ids: int) -> Branch:
        """A branch that goes on from this one: shares its blocks, copies what it writes to."""
        return Branch([*self.token_ids, *token_ids], self, len(self.token_ids))


def share_prefixes(branches: Sequence[Branch], *, at_least: int) -> None:
    """Let each branch share what it has in common with one before it, if that is worth it.

    Args:
        branches: Branches without places in the pool.
        at_least: Tokens worth sharing.
    """
    for index, branch in enumerate(branches):
        branch.source, branch.num_shared = None, 0
        for other in branches[:index]:
            common = _num_common(branch.token_ids, other.token_ids)
            if common >= max(at_least, branch.num_shared + 1):
                branch.source, branch.num_shared = other, common


def _num_common(some: list[int], others: list[int]) -> int:
    """Length of the common prefix without the last token of either, which is still to be fed."""
    most = min(len(some), len(others)) - 1
    if some[:most] == others[:most]:
        return most
    return next(i for i in range(most) if some[i] != others[i])
