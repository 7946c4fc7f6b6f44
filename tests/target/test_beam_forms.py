"""Beams whose texts have a form: what transformers finds under the same prefix rule."""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from engine.tiny_models import VOCAB_SIZE, build_tiny
from outrider_runtime.errors import InvalidRequest, UnsupportedOption
from outrider_runtime.model.ragged_runner import RaggedRunner
from outrider_target.constraints.constraint import Form
from outrider_target.constraints.grammar import GrammarCompiler
from outrider_target.constraints.token_trie import TokenTrie
from outrider_target.requests.request import FinishReason, GenerationRequest
from target.batch import Answer, Batch
from target.beam_requests import beam_request
from target.letters import EOS, compiled, letters_compiler, text_of
from target.test_beam_guesses import assert_same as assert_same_answer
from target.test_beam_guesses import plainly
from target.test_beams import Pair, assert_same, found

PROMPT = [7, 21, 40, 7, 21]
PATTERN = "(ab|c){1,3}-?[01]{2,6}"


@pytest.fixture(scope="module")
def llama() -> Pair:
    return Pair("llama")


@pytest.fixture(scope="module")
def compiler() -> GrammarCompiler:
    return letters_compiler()


def trie(lists: Sequence[Sequence[int]]) -> TokenTrie:
    return TokenTrie(lists, field="structured_output.token_choices", vocab_size=VOCAB_SIZE)


def run(runner: RaggedRunner, generation: GenerationRequest, form: Form) -> Answer:
    batch = Batch(runner)
    state = batch.submit(generation, form)
    batch.finish()
    return batch.answers[state]


def followers(lists: Sequence[Sequence[int]]) -> Callable[[int, torch.Tensor], list[int]]:
    """transformers' `prefix_allowed_tokens_fn` for texts from a list; lenient behind their end."""

    def allowed(_: int, text: torch.Tensor) -> list[int]:
        before = text.tolist()[len(PROMPT) :]
        going_on = {one[len(before)] for one in lists if [*one[: len(before)]] == before != [*one]}
        ending = {EOS} if before in [list(one) for one in lists] else set()
        return [*going_on, *ending] or [EOS]

    return allowed


def some_lists(seed: int, *, number: int) -> list[list[int]]:
    chance = random.Random(seed)
    return [[chance.randrange(3, 9) for _ in range(chance.randint(1, 6))] for _ in range(number)]


@pytest.mark.parametrize(
    "options",
    [
        {"num_beams": 2},
        {"num_beams": 4, "num_return_sequences": 4, "early_stopping": True},
        {"num_beams": 3, "num_return_sequences": 3, "length_penalty": 2.0},
        {"num_beams": 4, "num_return_sequences": 2, "renormalize_logits": True},
        {"num_beams": 4, "num_return_sequences": 3, "early_stopping": "never", "max_new_tokens": 3},
        {"num_beams": 5, "num_return_sequences": 5, "repetition_penalty": 1.5, "top_k": 3},
    ],
    ids=str,
)
def test_lists_of_texts_are_searched_as_by_transformers(
    llama: Pair, options: dict[str, Any]
) -> None:
    for seed in (1, 2):
        lists = some_lists(seed, number=60)
        asked = {"max_new_tokens": 10, "eos_token_id": [EOS], **options}
        answer = run(llama.runner, beam_request(PROMPT, asked), trie(lists))
        expected = llama.expected(PROMPT, asked, prefix_allowed_tokens_fn=followers(lists))
        real = [one for one in expected if one.score > -1e7]
        assert real
        if real == expected:
            assert_same(found(answer), expected)
        else:
            # It goes on behind the end of texts, which keeps places that further texts get here.
            texts = [one.token_ids for one in found(answer)]
            assert all(one.token_ids in texts for one in real)
        for token_ids, finish in zip(answer.token_ids, answer.finishes, strict=True):
            assert finish is not None
            if finish.reason is FinishReason.STOP:
                assert token_ids[:-1] in lists


def test_a_pattern_is_searched_as_by_transformers(llama: Pair, compiler: GrammarCompiler) -> None:
    form = compiled(compiler, PATTERN)
    letters = {text_of([i]): i for i in range(3, VOCAB_SIZE)}

    def allowed(_: int, text: torch.Tensor) -> list[int]:
        before = text_of(text.tolist()[len(PROMPT) :])
        partial = [token_id for letter, token_id in letters.items() if begins(before + letter)]
        return partial + ([EOS] if re.fullmatch(PATTERN, before) else []) or [EOS]

    for options in ({"num_beams": 4, "num_return_sequences": 4}, {"num_beams": 2}):
        asked = {"max_new_tokens": 16, "eos_token_id": [EOS], "length_penalty": 0.5, **options}
        answer = run(llama.runner, beam_request(PROMPT, asked), form)
        assert_same(found(answer), llama.expected(PROMPT, asked, prefix_allowed_tokens_fn=allowed))
        assert all(re.fullmatch(PATTERN, text_of(token_ids)) for token_ids in answer.token_ids)


def begins(text: str) -> bool:
    """Whether some text of the pattern begins so."""
    heads = re.fullmatch("(ab|c){0,3}a?", text) and len(re.findall("ab|c|a", text)) <= 3
    return bool(heads or re.fullmatch("(ab|c){1,3}-?[01]{0,6}", text))


def test_sampled_beams_keep_to_the_form(llama: Pair, compiler: GrammarCompiler) -> None:
    asked = {"num_beams": 3, "num_return_sequences": 3, "do_sample": True, "temperature": 2.0}
    texts = set()
    for seed in range(6):
        generation = beam_request(
            PROMPT, {**asked, "max_new_tokens": 16, "eos_token_id": [EOS]}, seed=seed
        )
        answer = run(llama.runner, generation, compiled(compiler, PATTERN))
        assert answer.error is None
        texts |= {text_of(token_ids) for token_ids in answer.token_ids}
    assert len(texts) > 6
    assert all(re.fullmatch(PATTERN, text) for text in texts)


def test_without_an_end_token_a_beam_ends_where_nothing_can_follow(llama: Pair) -> None:
    lists = some_lists(3, number=12)
    ends = [one for one in lists if not any(other[: len(one)] == one != other for other in lists)]
    asked = {"num_beams": 3, "num_return_sequences": 3, "max_new_tokens": 10}
    answer = run(llama.runner, beam_request(PROMPT, asked), trie(lists))
    assert answer.error is None
    assert len({tuple(token_ids) for token_ids in answer.token_ids}) == 3
    assert all(token_ids in ends for token_ids in answer.token_ids)
    assert {finish and finish.reason for finish in answer.finishes} == {FinishReason.STOP}


@pytest.mark.parametrize("length_penalty", [0.0, 1.0, -1.0])
@pytest.mark.parametrize("ends", [{}, {"eos_token_id": [EOS]}])
@pytest.mark.parametrize("do_sample", [False, True])
def test_where_there_are_fewer_texts_than_wanted_none_is_without_the_form(
    llama: Pair, length_penalty: float, ends: dict[str, Any], *, do_sample: bool
) -> None:
    lists = [[5, 6, 7], [5, 9]]
    asked = {
        "num_beams": 4,
        "num_return_sequences": 4,
        "max_new_tokens": 9,
        "length_penalty": length_penalty,
        "do_sample": do_sample,
        **ends,
    }
    answer = run(llama.runner, beam_request(PROMPT, asked), trie(lists))
    assert answer.error is None
    texts = [[i for i in token_ids if i != EOS] for token_ids in answer.token_ids]
    assert len(texts) == 4
    assert all(text in lists for text in texts)
    assert all(text in texts[:2] for text in lists)
    assert [one.score > -1e7 for one in answer.beams] == [True, True, False, False]


def test_guesses_change_nothing_in_a_form(compiler: GrammarCompiler) -> None:
    model = build_tiny("llama").to(torch.float64)
    with torch.no_grad():
        model.get_output_embeddings().weight.mul_(0.5)
    runner = RaggedRunner(model, num_blocks=400, block_size=4)
    form = compiled(compiler, "[a-f]{40}-[0-9]{4,9}")
    asked = {"num_beams": 2, "max_new_tokens": 50, "num_return_sequences": 2, "eos_token_id": [EOS]}
    generation = beam_request([7, 21, 40] * 4, asked, progress=1)
    answer, plain = run(runner, generation, form), run(runner, plainly(generation), form)
    assert_same_answer(answer, plain)
    assert answer.counters is not None
    assert answer.counters.num_draft_tokens > 0
    assert answer.counters.num_accepted_tokens > 3
    assert plain.counters is not None
    assert answer.counters.num_rounds < plain.counters.num_rounds


def test_a_form_that_another_option_contradicts_ends_the_request_by_name(llama: Pair) -> None:
    asked = {"num_beams": 2, "max_new_tokens": 6, "suppress_tokens": [5], "eos_token_id": [EOS]}
    answer = run(llama.runner, beam_request(PROMPT, asked), trie([[5, 6]]))
    assert answer.error is not None
    assert "leave no token to choose" in str(answer.error)


@pytest.mark.parametrize(
    "options",
    [
        {"num_beams": 4, "num_beam_groups": 2, "diversity_penalty": 1.0},
        {"num_beams": 4, "force_words_ids": [[5]]},
    ],
    ids=str,
)
def test_forms_of_other_searches_are_refused_by_name(options: dict[str, Any]) -> None:
    with pytest.raises(UnsupportedOption) as refusal:
        beam_request(PROMPT, options, token_choices=[[5, 6]])
    assert refusal.value.field == "structured_output"
    assert isinstance(refusal.value, InvalidRequest)
