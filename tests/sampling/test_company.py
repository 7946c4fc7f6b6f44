"""What else is in the batch never changes a row: not its token, not a bit of its scores."""

from __future__ import annotations

import random

import pytest
import torch
from outrider_runtime.model.scores import processed_scores
from outrider_runtime.model.selection import RowGroup, Selection, select_tokens
from sampling.oracle import EDITS, WARPERS, Request, random_logits, random_request

pytestmark = pytest.mark.usefixtures("either_side")

# Contradictions between these leave rows without a token; each is tested elsewhere.
SAFE_EDITS = tuple(
    name for name in EDITS if not name.startswith("forced") and name != "bad_words_ids"
)


def requests_of(rng: random.Random, vocab_size: int) -> list[Request]:
    requests = []
    for _ in range(rng.randint(2, 8)):
        do_sample = rng.random() < 0.8
        available = [*SAFE_EDITS, *WARPERS] if do_sample else SAFE_EDITS
        names = rng.sample(available, rng.randint(0, 4))
        requests.append(
            random_request(rng, vocab_size=vocab_size, names=names, do_sample=do_sample)
        )
    return requests


def alone(logits: torch.Tensor, groups: list[RowGroup]) -> tuple[Selection, torch.Tensor]:
    """Every group in a batch of its own."""
    chosen, scores, first = Selection([], []), [], 0
    for group in groups:
        rows = logits[first : first + group.num_rows]
        one = select_tokens(rows, [group])
        chosen.token_ids.extend(one.token_ids)
        chosen.log_probs.extend(one.log_probs)
        scores.append(processed_scores(rows, [group]))
        first += group.num_rows
    return chosen, torch.cat(scores)


@pytest.mark.parametrize("vocab_size", [300, 5000])
def test_a_group_is_bitwise_the_same_alone_and_in_company(vocab_size: int) -> None:
    sampled = 0
    for case in range(40 if vocab_size == 300 else 12):
        rng = random.Random(case)
        groups = [request.group() for request in requests_of(rng, vocab_size)]
        logits = random_logits(rng, sum(group.num_rows for group in groups), vocab_size)
        if case % 3 == 0:  # few different scores: ties at every cut
            logits = logits.mul(2).round().div(2)
        if not processed_scores(logits, groups).amax(-1).isfinite().all():
            continue
        in_company = select_tokens(logits, groups)
        chosen, scores = alone(logits, groups)
        assert in_company == chosen
        bits = processed_scores(logits, groups).view(torch.int32)
        assert torch.equal(bits, scores.view(torch.int32))
        sampled += sum(group.parameters.do_sample for group in groups)
    assert sampled > 20


def test_rows_of_a_group_are_bitwise_the_same_one_at_a_time() -> None:
    """Verifying a chain gives each position what decoding it alone gives."""
    for case in range(40):
        rng = random.Random(case)
        names = rng.sample([*SAFE_EDITS, *WARPERS], 4)
        request = random_request(rng, vocab_size=200, names=names, do_sample=True)
        logits = random_logits(rng, request.num_rows, 200)
        group = request.group()
        if not processed_scores(logits, [group]).amax(-1).isfinite().all():
            continue  # a score grew beyond bounds: nothing to choose
        together = select_tokens(logits, [group])
        for row in range(group.num_rows):
            prefix = group.token_ids[: group.first_length + row]
            single = group._replace(token_ids=prefix, num_rows=1)
            one = select_tokens(logits[row : row + 1], [single])
            assert one.token_ids == together.token_ids[row : row + 1]
            assert one.log_probs == together.log_probs[row : row + 1]
