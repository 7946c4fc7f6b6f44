"""`Plugin`: what cannot be sent is refused before anything is."""

from __future__ import annotations

from typing import Any

import pytest
from client.fake_server import FakeServer
from outrider_client import Client, InvalidRequestError, Plugin


@pytest.mark.parametrize(
    "parameters",
    [{"a": object()}, {"a": float("nan")}, {"a": {1, 2}}],
    ids=["object", "not a number", "set"],  # names that every process gives them
)
def test_parameters_that_are_no_json_are_refused(parameters: dict[str, Any]) -> None:
    with pytest.raises(InvalidRequestError, match="plug-in 'x'"):
        Plugin("x", parameters)


@pytest.mark.parametrize("given", ["avoid", [5], [None], 7, [("avoid", {})]])
def test_only_plugins_and_names_may_be_given(server: FakeServer, given: Any) -> None:
    with Client(server.address) as client:
        with pytest.raises(TypeError, match="stopping_criteria"):
            client.generate("x", stopping_criteria=given)
        assert not server.received


def test_names_and_parameters_reach_the_server(server: FakeServer) -> None:
    with Client(server.address) as client:
        client.generate("x", logits_processors=["a", Plugin("b", {"n": 2**60})])
    calls = server.received[0].request.logits_processors
    assert [(one.name, one.parameters) for one in calls] == [
        ("a", ""),
        ("b", '{"n": 1152921504606846976}'),
    ]
