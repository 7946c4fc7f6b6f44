"""Continuations of a sequence from its own text and from recent texts of its tenant.

What a suffix tree says of both, whichever is surer (SuffixDecoding, Oliaro et al. 2024, arXiv
2411.04975). Knows nothing of models, trees of drafts or gRPC.
"""

from __future__ import annotations

from collections.abc import Sequence

from outrider_runtime.recent_texts import RecentTexts, Tenant
from outrider_runtime.suffix_tree import MAX_DEPTH, NOTHING, Speculation, new_suffix_tree

MAX_OWN_TOKENS = 16_384
"""Of a sequence's own text no more is indexed, its end first of all."""

_TOKENS_AT_ONCE = 64
_TOKENS_AT_FIRST = 512
"""Tokens that are indexed in one go beside the new ones: each takes up to some microseconds of a
thread that has other sequences to serve."""


class SuffixLookup:
    """One sequence: its own tree, and what its tenant's recent texts say."""

    def __init__(
        self,
        texts: RecentTexts,
        tenant: Tenant,
        token_ids: Sequence[int],
        *,
        num_prompt_tokens: int,
    ) -> None:
        """Begin to index a sequence.

        Args:
            texts: Where the output goes in the end.
            tenant: Whose sequence it is.
            token_ids: The sequence so far.
            num_prompt_tokens: How many of these are no output.
        """
        self._texts = texts
        self._tenant = tenant
        self._length = len(token_ids)
        self._output = list(token_ids[num_prompt_tokens:])
        self._own = new_suffix_tree(max_tokens=MAX_OWN_TOKENS)
        self._unread = list(token_ids[-(MAX_OWN_TOKENS // 2) :])
        self._unread.reverse()  # the next one last
        self._tail = list(token_ids[-MAX_DEPTH:])
        self._read(_TOKENS_AT_FIRST)

    def __len__(self) -> int:
        """Length of the sequence."""
        return self._length

    def extend(self, token_ids: Sequence[int]) -> None:
        """Append tokens, and index some of those that wait for it."""
        self._length += len(token_ids)
        self._output += token_ids
        self._tail = [*self._tail, *token_ids][-MAX_DEPTH:]
        self._unread[:0] = reversed(token_ids)
        self._read(len(token_ids) + _TOKENS_AT_ONCE)

    def speculate(self, num_tokens: int, *, drafted: Sequence[int] = ()) -> Speculation:
        """Propose tokens to follow.

        Args:
            num_tokens: Most tokens wanted.
            drafted: Tokens proposed before, to be continued as if they were part of the sequence.
        """
        context = [*self._tail, *drafted][-MAX_DEPTH:]
        own = NOTHING
        if not self._unread:  # else its own text does not end where the sequence does
            match_size = None if drafted else self._own.open_match
            own = self._own.speculate(context, num_tokens, match_size=match_size)
        tree = self._texts.tree(self._tenant)
        if tree is None:
            return own
        shared = tree.speculate(context, num_tokens)
        return shared if shared.score > own.score else own

    def close(self) -> None:
        """Leave the output to the tenant's later sequences."""
        self._texts.add(self._tenant, self._output)

    def _read(self, num_tokens: int) -> None:
        size = min(num_tokens, len(self._unread))
        self._own.extend(self._unread.pop() for _ in range(size))
        self._texts.digest(num_tokens)
