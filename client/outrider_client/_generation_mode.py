"""Which algorithm a GenerationConfig asks for, by transformers' rule.

Knows nothing of which algorithms a server has.
"""

from __future__ import annotations

from enum import StrEnum, unique
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from outrider_client._generation_config import GenerationConfig


@unique
class GenerationMode(StrEnum):
    """The algorithms of transformers, by its names."""

    GREEDY_SEARCH = "greedy_search"
    SAMPLE = "sample"
    ASSISTED_GENERATION = "assisted_generation"
    CONTRASTIVE_SEARCH = "contrastive_search"
    DOLA_GENERATION = "dola_generation"
    BEAM_SEARCH = "beam_search"
    BEAM_SAMPLE = "beam_sample"
    GROUP_BEAM_SEARCH = "group_beam_search"
    CONSTRAINED_BEAM_SEARCH = "constrained_beam_search"


_ONE_TOKEN_AT_A_TIME = (GenerationMode.GREEDY_SEARCH, GenerationMode.SAMPLE)


def generation_mode(config: GenerationConfig, *, assisted: bool) -> GenerationMode:
    """The mode of `config` as it stands, before any merging with a model's defaults.

    Args:
        config: The configuration.
        assisted: Whether a drafter is given beside it.

    Source: transformers 5.23, `GenerationConfig.get_generation_mode`. An assistant wins over DoLa.
    """
    base = _base_mode(config)
    if base not in _ONE_TOKEN_AT_A_TIME:
        return base
    # 0 lookup tokens count as asking for lookup; `use_mtp=False` does not count as asking for MTP.
    if (
        assisted
        or config.use_mtp
        or config.prompt_lookup_num_tokens is not None
        or config.assistant_early_exit is not None
    ):
        return GenerationMode.ASSISTED_GENERATION
    return base if config.dola_layers is None else GenerationMode.DOLA_GENERATION


def _base_mode(config: GenerationConfig) -> GenerationMode:
    if config.constraints is not None or config.force_words_ids is not None:
        return GenerationMode.CONSTRAINED_BEAM_SEARCH
    if config.num_beams is not None and config.num_beams != 1:
        if config.num_beam_groups is not None and config.num_beam_groups > 1:
            return GenerationMode.GROUP_BEAM_SEARCH
        return GenerationMode.BEAM_SAMPLE if config.do_sample else GenerationMode.BEAM_SEARCH
    if config.do_sample:
        return GenerationMode.SAMPLE
    if (config.top_k or 0) > 1 and (config.penalty_alpha or 0) > 0:
        return GenerationMode.CONTRASTIVE_SEARCH
    return GenerationMode.GREEDY_SEARCH
