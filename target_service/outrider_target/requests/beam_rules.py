"""What a request asks of beam search, and what of it cannot be done.

A value is refused with the name of its field.
"""

from __future__ import annotations

import math

from outrider.v1 import generation_pb2
from outrider.v1.generation_config_pb2 import GenerationConfig
from outrider_contract.generation_config import is_set, shortest_float
from outrider_runtime.errors import InvalidRequest, UnsupportedOption

from outrider_target.decoding.beams.settings import BeamSettings, EarlyStopping
from outrider_target.requests.beam_group_rules import check_groups
from outrider_target.requests.forced_phrases_rules import forced_phrases
from outrider_target.requests.generation_mode import BEAM_MODES, generation_mode
from outrider_target.requests.request import TensorKind
from outrider_target.requests.room import Room

_MOST_LOG_LENGTH = 80.0
"""Logarithm of what scores are divided by: float32 ends near 88."""


def beam_settings(
    message: generation_pb2.GenerateRequest,
    config: GenerationConfig,
    *,
    num_prompt_tokens: int,
    max_length: int,
    vocab_size: int,
    room: Room,
) -> BeamSettings | None:
    """The beams that a request asks for; None in other modes.

    Args:
        message: The request.
        config: Its merged configuration.
        num_prompt_tokens: Length of the prompt.
        max_length: Total length at which generation stops.
        vocab_size: The model's.
        room: The server's.

    Raises:
        InvalidRequest: A value is wrong or too large, or contradicts another.
        UnsupportedOption: A value cannot be combined with beams.
    """
    check_groups(message.generation_config, config)
    mode = generation_mode(config)
    if mode not in BEAM_MODES:
        return None
    _check_alone(message, config)
    settings = BeamSettings(
        num_beams=config.num_beams,
        num_return_sequences=config.num_return_sequences or 1,
        length_penalty=shortest_float(config.length_penalty)
        if config.HasField("length_penalty")
        else 1.0,
        early_stopping=_early_stopping(config),
        num_groups=config.num_beam_groups or 1,
        diversity_penalty=shortest_float(config.diversity_penalty),
        pad_token_id=_pad_token_id(config),
        forced_phrases=forced_phrases(config, vocab_size),
        progress_interval=message.beam_progress_interval
        if message.HasField("beam_progress_interval")
        else 1,
    )
    if settings.num_return_sequences > settings.num_beams:
        raise InvalidRequest(
            "generation_config.num_return_sequences",
            f"is {settings.num_return_sequences}, more than the {settings.num_beams} beams",
        )
    if abs(settings.length_penalty) * math.log(max_length) > _MOST_LOG_LENGTH:
        raise InvalidRequest(
            "generation_config.length_penalty",
            f"is {settings.length_penalty:g}: up to {max_length} tokens to it are no number",
        )
    _check_room(settings.num_beams, num_prompt_tokens, max_length, room)
    return settings


def _pad_token_id(config: GenerationConfig) -> int:
    """As transformers pads. Without an end-of-sequence token nothing is done early, or padded."""
    if config.HasField("pad_token_id"):
        return config.pad_token_id
    return config.eos_token_id.ids[0] if config.eos_token_id.ids else 0


def _early_stopping(config: GenerationConfig) -> EarlyStopping:
    if config.WhichOneof("early_stopping") == "early_stopping_mode":
        return EarlyStopping(config.early_stopping_mode)
    return EarlyStopping(config.early_stopping_enabled)


def _check_alone(message: generation_pb2.GenerateRequest, config: GenerationConfig) -> None:
    """Refuse what has no meaning for beams, or none that anybody agreed on."""
    why = "cannot be combined with num_beams above 1: "
    if message.HasField("structured_output") and config.num_beam_groups > 1:
        raise UnsupportedOption(
            "structured_output",
            "cannot be combined with num_beam_groups above 1: a group that has no other text of "
            "the form left would have to leave it",
        )
    if message.HasField("structured_output") and is_set(config, "force_words_ids"):
        raise UnsupportedOption(
            "structured_output",
            "cannot be combined with force_words_ids: what the text must hold belongs in its form",
        )
    if message.HasField("log_probs"):
        raise UnsupportedOption(
            "log_probs", why + "sequence scores come with the answer; Score tells the rest"
        )
    for kind in TensorKind:
        if getattr(config, kind):
            raise UnsupportedOption(
                f"generation_config.{kind}", why + "sequence scores and beam indices always come"
            )
    if config.HasField("guidance_scale") and config.guidance_scale != 1.0:
        raise UnsupportedOption(
            "generation_config.guidance_scale", why + "guidance follows one text"
        )
    if message.generation_config.penalty_alpha > 0:
        raise UnsupportedOption(
            "generation_config.penalty_alpha", why + "contrastive search is a mode of its own"
        )
    if config.WhichOneof("dola_layers"):
        raise UnsupportedOption(
            "generation_config.dola_layers", why + "it goes with greedy decoding and sampling"
        )


def _check_room(num_beams: int, num_prompt_tokens: int, max_length: int, room: Room) -> None:
    field = "generation_config.num_beams"
    if num_beams > room.max_num_seqs:
        raise InvalidRequest(
            field, f"at most {room.max_num_seqs} beams or sequences run at once here"
        )
    # All beams have the whole blocks of the prompt in common; one block is for copies.
    shared = num_prompt_tokens // room.block_size
    own = -(-max_length // room.block_size) - shared
    most = (room.num_blocks - 1 - shared) // max(1, own)
    if num_beams > most:
        raise InvalidRequest(
            field,
            f"{num_beams} beams of up to {max_length} tokens do not fit into the KV cache; at most "
            f"{most} do; ask for fewer beams or fewer new tokens",
        )
