"""Whether a request is guided, by which negative prompt, and whether there is room for it.

A value is refused with the name of its field.
"""

from __future__ import annotations

from collections.abc import Sequence

from outrider.v1 import generation_pb2
from outrider.v1.generation_config_pb2 import GenerationConfig
from outrider_contract.errors import Reason
from outrider_runtime.errors import InvalidRequest, UnsupportedOption

from outrider_target.requests.request import Guidance
from outrider_target.requests.room import Room

FIELD = "generation_config.guidance_scale"


def guidance(
    message: generation_pb2.GenerateRequest,
    config: GenerationConfig,
    negative_prompt: Sequence[int],
    *,
    num_new_tokens: int,
    num_prompt_tokens: int,
    vocab_size: int,
    max_model_len: int,
    room: Room,
) -> Guidance | None:
    """How a request is guided; None where it is not.

    Args:
        message: The request.
        config: The merged configuration.
        negative_prompt: The token ids of its negative prompt; empty when it has none.
        num_new_tokens: Most tokens that may be generated.
        num_prompt_tokens: Length of its prompt.
        vocab_size: Token ids of the served model.
        max_model_len: Most tokens of a branch.
        room: For the two branches.

    Raises:
        InvalidRequest: The negative prompt is wrong or alone, or there is no room.
        UnsupportedOption: Guidance does not go together with the request's mode.
    """
    named = message.WhichOneof("negative_prompt")
    guided = config.HasField("guidance_scale") and config.guidance_scale != 1.0
    if not guided:
        if named is not None:
            raise InvalidRequest(
                named, "has no effect without generation_config.guidance_scale other than 1"
            )
        return None
    other = _other_mode(config)
    if other is not None:
        if not message.generation_config.HasField("guidance_scale") and named is None:
            return None  # the model's file says it, which knows nothing of the request's mode
        raise UnsupportedOption(FIELD, f"cannot be combined with {other}")
    if named is not None:
        _check_prompt(named, message, negative_prompt, vocab_size)
    lengths = (num_prompt_tokens, len(negative_prompt) or 1)
    field = named or FIELD
    if lengths[1] + num_new_tokens > max_model_len:
        raise InvalidRequest(
            field,
            f"its {lengths[1]} tokens and the {num_new_tokens} that may be generated are more than "
            f"the {max_model_len} that are possible",
            reason=Reason.PROMPT_TOO_LONG,
        )
    blocks = sum(-(-(length + num_new_tokens) // room.block_size) for length in lengths)
    if blocks > room.num_blocks or room.max_num_seqs < 2:
        raise InvalidRequest(
            field, "prompt, negative prompt and output do not fit into the KV cache together"
        )
    return Guidance(config.guidance_scale, tuple(negative_prompt))


def _other_mode(config: GenerationConfig) -> str | None:
    if config.WhichOneof("dola_layers"):
        return "dola_layers"
    if config.penalty_alpha > 0 and not config.do_sample and config.top_k > 1:
        return "penalty_alpha"
    return "num_beams" if config.num_beams > 1 else None


def _check_prompt(
    field: str,
    message: generation_pb2.GenerateRequest,
    token_ids: Sequence[int],
    vocab_size: int,
) -> None:
    if not token_ids or (field == "negative_text" and not message.negative_text):
        raise InvalidRequest(
            field, "is empty; it needs at least one token", reason=Reason.EMPTY_PROMPT
        )
    if max(token_ids) >= vocab_size:
        raise InvalidRequest(
            field, f"token id {max(token_ids)} is outside the vocabulary of {vocab_size}"
        )
