"""Tokens a round, on average over the last rounds. Pure."""

from __future__ import annotations

_MEMORY = 128.0
_PRIOR_WEIGHT = 24.0
"""Rounds of its own after which a sequence outweighs what the others taught."""


class Gain:
    """A forgetful mean, of one sequence or, as `prior` of several, of all."""

    def __init__(self, prior: Gain | None = None, *, memory: float = _MEMORY) -> None:
        """Start from what the prior knows.

        Args:
            prior: Learns whatever this one learns, and speaks until this one knows better.
            memory: Rounds after which what was seen counts 1/e.
        """
        self.prior = prior
        self._memory = memory
        self._sum = 0.0
        self._weight = 0.0

    @property
    def known(self) -> bool:
        """Whether anything was seen."""
        return self._weight > 0 or (self.prior is not None and self.prior.known)

    @property
    def mean(self) -> float:
        """Tokens a round; 0 when nothing was seen."""
        if self.prior is None:
            return self._sum / self._weight if self._weight else 0.0
        return (self._sum + _PRIOR_WEIGHT * self.prior.mean) / (self._weight + _PRIOR_WEIGHT)

    def observe(self, tokens: float) -> None:
        """Learn from a round."""
        self.fade()
        self._sum += tokens
        self._weight += 1
        if self.prior is not None:
            self.prior.observe(tokens)

    def fade(self) -> None:
        """Believe a little less in what was seen."""
        kept = 1 - 1 / self._memory
        self._sum *= kept
        self._weight *= kept

    def replace(self, mean: float, weight: float) -> None:
        """Believe this instead: so many rounds of this mean."""
        self._sum, self._weight = mean * weight, weight
