"""How often the next draft was there before anybody asked for it. Pure counters."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(slots=True)
class Foresight:
    """Answers of the target to what a remote drafter had proposed, of all sequences.

    An answer *follows* the draft where the draft said the same as far as it went, and *corrects* it
    where it leaves it. Either way something to verify next may be *ready*: run ahead along the
    draft, or enumerated beside it.
    """

    followed: int = 0
    followed_ready: int = 0
    corrected: int = 0
    corrected_ready: int = 0

    def observe(self, *, followed: bool, ready: bool) -> None:
        """Count an answer."""
        if followed:
            self.followed += 1
            self.followed_ready += ready
        else:
            self.corrected += 1
            self.corrected_ready += ready
