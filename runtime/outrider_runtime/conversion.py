"""From the contract's messages to the values the engine works with.

Target and draft service both come through here, so that the two read one configuration the same
way. Values are taken as valid: a service refuses bad ones by name before.
"""

from __future__ import annotations

from collections.abc import Iterable

from outrider.v1.generation_config_pb2 import (
    GenerationConfig,
    SynthIdTextWatermarkingConfig,
    WatermarkingConfig,
)
from outrider_contract.generation_config import is_set, shortest_float

from outrider_runtime.sampling_parameters import BiasedPhrase, SamplingParameters
from outrider_runtime.watermarks import GreenList, SynthId, Watermark


def sampling_parameters(
    effective: GenerationConfig, *, num_prompt_tokens: int, max_length: int
) -> SamplingParameters:
    """What shapes the scores of a sequence.

    A field that is absent is off: global defaults such as a `top_k` of 50 are already merged into
    the effective configuration, or were cleared on purpose.

    Args:
        effective: the configuration after merging request, model and global defaults.
        num_prompt_tokens: length of the prompt.
        max_length: total length, prompt and output, at which the sequence ends; `effective` may say
            it in two ways and not know the model's limit.

    Raises:
        WatermarkError: an option of the watermark makes no sense.
    """
    eos_token_ids = _distinct(effective.eos_token_id.ids)
    min_new_tokens = effective.min_new_tokens if effective.HasField("min_new_tokens") else None
    # transformers: min_new_tokens takes precedence over min_length, which it replaces.
    min_length = effective.min_length
    if min_new_tokens is not None:
        min_length = num_prompt_tokens + min_new_tokens
    return SamplingParameters(
        do_sample=effective.do_sample,
        temperature=_float(effective, "temperature", 1.0),
        top_h=_optional_float(effective, "top_h"),
        top_k=effective.top_k,
        top_p=_float(effective, "top_p", 1.0),
        min_p=_optional_float(effective, "min_p"),
        typical_p=_float(effective, "typical_p", 1.0),
        epsilon_cutoff=_float(effective, "epsilon_cutoff", 0.0),
        eta_cutoff=_float(effective, "eta_cutoff", 0.0),
        # transformers: so many that one of them does not end the text.
        min_tokens_to_keep=1 + max(1, len(eos_token_ids)) if effective.num_beams > 1 else 1,
        repetition_penalty=_float(effective, "repetition_penalty", 1.0),
        encoder_repetition_penalty=_float(effective, "encoder_repetition_penalty", 1.0),
        no_repeat_ngram_size=effective.no_repeat_ngram_size,
        encoder_no_repeat_ngram_size=effective.encoder_no_repeat_ngram_size,
        # transformers' rule: an end-of-sequence token alone cannot be a bad word.
        bad_words_ids=tuple(
            ids
            for words in effective.bad_words_ids.lists
            if (ids := tuple(words.ids)) and not (len(ids) == 1 and ids[0] in eos_token_ids)
        ),
        min_length=min_length,
        min_new_tokens=min_new_tokens,
        forced_bos_token_id=(
            effective.forced_bos_token_id if effective.HasField("forced_bos_token_id") else None
        ),
        forced_eos_token_ids=_distinct(effective.forced_eos_token_id.ids),
        remove_invalid_values=effective.remove_invalid_values,
        exponential_decay_length_penalty=_length_penalty(effective),
        suppress_tokens=_distinct(effective.suppress_tokens.ids),
        begin_suppress_tokens=_distinct(effective.begin_suppress_tokens.ids),
        sequence_bias=tuple(
            BiasedPhrase(tuple(entry.token_ids), shortest_float(entry.bias))
            for entry in effective.sequence_bias.entries
            if entry.token_ids
        ),
        watermark=watermark(effective),
        renormalize_logits=effective.renormalize_logits,
        eos_token_ids=eos_token_ids,
        max_length=max_length,
    )


def watermark(effective: GenerationConfig) -> Watermark | None:
    """The watermark asked for, with transformers' defaults for what is not said.

    Raises:
        WatermarkError: an option makes no sense.
    """
    match effective.WhichOneof("watermarking_config"):
        case "greenlist_watermarking_config":
            return _green_list(effective.greenlist_watermarking_config)
        case "synthid_watermarking_config":
            return _synthid(effective.synthid_watermarking_config)
    return None


def _green_list(config: WatermarkingConfig) -> GreenList:
    absent = GreenList()
    return GreenList(
        greenlist_ratio=shortest_float(config.greenlist_ratio)
        if config.HasField("greenlist_ratio")
        else absent.greenlist_ratio,
        bias=shortest_float(config.bias) if config.HasField("bias") else absent.bias,
        hashing_key=config.hashing_key if config.HasField("hashing_key") else absent.hashing_key,
        seeding_scheme=config.seeding_scheme
        if config.HasField("seeding_scheme")
        else absent.seeding_scheme,
        context_width=config.context_width
        if config.HasField("context_width")
        else absent.context_width,
    )


def _synthid(config: SynthIdTextWatermarkingConfig) -> SynthId:
    absent = SynthId(1, (0,))
    return SynthId(
        config.ngram_len,
        tuple(config.keys),
        context_history_size=config.context_history_size
        if config.HasField("context_history_size")
        else absent.context_history_size,
        sampling_table_seed=config.sampling_table_seed,
        sampling_table_size=config.sampling_table_size
        if config.HasField("sampling_table_size")
        else absent.sampling_table_size,
        skip_first_ngram_calls=config.skip_first_ngram_calls,
        debug_mode=config.debug_mode,
    )


def _distinct(ids: Iterable[int]) -> tuple[int, ...]:
    return tuple(dict.fromkeys(ids))


def _optional_float(config: GenerationConfig, name: str) -> float | None:
    # The shortest decimal is what the caller wrote and what transformers would compute with.
    return shortest_float(getattr(config, name)) if is_set(config, name) else None


def _float(config: GenerationConfig, name: str, absent: float) -> float:
    value = _optional_float(config, name)
    return absent if value is None else value


def _length_penalty(config: GenerationConfig) -> tuple[int, float] | None:
    if not config.HasField("exponential_decay_length_penalty"):
        return None
    penalty = config.exponential_decay_length_penalty
    return penalty.start_index, shortest_float(penalty.decay_factor)
