"""How long a round waits for a draft: as long as waiting is expected to pay. Pure.

Verifying a draft saves about as many plain rounds as tokens of it are accepted, so waiting that
many round times breaks even. Whether to wait is decided at the start, by how long the drafter
usually takes: giving up halfway would cost the wait and the draft. When it usually takes longer
than the draft is worth, the round decodes plainly at once; the late answer may still agree with
what was decided meanwhile.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

from outrider_runtime.tally import LATENCY_BUCKETS, Tally

_SMOOTHING = 0.2
_ROUND_SMOOTHING = 0.1
_SCATTER = 3.0
"""How much longer than usual an answer may take before it is given up."""

_SILENCE = 3
"""Unanswered waits in a row after which a drafter is taken for stalled, until it answers again."""

_PROBE_INTERVAL = 64
"""Rounds in which waiting does not pay for each one that waits all the same."""


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
class AnswerCounters:
    """How a drafter has answered since the target started, whatever became of its link."""

    seconds: Tally = field(default_factory=lambda: Tally(LATENCY_BUCKETS))
    """From asking to the wanted window."""
    num_missed: int = 0
    """Waits that ended without an answer."""


@dataclass(slots=True)
class LinkPace:
    """How fast a drafter answers; shared by its sessions."""

    answers: AnswerCounters = field(default_factory=AnswerCounters)

    latency: float = 0.0
    """Smoothed seconds from asking to the wanted window; 0 before the first answer."""
    reading: float | None = None
    """Smoothed seconds a token that a text takes to be read first; None before the first text."""
    unanswered: int = 0
    unwaited: int = 0
    """Rounds in which it did not pay to wait, since the last probe."""

    def answered(self, seconds: float) -> None:
        """Learn from an answer."""
        self.unanswered = 0
        self.answers.seconds.observe(seconds)
        if self.latency == 0.0:
            self.latency = seconds
        else:
            self.latency += _SMOOTHING * (seconds - self.latency)

    def opened(self, seconds: float, num_tokens: int) -> None:
        """Learn from the first answer of a session, whose text had to be read before."""
        self.unanswered = 0
        if self.latency == 0.0:
            return  # what of it was reading?
        reading = max(0.0, seconds - self.latency) / num_tokens
        if self.reading is None:
            self.reading = reading
        else:
            self.reading += _SMOOTHING * (reading - self.reading)

    def opening(self, num_tokens: int) -> float | None:
        """Expected seconds to the first answer for such a text; None when nothing is known."""
        return None if self.reading is None else self.latency + num_tokens * self.reading

    def missed(self) -> None:
        """Learn from a wait that ended without an answer."""
        self.unanswered += 1
        self.answers.num_missed += 1

    def try_again(self) -> None:
        """Take it for alive once more; one more wait in vain and it is not."""
        self.unanswered = _SILENCE - 1

    def probe_is_due(self) -> bool:
        """Whether to wait although it does not pay, once in a while: the estimates grow old."""
        self.unwaited = (self.unwaited + 1) % _PROBE_INTERVAL
        return self.unwaited == 0

    @property
    def stalled(self) -> bool:
        """Whether it is not worth waiting for at all."""
        return self.unanswered >= _SILENCE


class Question(NamedTuple):
    """What to do about a drafter in a round of a sequence."""

    ask: bool
    """Tell it the committed tokens, which asks for more."""
    wait: bool
    """Hold the sequence back until it answers."""


def decide(pace: LinkPace, *, worth: float, dispensable: bool) -> Question:
    """Whether to ask a drafter, and whether to wait for its answer.

    Args:
        pace: The drafter's.
        worth: Seconds that the answer is expected to save.
        dispensable: Whether an answer that is not waited for is not worth asking for.
    """
    if not pace.stalled and pace.latency <= worth:
        return Question(ask=True, wait=True)
    probe = pace.probe_is_due()
    return Question(ask=probe or not dispensable, wait=probe and not pace.stalled)


def patience(usual: float, *, round_seconds: float, timeout: float) -> float:
    """Seconds to wait for an answer that usually takes so long; at most `timeout`."""
    return min(max(_SCATTER * usual, round_seconds), timeout)
