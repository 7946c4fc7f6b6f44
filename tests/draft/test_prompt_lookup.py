"""Prompt lookup proposes what transformers would, or what followed the latest match."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from outrider_runtime.prompt_lookup import MAX_NGRAM_SIZE, LookupRule, PromptLookup
from transformers.generation.candidate_generator import PromptLookupCandidateGenerator

EOS = 0
few_tokens = st.lists(st.integers(0, 3), min_size=1, max_size=40)


def transformers_candidates(tokens: list[int], *, ngram_size: int, num_tokens: int) -> list[int]:
    generator = PromptLookupCandidateGenerator(
        eos_token_id=torch.tensor([EOS]),
        num_output_tokens=num_tokens,
        max_matching_ngram_size=ngram_size,
        max_length=10_000,
    )
    token_ids, _ = generator.get_candidates(torch.tensor([tokens]))
    candidates: list[int] = token_ids[0, len(tokens) :].tolist()
    return candidates


@settings(max_examples=300, deadline=None)
@given(few_tokens, st.integers(1, 5), st.integers(1, 12), st.integers(0, 40))
def test_the_first_match_is_that_of_transformers(
    tokens: list[int], ngram_size: int, num_tokens: int, cut: int
) -> None:
    # Indexed in two goes: incremental growth must not change anything.
    lookup = PromptLookup(tokens[:cut], max_ngram_size=ngram_size, rule=LookupRule.FIRST)
    lookup.candidates(num_tokens)
    lookup.extend(tokens[cut:])
    found = lookup.candidates(num_tokens, eos_token_ids=[EOS])
    assert found == transformers_candidates(tokens, ngram_size=ngram_size, num_tokens=num_tokens)


def latest_by_search(tokens: list[int], *, ngram_size: int, num_tokens: int) -> list[int]:
    """The rule, spelt out: the most recent earlier occurrence of the longest n-gram."""
    for size in range(min(ngram_size, len(tokens) - 1), 0, -1):
        for start in range(len(tokens) - size - 1, -1, -1):
            if tokens[start : start + size] == tokens[-size:]:
                text = list(tokens)
                for offset in range(num_tokens):
                    text.append(text[start + size + offset])
                return text[len(tokens) :]
    return []


@settings(max_examples=300, deadline=None)
@given(few_tokens, st.integers(1, 5), st.integers(1, 12))
def test_the_latest_match_is_the_most_recent_occurrence_of_the_longest_ngram(
    tokens: list[int], ngram_size: int, num_tokens: int
) -> None:
    lookup = PromptLookup(tokens, max_ngram_size=ngram_size)
    found = lookup.candidates(num_tokens)
    assert found == latest_by_search(tokens, ngram_size=ngram_size, num_tokens=num_tokens)


@settings(max_examples=200, deadline=None)
@given(few_tokens, st.lists(st.integers(0, 3), max_size=6), st.integers(1, 12))
def test_a_chain_is_continued_as_if_it_were_text_as_far_as_its_ngrams_occurred_in_the_text(
    tokens: list[int], drafted: list[int], num_tokens: int
) -> None:
    found = PromptLookup(tokens, max_ngram_size=1).candidates(num_tokens, drafted=drafted)
    last = [*tokens, *drafted][-1]
    if last in tokens[:-1]:
        start = max(i for i, token in enumerate(tokens[:-1]) if token == last)
        text = [*tokens, *drafted]
        for offset in range(num_tokens):
            text.append(text[start + 1 + offset])
        assert found == text[len(tokens) + len(drafted) :]
    else:
        assert found == []


@settings(max_examples=200, deadline=None)
@given(few_tokens, few_tokens, st.integers(0, 40), st.sampled_from(LookupRule))
def test_truncating_is_as_if_the_rest_had_never_been(
    tokens: list[int], others: list[int], length: int, rule: LookupRule
) -> None:
    lookup = PromptLookup(tokens, rule=rule)
    lookup.truncate(length)
    lookup.extend(others)
    fresh = PromptLookup([*tokens[:length], *others], rule=rule)
    assert len(lookup) == len(fresh)
    assert lookup.candidates(8) == fresh.candidates(8)


def test_a_repetition_is_continued_however_short_its_period() -> None:
    assert PromptLookup([5, 6, 5, 6, 5]).candidates(6) == [6, 5, 6, 5, 6, 5]


def test_nothing_is_proposed_beyond_an_end_of_sequence() -> None:
    lookup = PromptLookup([7, 8, EOS, 9, 7])
    assert lookup.candidates(4, eos_token_ids={EOS}) == [8]
    assert PromptLookup([7, EOS, 9, 7]).candidates(4, eos_token_ids={EOS}) == []


def test_new_text_is_not_guessed() -> None:
    assert PromptLookup([]).candidates(4) == []
    assert PromptLookup([1]).candidates(4) == []
    assert PromptLookup([1, 2, 3]).candidates(4) == []
    assert PromptLookup([1, 1]).candidates(0) == []


def test_a_huge_ngram_size_costs_no_more_than_the_largest_that_is_indexed() -> None:
    tokens = list(range(100)) * 2
    lookup = PromptLookup(tokens, max_ngram_size=2**31)
    assert lookup.candidates(3) == [0, 1, 2]
    assert len(lookup._continuations) <= len(tokens) * MAX_NGRAM_SIZE


@pytest.mark.parametrize("size", [0, -1])
def test_an_ngram_has_at_least_one_token(size: int) -> None:
    with pytest.raises(ValueError, match="max_ngram_size"):
        PromptLookup(max_ngram_size=size)
