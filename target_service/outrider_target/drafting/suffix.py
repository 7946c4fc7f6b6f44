"""A suffix tree inside the target service: no link, no model, always answered at once.

What followed the last tokens before, in the request's own text or in recent outputs of its tenant
(SuffixDecoding, Oliaro et al. 2024, arXiv 2411.04975).
"""

from __future__ import annotations

from collections.abc import Sequence

from outrider_runtime.recent_texts import RecentTexts
from outrider_runtime.suffix_tree import MAX_DEPTH, NOTHING, Speculation, SuffixTree

from outrider_target.drafting.drafter import NO_DRAFT, Draft, DraftSession
from outrider_target.requests.request import DraftMethod, GenerationRequest

_MAX_OWN_TOKENS = 16_384
"""Of a request's own text no more is indexed, its end first of all."""

_TOKENS_AT_OPENING = 512
_TOKENS_PER_ROUND = 64
"""Tokens that are indexed at once beside the new ones: some microseconds each, on the engine's own
thread."""


class SuffixSession:
    """One sequence's own tree, and what its tenant's recent outputs say."""

    active = True

    def __init__(
        self, request: GenerationRequest, token_ids: Sequence[int], texts: RecentTexts
    ) -> None:
        self._tenant = request.speculation.tenant
        self._texts = texts
        self._output = list(token_ids[len(request.prompt) :])
        self._own = SuffixTree(max_tokens=_MAX_OWN_TOKENS)
        self._unread = list(token_ids[-(_MAX_OWN_TOKENS // 2) :])
        self._unread.reverse()  # the next one last
        self._tail = list(token_ids[-MAX_DEPTH:])
        self._found: Speculation | None = NOTHING
        self._found_for = 0
        self._read(_TOKENS_AT_OPENING)

    def commit(self, token_ids: Sequence[int], *, window: int) -> None:
        """Index the new tokens, and some of those that wait for it."""
        self._output += token_ids
        self._tail = [*self._tail, *token_ids][-MAX_DEPTH:]
        self._unread[:0] = reversed(token_ids)
        self._read(len(token_ids) + _TOKENS_PER_ROUND)

    def waiting_until(self, window: int, now: float) -> float | None:
        """Never waits."""
        return None

    def proposal(self, window: int) -> Draft:
        """What followed most often, there where it is the surest."""
        found = self._speculate(window)
        if not found.token_ids:
            return NO_DRAFT
        return Draft(found.token_ids, DraftMethod.SUFFIX, found.probabilities)

    @property
    def evidence(self) -> tuple[int, int]:
        """Size of the match, in powers of two, and how sure the counts are, in quarters."""
        found = self._found or NOTHING
        if not found.token_ids:
            return 0, 0
        sureness = found.score / len(found.token_ids)
        return found.match_size.bit_length(), min(3, int(4 * sureness))

    def close(self) -> None:
        """Leave the output to the tenant's later requests."""
        self._texts.add(self._tenant, self._output)

    def _read(self, num_tokens: int) -> None:
        size = min(num_tokens, len(self._unread))
        self._own.extend(self._unread.pop() for _ in range(size))
        self._texts.digest(num_tokens)
        self._found = None

    def _speculate(self, window: int) -> Speculation:
        if self._found is None or self._found_for != window:
            self._found = self._surest(window)
            self._found_for = window
        return self._found

    def _surest(self, window: int) -> Speculation:
        """Of the two trees, the draft of which more is expected to be right."""
        own = NOTHING
        if not self._unread:
            own = self._own.speculate(self._tail, window, match_size=self._own.open_match)
        tree = self._texts.tree(self._tenant)
        if tree is None:
            return own
        shared = tree.speculate(self._tail, window)
        return shared if shared.score > own.score else own


class SuffixDrafter:
    """Opens suffix sessions."""

    def __init__(self, texts: RecentTexts) -> None:
        self._texts = texts

    def open(
        self,
        request: GenerationRequest,
        *,
        sample_index: int,
        token_ids: Sequence[int],
        window: int,
    ) -> DraftSession:
        """Begin to index the committed tokens."""
        return SuffixSession(request, token_ids, self._texts)
