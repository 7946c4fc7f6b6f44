"""How long a round waits for a draft: as long as waiting is expected to pay. Pure.

Verifying a draft saves about as many plain rounds as tokens of it are accepted, so waiting that
many round times breaks even. Whether to wait is decided at the start, by how long the drafter
usually takes: giving up halfway would cost the wait and the draft. When it usually takes longer
than the draft is worth, the round decodes plainly at once; the late answer may still agree with
what was decided meanwhile.
"""

from __future__ import annotations

from dataclasses import dataclass

_SMOOTHING = 0.2
_ROUND_SMOOTHING = 0.1
_SCATTER = 3.0
"""How much longer than usual an answer may take before it is given up."""

_SILENCE = 3
"""Unanswered waits in a row after which a drafter is taken for stalled, until it answers again."""

_PROBE_INTERVAL = 64
"""Rounds between two waits that keep the estimate of a poor draft up to date."""


@dataclass(slots=True)
class RoundPace:
    """How long rounds take at the moment; one for the whole target."""

    seconds: float = 0.0
    """Smoothed; 0 before the first round."""

    def observe(self, seconds: float) -> None:
        """Learn from a round."""
        if self.seconds == 0.0:
            self.seconds = seconds
        self.seconds += _ROUND_SMOOTHING * (seconds - self.seconds)


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
    """A sequence's waits."""

    rounds_since_probe: int = 0

    def seconds(
        self, pace: LinkPace, *, worth: float, round_seconds: float, timeout: float
    ) -> float:
        """How long to wait for the next answer.

        Args:
            pace: The drafter's.
            worth: Seconds that the answer is expected to save.
            round_seconds: What a round costs at the moment.
            timeout: Never longer than this.
        """
        if pace.stalled:
            return 0.0
        if pace.latency > worth:
            self.rounds_since_probe += 1
            if self.rounds_since_probe < _PROBE_INTERVAL:
                return 0.0
            self.rounds_since_probe = 0
            return min(2 * pace.latency, 2 * round_seconds, timeout)
        return min(max(_SCATTER * pace.latency, round_seconds), timeout)
