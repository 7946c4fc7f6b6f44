"""Text and its ends: whole characters, special tokens, stops that are exact to the token."""

from __future__ import annotations

import pytest
from outrider.v1 import speculation_pb2
from service.asking import LOOKUP, PLAIN, Config, ask, collect, emitting
from service.harness import Caller
from service.tiny_folder import EOS, ids_of

REPLACEMENT = "\N{REPLACEMENT CHARACTER}"
HOWS = pytest.mark.parametrize("how", [PLAIN, LOOKUP], ids=["plain", "drafted"])


def ending_in(token_id: int, *, before: str) -> Config:
    """Fields that make the model write a token behind the character `before`."""
    return {"sequence_bias": [[[ids_of(before)[-1], token_id], 1e6]]}


@HOWS
@pytest.mark.parametrize("character", ["é", "€", "😀"])
def test_no_piece_of_text_ends_inside_a_character(
    caller: Caller, character: str, how: speculation_pb2.SpeculationConfig
) -> None:
    width = len(character.encode())
    answer = collect(
        caller.open(
            ask(
                character,
                max_new_tokens=8 * width,
                speculation=how,
                num_assistant_tokens=5,
                num_assistant_tokens_schedule="constant",
                **emitting(character),
            )
        )
    )
    assert answer.text == character * 8
    assert set("".join(answer.parts[0].pieces)) == {character}
    assert all(set(piece) <= {character} for piece in answer.parts[0].pieces)
    if how is LOOKUP:
        assert answer.complete.speculation.num_accepted_tokens > 3
    else:
        assert answer.parts[0].pieces.count("") == 8 * (width - 1)


def test_a_character_cut_off_by_the_end_becomes_a_replacement_at_the_end_only(
    caller: Caller,
) -> None:
    answer = collect(caller.open(ask("😀", max_new_tokens=6, **emitting("😀"))))
    *pieces, last = answer.parts[0].pieces
    assert REPLACEMENT not in "".join(pieces)
    assert "".join(pieces) == "😀"
    assert last == REPLACEMENT


def test_a_character_begun_in_the_prompt_is_not_repeated_in_the_text(caller: Caller) -> None:
    answer = collect(caller.open(ask(ids_of("😀")[:2], max_new_tokens=6, **emitting("😀"))))
    assert answer.token_ids == [*ids_of("😀")[2:], *ids_of("😀")]
    assert answer.text.endswith("😀")


@HOWS
def test_a_stop_string_ends_the_text_at_its_last_token(
    caller: Caller, how: speculation_pb2.SpeculationConfig
) -> None:
    request = ask(
        "abcde", max_new_tokens=100, speculation=how, stop_strings=["zzz", "eab"],
        num_assistant_tokens=3, num_assistant_tokens_schedule="constant", **emitting("abcde"),
    )  # fmt: skip
    answer = collect(caller.open(request))
    (result,) = answer.complete.sequences
    assert answer.finish_reasons == ["STOP"]
    assert result.matched_stop_string == "eab"
    assert not result.HasField("matched_stop_token_id")
    assert answer.text == "ab"  # "e" was the prompt's: a stop string may begin there
    assert (answer.complete.speculation.num_draft_tokens > 0) == (how is LOOKUP)


def test_a_stop_string_inside_an_accepted_draft_ends_the_text_there(caller: Caller) -> None:
    request = ask(
        "abcdefabcdef", max_new_tokens=100, speculation=LOOKUP, stop_strings=["defabcd"],
        num_assistant_tokens=16, num_assistant_tokens_schedule="constant", **emitting("abcdef"),
    )  # fmt: skip
    answer = collect(caller.open(request))
    assert answer.text == "abcd"
    assert answer.complete.sequences[0].matched_stop_string == "defabcd"
    stats = answer.complete.speculation
    assert stats.num_accepted_tokens == 4  # what lies behind the stop is not counted
    assert stats.num_draft_tokens > 4
    assert answer.parts[0].drafted == [True] * 4


def test_a_stop_string_may_end_inside_a_character_sequence(caller: Caller) -> None:
    answer = collect(
        caller.open(ask("€", max_new_tokens=60, stop_strings=["€€€"], **emitting("€")))
    )
    assert answer.text == "€€"
    assert len(answer.token_ids) == 6


@HOWS
def test_any_of_several_end_tokens_ends_the_text_and_is_named(
    caller: Caller, how: speculation_pb2.SpeculationConfig
) -> None:
    end = ids_of("d")[0]
    request = ask(
        "abcdeabc", max_new_tokens=100, speculation=how, eos_token_id=[EOS, end],
        **emitting("abcde"),
    )  # fmt: skip
    answer = collect(caller.open(request))
    (result,) = answer.complete.sequences
    assert answer.token_ids == [end]
    assert answer.finish_reasons == ["STOP"]
    assert result.matched_stop_token_id == end
    assert not result.HasField("matched_stop_string")
    assert (answer.complete.speculation.num_draft_tokens > 0) == (how is LOOKUP)


def test_an_end_token_of_the_models_own_file_ends_the_text(caller: Caller) -> None:
    answer = collect(
        caller.open(ask("abc", max_new_tokens=50, clear=(), **ending_in(EOS, before="c")))
    )
    assert answer.token_ids == [EOS]
    assert answer.complete.sequences[0].matched_stop_token_id == EOS
    assert answer.text == ""


def test_special_tokens_are_in_the_ids_always_and_in_the_text_on_request(caller: Caller) -> None:
    for skip, text in ((None, ""), (True, ""), (False, "</s>")):
        request = ask(
            "abc", max_new_tokens=50, clear=(), skip_special_tokens=skip,
            **ending_in(EOS, before="c"),
        )  # fmt: skip
        answer = collect(caller.open(request))
        assert answer.token_ids == [EOS]
        assert answer.text == text


@pytest.mark.parametrize("limit", [{"max_new_tokens": 7}, {"max_length": 11}])
@HOWS
def test_a_limit_ends_the_text_exactly(
    caller: Caller, limit: Config, how: speculation_pb2.SpeculationConfig
) -> None:
    answer = collect(caller.open(ask("abc", speculation=how, **limit, **emitting("bc", after="x"))))
    assert len(answer.token_ids) == 7
    assert answer.finish_reasons == ["LENGTH"]
    assert (answer.complete.speculation.num_draft_tokens > 0) == (how is LOOKUP)


def test_each_sequence_ends_for_its_own_reason(caller: Caller) -> None:
    request = ask(
        "abc", seed=1, do_sample=True, num_return_sequences=6, max_new_tokens=3, top_k=2,
        eos_token_id=[0], sequence_bias=[[[0], 1e4], [[5], 1e4]],
    )  # fmt: skip
    answer = collect(caller.open(request))
    assert set(answer.finish_reasons) == {"STOP", "LENGTH"}
    for part, reason in zip(answer.parts, answer.finish_reasons, strict=True):
        assert (reason == "STOP") == (part.token_ids[-1] == 0)
        assert 0 not in part.token_ids[:-1]
        assert len(part.token_ids) == 3 or reason == "STOP"
