"""The last rounds, each in one compact record. Written by the engine thread, read by any."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Sequence
from typing import NamedTuple

from outrider_target.drafting.silence import Silence

_KEPT = 512


class RoundRecord(NamedTuple):
    """A round that decided something."""

    num_steps: int
    """Forwards in one go: it counts as so many rounds. What follows is of all of them, but for the
    sequences and their rows."""
    num_sequences: int
    num_rows: int
    num_drafts: int
    """Sequences that had a draft verified."""
    num_draft_tokens: int
    num_accepted_tokens: int
    num_tokens: int
    """Tokens decided."""
    forward_seconds: float
    between_seconds: float
    """From the end of the last round's forward to the start of this one's; 0 for a first round."""
    silences: Sequence[Silence]
    """Of the sequences without a draft."""


class Recent(NamedTuple):
    """Sums over the last rounds."""

    num_rounds: int = 0
    num_sequence_rounds: int = 0
    num_drafts: int = 0
    num_draft_tokens: int = 0
    num_accepted_tokens: int = 0
    num_tokens: int = 0
    forward_seconds: float = 0.0
    between_seconds: float = 0.0
    silences: Sequence[tuple[Silence, int]] = ()
    """Most first."""


class RoundLog:
    """A ring of records."""

    def __init__(self) -> None:
        self._records: deque[RoundRecord] = deque(maxlen=_KEPT)

    def add(self, record: RoundRecord) -> None:
        """Keep a round; the oldest goes."""
        self._records.append(record)

    def recent(self) -> Recent:
        """What they come to. Any thread."""
        records = tuple(self._records)
        silences: Counter[Silence] = Counter()
        for record in records:
            for silence in record.silences:
                silences[silence] += record.num_steps
        return Recent(
            num_rounds=sum(record.num_steps for record in records),
            num_sequence_rounds=sum(r.num_steps * r.num_sequences for r in records),
            num_drafts=sum(record.num_drafts for record in records),
            num_draft_tokens=sum(record.num_draft_tokens for record in records),
            num_accepted_tokens=sum(record.num_accepted_tokens for record in records),
            num_tokens=sum(record.num_tokens for record in records),
            forward_seconds=sum(record.forward_seconds for record in records),
            between_seconds=sum(record.between_seconds for record in records),
            silences=silences.most_common(),
        )
