"""The rows of a batch, sorted by the kind of work that choosing their tokens takes.

Knows nothing of tensors.
"""

from __future__ import annotations

import enum
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from outrider_runtime.model.candidates import window
from outrider_runtime.model.noise import NoiseRow
from outrider_runtime.model.processors.warpers import TOP_H_CANDIDATES
from outrider_runtime.model.row_group import PlacedGroup, RowGroup
from outrider_runtime.sampling_parameters import SamplingParameters


class Kind(enum.Enum):
    """What has to be done to choose a row's token."""

    GREEDY = enum.auto()
    """Take the highest score."""
    WINDOWED = enum.auto()
    """Sample; top_k or top_h bounds the number of tokens beforehand."""
    TRUNCATED = enum.auto()
    """Sample; what is dropped shows only once the whole row was looked at."""
    WHOLE = enum.auto()
    """Sample from the whole vocabulary."""


@dataclass(slots=True)
class Part:
    """Rows of one kind. The lists run over the part's rows."""

    kind: Kind
    rows: list[int] = field(default_factory=list)
    """Place in the batch."""
    groups: list[RowGroup] = field(default_factory=list)
    """Whose row it is."""
    positions: list[int] = field(default_factory=list)
    """Absolute index of the token the row predicts."""
    window: int = 0
    """How many of the highest scores a device gathers, where the kind is `WINDOWED`."""

    def add(self, place: PlacedGroup) -> None:
        """Take in all rows of a group."""
        group, first_row = place
        self.rows.extend(range(first_row, first_row + group.num_rows))
        self.groups.extend([group] * group.num_rows)
        self.positions.extend(range(group.first_length, group.first_length + group.num_rows))

    def blocks(self, rows_at_once: int) -> list[Part]:
        """The same rows in parts of a bounded number, where work on whole rows would outgrow it.

        Rows are independent of each other, so this changes the speed and nothing else.
        """
        small = self.kind in (Kind.GREEDY, Kind.WINDOWED) or len(self.rows) <= rows_at_once
        if small:
            return [self]
        starts = range(0, len(self.rows), rows_at_once)
        return [self._some(range(len(self.rows))[i : i + rows_at_once], self.kind) for i in starts]

    def _some(self, indices: Sequence[int], kind: Kind) -> Part:
        rows, groups = [self.rows[i] for i in indices], [self.groups[i] for i in indices]
        return Part(kind, rows, groups, [self.positions[i] for i in indices])

    def again(self, complete: Iterable[bool]) -> list[Part]:
        """The rows whose candidates are not complete, to be done again on the whole vocabulary."""
        missing = [index for index, done in enumerate(complete) if not done]
        return [self._some(missing, Kind.TRUNCATED)] if missing else []

    def noise_rows(self) -> list[NoiseRow]:
        """What keys the noise of each row."""
        return [
            NoiseRow(group.seed, group.sample_index, position)
            for group, position in zip(self.groups, self.positions, strict=True)
        ]


def bound(parameters: SamplingParameters) -> int:
    """Number of highest scores that are enough to apply all truncations; 0 if there is none."""
    if parameters.top_h is not None:
        return TOP_H_CANDIDATES
    return max(parameters.top_k, parameters.min_tokens_to_keep) if parameters.top_k else 0


def split(placed: Sequence[PlacedGroup], *, rows_at_once: int) -> list[Part]:
    """Sort the batch's rows into parts.

    Args:
        placed: the batch's groups.
        rows_at_once: most rows of a part in which every score has to be worked on repeatedly.
    """
    parts: dict[tuple[Kind, int], Part] = {}
    for place in placed:
        key = _key(place.group.parameters)
        part = parts.get(key)
        if part is None:
            part = parts[key] = Part(key[0], window=key[1])
        part.add(place)
    return [block for part in parts.values() for block in part.blocks(rows_at_once)]


def _key(parameters: SamplingParameters) -> tuple[Kind, int]:
    if not parameters.do_sample:
        return Kind.GREEDY, 0
    if not parameters.truncations:
        return Kind.WHOLE, 0
    number = bound(parameters)
    return (Kind.WINDOWED, window(number)) if number else (Kind.TRUNCATED, 0)
