"""Whether a request is contrastive search, and what of it is not.

transformers decides by four fields together: `penalty_alpha` above 0, `top_k` above 1, no sampling,
no beams. A request that asks for the penalty without the rest is refused, where transformers would
ignore it; a model's file that has it is not. A value is refused with the name of its field.
"""

from __future__ import annotations

from outrider.v1.generation_config_pb2 import GenerationConfig
from outrider_runtime.errors import InvalidRequest, UnsupportedOption
from outrider_runtime.model.runner import LayerShapes

from outrider_target.requests.request import ContrastiveSettings
from outrider_target.requests.room import Room

_PENALTY = "generation_config.penalty_alpha"
_TOP_K = "generation_config.top_k"


def contrastive_settings(
    request: GenerationConfig,
    config: GenerationConfig,
    *,
    max_length: int,
    layers: LayerShapes | None,
    room: Room,
) -> ContrastiveSettings | None:
    """The settings of contrastive search; None for any other mode.

    Args:
        request: The configuration as the request has it.
        config: The merged one.
        max_length: Total length at which generation stops.
        layers: The served model's; None where they cannot be read.
        room: For candidates.

    Raises:
        InvalidRequest: Fields contradict each other, or there is no room.
        UnsupportedOption: The model's layers cannot be read.
    """
    if config.penalty_alpha <= 0:
        return None
    if (why_not := _contradiction(config)) is not None:
        if request.HasField("penalty_alpha"):
            raise InvalidRequest(_PENALTY, why_not)
        return None
    if config.WhichOneof("dola_layers"):
        raise InvalidRequest(
            "generation_config.dola_layers",
            "penalty_alpha asks for contrastive search, which DoLa is no part of",
        )
    if layers is None:
        raise UnsupportedOption(
            _PENALTY, "what passes between this model's layers is not one vector per token"
        )
    if config.top_k > room.max_num_seqs:
        raise InvalidRequest(
            _TOP_K,
            f"contrastive search runs top_k candidates at once: at most {room.max_num_seqs} "
            f"(--max-num-seqs), got {config.top_k}",
        )
    if -(-max_length // room.block_size) + config.top_k > room.num_blocks:
        raise InvalidRequest(
            _TOP_K,
            f"{config.top_k} candidates after {max_length} tokens do not fit into the KV cache",
        )
    return ContrastiveSettings(config.penalty_alpha, config.top_k, layers.num_layers)


def _contradiction(config: GenerationConfig) -> str | None:
    """What makes another mode of it."""
    if config.do_sample:
        return "contrastive search does not sample: do_sample must be false"
    if config.num_beams > 1:
        return f"contrastive search has no beams: num_beams must be 1, got {config.num_beams}"
    if config.top_k <= 1:
        return (
            f"contrastive search compares candidates: top_k must be 2 or more, got {config.top_k}"
        )
    return None
