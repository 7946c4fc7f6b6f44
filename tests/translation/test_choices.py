"""A draft model's scores over what its target may choose."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from outrider_draft.translation.choices import Choices, ChoicesKey
from outrider_draft.translation.shared_items import SharedItems
from translation.conftest import PAIRS

Items = Callable[[str, str], SharedItems]
PADDING = 7
"""Columns that the draft model has beyond its tokenizer."""


def choices_of(items: SharedItems, vocab_size: int, *, target_only: bool = False) -> Choices:
    key = ChoicesKey(items.target.fingerprint, vocab_size, target_only=target_only)
    return Choices(items, key, num_logits=items.draft.size + PADDING)


def logits_of(items: SharedItems) -> torch.Tensor:
    generator = torch.Generator().manual_seed(3)
    size = (4, items.draft.size + PADDING)
    return 3 * torch.randn(size, generator=generator, dtype=torch.float64) + 40


@pytest.mark.parametrize(("target", "draft"), PAIRS)
def test_a_choice_is_as_probable_as_the_draft_tokens_in_it(
    target: str, draft: str, items_of: Items
) -> None:
    items = items_of(target, draft)
    logits = logits_of(items)
    scores = choices_of(items, items.target.size).scores(logits)
    assert scores.shape == (4, items.target.size + len(items.without_beginning))
    for token_id in range(items.target.size):
        members = [d for d, t in items.begins_with.items() if t == token_id]
        expected = logits[:, members].logsumexp(dim=-1)  # minus infinity of none
        assert torch.allclose(scores[:, token_id], expected)
    for place, draft_id in enumerate(items.without_beginning):
        assert torch.allclose(scores[:, items.target.size + place], logits[:, draft_id])


def test_the_most_probable_draft_token_of_a_choice_is_written(items_of: Items) -> None:
    items = items_of("bytes", "longer bytes")
    logits = logits_of(items)
    choices = choices_of(items, items.target.size)
    of = items.begins_with
    crowded = [t for t in of.values() if sum(t == other for other in of.values()) > 1]
    assert crowded
    for token_id in crowded[:20]:
        members = [d for d, t in of.items() if t == token_id]
        best = [max(members, key=row.tolist().__getitem__) for row in logits]
        assert choices.draft_ids(logits, [token_id] * 4) == best


def test_padded_and_cut_vocabularies_have_exactly_the_targets_ids(items_of: Items) -> None:
    items = items_of("longer bytes", "bytes")
    for vocab_size in (items.target.size + 24, items.target.size - 60):
        scores = choices_of(items, vocab_size).scores(logits_of(items))
        assert scores.shape == (4, vocab_size)
        assert torch.isneginf(scores[:, items.target.size :]).all()
    other = items_of("words", "bytes")
    assert other.without_beginning
    marked = choices_of(other, other.target.size, target_only=True)
    assert marked.scores(logits_of(other)).shape == (4, other.target.size)
