"""How long rounds take and how much is in them, counted round by round.

Filled by the engine thread, read by any. Knows nothing of Prometheus.
"""

from __future__ import annotations

from outrider_runtime.tally import LATENCY_BUCKETS, SIZE_BUCKETS, Tally

from outrider_target.drafting.pricing.control import RoundTimes
from outrider_target.engine.sequence import Sequence


class RoundTallies:
    """Distributions over all rounds since the start."""

    __slots__ = ("forward_seconds", "inter_token_seconds", "num_rows", "num_sequences", "seconds")

    def __init__(self) -> None:
        self.seconds = Tally(LATENCY_BUCKETS)
        """From planning a round to its last commit."""
        self.forward_seconds = Tally(LATENCY_BUCKETS)
        """The forward of it, and choosing each row's own token."""
        self.num_rows = Tally(SIZE_BUCKETS)
        self.num_sequences = Tally(SIZE_BUCKETS)
        self.inter_token_seconds = Tally(LATENCY_BUCKETS)
        """From a sequence's tokens to its next, over the number of these; once for each of them."""

    def round_ended(self, times: RoundTimes, seconds: float) -> None:
        """Count a round; several steps in one go as so many rounds."""
        steps = times.num_steps
        self.seconds.observe(seconds / steps, steps)
        self.forward_seconds.observe(times.forward_seconds / steps, steps)
        self.num_rows.observe(times.num_rows, steps)
        self.num_sequences.observe(times.num_sequences, steps)

    def tokens_decided(self, sequence: Sequence, num_tokens: int, now: float) -> None:
        """Count what a round decided for a sequence. `now` is when its forward ended."""
        if not num_tokens:
            return
        last, sequence.last_decided_at = sequence.last_decided_at, now
        if last is not None:
            self.inter_token_seconds.observe((now - last) / num_tokens, num_tokens)
