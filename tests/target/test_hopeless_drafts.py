"""What is wrong with a text that was only proposed is not wrong with the request."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from engine.tiny_models import VOCAB_SIZE
from outrider_runtime.model.ragged_runner import RaggedRunner
from outrider_target.drafting.drafter import NullDrafter
from outrider_target.requests.request import GenerationRequest
from target.batch import Batch, request
from target.drafters import ScriptedDrafter, repeating

NewRunner = Callable[..., RaggedRunner]

PROMPT = [5, 6, 7]
UNWRITTEN = 96
"""A token that does not come."""
AFTER_IT_NOTHING = tuple((UNWRITTEN, token) for token in range(VOCAB_SIZE))
"""Bad words: behind that token none is left."""


class Counting(ScriptedDrafter):
    """Proposes the truth, then the token behind which nothing may follow."""

    def __init__(self, truth: list[int]) -> None:
        self.num_proposed = 0
        super().__init__(self._mislead)
        self._truth = truth

    def _mislead(
        self, request: GenerationRequest, index: int, token_ids: list[int], window: int
    ) -> list[int]:
        self.num_proposed += 1
        done = len(token_ids) - len(PROMPT)
        honest = self.num_proposed % 3
        return [*self._truth[done : done + honest], UNWRITTEN, UNWRITTEN][:window]


@pytest.mark.parametrize("do_sample", [False, True])
def test_a_draft_that_leaves_no_token_to_choose_fails_nobody(
    new_runner: NewRunner, do_sample: bool
) -> None:
    asked = request(PROMPT, do_sample=do_sample, bad_words_ids=AFTER_IT_NOTHING, seed=4)
    (plain,) = Batch(new_runner(), NullDrafter()).run(asked)
    assert UNWRITTEN not in plain.token_ids[0]
    drafter = Counting(plain.token_ids[0])
    others = [request([9, 9, 9]), request([4, 8], do_sample=True)]
    alone = Batch(new_runner(), NullDrafter()).run(*others)
    drafted, *company = Batch(new_runner(), drafter).run(asked, *others)
    assert drafted.error is None
    assert drafted.token_ids == plain.token_ids
    assert [each.token_ids for each in company] == [each.token_ids for each in alone]
    assert drafter.num_proposed > 0


def test_a_text_that_leaves_no_token_to_choose_still_fails(new_runner: NewRunner) -> None:
    nothing = tuple((token,) for token in range(VOCAB_SIZE))
    (answer,) = Batch(new_runner(), repeating(3)).run(request(PROMPT, bad_words_ids=nothing))
    assert answer.error is not None
