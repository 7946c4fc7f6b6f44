"""Which values of a GenerationConfig make sense, alone and together.

Types are checked before, where the message is built. What depends on the model or on the server is
theirs to judge. Knows nothing of messages and files.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, NamedTuple

from outrider_client._errors import InvalidRequestError

if TYPE_CHECKING:
    from outrider_client._generation_config import GenerationConfig


class Interval(NamedTuple):
    """Finite numbers from `low` to `high`."""

    low: float = -math.inf
    high: float = math.inf
    low_open: bool = False
    high_open: bool = False

    def __contains__(self, value: object) -> bool:
        if not isinstance(value, int | float) or not math.isfinite(value):
            return False
        above = value > self.low if self.low_open else value >= self.low
        below = value < self.high if self.high_open else value <= self.high
        return above and below

    def __str__(self) -> str:
        if self.low == -math.inf:
            return "must be finite"
        if self.high == math.inf:
            than = "greater than" if self.low_open else "at least"
            return f"must be {than} {self.low:g} and finite"
        if self == _AT_LEAST_ONE:
            return "must be at least 1"
        opening, closing = "(" if self.low_open else "[", ")" if self.high_open else "]"
        return f"must be in {opening}{self.low:g}, {self.high:g}{closing}"


_FINITE = Interval()
_POSITIVE = Interval(0, low_open=True)
_AT_LEAST_ONE = Interval(1, 2**32 - 1)
_SHARE = Interval(0, 1)
_SHARE_ABOVE_0 = Interval(0, 1, low_open=True)
_SHARE_BELOW_1 = Interval(0, 1, high_open=True)
_SHARE_WITHIN = Interval(0, 1, low_open=True, high_open=True)

INTERVALS: Mapping[str, Interval] = {
    "max_length": _AT_LEAST_ONE,
    "max_new_tokens": _AT_LEAST_ONE,
    "max_time": _POSITIVE,
    "num_beams": _AT_LEAST_ONE,
    "max_cache_len": _AT_LEAST_ONE,
    "prefill_chunk_size": _AT_LEAST_ONE,
    "temperature": _POSITIVE,
    "top_p": _SHARE,
    "min_p": _SHARE,
    "top_h": _SHARE_ABOVE_0,
    "typical_p": _SHARE_ABOVE_0,
    "epsilon_cutoff": _SHARE_BELOW_1,
    "eta_cutoff": _SHARE_BELOW_1,
    "repetition_penalty": _POSITIVE,
    "encoder_repetition_penalty": _POSITIVE,
    "length_penalty": _FINITE,
    "guidance_scale": _FINITE,
    "num_return_sequences": _AT_LEAST_ONE,
    "num_assistant_tokens": _AT_LEAST_ONE,
    "assistant_confidence_threshold": _SHARE,
    "max_matching_ngram_size": _AT_LEAST_ONE,
    "assistant_early_exit": _AT_LEAST_ONE,
    "assistant_ensemble_weight": _SHARE_WITHIN,
    "penalty_alpha": Interval(0),
    "diversity_penalty": _FINITE,
    "num_beam_groups": _AT_LEAST_ONE,
}
"""Fields that are numbers with a range beyond their type's."""

_WORDS: Mapping[str, tuple[str, ...]] = {
    "early_stopping": ("never",),
    "num_assistant_tokens_schedule": ("constant", "heuristic", "heuristic_transient", "auto"),
    "dola_layers": ("low", "high"),
    # Those of transformers 4.57 and 5.23 together.
    "cache_implementation": (
        "dynamic",
        "dynamic_full",
        "static",
        "offloaded",
        "offloaded_static",
        "quantized",
        "paged",
        "sliding_window",
        "hybrid",
        "hybrid_chunked",
        "offloaded_hybrid",
        "offloaded_hybrid_chunked",
    ),
}
_NOT_EMPTY = ("stop_strings", "bad_words_ids", "sequence_bias", "force_words_ids")


def check(config: GenerationConfig, values: Mapping[str, object]) -> None:
    """Raises for the first rule that a configuration breaks.

    Args:
        config: The configuration, of the right types throughout.
        values: Its set fields in transformers' JSON shapes.

    Raises:
        InvalidRequestError: A rule is broken. Those of transformers' own `validate()` are among
            them.
    """
    for name, interval in INTERVALS.items():
        value = values.get(name)
        if value is not None and value not in interval:
            raise _broken(name, f"{interval}, got {value!r}")
    for name, words in _WORDS.items():
        value = values.get(name)
        if isinstance(value, str) and value not in words:
            raise _broken(name, f"must be one of {', '.join(words)}, got {value!r}")
    for name in _NOT_EMPTY:
        value = values.get(name)
        if value is not None and any(part in ([], {}, "") for part in _nested(value)):
            raise _broken(name, "must have no empty part")
    _check_objects(values)
    _check_together(config, values)


def _nested(value: object) -> Iterator[object]:
    """`value` and everything in the lists it is made of."""
    yield value
    if isinstance(value, list):
        for part in value:
            yield from _nested(part)


def _check_objects(values: Mapping[str, object]) -> None:
    bias = values.get("sequence_bias")
    if isinstance(bias, list):
        if any(math.isnan(weight) for _, weight in bias):
            raise _broken("sequence_bias", "must not hold NaN")
        if len({tuple(ids) for ids, _ in bias}) < len(bias):
            raise _broken("sequence_bias", "must not hold a token sequence twice")
    decay = values.get("exponential_decay_length_penalty")
    if isinstance(decay, list) and decay[1] not in _POSITIVE:
        raise _broken("exponential_decay_length_penalty", f"factor {_POSITIVE}, got {decay[1]!r}")
    mark = values.get("watermarking_config")
    if isinstance(mark, Mapping):
        _check_watermark(mark)


def _check_watermark(mark: Mapping[str, object]) -> None:
    intervals = {
        "greenlist_ratio": _SHARE_WITHIN,
        "bias": _FINITE,
        "context_width": _AT_LEAST_ONE,
        "ngram_len": _AT_LEAST_ONE,
        "sampling_table_size": Interval(1, 2**24),
    }
    for name, interval in intervals.items():
        value = mark.get(name)
        if value is not None and value not in interval:
            raise _broken(f"watermarking_config.{name}", f"{interval}, got {value!r}")
    scheme = mark.get("seeding_scheme")
    if scheme is not None and scheme not in ("lefthash", "selfhash"):
        raise _broken(
            "watermarking_config.seeding_scheme", f"must be lefthash or selfhash, got {scheme!r}"
        )
    if ("ngram_len" in mark) != ("keys" in mark):
        raise _broken("watermarking_config", "needs both ngram_len and keys for SynthID")


def _check_together(config: GenerationConfig, values: Mapping[str, object]) -> None:
    several = config.num_return_sequences
    beams = config.num_beams or 1
    if several is not None and several > 1:
        if beams == 1 and not config.do_sample:
            raise _broken(
                "num_return_sequences",
                f"must be 1 unless do_sample is true or num_beams is larger, got {several}: greedy "
                "decoding has one answer",
            )
        if beams > 1 and several > beams:
            raise _broken(
                "num_return_sequences", f"must be at most num_beams ({beams}), got {several}"
            )
    suppressed = values.get("suppress_tokens")
    for name in ("forced_bos_token_id", "forced_eos_token_id"):
        forced = values.get(name)
        tokens = forced if isinstance(forced, list) else [forced]
        if isinstance(suppressed, list) and tokens and set(tokens) <= set(suppressed):
            raise _broken(name, f"every token of it ({forced}) is in suppress_tokens as well")


def _broken(name: str, why: str) -> InvalidRequestError:
    return InvalidRequestError(f"{name}: {why}", field=name)
