"""GenerationConfig is transformers' own, as far as a class without torch can be."""

from __future__ import annotations

import copy
import json
import pickle
import warnings
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import transformers
from client.config_strategies import VALID, WRONG, configs
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from outrider_client import GenerationConfig, GenerationMode, InvalidRequestError
from outrider_contract.generation_config import FIELD_NAMES
from transformers import GenerationConfig as TransformersConfig

# What transformers 5 has no field for; it would keep it as an attribute of no meaning.
NOT_IN_TRANSFORMERS_5 = ("return_legacy_cache",)
# What only transformers' own classes can hold there.
OBJECTS = ("compile_config", "continuous_batching_config", "constraints")
METADATA = ("transformers_version",)

# The first look at transformers takes seconds, and neighbours share the processor.
RANDOMLY = settings(deadline=None, suppress_health_check=list(HealthCheck))


@pytest.fixture(autouse=True, scope="module")
def quiet() -> Any:
    """transformers warns of combinations that are not wrong."""
    level = transformers.logging.get_verbosity()
    transformers.logging.set_verbosity_error()
    yield
    transformers.logging.set_verbosity(level)


def theirs(values: dict[str, Any]) -> TransformersConfig:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return TransformersConfig(**copy.deepcopy(values))


def set_by(config: TransformersConfig) -> dict[str, Any]:
    """What is set in a transformers object, in JSON's shapes."""
    values: dict[str, Any] = json.loads(config.to_json_string(ignore_metadata=True))
    return values


def test_every_field_of_the_contract_is_a_field_and_nothing_else() -> None:
    names = [field.name for field in fields(GenerationConfig)]
    assert names[-1] == "clear_fields"
    assert sorted(names[:-1]) == sorted(FIELD_NAMES)
    assert sorted(names[:-1]) == sorted([*VALID, "constraints"])


def test_every_field_of_transformers_is_a_field() -> None:
    known = {name for name in vars(TransformersConfig()) if not name.startswith("_")}
    assert known - set(FIELD_NAMES) == set()


def test_everything_is_unset_at_first() -> None:
    assert GenerationConfig().to_dict() == {}
    assert not GenerationConfig().to_message().ListFields()


def test_a_typo_is_an_error() -> None:
    with pytest.raises(TypeError, match="max_new_token"):
        GenerationConfig(max_new_token=5)  # type: ignore[call-arg]
    config = GenerationConfig()
    with pytest.raises(AttributeError, match="max_new_token"):
        config.max_new_token = 5  # type: ignore[attr-defined]
    with pytest.raises(InvalidRequestError, match="max_new_token"):
        GenerationConfig.from_dict({"max_new_token": 5})
    assert GenerationConfig.from_dict({"max_new_token": 5}, ignore_unknown=True) == config


@pytest.mark.parametrize("name", sorted(VALID))
@settings(RANDOMLY, max_examples=10)
@given(data=st.data())
def test_each_field_crosses_the_wire(name: str, data: st.DataObject) -> None:
    value = data.draw(VALID[name])
    others: dict[str, Any] = {"do_sample": True} if name == "num_return_sequences" else {}
    config = GenerationConfig.from_dict({name: value, **others})
    back = GenerationConfig.from_message(config.to_message())
    assert back.to_dict() == config.to_dict()
    assert getattr(back, name) == value


@pytest.mark.parametrize(
    ("name", "value"), [(name, value) for name, values in WRONG.items() for value in values]
)
def test_a_wrong_value_is_refused_by_the_name_of_its_field(name: str, value: Any) -> None:
    with pytest.raises(InvalidRequestError, match=name) as caught:
        GenerationConfig(**{name: value})
    assert caught.value.field.startswith(name)
    config = GenerationConfig()
    setattr(config, name, value)
    with pytest.raises(ValueError, match=name):
        config.validate()


@given(values=configs(without=(*NOT_IN_TRANSFORMERS_5, *OBJECTS)))
@settings(RANDOMLY, max_examples=200)
def test_what_transformers_refuses_is_refused_here_too(values: dict[str, Any]) -> None:
    """The values are fine one by one, so both judge how they go together."""
    try:
        theirs(values)
    except ValueError:
        with pytest.raises(InvalidRequestError):
            GenerationConfig.from_dict(values)
    else:
        assert GenerationConfig.from_dict(values).to_dict() == values


@pytest.mark.parametrize(
    "values",
    [
        {"num_return_sequences": 2},
        {"num_return_sequences": 3, "num_beams": 2},
        {"num_return_sequences": 3, "num_beams": 2, "do_sample": True},
        {"forced_bos_token_id": 4, "suppress_tokens": [4, 5]},
        {"forced_eos_token_id": [4, 5], "suppress_tokens": [5, 4, 6]},
    ],
)
def test_values_that_contradict_each_other_are_refused(values: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"num_return_sequences|suppress_tokens"):
        theirs(values)
    with pytest.raises(InvalidRequestError) as caught:
        GenerationConfig(**values)
    assert caught.value.field in values


def test_constraint_objects_cannot_be_sent_silently() -> None:
    """The text that crosses the wire is refused by name there."""
    message = GenerationConfig(constraints=[object()]).to_message()
    assert message.HasField("constraints")


@given(values=configs(without=(*NOT_IN_TRANSFORMERS_5, *OBJECTS, *METADATA)))
@settings(RANDOMLY, max_examples=200)
def test_a_transformers_object_is_taken_over_with_all_its_fields(values: dict[str, Any]) -> None:
    try:
        original = theirs(values)
    except ValueError:
        assume(False)
    assert GenerationConfig.from_transformers(original).to_dict() == set_by(original) == values


def test_transformers_nested_objects_are_taken_over() -> None:
    original = TransformersConfig(
        watermarking_config=transformers.WatermarkingConfig(bias=3.0),
        compile_config=transformers.CompileConfig(fullgraph=True),
        sequence_bias={(1, 2): 0.5, (3,): -0.5},
        exponential_decay_length_penalty=(3, 1.5),
    )
    config = GenerationConfig.from_transformers(original)
    assert config.to_dict() == {
        "watermarking_config": original.watermarking_config.to_dict(),
        "compile_config": {"fullgraph": True, "backend": "inductor", "mode": "reduce-overhead"},
        "sequence_bias": [[[1, 2], 0.5], [[3], -0.5]],
        "exponential_decay_length_penalty": [3, 1.5],
    }
    assert config.to_message().sequence_bias.entries[0].token_ids == [1, 2]
    synth = transformers.SynthIDTextWatermarkingConfig(ngram_len=5, keys=[1, 2])
    config = GenerationConfig.from_transformers(TransformersConfig(watermarking_config=synth))
    assert config.to_message().synthid_watermarking_config.keys == [1, 2]


def test_defaults_that_an_older_transformers_fills_in_do_not_count_as_set() -> None:
    class Old:
        """As of 4.57: unset fields hold defaults, which only `to_diff_dict` leaves out."""

        def to_dict(self) -> dict[str, Any]:
            return {"max_length": 20, "top_k": 50, "top_p": 0.9, "transformers_version": "4.57.6"}

        def to_diff_dict(self) -> dict[str, Any]:
            return {"top_p": 0.9, "transformers_version": "4.57.6"}

    assert GenerationConfig.from_transformers(Old()).to_dict() == {"top_p": 0.9}


def test_an_unknown_attribute_of_a_transformers_object_is_not_dropped_in_silence() -> None:
    odd = TransformersConfig(lang_to_id={"<|en|>": 5})
    with pytest.raises(InvalidRequestError, match="lang_to_id"):
        GenerationConfig.from_transformers(odd)
    assert GenerationConfig.from_transformers(odd, ignore_unknown=True) == GenerationConfig()


@given(values=configs(without=(*NOT_IN_TRANSFORMERS_5, *OBJECTS)))
@settings(RANDOMLY, max_examples=60)
def test_files_go_both_ways(values: dict[str, Any], tmp_path_factory: Any) -> None:
    try:
        ours = GenerationConfig.from_dict(values)
    except InvalidRequestError:
        assume(False)
    folder = tmp_path_factory.mktemp("model") / "made"
    ours.save_pretrained(folder)
    assert GenerationConfig.from_pretrained(folder).to_dict() == values
    assert GenerationConfig.from_pretrained(folder / "generation_config.json") == ours
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        read = TransformersConfig.from_pretrained(folder)
    assert read == theirs(values)
    again = folder.parent / "again"
    again.mkdir()
    read.to_json_file(again / "generation_config.json")
    assert GenerationConfig.from_pretrained(again) == ours


def test_a_saved_file_is_the_file_transformers_saves(tmp_path: Path) -> None:
    values = {"do_sample": True, "top_p": 0.9, "eos_token_id": [2, 3], "max_new_tokens": 4}
    theirs(values).save_pretrained(tmp_path / "theirs")
    (tmp_path / "ours").mkdir()
    ours = GenerationConfig.from_pretrained(tmp_path / "theirs")
    ours.save_pretrained(tmp_path / "ours")
    name = "generation_config.json"
    assert (tmp_path / "ours" / name).read_text() == (tmp_path / "theirs" / name).read_text()


def test_what_transformers_has_no_word_for_is_not_saved_in_silence(tmp_path: Path) -> None:
    with pytest.raises(InvalidRequestError, match="clear_fields"):
        GenerationConfig(clear_fields=["top_k"]).save_pretrained(tmp_path)
    config = GenerationConfig()
    config.top_p = 2.0
    with pytest.raises(InvalidRequestError, match="top_p"):
        config.save_pretrained(tmp_path)
    assert list(tmp_path.iterdir()) == []
    GenerationConfig(compile_config={"fullgraph": True}, top_k=3).save_pretrained(tmp_path)
    assert GenerationConfig.from_pretrained(tmp_path) == GenerationConfig(top_k=3)


@pytest.mark.parametrize(
    ("text", "error", "match"),
    [
        (None, FileNotFoundError, r"generation_config\.json"),
        ("{", ValueError, "is not a JSON file"),
        ("[]", ValueError, "must hold a JSON object"),
        ("[" * 100_000, ValueError, "is not a JSON file"),
        (b"\xff\xfe", ValueError, "is not a JSON file"),
        ('{"top_p": "high"}', InvalidRequestError, "top_p"),
        ('{"lang_to_id": {}}', InvalidRequestError, "lang_to_id"),
    ],
)
def test_a_file_that_cannot_be_read_is_a_clear_error(
    tmp_path: Path, text: str | bytes | None, error: type[Exception], match: str
) -> None:
    file = tmp_path / "generation_config.json"
    if text is not None:
        file.write_bytes(text.encode() if isinstance(text, str) else text)
    with pytest.raises(error, match=match):
        GenerationConfig.from_pretrained(tmp_path)


def test_what_older_files_hold_besides_is_understood(tmp_path: Path) -> None:
    values = {"_from_model_config": True, "pad_token_id": -1, "top_k": None, "max_length": 9}
    (tmp_path / "generation_config.json").write_text(json.dumps(values))
    assert GenerationConfig.from_pretrained(tmp_path).to_dict() == {"max_length": 9}


MODEL_CONFIGS: list[Any] = [
    transformers.LlamaConfig(),
    transformers.GPT2Config(),
    transformers.T5Config(),
    transformers.BartConfig(),
    transformers.Qwen3Config(eos_token_id=[1, 2], output_attentions=True),
    transformers.LlavaConfig(text_config=transformers.LlamaConfig(eos_token_id=77)),
]


@pytest.mark.parametrize("config", MODEL_CONFIGS, ids=lambda config: type(config).__name__)
def test_what_a_models_own_configuration_says_is_read_as_transformers_does(
    config: Any, tmp_path: Path
) -> None:
    expected = set_by(TransformersConfig.from_model_config(config))
    assert GenerationConfig.from_model_config(config)._compared()[0] == expected
    config.save_pretrained(tmp_path)
    stored = json.loads((tmp_path / "config.json").read_text())
    from_file = set_by(TransformersConfig.from_model_config(stored))
    assert GenerationConfig.from_model_config(tmp_path)._compared()[0] == from_file
    assert GenerationConfig.from_model_config(tmp_path / "config.json").to_dict()


def test_the_configuration_of_an_older_model_is_read_as_transformers_does() -> None:
    old = {
        "model_type": "bart",
        "num_beams": 4,
        "length_penalty": 2.0,
        "force_bos_token_to_be_generated": True,
        "bos_token_id": 3,
        "output_scores": True,
        "decoder": {"max_length": 142, "num_beams": 9, "early_stopping": True, "min_length": None},
    }
    expected = set_by(TransformersConfig.from_model_config(dict(old)))
    assert GenerationConfig.from_model_config(old).to_dict() == expected
    assert expected["forced_bos_token_id"] == 3
    assert expected["max_length"] == 142


def test_an_update_sets_what_it_knows_and_returns_the_rest() -> None:
    for config in (TransformersConfig(top_k=5), GenerationConfig(top_k=5)):
        assert config.update(top_k=6, top_p=0.5, nonsense=1) == {"nonsense": 1}
        assert config.update(defaults_only=True, top_k=7, min_p=0.1) == {"top_k": 7}
        assert (config.top_k, config.top_p, config.min_p) == (6, 0.5, 0.1)
        assert config.update(top_k=None) == {}
        assert config.top_k is None


def test_an_update_happens_as_a_whole_or_not_at_all() -> None:
    config = GenerationConfig(top_k=5, clear_fields=["top_p"])
    before = copy.copy(config)
    with pytest.raises(InvalidRequestError, match="temperature"):
        config.update(top_k=6, top_p=0.5, temperature=-1.0)
    assert config == before


def test_a_field_is_cleared_or_set_but_not_both() -> None:
    config = GenerationConfig(clear_fields=["top_k", "eos_token_id"])
    assert list(config.to_message().clear_fields) == ["top_k", "eos_token_id"]
    config.update(top_k=3)
    assert list(config.clear_fields) == ["eos_token_id"]
    with pytest.raises(InvalidRequestError, match="top_k cannot be set and cleared"):
        GenerationConfig(top_k=3, clear_fields=["top_k"])
    assert GenerationConfig.from_message(config.to_message()) == config


MODE_VALUES: dict[str, list[Any]] = {
    "num_beams": [None, 1, 2],
    "do_sample": [None, False, True],
    "top_k": [None, 0, 1, 4],
    "penalty_alpha": [None, 0.0, 0.6],
    "num_beam_groups": [None, 1, 2],
    "constraints": [None, None, []],
    "force_words_ids": [None, None, [[1]]],
    "use_mtp": [None, None, False, True],
    "prompt_lookup_num_tokens": [None, None, 0, 3],
    "assistant_early_exit": [None, None, 4],
    "dola_layers": [None, None, "low"],
    "num_assistant_tokens": [None, 5],
    "speculation_type": [None, "dflash"],
}


@given(
    values=st.fixed_dictionaries({k: st.sampled_from(v) for k, v in MODE_VALUES.items()}),
    assistant=st.sampled_from([None, "a model"]),
)
@settings(RANDOMLY, max_examples=500)
def test_the_mode_is_what_transformers_says(values: dict[str, Any], assistant: Any) -> None:
    expected = theirs(values).get_generation_mode(assistant)
    assert GenerationConfig(**values).get_generation_mode(assistant) == expected.value


def test_the_modes_are_those_of_transformers() -> None:
    from transformers.generation import GenerationMode as Modes

    assert {mode.value for mode in Modes} == {str(mode) for mode in GenerationMode}
    assert GenerationConfig(do_sample=True).get_generation_mode() is GenerationMode.SAMPLE


def test_equal_configurations_are_equal_however_they_are_written() -> None:
    lists = GenerationConfig(eos_token_id=[1, 2], sequence_bias=[[[1], 0.5]])
    tuples = GenerationConfig(eos_token_id=(1, 2), sequence_bias={(1,): 0.5})
    assert lists == tuples
    assert lists == GenerationConfig.from_dict({**lists.to_dict(), "transformers_version": "5"})
    assert lists != GenerationConfig(eos_token_id=[1, 2])
    assert GenerationConfig(clear_fields=["top_k"]) != GenerationConfig()
    assert lists != "something else"
    with pytest.raises(TypeError, match="unhashable"):
        hash(lists)


def test_numbers_of_other_libraries_are_taken() -> None:
    import numpy

    values: dict[str, Any] = {"max_new_tokens": numpy.int64(5), "top_p": numpy.float32(0.5)}
    config = GenerationConfig(**values)
    assert config.to_dict() == {"max_new_tokens": 5, "top_p": 0.5}
    assert {type(value) for value in config.to_dict().values()} == {int, float}


def test_a_configuration_can_be_copied_pickled_and_shown() -> None:
    config = GenerationConfig(top_p=0.9, do_sample=True, clear_fields=["top_k"])
    assert copy.deepcopy(config) == config == pickle.loads(pickle.dumps(config))
    assert repr(config) == "GenerationConfig(do_sample=True, top_p=0.9, clear_fields=['top_k'])"
