"""Phrases that a text must hold, and how far it has come with them.

Source: transformers 4.56, `PhrasalConstraint`, `DisjunctiveConstraint` and `ConstraintListState`.
One phrase is worked on at a time; a token that breaks it off begins no other. Phrases that the
prompt holds already count as met, as there.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, eq=False)
class Phrase:
    """One that must appear, in one of its forms; no form begins another one."""

    forms: tuple[tuple[int, ...], ...]

    @property
    def length(self) -> int:
        """That of its longest form."""
        return max(map(len, self.forms))

    def next_tokens(self, begun: tuple[int, ...]) -> list[int]:
        """What may follow the tokens of it that are there, each once."""
        at = len(begun)
        following = [form[at] for form in self.forms if form[:at] == begun and len(form) > at]
        return list(dict.fromkeys(following))


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a text has come."""

    pending: tuple[Phrase, ...]
    """Those that are not begun, in the order in which they are tried."""
    phrase: Phrase | None = None
    """The one that is being said."""
    begun: tuple[int, ...] = ()
    """What of it is there."""
    num_met: int = 0

    @property
    def complete(self) -> bool:
        """Whether all phrases are met."""
        return not self.pending and self.phrase is None

    def bank(self, longest: int) -> int:
        """Steps taken, where each phrase that is met counts as the longest one of all."""
        steps = self.num_met * longest
        if self.phrase is not None:
            steps += longest - (self.phrase.length - len(self.begun))
        return steps

    def next_tokens(self) -> list[int]:
        """The tokens that would be a step forward, each once."""
        if self.phrase is not None:
            return self.phrase.next_tokens(self.begun)
        following = [token_id for phrase in self.pending for token_id in phrase.next_tokens(())]
        return list(dict.fromkeys(following))

    def after(self, token_id: int) -> Progress:
        """With one token more."""
        if self.phrase is not None:
            if token_id in self.phrase.next_tokens(self.begun):
                return self._stepped(self.pending, self.phrase, (*self.begun, token_id))
            return Progress((*self.pending, self.phrase), num_met=self.num_met)
        for place, phrase in enumerate(self.pending):
            if token_id in phrase.next_tokens(()):
                others = self.pending[:place] + self.pending[place + 1 :]
                return self._stepped(others, phrase, (token_id,))
        return self

    def after_all(self, token_ids: Sequence[int]) -> Progress:
        """With a text more."""
        progress = self
        for token_id in token_ids:
            progress = progress.after(token_id)
        return progress

    def _stepped(
        self, pending: tuple[Phrase, ...], phrase: Phrase, begun: tuple[int, ...]
    ) -> Progress:
        if phrase.next_tokens(begun):
            return Progress(pending, phrase, begun, self.num_met)
        return Progress(pending, num_met=self.num_met + 1)
