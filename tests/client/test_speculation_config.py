"""SpeculationConfig crosses the wire unchanged and refuses what lies outside its ranges."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from outrider.v1 import speculation_pb2
from outrider_client import InvalidRequestError, SpeculationConfig
from outrider_contract.json_values import shortest_float

VALID: dict[str, st.SearchStrategy[Any]] = {
    "enabled": st.booleans(),
    "method": st.sampled_from(["remote", "prompt-lookup", "none"]),
    "verification": st.sampled_from(["exact", "speculative-sampling"]),
    "pacing": st.sampled_from(["adaptive", "synchronous"]),
    "max_assistant_tokens": st.integers(1, 64),
    "run_ahead": st.integers(0, 64),
    "draft_fan_out": st.integers(1, 16),
    "draft_tree_rows": st.integers(0, 64),
    "draft_timeout_ms": st.integers(0, 60_000),
    "draft_temperature": st.floats(0, 100, width=32, exclude_min=True).map(shortest_float),
    "report_rounds": st.booleans(),
    "prediction_text": st.text(min_size=1),
    "prediction_token_ids": st.lists(st.integers(0, 2**32 - 1), min_size=1).map(tuple),
    "cache_salt": st.text(min_size=1, max_size=64),
    "lookup_rule": st.sampled_from(["latest", "first"]),
}


def test_every_field_of_the_contract_is_a_field_and_nothing_else() -> None:
    contract = {field.name for field in speculation_pb2.SpeculationConfig.DESCRIPTOR.fields}
    assert {field.name for field in fields(SpeculationConfig)} == contract == set(VALID)


@settings(deadline=None)
@given(values=st.fixed_dictionaries({}, optional=VALID))
def test_what_is_said_crosses_the_wire_and_nothing_else(values: dict[str, Any]) -> None:
    if "prediction_text" in values:
        values.pop("prediction_token_ids", None)
    config = SpeculationConfig(**values)
    message = config.to_message()
    assert {field.name for field, _ in message.ListFields()} == set(values)
    assert SpeculationConfig.from_message(message) == config
    assert config.to_dict() == values


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("enabled", 1),
        ("enabled", "yes"),
        ("report_rounds", 0),
        ("method", "model"),
        ("method", ["remote"]),
        ("verification", "lossy"),
        ("pacing", ""),
        ("max_assistant_tokens", 0),
        ("max_assistant_tokens", 65),
        ("max_assistant_tokens", True),
        ("max_assistant_tokens", 4.0),
        ("run_ahead", -1),
        ("run_ahead", 65),
        ("draft_fan_out", 0),
        ("draft_fan_out", 17),
        ("draft_timeout_ms", -1),
        ("draft_timeout_ms", 60_001),
        ("draft_temperature", 0.0),
        ("draft_temperature", -1.0),
        ("draft_temperature", float("nan")),
        ("draft_temperature", float("inf")),
        ("draft_temperature", "1"),
        ("draft_temperature", True),
        ("prediction_text", [1, 2]),
        ("prediction_token_ids", "1, 2"),
        ("prediction_token_ids", [1, -2]),
        ("prediction_token_ids", [1, 2.0]),
        ("prediction_token_ids", [True]),
        ("prediction_token_ids", [2**32]),
        ("cache_salt", "x" * 257),
        ("cache_salt", b"salt"),
        ("lookup_rule", "last"),
    ],
)
def test_a_wrong_value_is_refused_by_the_name_of_its_field(name: str, value: Any) -> None:
    with pytest.raises(InvalidRequestError, match=name) as caught:
        SpeculationConfig(**{name: value})
    assert caught.value.field == name


def test_a_prediction_is_text_or_token_ids() -> None:
    with pytest.raises(InvalidRequestError, match="prediction_text"):
        SpeculationConfig(prediction_text="a", prediction_token_ids=[1])


def test_words_of_a_newer_server_count_as_not_given() -> None:
    message = speculation_pb2.SpeculationConfig(enabled=True)
    message.method = 99  # type: ignore[assignment]  # not ours yet
    assert SpeculationConfig.from_message(message) == SpeculationConfig(enabled=True)


def test_what_a_server_has_in_force_is_not_judged() -> None:
    message = speculation_pb2.SpeculationConfig(max_assistant_tokens=1000)
    assert SpeculationConfig.from_message(message).max_assistant_tokens == 1000
