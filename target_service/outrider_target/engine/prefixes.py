"""What names blocks of the KV pool: who may share them, and every token up to their end.

Two texts that begin alike have blocks of the same names, and share them. A name is a hash over the
one before it, so that it stands for the whole text up to there.
"""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Sequence

_SIZE = 16
"""Bytes of a name: with 2**64 blocks named, that two are mistaken for one another is unlikely."""


class PrefixNames:
    """Names the blocks of texts."""

    def __init__(self, block_size: int, *, enabled: bool = True) -> None:
        """Settle how texts are cut.

        Args:
            block_size: Tokens a block.
            enabled: Whether blocks are shared at all between requests.
        """
        self._block_size = block_size
        self.enabled = enabled

    def extend(self, names: list[bytes], scope: bytes, token_ids: Sequence[int], end: int) -> None:
        """Append the names of the full blocks that lie before a position.

        Args:
            names: Of the first blocks, as far as they are known; appended to.
            scope: Among whom blocks are shared: the tenant.
            token_ids: The text.
            end: A position in it.
        """
        size = self._block_size
        for start in range(len(names) * size, end - size + 1, size):
            before = names[-1] if names else hashlib.blake2b(scope, digest_size=_SIZE).digest()
            tokens = array("Q", token_ids[start : start + size]).tobytes()
            names.append(hashlib.blake2b(before + tokens, digest_size=_SIZE).digest())
