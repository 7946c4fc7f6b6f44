"""Which algorithm a merged configuration asks for, by transformers' rule."""

from __future__ import annotations

from enum import StrEnum

from outrider.v1.generation_config_pb2 import GenerationConfig
from outrider_contract.generation_config import is_set


class GenerationMode(StrEnum):
    """The algorithms, by transformers' names; drafting and DoLa go with the first two."""

    GREEDY_SEARCH = "greedy_search"
    SAMPLE = "sample"
    CONTRASTIVE_SEARCH = "contrastive_search"
    BEAM_SEARCH = "beam_search"
    BEAM_SAMPLE = "beam_sample"
    GROUP_BEAM_SEARCH = "group_beam_search"
    CONSTRAINED_BEAM_SEARCH = "constrained_beam_search"


BEAM_MODES = frozenset(
    {
        GenerationMode.BEAM_SEARCH,
        GenerationMode.BEAM_SAMPLE,
        GenerationMode.GROUP_BEAM_SEARCH,
        GenerationMode.CONSTRAINED_BEAM_SEARCH,
    }
)


def generation_mode(config: GenerationConfig) -> GenerationMode:
    """The mode of a merged configuration.

    Source: transformers 5.23, `GenerationConfig.get_generation_mode`, without what it makes of
    assistants and DoLa.
    """
    if is_set(config, "force_words_ids"):
        return GenerationMode.CONSTRAINED_BEAM_SEARCH
    if config.num_beams > 1:
        if config.num_beam_groups > 1:
            return GenerationMode.GROUP_BEAM_SEARCH
        return GenerationMode.BEAM_SAMPLE if config.do_sample else GenerationMode.BEAM_SEARCH
    if config.do_sample:
        return GenerationMode.SAMPLE
    if config.top_k > 1 and config.penalty_alpha > 0:
        return GenerationMode.CONTRASTIVE_SEARCH
    return GenerationMode.GREEDY_SEARCH
