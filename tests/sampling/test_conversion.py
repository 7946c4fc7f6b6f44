"""From an effective configuration to sampling parameters: transformers' rules, nothing implied."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import pytest
from outrider_contract.generation_config import GLOBAL_DEFAULTS, from_json_dict
from outrider_runtime.conversion import sampling_parameters
from outrider_runtime.sampling_parameters import SamplingParameters
from outrider_runtime.watermarks import GreenList, SynthId
from transformers import SynthIDTextWatermarkingConfig, WatermarkingConfig


def converted(**options: Any) -> SamplingParameters:
    return sampling_parameters(from_json_dict(options), num_prompt_tokens=10, max_length=30)


def test_an_absent_field_is_off() -> None:
    assert converted() == SamplingParameters(max_length=30)
    assert not converted().edits_scores
    assert converted(do_sample=True).truncations == ()


def test_global_defaults_bring_top_k_and_nothing_else() -> None:
    assert converted(**GLOBAL_DEFAULTS) == SamplingParameters(top_k=50, max_length=30)
    assert not converted(**GLOBAL_DEFAULTS).edits_scores
    assert converted(**GLOBAL_DEFAULTS).truncations == ()  # greedy
    assert converted(**{**GLOBAL_DEFAULTS, "do_sample": True}).truncations == ("top_k",)


def test_floats_mean_the_decimal_number_that_was_written() -> None:
    parameters = converted(temperature=0.7, top_p=0.9, min_p=0.05, repetition_penalty=1.1)
    assert parameters.temperature == 0.7
    assert parameters.top_p == 0.9
    assert parameters.min_p == 0.05
    assert parameters.repetition_penalty == 1.1


def test_min_new_tokens_takes_precedence_over_min_length() -> None:
    assert converted(min_length=25).min_length == 25
    assert converted(min_length=25, min_new_tokens=3).min_length == 13
    assert converted(min_new_tokens=0).min_length == 10


def test_an_end_of_sequence_token_alone_is_no_bad_word() -> None:
    words = converted(eos_token_id=[2, 3], bad_words_ids=[[2], [4], [2, 3], [3]]).bad_words_ids
    assert words == ((4,), (2, 3))


@pytest.mark.parametrize(("given", "expected"), [(7, (7,)), ([7, 8], (7, 8)), ([8, 7, 8], (8, 7))])
def test_end_of_sequence_tokens_are_a_list_without_repetition(
    given: object, expected: tuple[int, ...]
) -> None:
    parameters = converted(eos_token_id=given, forced_eos_token_id=given)
    assert parameters.eos_token_ids == expected
    assert parameters.forced_eos_token_ids == expected


def test_neutral_values_are_as_good_as_absent() -> None:
    neutral = converted(
        do_sample=True,
        temperature=1.0,
        top_k=0,
        top_p=1.0,
        typical_p=1.0,
        epsilon_cutoff=0.0,
        eta_cutoff=0.0,
        repetition_penalty=1.0,
        encoder_repetition_penalty=1.0,
        no_repeat_ngram_size=0,
        encoder_no_repeat_ngram_size=0,
        min_length=0,
    )
    assert neutral == SamplingParameters(do_sample=True, max_length=30)
    assert neutral.truncations == ()
    assert not neutral.edits_scores


def test_zero_is_a_value_where_presence_decides() -> None:
    assert converted(min_p=0.0, do_sample=True).truncations == ("min_p",)
    assert converted(forced_bos_token_id=0).edits_scores
    assert converted(suppress_tokens=[0]).edits_scores


def test_nested_options_arrive_whole() -> None:
    parameters = converted(
        sequence_bias=[[[1, 2], -0.5], [[3], 2.0]], exponential_decay_length_penalty=[5, 1.01]
    )
    assert parameters.sequence_bias == (((1, 2), -0.5), ((3,), 2.0))
    assert parameters.exponential_decay_length_penalty == (5, 1.01)


def test_a_watermark_that_says_little_has_the_defaults_of_transformers() -> None:
    green = converted(watermarking_config={}).watermark
    assert isinstance(green, GreenList)
    assert asdict(green) == WatermarkingConfig().to_dict()
    synthid = converted(watermarking_config={"ngram_len": 5, "keys": [1, 2]}).watermark
    assert isinstance(synthid, SynthId)
    theirs = SynthIDTextWatermarkingConfig(ngram_len=5, keys=[1, 2]).to_dict()
    assert asdict(synthid) == {**theirs, "keys": (1, 2)}


def test_a_watermark_arrives_whole() -> None:
    options: dict[str, Any] = {
        "greenlist_ratio": 0.3,
        "bias": -1.1,
        "hashing_key": 0,
        "seeding_scheme": "selfhash",
        "context_width": 7,
    }
    green = converted(watermarking_config=options)
    assert green.watermark == GreenList(**options)
    assert not green.edits_scores  # it comes after the truncations
    options = {
        "ngram_len": 2,
        "keys": [2**63 - 1, 0],
        "context_history_size": 0,
        "sampling_table_seed": 2**64 - 1,
        "sampling_table_size": 3,
        "skip_first_ngram_calls": True,
    }
    synthid = converted(watermarking_config=options).watermark
    assert synthid == SynthId(**{**options, "keys": (2**63 - 1, 0)})
