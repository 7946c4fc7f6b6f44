"""How long a round waits for a draft: as long as waiting is expected to pay. Pure.

Verifying a draft saves about `expected_accepted` plain rounds and costs its rows of the forward;
waiting for the difference breaks even. Whether to wait is decided at the start, by how long the
drafter usually takes: giving up halfway would cost the wait and the draft. When it usually takes
longer than the draft is worth, the round decodes plainly at once; the late answer may still agree
with what was decided meanwhile.
"""

from __future__ import annotations

from dataclasses import dataclass

_OPTIMISM = 2.0
"""Accepted tokens a draft that a new sequence is credited with, before anything was measured."""

_SMOOTHING = 0.2
_ROUND_SMOOTHING = 0.05
_LEAST_VARIANCE = 0.25
"""Of the number of rows, below which nothing is learned about what a row costs."""
_SCATTER = 3.0
"""How much longer than usual an answer may take before it is given up."""

_SILENCE = 3
"""Unanswered waits in a row after which a drafter is taken for stalled, until it answers again."""

_PROBE_INTERVAL = 64
"""Rounds between two waits that keep the estimate of a poor draft up to date."""


@dataclass(slots=True)
class RoundPace:
    """How long rounds take at the moment, and what a row more costs; one for the whole target."""

    seconds: float = 0.0
    """Smoothed duration of a round; 0 before the first."""
    row_seconds: float = 0.0
    """Slope of the duration over the rows of the forward, from the latest rounds; not negative."""
    _rows: float = 0.0
    _variance: float = 0.0
    _covariance: float = 0.0

    def observe(self, seconds: float, num_rows: int) -> None:
        """Learn from a round."""
        if self.seconds == 0.0:
            self.seconds, self._rows = seconds, num_rows
            return
        # Exponentially weighted least squares (West 1979 with forgetting).
        deviation = num_rows - self._rows
        residual = seconds - self.seconds
        keep = 1 - _ROUND_SMOOTHING
        self._variance = keep * (self._variance + _ROUND_SMOOTHING * deviation**2)
        self._covariance = keep * (self._covariance + _ROUND_SMOOTHING * deviation * residual)
        self._rows += _ROUND_SMOOTHING * deviation
        self.seconds += _ROUND_SMOOTHING * residual
        if self._variance > _LEAST_VARIANCE:
            self.row_seconds = max(0.0, self._covariance / self._variance)


@dataclass(slots=True)
class LinkPace:
    """How fast a drafter answers; shared by its sessions."""

    latency: float = 0.0
    """Smoothed seconds from asking to the wanted window; 0 before the first answer."""
    unanswered: int = 0

    def answered(self, seconds: float) -> None:
        """Learn from an answer."""
        self.unanswered = 0
        if self.latency == 0.0:
            self.latency = seconds
        else:
            self.latency += _SMOOTHING * (seconds - self.latency)

    def missed(self) -> None:
        """Learn from a wait that ended without an answer."""
        self.unanswered += 1

    @property
    def stalled(self) -> bool:
        """Whether it is not worth waiting for at all."""
        return self.unanswered >= _SILENCE


@dataclass(slots=True)
class Patience:
    """How much a sequence's drafts have been worth."""

    expected_accepted: float = _OPTIMISM
    expected_drafted: float = _OPTIMISM
    rounds_since_probe: int = 0

    def observe(self, num_draft_tokens: int, num_accepted: int) -> None:
        """Learn what a round made of a draft."""
        self.expected_drafted += _SMOOTHING * (num_draft_tokens - self.expected_drafted)
        self.expected_accepted += _SMOOTHING * (num_accepted - self.expected_accepted)

    def seconds(
        self, pace: LinkPace, rounds: RoundPace, *, num_sessions: int, timeout: float
    ) -> float:
        """How long to wait for the next answer.

        Args:
            pace: The drafter's.
            rounds: The target's.
            num_sessions: Sequences of the batch that are in the same situation.
            timeout: Never longer than this.
        """
        if pace.stalled:
            return 0.0
        round_seconds = rounds.seconds
        # Everybody's draft makes everybody's round longer.
        verifying = rounds.row_seconds * self.expected_drafted * num_sessions
        worth = self.expected_accepted * round_seconds - verifying
        if pace.latency <= worth:
            return min(max(_SCATTER * pace.latency, round_seconds), timeout)
        self.rounds_since_probe += 1
        if self.rounds_since_probe < _PROBE_INTERVAL:
            return 0.0
        self.rounds_since_probe = 0
        return min(2 * pace.latency, 2 * round_seconds, timeout)
