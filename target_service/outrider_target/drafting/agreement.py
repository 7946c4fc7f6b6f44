"""How often a drafter's next token is the target's own. Pure.

Counted are tokens whose predecessors in the draft all agreed, so a rate `a` makes a draft of `n`
tokens worth `a + a**2 + .. + a**n` accepted ones (Leviathan et al. 2023, equation 1, without the
target's own token).
"""

from __future__ import annotations

from collections.abc import Sequence

_FIRST_GUESS = 0.6
"""Rate of a drafter nobody has seen yet."""

_FIRST_GUESS_PER_DRAFT = 1.5
"""Accepted tokens a draft of such a drafter."""

_PRIOR_DRAFTS = 2.0
_PRIOR_TRIALS = 4.0
"""Tokens of its own after which a sequence outweighs what the others taught."""

SHARED_MEMORY = 1000.0
"""Tokens that what all sequences share remembers."""


def num_agreeing(draft: Sequence[int], decided: Sequence[int]) -> int:
    """How many tokens of a draft were the target's own, up to the first that was not."""
    agreed = 0
    for proposed, own in zip(draft, decided, strict=False):
        if proposed != own:
            break
        agreed += 1
    return agreed


class Agreement:
    """A forgetful rate of agreement, of one sequence or, as `prior` of several, of all."""

    def __init__(self, prior: Agreement | None = None, *, memory: float = 50.0) -> None:
        """Start from what the prior knows.

        Args:
            prior: Learns whatever this one learns, and speaks until this one knows better.
            memory: Tokens after which what was seen counts 1/e.
        """
        self._prior = prior
        self._memory = memory
        self._agreed = 0.0
        self._compared = 0.0
        self._drafts = 0.0

    @property
    def rate(self) -> float:
        """Probability that the next token agrees, in (0, 1)."""
        guess = _FIRST_GUESS if self._prior is None else self._prior.rate
        return (self._agreed + _PRIOR_TRIALS * guess) / (self._compared + _PRIOR_TRIALS)

    @property
    def accepted_per_draft(self) -> float:
        """How many tokens of the next draft will be accepted, however long it becomes."""
        guess = _FIRST_GUESS_PER_DRAFT if self._prior is None else self._prior.accepted_per_draft
        return (self._agreed + _PRIOR_DRAFTS * guess) / (self._drafts + _PRIOR_DRAFTS)

    def expected_accepted(self, num_tokens: int) -> float:
        """How many tokens of a draft of `num_tokens` will be accepted."""
        rate = self.rate
        return rate * (1 - rate**num_tokens) / (1 - rate)

    def observe(self, draft: Sequence[int], decided: Sequence[int]) -> None:
        """Compare a draft with the tokens that the target decided, verified or not."""
        agreed = num_agreeing(draft, decided)
        self._count(agreed, min(agreed + 1, len(draft), len(decided)))

    def _count(self, agreed: int, compared: int) -> None:
        if compared == 0:
            return
        kept = max(0.0, 1 - compared / self._memory)
        self._agreed = kept * self._agreed + agreed
        self._compared = kept * self._compared + compared
        self._drafts = kept * self._drafts + 1
        if self._prior is not None:
            self._prior._count(agreed, compared)
