"""The JSON form and the message say the same, for every option transformers has."""

from __future__ import annotations

import json
import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from outrider.v1.generation_config_pb2 import GenerationConfig
from outrider_contract.generation_config import (
    FIELD_NAMES,
    GLOBAL_DEFAULTS,
    ConfigValueError,
    clear,
    copy_field,
    from_json_dict,
    is_set,
    to_json_dict,
)
from outrider_contract.json_values import shortest_float
from transformers import (
    CompileConfig,
    SynthIDTextWatermarkingConfig,
    WatermarkingConfig,
)
from transformers import GenerationConfig as TransformersConfig

FIELDS_OF_4_57 = [
    "max_length",
    "max_new_tokens",
    "min_length",
    "min_new_tokens",
    "early_stopping",
    "max_time",
    "stop_strings",
    "do_sample",
    "num_beams",
    "use_cache",
    "cache_implementation",
    "cache_config",
    "return_legacy_cache",
    "prefill_chunk_size",
    "temperature",
    "top_k",
    "top_p",
    "min_p",
    "typical_p",
    "epsilon_cutoff",
    "eta_cutoff",
    "repetition_penalty",
    "encoder_repetition_penalty",
    "length_penalty",
    "no_repeat_ngram_size",
    "bad_words_ids",
    "renormalize_logits",
    "forced_bos_token_id",
    "forced_eos_token_id",
    "remove_invalid_values",
    "exponential_decay_length_penalty",
    "suppress_tokens",
    "begin_suppress_tokens",
    "sequence_bias",
    "token_healing",
    "guidance_scale",
    "watermarking_config",
    "num_return_sequences",
    "output_attentions",
    "output_hidden_states",
    "output_scores",
    "output_logits",
    "return_dict_in_generate",
    "pad_token_id",
    "bos_token_id",
    "eos_token_id",
    "encoder_no_repeat_ngram_size",
    "decoder_start_token_id",
    "is_assistant",
    "num_assistant_tokens",
    "num_assistant_tokens_schedule",
    "assistant_confidence_threshold",
    "prompt_lookup_num_tokens",
    "max_matching_ngram_size",
    "assistant_early_exit",
    "assistant_lookbehind",
    "target_lookbehind",
    "compile_config",
    "disable_compile",
    "low_memory",
    "penalty_alpha",
    "dola_layers",
    "diversity_penalty",
    "num_beam_groups",
    "constraints",
    "force_words_ids",
    "transformers_version",
]
ADDED_UNTIL_5_23 = [
    "use_mtp",
    "max_cache_len",
    "top_h",
    "assistant_ensemble_weight",
    "speculation_type",
    "continuous_batching_config",
]

UINT = st.integers(0, 2**32 - 1)
FLOAT = st.floats(width=32, allow_nan=False).map(shortest_float)
IDS = st.lists(UINT, max_size=4)
TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
JSON_OBJECT = st.dictionaries(TEXT, st.one_of(st.integers(), st.booleans(), TEXT), max_size=3)

# Canonical forms: what `to_json_dict` gives back unchanged.
CANONICAL: dict[str, st.SearchStrategy[object]] = {
    "early_stopping": st.one_of(st.booleans(), TEXT),
    "stop_strings": st.lists(TEXT, max_size=3),
    "cache_config": JSON_OBJECT,
    "continuous_batching_config": JSON_OBJECT,
    "bad_words_ids": st.lists(IDS, max_size=3),
    "suppress_tokens": IDS,
    "begin_suppress_tokens": IDS,
    "eos_token_id": st.one_of(UINT, IDS.filter(lambda ids: len(ids) != 1)),
    "forced_eos_token_id": st.one_of(UINT, IDS.filter(lambda ids: len(ids) != 1)),
    "decoder_start_token_id": st.one_of(UINT, IDS.filter(lambda ids: len(ids) != 1)),
    "exponential_decay_length_penalty": st.tuples(UINT, FLOAT).map(list),
    "sequence_bias": st.lists(st.tuples(IDS, FLOAT).map(list), max_size=3),
    "watermarking_config": st.one_of(
        st.fixed_dictionaries(
            {},
            optional={
                "greenlist_ratio": FLOAT,
                "hashing_key": st.integers(0, 2**64 - 1),
                "seeding_scheme": TEXT,
            },
        ),
        st.fixed_dictionaries(
            {"ngram_len": UINT, "keys": st.lists(st.integers(0, 2**64 - 1), min_size=1)},
            optional={"skip_first_ngram_calls": st.booleans()},
        ),
    ),
    "compile_config": st.fixed_dictionaries(
        {}, optional={"fullgraph": st.booleans(), "backend": TEXT}
    ),
    "dola_layers": st.one_of(TEXT, IDS),
    "force_words_ids": st.lists(st.one_of(IDS, st.lists(IDS, min_size=2, max_size=3)), max_size=3),
    "max_time": st.floats(allow_nan=False),
}


def canonical(name: str) -> st.SearchStrategy[object]:
    if name in CANONICAL:
        return CANONICAL[name]
    field = GenerationConfig.DESCRIPTOR.fields_by_name[name]
    return {
        field.TYPE_BOOL: st.booleans(),
        field.TYPE_UINT32: UINT,
        field.TYPE_FLOAT: FLOAT,
        field.TYPE_STRING: TEXT,
    }[field.type]


EVERY_FIELD = st.fixed_dictionaries({}, optional={name: canonical(name) for name in FIELD_NAMES})


def test_every_field_of_the_installed_transformers_has_its_name_here() -> None:
    theirs = {name for name in TransformersConfig().to_dict() if not name.startswith("_")}
    assert theirs <= set(FIELD_NAMES)
    assert set(FIELD_NAMES) - theirs == {"return_legacy_cache"}  # gone since 5.0


def test_every_field_of_4_57_and_5_23_has_its_name_here_and_no_other_name_exists() -> None:
    assert set(FIELD_NAMES) == {*FIELDS_OF_4_57, *ADDED_UNTIL_5_23}
    assert len(FIELD_NAMES) == len(set(FIELD_NAMES))


def test_every_message_field_is_reached_by_exactly_one_name() -> None:
    reached = []
    for field in GenerationConfig.DESCRIPTOR.fields:
        message = GenerationConfig()
        if field.name == "clear_fields":
            message.clear_fields.append("top_k")
        elif field.message_type is not None:
            getattr(message, field.name).SetInParent()
        else:
            setattr(message, field.name, field.default_value)
        names = [name for name in FIELD_NAMES if is_set(message, name)]
        assert len(names) == (field.name != "clear_fields"), field.name
        reached += names
    assert set(reached) == set(FIELD_NAMES)


def test_the_global_defaults_are_those_of_the_installed_transformers() -> None:
    theirs = TransformersConfig._get_default_generation_params()
    assert dict(GLOBAL_DEFAULTS) == {k: v for k, v in theirs.items() if v is not None}
    assert to_json_dict(from_json_dict(GLOBAL_DEFAULTS)) == dict(GLOBAL_DEFAULTS)


@settings(max_examples=40)
@given(EVERY_FIELD)
def test_json_to_message_to_json_is_the_identity_on_canonical_forms(
    values: dict[str, object],
) -> None:
    message = from_json_dict(values)
    assert {name for name in FIELD_NAMES if is_set(message, name)} == set(values)
    assert to_json_dict(message) == values
    assert from_json_dict(to_json_dict(message)) == message
    assert GenerationConfig.FromString(message.SerializeToString()) == message


@settings(max_examples=40)
@given(EVERY_FIELD)
def test_the_json_form_survives_json(values: dict[str, object]) -> None:
    form = to_json_dict(from_json_dict(values))
    assert from_json_dict(json.loads(json.dumps(form))) == from_json_dict(values)


@settings(max_examples=40)
@given(EVERY_FIELD, EVERY_FIELD)
def test_copying_every_field_makes_the_destination_equal(
    left: dict[str, object], right: dict[str, object]
) -> None:
    source, destination = from_json_dict(left), from_json_dict(right)
    for name in FIELD_NAMES:
        copy_field(source, destination, name)
    assert destination == source == from_json_dict(left)
    for name in FIELD_NAMES:
        clear(destination, name)
        assert not is_set(destination, name)
    assert destination == GenerationConfig()


def test_transformers_takes_the_json_form_back() -> None:
    theirs = TransformersConfig(
        max_new_tokens=7,
        do_sample=True,
        top_p=0.9,
        eos_token_id=[1, 2],
        stop_strings=["a", "b"],
        sequence_bias=[[[5, 6], -2.5]],
        exponential_decay_length_penalty=(3, 1.1),
        watermarking_config=WatermarkingConfig(bias=1.5),
        cache_config={"nbits": 4},
    )
    form = to_json_dict(from_json_dict(theirs.to_dict()))
    again = TransformersConfig(**form)
    assert again.top_p == 0.9
    assert again.sequence_bias == [[[5, 6], -2.5]]
    assert again.watermarking_config.to_dict() == theirs.watermarking_config.to_dict()
    assert {k: v for k, v in again.to_dict().items() if k not in ("watermarking_config",)} == {
        **{k: v for k, v in theirs.to_dict().items() if k not in ("watermarking_config",)},
        "exponential_decay_length_penalty": [3, 1.1],
    }


def test_nested_config_objects_of_transformers_are_taken() -> None:
    synthid = SynthIDTextWatermarkingConfig(ngram_len=5, keys=[11, 2**40])
    message = from_json_dict(
        {"watermarking_config": synthid, "compile_config": CompileConfig(fullgraph=True)}
    )
    assert message.synthid_watermarking_config.ngram_len == 5
    assert list(message.synthid_watermarking_config.keys) == [11, 2**40]
    assert message.compile_config.fullgraph
    assert not message.compile_config.HasField("dynamic")


@pytest.mark.parametrize(
    ("given", "canonical"),
    [
        ({"stop_strings": "end"}, {"stop_strings": ["end"]}),
        ({"eos_token_id": [3]}, {"eos_token_id": 3}),
        ({"temperature": 2}, {"temperature": 2.0}),
        (
            {"sequence_bias": {(5, 6): 1, (7,): -1.5}},
            {"sequence_bias": [[[5, 6], 1.0], [[7], -1.5]]},
        ),
        (
            {"exponential_decay_length_penalty": (4, 2)},
            {"exponential_decay_length_penalty": [4, 2.0]},
        ),
        ({"force_words_ids": [[[1, 2]], [[3], [4]]]}, {"force_words_ids": [[1, 2], [[3], [4]]]}),
        ({"constraints": [object]}, {"constraints": "[<class 'object'>]"}),
        ({"top_k": None, "_from_model_config": True, "_commit_hash": "x"}, {}),
    ],
)
def test_other_forms_become_canonical(
    given: dict[str, object], canonical: dict[str, object]
) -> None:
    assert to_json_dict(from_json_dict(given)) == canonical


@pytest.mark.parametrize(
    ("field", "value", "said"),
    [
        ("top_k", True, "integer"),
        ("top_k", 5.0, "integer"),
        ("top_k", "5", "integer"),
        ("top_k", -1, "[0, 4294967295]"),
        ("top_k", 2**32, "[0, 4294967295]"),
        pytest.param("max_new_tokens", 10**5000, "[0, 4294967295]", id="more digits than printed"),
        ("do_sample", 1, "true or false"),
        ("do_sample", "true", "true or false"),
        ("temperature", True, "number"),
        ("temperature", "1", "number"),
        ("temperature", 10**400, "too large"),
        ("temperature", 1e39, "32-bit"),
        ("early_stopping", 1, "never"),
        ("stop_strings", ["a", 3], "string"),
        ("stop_strings", "\ud800", "Unicode"),
        ("eos_token_id", [1, -2], "[0, 4294967295]"),
        ("eos_token_id", True, "integer"),
        ("bad_words_ids", [[1], 2], "list"),
        ("sequence_bias", {"(5, 6)": 1.0}, "list form"),
        ("sequence_bias", {5: 1.0}, "list form"),
        ("sequence_bias", [[[1], 1.0, 2]], "pair"),
        ("exponential_decay_length_penalty", [1], "pair"),
        ("exponential_decay_length_penalty", 1.0, "list"),
        ("force_words_ids", [[1, [2]]], "list"),
        ("watermarking_config", {"greenlist": 1}, "unknown"),
        ("watermarking_config", 3, "object"),
        ("watermarking_config", {"ngram_len": 5, "keys": [-1]}, "[0, 18446744073709551615]"),
        ("compile_config", {"options": {"a": 1}}, "unknown"),
        ("cache_config", {"a": object()}, "JSON"),
        ("cache_config", {"a": math.nan}, "JSON"),
        ("cache_config", [1], "object"),
        ("dola_layers", 3, "list"),
        ("max_new_token", 3, "not an option"),
        ("clear_fields", ["top_k"], "not an option"),
    ],
)
def test_a_wrong_value_is_refused_by_name(field: str, value: object, said: str) -> None:
    with pytest.raises(ConfigValueError) as caught:
        from_json_dict({field: value})
    assert caught.value.field.startswith(field)
    assert said in caught.value.why
    assert len(str(caught.value)) < 400


def test_unknown_names_are_skipped_on_request_only() -> None:
    values = {"begin_timestamp": 3, "top_k": 5}
    assert to_json_dict(from_json_dict(values, ignore_unknown=True)) == {"top_k": 5}
    with pytest.raises(ConfigValueError, match="begin_timestamp"):
        from_json_dict(values)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_values_that_only_ranges_refuse_reach_the_wire(value: float) -> None:
    found = from_json_dict({"temperature": value}).temperature
    assert found == value or math.isnan(found)


def test_text_that_is_not_json_in_the_message_is_refused_by_name() -> None:
    with pytest.raises(ConfigValueError, match="cache_config"):
        to_json_dict(GenerationConfig(cache_config="{"))


@pytest.mark.parametrize("call", [is_set, clear, lambda m, n: copy_field(m, m, n)])
def test_an_unknown_name_is_an_error_not_a_silent_no(call: object) -> None:
    assert callable(call)
    with pytest.raises(ConfigValueError, match="early_stopping_enabled"):
        call(GenerationConfig(), "early_stopping_enabled")


@given(st.floats(width=32, allow_nan=False))
def test_the_shortest_float_has_the_same_32_bits(value: float) -> None:
    message = GenerationConfig(temperature=value)
    short = shortest_float(message.temperature)
    assert GenerationConfig(temperature=short).temperature == message.temperature


@given(st.integers(-9999, 9999), st.integers(-4, 4))
def test_a_decimal_number_of_few_digits_comes_back_as_written(digits: int, exponent: int) -> None:
    written = float(f"{digits}e{exponent}")
    assert to_json_dict(from_json_dict({"top_p": written})) == {"top_p": written}
