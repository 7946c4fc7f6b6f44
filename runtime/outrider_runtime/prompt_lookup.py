"""Prompt lookup: proposes what followed the last few tokens when they occurred before.

An incremental index over one sequence: constant work per token, whatever its length. Knows nothing
of models, trees or gRPC.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from enum import StrEnum
from itertools import cycle, islice, takewhile

MAX_NGRAM_SIZE = 32
"""Longest n-gram that is indexed; larger sizes are cut to it, so that no request buys unbounded
work."""

_Ngram = tuple[int, ...]


class LookupRule(StrEnum):
    """Which earlier occurrence of an n-gram is continued."""

    FIRST = "first"
    """The earliest one, up to the end of the sequence: transformers'
    `PromptLookupCandidateGenerator`."""

    LATEST = "latest"
    """The most recent one. A continuation that reaches the end of the sequence goes on with itself,
    so a repetition is continued however short its period."""


class PromptLookup:
    """Finds continuations of a sequence in the sequence itself.

    The longest n-gram that ends the sequence and occurred before wins, from `max_ngram_size` down
    to a single token (Saxena 2023, "Prompt lookup decoding").
    """

    def __init__(
        self,
        token_ids: Iterable[int] = (),
        *,
        max_ngram_size: int = 2,
        rule: LookupRule = LookupRule.LATEST,
    ) -> None:
        """Index a sequence.

        Args:
            token_ids: The sequence so far.
            max_ngram_size: Longest n-gram to match, at least 1; at most `MAX_NGRAM_SIZE` are used.
            rule: Which occurrence to continue.

        Raises:
            ValueError: `max_ngram_size` is less than 1.
        """
        if max_ngram_size < 1:
            raise ValueError(f"max_ngram_size must be at least 1, got {max_ngram_size}")
        self._max_ngram_size = min(max_ngram_size, MAX_NGRAM_SIZE)
        self._rule = rule
        self._token_ids: list[int] = []
        # Where the text behind an n-gram starts. The n-grams that end the sequence are not in it
        # yet: nothing follows.
        self._continuations: dict[_Ngram, int] = {}
        self._match: tuple[int, int | None] | None = None  # of the end; None: not looked for
        self.extend(token_ids)

    def __len__(self) -> int:
        """Number of tokens indexed."""
        return len(self._token_ids)

    def extend(self, token_ids: Iterable[int]) -> None:
        """Append tokens to the sequence."""
        self._match = None
        known, continuations, largest = self._token_ids, self._continuations, self._max_ngram_size
        latest = self._rule is LookupRule.LATEST
        for token_id in token_ids:
            # A token is about to follow the n-grams that end the sequence.
            end = len(known)
            ngram: _Ngram = ()
            for first in reversed(known[-largest:]):
                ngram = (first, *ngram)
                if latest:
                    continuations[ngram] = end
                else:
                    continuations.setdefault(ngram, end)
            known.append(token_id)

    def truncate(self, length: int) -> None:
        """Keep the first `length` tokens. Costs a new index; only a changed past needs it."""
        if length < len(self._token_ids):
            kept = self._token_ids[:length]
            self._token_ids = []
            self._continuations.clear()
            self.extend(kept)

    @property
    def match_size(self) -> int:
        """Size of the longest n-gram that ends the sequence and occurred before; 0: none."""
        return self._longest_match(())[0]

    def candidates(
        self,
        num_tokens: int,
        *,
        drafted: Sequence[int] = (),
        eos_token_ids: Collection[int] = (),
    ) -> list[int]:
        """Propose tokens to follow the sequence.

        Args:
            num_tokens: Most tokens wanted.
            drafted: Tokens proposed before, to be continued as if they were part of the sequence.
            eos_token_ids: The proposal stops before the first of these.

        Returns:
            At most `num_tokens` tokens; none when nothing matches.
        """
        _, start = self._longest_match(drafted)
        if start is None or num_tokens < 1:
            return []
        copied = self._token_ids[start : start + num_tokens]
        if len(copied) < num_tokens and self._rule is LookupRule.LATEST:
            copied = list(islice(cycle([*copied, *drafted]), num_tokens))
        if eos_token_ids:
            return list(takewhile(lambda token_id: token_id not in eos_token_ids, copied))
        return copied

    def _longest_match(self, drafted: Sequence[int]) -> tuple[int, int | None]:
        """Size of the longest n-gram that ends the text, and the position behind its occurrence."""
        if drafted:
            return self._find_match(drafted)
        if self._match is None:
            self._match = self._find_match(())
        return self._match

    def _find_match(self, drafted: Sequence[int]) -> tuple[int, int | None]:
        known = len(self._token_ids) + len(drafted)
        tail = [*self._token_ids[-self._max_ngram_size :], *drafted]
        for size in range(min(self._max_ngram_size, known - 1), 0, -1):
            start = self._continuations.get(tuple(tail[-size:]))
            if start is not None:
                return size, start
        return 0, None
