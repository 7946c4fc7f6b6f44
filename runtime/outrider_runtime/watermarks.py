"""The watermarks a request can ask for: their options, and which values make sense.

A value that makes none is refused by name when it is built, by whichever service builds it. Knows
nothing of wire types, tensors or of how a watermark is put into the scores.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TypeAlias

SCHEMES = ("lefthash", "selfhash")
MAX_NGRAM_LEN = 256
MAX_KEYS = 64
"""Each key is a pass over all scores of a row, for everybody's time; published settings have 30."""
MAX_TABLE_SIZE = 1 << 24
_MAX_INT64 = (1 << 63) - 1
_MAX_UINT64 = (1 << 64) - 1


class WatermarkError(ValueError):
    """An option of a watermark has a value that makes no sense.

    Attributes:
        field: the option.
        why: what is wrong with it.
        supported: false where transformers would take the value and this service does not.
    """

    def __init__(self, field: str, why: str, *, supported: bool = True) -> None:
        super().__init__(f"{field}: {why}")
        self.field = field
        self.why = why
        self.supported = supported


@dataclass(frozen=True, slots=True)
class GreenList:
    """A bias on tokens that a hash of the text before them picks: `WatermarkingConfig`.

    Kirchenbauer et al., "On the Reliability of Watermarks for Large Language Models", 2023, arXiv
    2306.04634, algorithms 2 (lefthash) and 3 (selfhash).

    Raises:
        WatermarkError: an option makes no sense.
    """

    greenlist_ratio: float = 0.25
    """Share of the vocabulary that is favoured."""
    bias: float = 2.0
    """Added to the scores of the favoured."""
    hashing_key: int = 15485863
    seeding_scheme: str = "lefthash"
    context_width: int = 1
    """Tokens that seed the hash: those before the candidate, for selfhash including it."""

    def __post_init__(self) -> None:
        _check(
            "greenlist_ratio", self.greenlist_ratio, "lie in (0, 1)", 0 < self.greenlist_ratio < 1
        )
        _check("bias", self.bias, "be a finite number", math.isfinite(self.bias))
        _check(
            "seeding_scheme",
            self.seeding_scheme[:32],
            f"be {' or '.join(SCHEMES)}",
            self.seeding_scheme in SCHEMES,
        )
        _check("context_width", self.context_width, "be at least 1", self.context_width >= 1)
        # selfhash multiplies in 64 bits with a sign, lefthash in numbers without bounds.
        highest = _MAX_INT64 if self.seeding_scheme == "selfhash" else _MAX_UINT64
        _check(
            "hashing_key",
            self.hashing_key,
            f"lie in [0, {highest}] for {self.seeding_scheme}",
            0 <= self.hashing_key <= highest,
        )


@dataclass(frozen=True, slots=True)
class SynthId:
    """A tournament between tokens, judged by keyed random bits: `SynthIDTextWatermarkingConfig`.

    Dathathri et al., "Scalable watermarking for identifying large language model outputs", Nature
    634, 2024, doi 10.1038/s41586-024-08025-4.

    Raises:
        WatermarkError: an option makes no sense.
    """

    ngram_len: int
    """Length of the watermarked n-grams: a token and the `ngram_len - 1` generated before it."""
    keys: tuple[int, ...]
    """One for each round of the tournament."""
    context_history_size: int = 1024
    """A context that is among this many before it is not marked again."""
    sampling_table_seed: int = 0
    sampling_table_size: int = 65536
    skip_first_ngram_calls: bool = False
    """Leave the first `ngram_len - 1` generated tokens unmarked."""
    debug_mode: bool = False
    """Must be false: it would replace the model's scores by equal ones."""

    def __post_init__(self) -> None:
        in_bounds = 1 <= self.ngram_len <= MAX_NGRAM_LEN
        _check("ngram_len", self.ngram_len, f"lie in [1, {MAX_NGRAM_LEN}]", in_bounds)
        if not 1 <= len(self.keys) <= MAX_KEYS:
            raise WatermarkError("keys", f"must hold 1 to {MAX_KEYS} keys, got {len(self.keys)}")
        highest = max(self.keys)
        _check("keys", highest, f"lie in [0, {_MAX_INT64}] each", highest <= _MAX_INT64)
        size = self.sampling_table_size
        in_bounds = 1 <= size <= MAX_TABLE_SIZE
        _check("sampling_table_size", size, f"lie in [1, {MAX_TABLE_SIZE}]", in_bounds)
        if self.debug_mode:
            raise WatermarkError(
                "debug_mode", "would replace the model's scores by equal ones", supported=False
            )


Watermark: TypeAlias = GreenList | SynthId


def _check(field: str, value: object, must: str, holds: bool) -> None:
    if not holds:
        raise WatermarkError(field, f"must {must}, got {value}")
