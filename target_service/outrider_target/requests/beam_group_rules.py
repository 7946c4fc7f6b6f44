"""Which values of group beam search go together, as in transformers 4.56.

A value is refused with the name of its field.
"""

from __future__ import annotations

from outrider.v1.generation_config_pb2 import GenerationConfig
from outrider_runtime.errors import InvalidRequest


def check_groups(request: GenerationConfig, config: GenerationConfig) -> None:
    """Check the groups that are asked for.

    Args:
        request: The request's own configuration. Without beams only it is looked at: a model's
            file may ask for groups, and the request for greedy decoding.
        config: The merged configuration.

    Raises:
        InvalidRequest: A value is wrong, or contradicts another.
    """
    if config.num_beams == 1:
        config = request
    num_beams, num_groups = config.num_beams or 1, config.num_beam_groups or 1
    if config.diversity_penalty < 0:
        raise InvalidRequest("generation_config.diversity_penalty", "must be at least 0")
    if num_groups == 1:
        if config.diversity_penalty > 0:
            raise InvalidRequest(
                "generation_config.diversity_penalty",
                "keeps groups of beams apart; it needs num_beam_groups above 1",
            )
        return
    field = "generation_config.num_beam_groups"
    if num_beams % num_groups:
        raise InvalidRequest(
            field, f"num_beams, {num_beams}, must be divisible by it; it is {num_groups}"
        )
    if config.do_sample:
        raise InvalidRequest(field, "groups of beams search and do not sample; set do_sample=false")
    if not config.diversity_penalty:
        raise InvalidRequest(
            "generation_config.diversity_penalty",
            "must be above 0 with num_beam_groups above 1: the groups would all be the same",
        )
