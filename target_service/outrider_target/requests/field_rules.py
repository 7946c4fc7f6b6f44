"""What a field of GenerationConfig may hold, whatever the prompt: one rule a field.

Serves requests and the model's own defaults alike. A value is refused with the name of its field.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence, Sized

from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message
from outrider.v1.generation_config_pb2 import GenerationConfig
from outrider_contract.generation_config import (
    FIELD_NAMES,
    ConfigValueError,
    is_set,
    to_json_dict,
)
from outrider_runtime.conversion import watermark
from outrider_runtime.errors import InvalidRequest, UnsupportedOption
from outrider_runtime.watermarks import WatermarkError

from outrider_target.capabilities import CAPABILITIES, Support
from outrider_target.drafting.window import SCHEDULES

MAX_STOP_STRINGS = 64
MAX_PHRASE_TOKENS = 32_768
"""Tokens in all phrases of a field together: each round looks at them, for everybody's time."""

MAX_LOOKBEHIND = 256
"""Tokens that a drafter with another tokenizer reads again in each of its steps."""

_ID_LISTS = ("suppress_tokens", "begin_suppress_tokens", "forced_eos_token_id", "eos_token_id")
_FLOATS = (FieldDescriptor.TYPE_FLOAT, FieldDescriptor.TYPE_DOUBLE)


class _Range:
    """A rule for a number: what must hold, in words and as a test."""

    def __init__(self, words: str, holds: Callable[[float], bool]) -> None:
        self.words = words
        self.holds = holds


_LOOKBEHIND = _Range(f"must be at most {MAX_LOOKBEHIND}", lambda v: v <= MAX_LOOKBEHIND)
_RANGES: dict[str, _Range] = {
    "max_length": _Range("must be at least 1", lambda v: v >= 1),
    "max_new_tokens": _Range("must be at least 1", lambda v: v >= 1),
    "max_time": _Range("must be greater than 0 seconds", lambda v: v > 0),
    "temperature": _Range(
        # Dividing by less overflows, and every token with a positive score becomes the best.
        "must be greater than 0 (at least 1e-30); for greedy decoding set do_sample=false",
        lambda v: v >= 1e-30,
    ),
    "top_p": _Range("must lie in [0, 1]", lambda v: 0 <= v <= 1),
    "min_p": _Range("must lie in [0, 1]", lambda v: 0 <= v <= 1),
    "top_h": _Range("must lie in (0, 1]", lambda v: 0 < v <= 1),
    "typical_p": _Range("must lie in (0, 1]", lambda v: 0 < v <= 1),
    "epsilon_cutoff": _Range("must lie in [0, 1)", lambda v: 0 <= v < 1),
    "eta_cutoff": _Range("must lie in [0, 1)", lambda v: 0 <= v < 1),
    "repetition_penalty": _Range("must be greater than 0", lambda v: v > 0),
    "encoder_repetition_penalty": _Range("must be greater than 0", lambda v: v > 0),
    "prefill_chunk_size": _Range("must be at least 1", lambda v: v >= 1),
    "num_beams": _Range("must be at least 1", lambda v: v >= 1),
    "num_beam_groups": _Range("must be at least 1", lambda v: v >= 1),
    "num_return_sequences": _Range("must be at least 1", lambda v: v >= 1),
    "penalty_alpha": _Range("must be at least 0", lambda v: v >= 0),
    "num_assistant_tokens": _Range("must be at least 1", lambda v: v >= 1),
    "assistant_confidence_threshold": _Range("must lie in [0, 1]", lambda v: 0 <= v <= 1),
    "prompt_lookup_num_tokens": _Range("must be at least 1", lambda v: v >= 1),
    "max_matching_ngram_size": _Range("must be at least 1", lambda v: v >= 1),
    "assistant_lookbehind": _LOOKBEHIND,
    "target_lookbehind": _LOOKBEHIND,
}

_FIXED_LENGTH = "has a fixed length, for compiled graphs; the cache here grows with the text"
_OFFLOADED = "moves keys and values off the device; here they stay where the model is"
_CACHES: dict[str, str | None] = {
    "dynamic": None,
    "dynamic_full": None,
    "paged": None,
    "static": _FIXED_LENGTH,
    "sliding_window": _FIXED_LENGTH,
    "hybrid": _FIXED_LENGTH,
    "hybrid_chunked": _FIXED_LENGTH,
    "offloaded": _OFFLOADED,
    "offloaded_static": _OFFLOADED,
    "offloaded_hybrid": _OFFLOADED,
    "offloaded_hybrid_chunked": _OFFLOADED,
    "quantized": "would change the text; keys and values here have the model's own precision",
}
"""Names of transformers 4.57 and 5.23: why each is not served, None if it is."""


def check_values(config: GenerationConfig, vocab_size: int) -> None:
    """Check values that are right or wrong by themselves, whatever the prompt.

    Raises:
        InvalidRequest: As `validate`.
    """
    check_finite(config, "generation_config")
    _check_served(config)
    _check_cache(config)
    _check_ranges(config)
    _check_watermark(config)
    _check_token_ids(config, vocab_size)


def check_sizes(config: GenerationConfig, vocab_size: int) -> None:
    """Refuse lists of absurd length before anything walks through them."""
    phrases: dict[str, Sized] = {
        "bad_words_ids": config.bad_words_ids.lists,
        "sequence_bias": config.sequence_bias.entries,
        "force_words_ids": config.force_words_ids.phrases,
    }
    limits = {
        **{name: (len(entries), MAX_PHRASE_TOKENS) for name, entries in phrases.items()},
        **{name: (len(getattr(config, name).ids), vocab_size) for name in _ID_LISTS},
        "stop_strings": (len(config.stop_strings.values), MAX_STOP_STRINGS),
        "clear_fields": (len(config.clear_fields), len(FIELD_NAMES)),
    }
    for name, (length, limit) in limits.items():
        if length > limit:
            raise InvalidRequest(
                f"generation_config.{name}", f"at most {limit} entries are possible, got {length}"
            )


def check_finite(message: Message, path: str) -> None:
    """Refuse NaN and infinity anywhere in a message."""
    for field, value in message.ListFields():
        name = f"{path}.{field.name}"
        if field.type == FieldDescriptor.TYPE_MESSAGE:
            for item in value if field.is_repeated else [value]:
                check_finite(item, name)
        elif field.type in _FLOATS and not math.isfinite(value):
            raise InvalidRequest(name, "must be a finite number")


def _is_unserved(name: str, value: object) -> bool:
    capability = CAPABILITIES[name]
    return capability.support is not Support.HONOURED and value not in capability.neutral


def _check_served(config: GenerationConfig) -> None:
    try:
        values = to_json_dict(config)
    except ConfigValueError as error:
        raise InvalidRequest(f"generation_config.{error.field}", error.why) from None
    for name, value in values.items():
        if _is_unserved(name, value):
            raise UnsupportedOption(f"generation_config.{name}", CAPABILITIES[name].note)


def _check_cache(config: GenerationConfig) -> None:
    if not config.HasField("cache_implementation"):
        return
    field, name = "generation_config.cache_implementation", config.cache_implementation
    if name not in _CACHES:
        raise InvalidRequest(field, f"must be one of {', '.join(_CACHES)}, got {name!r}")
    if (why := _CACHES[name]) is not None:
        raise UnsupportedOption(field, f"{name} {why}")


def _check_ranges(config: GenerationConfig) -> None:
    for name, allowed in _RANGES.items():
        if is_set(config, name) and not allowed.holds(getattr(config, name)):
            raise InvalidRequest(
                f"generation_config.{name}", f"{allowed.words}, got {getattr(config, name):g}"
            )
    mode = config.early_stopping_mode
    if config.HasField("early_stopping_mode") and mode != "never":
        raise InvalidRequest(
            "generation_config.early_stopping", f'must be true, false or "never", got {mode!r}'
        )
    schedule = config.num_assistant_tokens_schedule
    if is_set(config, "num_assistant_tokens_schedule") and schedule not in SCHEDULES:
        raise InvalidRequest(
            "generation_config.num_assistant_tokens_schedule",
            f"must be one of {', '.join(SCHEDULES)}, got {schedule!r}",
        )
    penalty = config.exponential_decay_length_penalty
    if penalty.decay_factor < 0:
        raise InvalidRequest(
            "generation_config.exponential_decay_length_penalty",
            f"its factor must not be negative, got {penalty.decay_factor:g}",
        )


def _check_watermark(config: GenerationConfig) -> None:
    try:
        watermark(config)
    except WatermarkError as error:
        refusal = InvalidRequest if error.supported else UnsupportedOption
        field = f"generation_config.watermarking_config.{error.field}"
        raise refusal(field, error.why) from None


def _check_token_ids(config: GenerationConfig, vocab_size: int) -> None:
    """Every token id lies in the vocabulary, and no phrase is empty or there twice."""
    phrases: dict[str, list[Sequence[int]]] = {
        "bad_words_ids": [entry.ids for entry in config.bad_words_ids.lists],
        "sequence_bias": [entry.token_ids for entry in config.sequence_bias.entries],
    }
    for name, entries in phrases.items():
        if is_set(config, name) and (not entries or not all(entries)):
            raise InvalidRequest(
                f"generation_config.{name}", "must not be empty, nor hold an empty phrase"
            )
        if (length := sum(map(len, entries))) > MAX_PHRASE_TOKENS:
            raise InvalidRequest(
                f"generation_config.{name}",
                f"at most {MAX_PHRASE_TOKENS} tokens in all are possible, got {length}",
            )
    biased = phrases["sequence_bias"]
    if len({tuple(entry) for entry in biased}) < len(biased):
        raise InvalidRequest("generation_config.sequence_bias", "biases a phrase twice")
    ids: dict[str, list[int]] = {
        name: [token_id for entry in entries for token_id in entry]
        for name, entries in phrases.items()
    }
    for name in _ID_LISTS:
        ids[name] = list(getattr(config, name).ids)
    if config.HasField("forced_bos_token_id"):
        ids["forced_bos_token_id"] = [config.forced_bos_token_id]
    for name, token_ids in ids.items():
        if token_ids and max(token_ids) >= vocab_size:
            raise InvalidRequest(
                f"generation_config.{name}",
                f"token id {max(token_ids)} is outside the vocabulary of {vocab_size}",
            )
