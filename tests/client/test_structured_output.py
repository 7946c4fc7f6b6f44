"""`StructuredOutput`: exactly one form, checked before anything is sent."""

from __future__ import annotations

import json
from typing import Any

import pytest
from outrider_client import InvalidRequestError, StructuredOutput


@pytest.mark.parametrize(
    ("given", "field"),
    [
        ({}, "structured_output"),
        ({"regex": "a", "grammar": "b"}, "structured_output"),
        ({"regex": 5}, "structured_output.regex"),
        ({"regex": "\ud800"}, "structured_output.regex"),
        ({"json_schema": ["a"]}, "structured_output.json_schema"),
        ({"json_schema": {"const": float("nan")}}, "structured_output.json_schema"),
        ({"json_schema": {"const": object()}}, "structured_output.json_schema"),
        ({"choices": "yes"}, "structured_output.choices"),
        ({"choices": []}, "structured_output.choices"),
        ({"choices": ["yes", ""]}, "structured_output.choices"),
        ({"choices": ["yes", 1]}, "structured_output.choices"),
        ({"token_choices": []}, "structured_output.token_choices"),
        ({"token_choices": 5}, "structured_output.token_choices"),
        ({"token_choices": [5, 6]}, "structured_output.token_choices"),
        ({"token_choices": [[5], []]}, "structured_output.token_choices"),
        ({"token_choices": [[-1]]}, "structured_output.token_choices"),
        ({"token_choices": ["ab"]}, "structured_output.token_choices"),
    ],
)
def test_what_cannot_be_right_is_refused_by_name(given: dict[str, Any], field: str) -> None:
    with pytest.raises(InvalidRequestError, match=r"^structured_output") as caught:
        StructuredOutput(**given)
    assert caught.value.field == field


def test_each_form_becomes_its_field() -> None:
    schema = {"type": "string"}
    assert json.loads(StructuredOutput(json_schema=schema).to_message().json_schema) == schema
    assert StructuredOutput(json_schema="{}").to_message().json_schema == "{}"
    assert StructuredOutput(regex="a+").to_message().regex == "a+"
    assert StructuredOutput(grammar='start: "a"').to_message().grammar == 'start: "a"'
    assert list(StructuredOutput(choices=["a", "b"]).to_message().choices.values) == ["a", "b"]
    lists = StructuredOutput(token_choices=[[5, 6], (7,)]).to_message().token_choices.lists
    assert [list(one.ids) for one in lists] == [[5, 6], [7]]
