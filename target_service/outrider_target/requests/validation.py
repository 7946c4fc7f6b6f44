"""From the wire to the domain: a request as a whole.

A value is refused with the name of its field; `field_rules` and `speculation_rules` judge those
that can be judged alone. What passes is complete and consistent: nothing behind this module looks
at the wire or doubts a value again.
"""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from dataclasses import dataclass

from outrider.v1 import generation_pb2
from outrider.v1.generation_config_pb2 import GenerationConfig
from outrider_contract.errors import Reason
from outrider_contract.generation_config import is_set
from outrider_runtime.conversion import sampling_parameters
from outrider_runtime.errors import InvalidRequest, UnsupportedOption

from outrider_target.requests import effective_config
from outrider_target.requests.beam_rules import beam_settings
from outrider_target.requests.contrastive_rules import contrastive_settings
from outrider_target.requests.dola_rules import premature_layers
from outrider_target.requests.field_rules import check_sizes, check_values
from outrider_target.requests.generation_mode import BEAM_MODES, generation_mode
from outrider_target.requests.guidance_rules import guidance
from outrider_target.requests.request import GenerationRequest
from outrider_target.requests.room import Room
from outrider_target.requests.sharing import NOBODY, Sharing
from outrider_target.requests.speculation_rules import (
    speculation_settings,
    with_guesses,
    without_drafts,
)
from outrider_target.requests.structured_output_rules import structure
from outrider_target.requests.tensor_rules import TensorSizes, tensor_wishes
from outrider_target.settings import SpeculationDefaults

MAX_STOP_STRING_LENGTH = 1024
MAX_TOP_LOG_PROBS = 20

_DEFAULT_NEW_TOKENS = 20
"""transformers' global default: `max_length=20`, to which it adds the prompt when nobody set it."""


@dataclass(frozen=True, slots=True)
class ServedModel:
    """What validation must know of the served model."""

    vocab_size: int
    max_model_len: int
    """Longest prompt plus output; also what the KV pool can hold for one sequence."""
    room: Room
    has_tokenizer: bool
    generation_config: GenerationConfig
    """The model's own defaults, without what is not served."""
    tensors: TensorSizes


def validate(
    message: generation_pb2.GenerateRequest,
    *,
    request_id: str,
    prompt: Sequence[int],
    model: ServedModel,
    defaults: SpeculationDefaults,
    negative_prompt: Sequence[int] = (),
    prediction: Sequence[int] = (),
    sharing: Sharing = NOBODY,
) -> GenerationRequest:
    """Turn a wire request into a domain request.

    Args:
        message: The request.
        request_id: Its name, checked already.
        prompt: The prompt's token ids, as given or from the tokenizer.
        negative_prompt: Those of its negative prompt, likewise; empty when it has none.
        prediction: Those of the text that it expects, likewise.
        sharing: Among whom its output is remembered.
        model: The served model.
        defaults: What holds where neither request nor model says anything about speculation.

    Raises:
        InvalidRequest: A value is wrong; names the field.
        UnsupportedOption: A value asks for what is not served; names the field and the reason.
    """
    check_sizes(message.generation_config, model.vocab_size)
    config = effective_config.merge(
        message.generation_config, model.generation_config, defaults.generation_defaults()
    )
    check_values(config, model.vocab_size)
    _check_prompt(message, prompt, model)
    max_length = _max_length(message.generation_config, config, len(prompt), model)
    _check_consistent(config, len(prompt), max_length, model)
    if config.token_healing and not model.has_tokenizer:
        raise UnsupportedOption(
            "generation_config.token_healing", "the served model has no tokenizer to heal with"
        )
    config.max_length = max_length
    _check_prediction(message, prediction, model)
    speculation = speculation_settings(
        message.speculation,
        config,
        defaults,
        model.tensors.layers,
        sharing=sharing,
        prediction=prediction,
    )
    beams = beam_settings(
        message,
        config,
        num_prompt_tokens=len(prompt),
        max_length=max_length,
        vocab_size=model.vocab_size,
        room=model.room,
    )
    contrastive = None
    if beams is None:
        contrastive = contrastive_settings(
            message.generation_config,
            config,
            max_length=max_length,
            layers=model.tensors.layers,
            room=model.room,
        )
    if beams is not None and beams.num_groups == 1 and not config.do_sample:
        speculation = with_guesses(speculation)
    elif beams is not None or contrastive is not None:
        speculation = without_drafts(speculation)
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
        speculation=speculation,
        num_top_log_probs=_num_top_log_probs(message),
        given=(),
        effective_config=config,
        prefill_chunk_size=config.prefill_chunk_size
        if config.HasField("prefill_chunk_size")
        else None,
        structure=structure(
            message.structured_output,
            has_tokenizer=model.has_tokenizer,
            vocab_size=model.vocab_size,
        )
        if message.HasField("structured_output")
        else None,
        beams=beams,
        dola_layers=premature_layers(config, model.tensors.layers),
        contrastive=contrastive,
        guidance=guidance(
            message,
            config,
            negative_prompt,
            num_new_tokens=max_length - len(prompt),
            num_prompt_tokens=len(prompt),
            vocab_size=model.vocab_size,
            max_model_len=model.max_model_len,
            room=model.room,
        ),
        tensors=tensor_wishes(
            config,
            num_prompt_tokens=len(prompt),
            max_length=max_length,
            num_sequences=_num_sequences(config),
            sizes=model.tensors,
        ),
    )


def _num_top_log_probs(message: generation_pb2.GenerateRequest) -> int | None:
    if not message.HasField("log_probs"):
        return None
    num_top: int = message.log_probs.num_top
    if num_top > MAX_TOP_LOG_PROBS:
        raise InvalidRequest(
            "log_probs.num_top", f"must lie in [0, {MAX_TOP_LOG_PROBS}], got {num_top}"
        )
    return num_top


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


def _check_prediction(
    message: generation_pb2.GenerateRequest, prediction: Sequence[int], model: ServedModel
) -> None:
    speculation = message.speculation
    if speculation.prediction_text and speculation.prediction_token_ids:
        raise InvalidRequest(
            "speculation.prediction_text", "is given as token ids, too; one of the two is enough"
        )
    field = "prediction_text" if speculation.prediction_text else "prediction_token_ids"
    if len(prediction) > model.max_model_len:
        raise InvalidRequest(
            f"speculation.{field}",
            f"has {len(prediction)} tokens; at most {model.max_model_len} are possible",
        )
    if max(prediction, default=0) >= model.vocab_size:
        raise InvalidRequest(
            f"speculation.{field}",
            f"token id {max(prediction)} is outside the vocabulary of {model.vocab_size}",
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
    beams = generation_mode(config) in BEAM_MODES
    if _num_sequences(config) > 1 and not config.do_sample and not beams:
        raise InvalidRequest(
            "generation_config.num_return_sequences",
            "more than one sequence needs do_sample=true or num_beams: greedy ones would all be "
            "the same",
        )
    if config.num_return_sequences > model.room.max_num_seqs:
        raise InvalidRequest(
            "generation_config.num_return_sequences",
            f"at most {model.room.max_num_seqs} sequences run at once here",
        )


def _stop_strings(config: GenerationConfig, model: ServedModel) -> tuple[str, ...]:
    field = "generation_config.stop_strings"
    values = tuple(config.stop_strings.values)
    if not values:
        return ()
    if not model.has_tokenizer:
        raise UnsupportedOption(field, "the served model has no tokenizer to make text with")
    if not all(values):
        raise InvalidRequest(field, "must not contain an empty string")
    if max(map(len, values)) > MAX_STOP_STRING_LENGTH:
        raise InvalidRequest(field, f"none may exceed {MAX_STOP_STRING_LENGTH} characters")
    return values
