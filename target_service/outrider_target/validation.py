"""From the wire to the domain: every message that a caller can get about a request is here.

A value is refused with the name of its field. What passes is complete and consistent: nothing
behind this module looks at the wire or doubts a value again.
"""

from __future__ import annotations

import math
import secrets
from collections.abc import Callable, Sequence, Sized
from dataclasses import dataclass

from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message
from outrider.v1 import generation_pb2, speculation_pb2
from outrider.v1.generation_config_pb2 import GenerationConfig
from outrider_contract.errors import Reason
from outrider_contract.generation_config import (
    FIELD_NAMES,
    ConfigValueError,
    is_set,
    to_json_dict,
)
from outrider_runtime.conversion import sampling_parameters
from outrider_runtime.errors import InvalidRequest, UnsupportedOption

from outrider_target import effective_config
from outrider_target.capabilities import CAPABILITIES, Support
from outrider_target.request import DraftMethod, GenerationRequest, SpeculationSettings
from outrider_target.settings import SpeculationDefaults
from outrider_target.window import SCHEDULES

MAX_STOP_STRINGS = 64
MAX_STOP_STRING_LENGTH = 1024
MAX_WINDOW = 64
MAX_DRAFT_TIMEOUT_MS = 60_000
MAX_PHRASE_TOKENS = 32_768
"""Tokens in all phrases of a field together: each round looks at them, for everybody's time."""

_DEFAULT_NEW_TOKENS = 20
"""transformers' global default: `max_length=20`, to which it adds the prompt when nobody set it."""


@dataclass(frozen=True, slots=True)
class ServedModel:
    """What validation must know of the served model."""

    vocab_size: int
    max_model_len: int
    """Longest prompt plus output; also what the KV pool can hold for one sequence."""
    max_num_seqs: int
    has_tokenizer: bool
    generation_config: GenerationConfig
    """The model's own defaults, without what is not served."""


_ID_LISTS = ("suppress_tokens", "begin_suppress_tokens", "forced_eos_token_id", "eos_token_id")
_FLOATS = (FieldDescriptor.TYPE_FLOAT, FieldDescriptor.TYPE_DOUBLE)


class _Range:
    """A rule for a number: what must hold, in words and as a test."""

    def __init__(self, words: str, holds: Callable[[float], bool]) -> None:
        self.words = words
        self.holds = holds


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
    "num_return_sequences": _Range("must be at least 1", lambda v: v >= 1),
    "num_assistant_tokens": _Range("must be at least 1", lambda v: v >= 1),
    "assistant_confidence_threshold": _Range("must lie in [0, 1]", lambda v: 0 <= v <= 1),
    "prompt_lookup_num_tokens": _Range("must be at least 1", lambda v: v >= 1),
    "max_matching_ngram_size": _Range("must be at least 1", lambda v: v >= 1),
}


def validate(
    message: generation_pb2.GenerateRequest,
    *,
    request_id: str,
    prompt: Sequence[int],
    model: ServedModel,
    defaults: SpeculationDefaults,
) -> GenerationRequest:
    """Turn a wire request into a domain request.

    Args:
        message: The request.
        request_id: Its name, checked already.
        prompt: The prompt's token ids, as given or from the tokenizer.
        model: The served model.
        defaults: What holds where neither request nor model says anything about speculation.

    Raises:
        InvalidRequest: A value is wrong; names the field.
        UnsupportedOption: A value asks for what is not served; names the field and the reason.
    """
    _check_sizes(message.generation_config, model)
    _check_finite(message.speculation, "speculation")
    config = effective_config.merge(
        message.generation_config, model.generation_config, defaults.generation_defaults()
    )
    check_values(config, model.vocab_size)
    _check_prompt(message, prompt, model)
    max_length = _max_length(message.generation_config, config, len(prompt), model)
    _check_consistent(config, len(prompt), max_length, model)
    config.max_length = max_length
    return GenerationRequest(
        id=request_id,
        prompt=tuple(prompt),
        parameters=sampling_parameters(
            config, num_prompt_tokens=len(prompt), max_length=max_length
        ),
        seed=message.seed if message.HasField("seed") else secrets.randbits(64),
        num_sequences=_num_sequences(config),
        stop_strings=_stop_strings(config, model),
        max_time=config.max_time if config.HasField("max_time") else None,
        speculation=_speculation(message.speculation, config, defaults),
        effective_config=config,
    )


def check_values(config: GenerationConfig, vocab_size: int) -> None:
    """Check values that are right or wrong by themselves, whatever the prompt.

    Raises:
        InvalidRequest: As `validate`.
    """
    _check_finite(config, "generation_config")
    _check_served(config)
    _check_ranges(config)
    _check_token_ids(config, vocab_size)


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


def _check_sizes(config: GenerationConfig, model: ServedModel) -> None:
    """Refuse lists of absurd length before anything walks through them."""
    phrases: dict[str, Sized] = {
        "bad_words_ids": config.bad_words_ids.lists,
        "sequence_bias": config.sequence_bias.entries,
        "force_words_ids": config.force_words_ids.phrases,
    }
    limits = {
        **{name: (len(entries), MAX_PHRASE_TOKENS) for name, entries in phrases.items()},
        **{name: (len(getattr(config, name).ids), model.vocab_size) for name in _ID_LISTS},
        "stop_strings": (len(config.stop_strings.values), MAX_STOP_STRINGS),
        "clear_fields": (len(config.clear_fields), len(FIELD_NAMES)),
    }
    for name, (length, limit) in limits.items():
        if length > limit:
            raise InvalidRequest(
                f"generation_config.{name}", f"at most {limit} entries are possible, got {length}"
            )


def _check_finite(message: Message, path: str) -> None:
    """Refuse NaN and infinity anywhere in a message."""
    for field, value in message.ListFields():
        name = f"{path}.{field.name}"
        if field.type == FieldDescriptor.TYPE_MESSAGE:
            for item in value if field.is_repeated else [value]:
                _check_finite(item, name)
        elif field.type in _FLOATS and not math.isfinite(value):
            raise InvalidRequest(name, "must be a finite number")


def _check_ranges(config: GenerationConfig) -> None:
    for name, allowed in _RANGES.items():
        if is_set(config, name) and not allowed.holds(getattr(config, name)):
            raise InvalidRequest(
                f"generation_config.{name}", f"{allowed.words}, got {getattr(config, name):g}"
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


def _check_prompt(
    message: generation_pb2.GenerateRequest, prompt: Sequence[int], model: ServedModel
) -> None:
    field = "text" if message.HasField("text") else "token_ids"
    # No text is an empty prompt, although the tokenizer may have put a token before it.
    if not prompt or (message.HasField("text") and not message.text):
        raise InvalidRequest(
            field, "the prompt is empty; it needs at least one token", reason=Reason.EMPTY_PROMPT
        )
    if len(prompt) >= model.max_model_len:
        raise InvalidRequest(
            field,
            f"the prompt has {len(prompt)} tokens; prompt and output together may have at most "
            f"{model.max_model_len}",
            reason=Reason.PROMPT_TOO_LONG,
        )
    if max(prompt) >= model.vocab_size:
        raise InvalidRequest(
            field, f"token id {max(prompt)} is outside the vocabulary of {model.vocab_size}"
        )


def _num_sequences(config: GenerationConfig) -> int:
    return config.num_return_sequences if config.HasField("num_return_sequences") else 1


def _max_length(
    request: GenerationConfig,
    config: GenerationConfig,
    num_prompt_tokens: int,
    model: ServedModel,
) -> int:
    """Total length at which generation stops."""
    if config.HasField("max_new_tokens"):
        field, max_length = "max_new_tokens", num_prompt_tokens + config.max_new_tokens
    elif config.HasField("max_length"):
        field, max_length = "max_length", config.max_length
        if max_length <= num_prompt_tokens:
            raise InvalidRequest(
                "generation_config.max_length",
                f"is {max_length}, but the prompt alone has {num_prompt_tokens} tokens; "
                "set max_new_tokens instead",
            )
    else:
        return min(num_prompt_tokens + _DEFAULT_NEW_TOKENS, model.max_model_len)
    if max_length > model.max_model_len:
        if not is_set(request, field):
            return model.max_model_len  # the model's file knows neither prompt nor server
        raise InvalidRequest(
            f"generation_config.{field}",
            f"asks for {max_length} tokens in total ({num_prompt_tokens} of them prompt); at most "
            f"{model.max_model_len} are possible",
            reason=Reason.PROMPT_TOO_LONG,
        )
    return max_length


def _check_consistent(
    config: GenerationConfig, num_prompt_tokens: int, max_length: int, model: ServedModel
) -> None:
    if config.min_length > max_length:
        raise InvalidRequest(
            "generation_config.min_length",
            f"is {config.min_length}, more than the {max_length} tokens generation may reach",
        )
    if config.min_new_tokens > max_length - num_prompt_tokens:
        raise InvalidRequest(
            "generation_config.min_new_tokens",
            f"is {config.min_new_tokens}, more than the {max_length - num_prompt_tokens} tokens "
            "that may be generated",
        )
    if len(set(config.suppress_tokens.ids)) == model.vocab_size:
        raise InvalidRequest(
            "generation_config.suppress_tokens", "forbids every token of the vocabulary"
        )
    forced = {
        "forced_bos_token_id": [config.forced_bos_token_id]
        if config.HasField("forced_bos_token_id")
        else [],
        "forced_eos_token_id": list(config.forced_eos_token_id.ids),
    }
    for name, token_ids in forced.items():
        if set(token_ids) & set(config.suppress_tokens.ids):
            raise InvalidRequest(
                f"generation_config.{name}", "is also in suppress_tokens, which forbids it"
            )
    if _num_sequences(config) > 1 and not config.do_sample:
        raise InvalidRequest(
            "generation_config.num_return_sequences",
            "more than one sequence needs do_sample=true: greedy ones would all be the same",
        )
    if config.num_return_sequences > model.max_num_seqs:
        raise InvalidRequest(
            "generation_config.num_return_sequences",
            f"at most {model.max_num_seqs} sequences run at once here",
        )


def _stop_strings(config: GenerationConfig, model: ServedModel) -> tuple[str, ...]:
    field = "generation_config.stop_strings"
    values = tuple(config.stop_strings.values)
    if not values:
        return ()
    if not model.has_tokenizer:
        raise UnsupportedOption(field, "the served model has no tokenizer to make text with")
    if len(values) > MAX_STOP_STRINGS:
        raise InvalidRequest(field, f"at most {MAX_STOP_STRINGS} are possible, got {len(values)}")
    if not all(values):
        raise InvalidRequest(field, "must not contain an empty string")
    if max(map(len, values)) > MAX_STOP_STRING_LENGTH:
        raise InvalidRequest(field, f"none may exceed {MAX_STOP_STRING_LENGTH} characters")
    return values


def _speculation(
    message: speculation_pb2.SpeculationConfig,
    config: GenerationConfig,
    defaults: SpeculationDefaults,
) -> SpeculationSettings:
    method = _draft_method(message, config)
    _check_verification(message)
    pacing = message.pacing
    if pacing not in speculation_pb2.DraftPacing.values():
        raise InvalidRequest("speculation.pacing", f"{pacing} is not a known pacing")
    synchronous = pacing == speculation_pb2.DRAFT_PACING_SYNCHRONOUS
    max_window = _bounded(
        message, "max_assistant_tokens", defaults.max_assistant_tokens, 1, MAX_WINDOW
    )
    timeout_ms = _bounded(
        message, "draft_timeout_ms", defaults.draft_timeout_ms, 0, MAX_DRAFT_TIMEOUT_MS
    )
    if message.HasField("draft_temperature") and message.draft_temperature <= 0:
        raise InvalidRequest(
            "speculation.draft_temperature",
            f"must be greater than 0, got {message.draft_temperature:g}",
        )
    window, schedule = defaults.num_assistant_tokens, defaults.num_assistant_tokens_schedule
    if config.HasField("num_assistant_tokens"):
        window = config.num_assistant_tokens
    if config.HasField("num_assistant_tokens_schedule"):
        schedule = config.num_assistant_tokens_schedule
    if config.HasField("prompt_lookup_num_tokens"):
        window, schedule = config.prompt_lookup_num_tokens, "constant"  # as in transformers
    run_ahead = _bounded(message, "run_ahead", defaults.run_ahead, 0, MAX_WINDOW)
    return SpeculationSettings(
        method=method,
        synchronous=synchronous,
        window=window,
        schedule=schedule,
        max_window=max_window,
        run_ahead=0 if synchronous else run_ahead,
        confidence_threshold=config.assistant_confidence_threshold,
        timeout_seconds=timeout_ms / 1000,
        draft_temperature=message.draft_temperature
        if message.HasField("draft_temperature")
        else 1.0,
        max_matching_ngram_size=config.max_matching_ngram_size
        if config.HasField("max_matching_ngram_size")
        else 2,
        report_rounds=message.report_rounds,
    )


_METHODS = {
    speculation_pb2.DRAFT_METHOD_UNSPECIFIED: DraftMethod.REMOTE,
    speculation_pb2.DRAFT_METHOD_NONE: DraftMethod.NONE,
    speculation_pb2.DRAFT_METHOD_REMOTE: DraftMethod.REMOTE,
    speculation_pb2.DRAFT_METHOD_PROMPT_LOOKUP: DraftMethod.PROMPT_LOOKUP,
}


def _draft_method(
    message: speculation_pb2.SpeculationConfig, config: GenerationConfig
) -> DraftMethod:
    if message.method not in _METHODS:
        raise InvalidRequest("speculation.method", f"{message.method} is not a known method")
    method = _METHODS[message.method]
    asks_lookup = config.HasField("prompt_lookup_num_tokens")
    if asks_lookup and message.method == speculation_pb2.DRAFT_METHOD_UNSPECIFIED:
        method = DraftMethod.PROMPT_LOOKUP
    if message.HasField("enabled") and not message.enabled:
        if message.method not in (
            speculation_pb2.DRAFT_METHOD_UNSPECIFIED,
            speculation_pb2.DRAFT_METHOD_NONE,
        ):
            raise InvalidRequest(
                "speculation.method", "names a drafter although speculation.enabled is false"
            )
        return DraftMethod.NONE
    return method


def _check_verification(message: speculation_pb2.SpeculationConfig) -> None:
    if message.verification not in speculation_pb2.Verification.values():
        raise InvalidRequest(
            "speculation.verification", f"{message.verification} is not a known verification"
        )
    if message.verification == speculation_pb2.VERIFICATION_SPECULATIVE_SAMPLING:
        raise UnsupportedOption(
            "speculation.verification", "speculative_sampling is not served yet; use exact"
        )


def _bounded(
    message: speculation_pb2.SpeculationConfig, name: str, default: int, low: int, high: int
) -> int:
    if not message.HasField(name):  # type: ignore[arg-type]  # any field name
        return default
    value: int = getattr(message, name)
    if not low <= value <= high:
        raise InvalidRequest(f"speculation.{name}", f"must lie in [{low}, {high}], got {value}")
    return value
