"""What of a request reaches translation, and what a link says of itself."""

from __future__ import annotations

from typing import Any

import pytest
from outrider.v1 import draft_pb2
from outrider_contract.generation_config import from_json_dict
from outrider_draft.frames import Bounds, describe, updates
from outrider_draft.proposer import Description
from outrider_draft.updates import Opened


def opened(tokenizer: str, **config: Any) -> Opened:
    """An Open as the drafting thread gets it."""
    message = draft_pb2.Open(
        session=1,
        token_ids=[900],
        num_prompt_tokens=1,
        generation_config=from_json_dict({"max_new_tokens": 5, **config}),
        limits=draft_pb2.Limits(window=1, depth=1, max_nodes=1),
    )
    bounds = Bounds(
        stream=1, target_vocab_size=1000, own_vocab_size=0, max_length=64, tokenizer=tokenizer
    )
    (update,) = updates(draft_pb2.SpeculateRequest(opens=[message]), bounds)
    assert isinstance(update, Opened)
    return update


@pytest.mark.parametrize("name", ["assistant_lookbehind", "target_lookbehind"])
@pytest.mark.parametrize(
    ("said", "taken"), [(None, 10), (0, 0), (3, 3), (256, 256), (2**32 - 1, 256)]
)
def test_look_behinds_are_the_requests_or_transformers_and_never_very_long(
    name: str, said: int | None, taken: int
) -> None:
    request = opened("theirs", **({} if said is None else {name: said})).request
    assert request.tokenizer == "theirs"
    assert getattr(request, name) == taken


def test_a_link_whose_ids_are_the_drafters_own_is_not_translated() -> None:
    assert opened("").request.tokenizer == ""


def test_a_description_tells_which_tokenizers_are_translated() -> None:
    description = Description("model", "small", 40, "own", 64, frozenset(["b", "a"]))
    said = describe(description, max_sessions=1, max_length=64)
    assert list(said.translated_fingerprints) == ["a", "b"]
