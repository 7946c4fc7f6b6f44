"""A compiled grammar as a constraint: see `constraint`, the port.

A draft is walked from the committed tokens and taken back before anyone sees it. Knows nothing of
models, drafters or how a grammar is compiled.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from outrider_runtime.errors import InvalidRequest

from outrider_target.constraints.constraint import Allowed

if TYPE_CHECKING:
    from llguidance import LLMatcher


class _Step(NamedTuple):
    """What may follow some tokens."""

    allowed: Allowed
    """[vocab]."""
    complete: bool
    """Whether the text may end here."""


class _TooCostly(Exception):
    """The matcher gave up, for good; the text says why."""


class GrammarConstraint:
    """A form and how far a sequence has come in it.

    Args:
        new_matcher: Gives a matcher at the start of the text.
        field: The request's field that asks for the form, for errors.
        end_id: The matcher's own token for the end of the text. The model does not have it.
        eos_token_ids: The request's tokens for the end of the text. May be none: the text then ends
            where nothing can follow.
        vocab_size: Number of tokens the model can choose from.
    """

    def __init__(
        self,
        new_matcher: Callable[[], LLMatcher],
        *,
        field: str,
        end_id: int,
        eos_token_ids: Sequence[int],
        vocab_size: int,
    ) -> None:
        self._new_matcher = new_matcher
        self._field = field
        self._end_id = end_id
        self._eos_token_ids = [i for i in eos_token_ids if i < vocab_size]
        self._vocab_size = vocab_size
        self._matcher = new_matcher()
        self._committed: list[int] = []
        self._draft: list[int] = []  # the draft tokens that were walked last
        self._steps: list[_Step] = []  # before them, and after each; empty after a commit

    def push(self, token_id: int) -> None:
        """See the port."""
        if not self._matcher.consume_token(token_id):
            raise InvalidRequest(self._field, "another option forces a token that it forbids")
        self._committed.append(token_id)
        self._draft, self._steps = [], []

    @property
    def ended(self) -> bool:
        """See the port."""
        return not self._eos_token_ids and not self._first_step().allowed.any()

    def admissible(self, draft: Sequence[int]) -> int:
        """See the port. Also refused: the matcher gave up, or no token of the model fits."""
        if not self._walked(draft):
            self._walk(draft)
        return min(len(draft), len(self._draft))

    def allowed(self, draft: Sequence[int]) -> Allowed:
        """See the port."""
        if not self._walked(draft):
            self._walk(draft)
        return np.stack([step.allowed for step in self._steps[: len(draft) + 1]])

    def forced(self, limit: int) -> list[int]:
        """See the port."""
        self._walk(self._only_ones(limit))
        return list(self._draft)

    def copy(self) -> GrammarConstraint:
        """See the port."""
        other = copy.copy(self)
        other._matcher = self._matcher.deep_copy()
        other._committed = list(self._committed)
        return other

    def _only_ones(self, limit: int) -> Iterator[int]:
        """The token that each step of a walk leaves, while it leaves but one."""
        for _ in range(limit):
            possible = np.flatnonzero(self._steps[-1].allowed)
            if len(possible) != 1:
                return
            yield int(possible[0])

    def _walked(self, draft: Sequence[int]) -> bool:
        """Whether the last walk went over this draft, or further."""
        return bool(self._steps) and list(draft) == self._draft[: len(draft)]

    def _walk(self, draft: Iterable[int]) -> None:
        self._steps = [self._first_step()]
        self._draft = []
        num_consumed = 0
        try:
            for token_id in draft:
                if not self._allows(self._steps[-1], token_id):
                    break
                if token_id in self._eos_token_ids:
                    self._take(token_id, self._behind_the_end())
                    break
                if not self._matcher.consume_token(token_id):
                    raise _TooCostly(self._matcher.get_error())
                num_consumed += 1
                step = self._look()
                if step.allowed.any():
                    self._take(token_id, step)
                    continue
                if step.complete:
                    self._take(token_id, self._behind_the_end())
                break  # else a dead end: should the target go there too, it will learn it then
        except _TooCostly:
            self._start_again()  # a draft that may never be committed is no reason to fail
        else:
            if not self._matcher.rollback(num_consumed):
                self._start_again()

    def _take(self, token_id: int, step: _Step) -> None:
        self._draft.append(token_id)
        self._steps.append(step)

    def _allows(self, step: _Step, token_id: int) -> bool:
        return token_id < self._vocab_size and bool(step.allowed[token_id])

    def _first_step(self) -> _Step:
        if self._steps:
            return self._steps[0]
        try:
            step = self._look()
        except _TooCostly as error:
            raise InvalidRequest(self._field, f"is too costly to follow: {error}") from None
        if not step.complete and not step.allowed.any():
            raise InvalidRequest(self._field, "no token of the model can continue the text")
        self._steps = [step]
        return step

    def _look(self) -> _Step:
        """What may follow what the matcher has consumed."""
        bits = np.frombuffer(self._matcher.compute_bitmask(), np.uint8)
        if self._matcher.is_error():
            raise _TooCostly(self._matcher.get_error())
        known = np.unpackbits(bits, bitorder="little", count=self._end_id + 1).view(np.bool_)
        complete = bool(known[self._end_id])
        allowed = np.zeros(self._vocab_size, np.bool_)
        size = min(self._end_id, self._vocab_size)
        allowed[:size] = known[:size]
        allowed[self._eos_token_ids] = complete
        return _Step(allowed, complete)

    def _behind_the_end(self) -> _Step:
        """Of a row that is computed but never looked at."""
        return _Step(np.ones(self._vocab_size, np.bool_), complete=False)

    def _start_again(self) -> None:
        self._matcher = self._new_matcher()
        self._matcher.consume_tokens(self._committed)
