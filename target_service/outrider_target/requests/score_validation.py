"""From the wire to the domain: a request to score a given text."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from outrider.v1 import generation_pb2
from outrider_contract.errors import Reason
from outrider_runtime.errors import InvalidRequest, UnsupportedOption

from outrider_target.requests.request import GenerationRequest, TensorKind
from outrider_target.requests.validation import ServedModel, validate
from outrider_target.settings import SpeculationDefaults

MAX_SCORED = 200_000
"""Log-probabilities in one answer: some 3 MB, of the 4 MB that gRPC clients take."""


def validate_score(
    message: generation_pb2.ScoreRequest,
    *,
    request_id: str,
    token_ids: Sequence[int],
    model: ServedModel,
    defaults: SpeculationDefaults,
) -> GenerationRequest:
    """Turn a request to score a text into a domain request.

    Args:
        message: The request.
        request_id: Its name, checked already.
        token_ids: The whole text, as given or from the tokenizer.
        model: The served model.
        defaults: As for `validate`.

    Raises:
        InvalidRequest: A value is wrong; names the field.
        UnsupportedOption: A value asks for what is not served; names the field and the reason.
    """
    field = "text" if message.HasField("text") else "token_ids"
    if len(token_ids) < 2:
        raise InvalidRequest(field, "at least two tokens are needed: the first is never scored")
    if len(token_ids) > model.max_model_len:
        raise InvalidRequest(
            field,
            f"has {len(token_ids)} tokens; at most {model.max_model_len} are possible",
            reason=Reason.PROMPT_TOO_LONG,
        )
    if max(token_ids) >= model.vocab_size:
        raise InvalidRequest(
            field, f"token id {max(token_ids)} is outside the vocabulary of {model.vocab_size}"
        )
    first = message.first_position if message.HasField("first_position") else 1
    if not 1 <= first < len(token_ids):
        raise InvalidRequest(
            "first_position", f"must lie in [1, {len(token_ids) - 1}], got {first}"
        )
    if message.generation_config.WhichOneof("dola_layers"):
        raise UnsupportedOption(
            "generation_config.dola_layers", "a given text is scored by the model's last layer"
        )
    if message.generation_config.HasField("guidance_scale"):
        raise UnsupportedOption(
            "generation_config.guidance_scale", "a given text is scored without guidance"
        )
    given = tuple(token_ids[first:])
    if len(given) * (1 + 2 * message.log_probs.num_top) > MAX_SCORED:
        raise InvalidRequest(
            "log_probs.num_top",
            f"{message.log_probs.num_top} alternatives for each of {len(given)} tokens are too "
            "many for one answer; ask for fewer, or score the text in parts",
        )
    generate = generation_pb2.GenerateRequest(
        generation_config=message.generation_config, log_probs=message.log_probs
    )
    generate.token_ids.ids.extend(token_ids[:first])
    # A given text has its own length, and nothing else ends it; its answer has no tensors.
    for name in (
        "max_length",
        "max_new_tokens",
        "stop_strings",
        "num_return_sequences",
        "penalty_alpha",
        "guidance_scale",
        "num_beam_groups",
        "diversity_penalty",
        "force_words_ids",
        *TensorKind,
    ):
        generate.generation_config.ClearField(name)
    generate.generation_config.max_new_tokens = len(given)
    generate.generation_config.num_return_sequences = 1
    generate.generation_config.num_beams = 1
    generate.generation_config.num_beam_groups = 1
    generate.generation_config.diversity_penalty = 0.0
    if "force_words_ids" not in generate.generation_config.clear_fields:
        generate.generation_config.clear_fields.append("force_words_ids")
    request = validate(
        generate,
        request_id=request_id,
        prompt=token_ids[:first],
        model=model,
        defaults=defaults,
    )
    return replace(
        request,
        given=given,
        stop_strings=(),
        dola_layers=(),
        guidance=None,
        num_top_log_probs=message.log_probs.num_top,
    )
