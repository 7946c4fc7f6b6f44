"""What a request asks of beam search. Knows nothing of how it is done."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum


class EarlyStopping(Enum):
    """When to stop although live beams are left."""

    YES = True
    """As soon as there are as many finished hypotheses as beams."""
    NO = False
    """When the best live beam could not be among the finished ones if it ended now."""
    NEVER = "never"
    """When no live beam could get among the finished ones any more."""


@dataclass(frozen=True, slots=True)
class BeamSettings:
    """Names and meanings are transformers'."""

    num_beams: int
    num_return_sequences: int
    length_penalty: float
    """A hypothesis' score is divided by its number of generated tokens to this power."""
    early_stopping: EarlyStopping
    num_groups: int
    """Groups of equally many beams that are kept from saying the same; 1: no groups."""
    diversity_penalty: float
    """Taken off a token's score for each beam of another group that says it in this step."""
    pad_token_id: int
    """What the beams of a group that is done are taken to say."""
    forced_phrases: tuple[tuple[tuple[int, ...], ...], ...]
    """What a text must hold: phrases, each in one of several forms."""
    progress_interval: int
    """Steps from one report of the best hypothesis so far to the next; 0: none."""

    @property
    def width(self) -> int:
        """Branches that it may have at a time."""
        return self.num_beams
