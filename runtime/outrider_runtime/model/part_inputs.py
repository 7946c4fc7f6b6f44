"""What choosing the tokens of a part takes beside the scores: few numbers a row.

Worked out on the host, for all parts of a batch before the first is begun, so that all of it can
travel together (`Arrays.send`). Knows nothing of scores.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from outrider_runtime.model.arrays import Array
from outrider_runtime.model.batch_parts import Kind, Part, bound
from outrider_runtime.model.noise import NoiseWords
from outrider_runtime.model.processors.warpers import WARPERS
from outrider_runtime.model.processors.watermarking import Marking, markings_of
from outrider_runtime.sampling_parameters import SamplingParameters


class Truncation(NamedTuple):
    """One of the warpers, for the rows that want it."""

    name: str
    rows: Array | None
    """Int64, rows of the part; None is all."""
    parameter: Array
    """Float32 [rows, 1]."""
    least: Array | None
    """Int64 [rows, 1], tokens that stay at least; None is 1."""


class PartInputs(NamedTuple):
    """Of one part; the arrays run over its rows."""

    rows: Array | None
    """Int64: the places in the batch; None where the part is the batch."""
    last_wanted: Array | None
    """Int64: place of the last of the scores that are enough, where there is such a bound."""
    temperatures: Array | None
    """Float32 [rows, 1]; None where all are 1."""
    truncations: Sequence[Truncation]
    """In the order they apply."""
    markings: Sequence[Marking]
    """Watermarks."""
    normalised: Array | None
    """Int64: the rows to be normalised; None is no row."""
    noise: NoiseWords | None
    """None where the highest score is the choice."""
    draft_temperatures: Array | None
    """Float32 [rows, 1]; None where all are 1."""

    @classmethod
    def of(cls, part: Part, *, num_rows: int, vocab_size: int, with_noise: bool) -> PartInputs:
        """In numpy.

        Args:
            part: whose.
            num_rows: of the batch.
            vocab_size: size of the vocabulary.
            with_noise: whether a token is chosen, not only scores wanted.
        """
        parameters = [group.parameters for group in part.groups]
        sampled = part.kind is not Kind.GREEDY
        normalised = [i for i, one in enumerate(parameters) if one.renormalize_logits]
        return cls(
            rows=None if len(part.rows) == num_rows else np.array(part.rows, np.int64),
            last_wanted=_last_wanted(part.kind, parameters, vocab_size),
            temperatures=_column([one.temperature for one in parameters]) if sampled else None,
            truncations=_truncations(parameters) if sampled else (),
            markings=markings_of(part.groups, part.positions, vocab_size),
            normalised=np.array(normalised, np.int64) if normalised else None,
            noise=NoiseWords.of(part.noise_rows()) if sampled and with_noise else None,
            draft_temperatures=_column([group.draft_temperature for group in part.groups]),
        )


def _last_wanted(
    kind: Kind, parameters: Sequence[SamplingParameters], vocab_size: int
) -> Array | None:
    if kind is not Kind.WINDOWED:
        return None
    return np.array([min(bound(one), vocab_size) - 1 for one in parameters], np.int64)


def _column(values: Sequence[float]) -> Array | None:
    if all(value == 1.0 for value in values):
        return None
    return np.array(values, np.float32)[:, None]


def _truncations(parameters: Sequence[SamplingParameters]) -> list[Truncation]:
    wanted = {name for one in parameters for name in one.truncations}
    leasts = [one.min_tokens_to_keep for one in parameters]
    more_than_one = any(least > 1 for least in leasts)
    found = []
    for name, warper in WARPERS.items():
        if name not in wanted:
            continue
        on = [i for i, one in enumerate(parameters) if name in one.truncations]
        column = np.array([warper.parameter(parameters[i]) for i in on], np.float32)[:, None]
        least = np.array([leasts[i] for i in on], np.int64)[:, None] if more_than_one else None
        # The other rows stay as they are, bit for bit.
        rows = None if len(on) == len(parameters) else np.array(on, np.int64)
        found.append(Truncation(name, rows, column, least))
    return found
