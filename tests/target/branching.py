"""Strategies of several branches, small enough to be computed by hand from a model's logits."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from outrider_target.decoding.acceptance import accept
from outrider_target.decoding.branch import Branch
from outrider_target.decoding.strategy import BranchRows, Decision, Selector
from outrider_target.drafting.drafter import Draft
from outrider_target.engine.events import Event, TokensDecided
from outrider_target.requests.request import Finish, FinishReason
from transformers import PreTrainedModel


class Wanted(NamedTuple):
    branches: Sequence[BranchRows]


def split_rows(logits: torch.Tensor, wanted: Sequence[Wanted]) -> list[list[torch.Tensor]]:
    """For each sequence and each branch its logits, float64 log-probabilities."""
    sizes = [rows.num_logits for item in wanted for rows in item.branches]
    pieces = iter(torch.split(logits.double().log_softmax(-1), sizes))
    return [[next(pieces) for _ in item.branches] for item in wanted]


class Contrast:
    """Branches of two prompts with one continuation: greedy on twice one less the other."""

    width = 2
    verifies_others = False

    def __init__(self, prompt: Sequence[int], against: Sequence[int], length: int) -> None:
        self._length = length
        self.branches = (Branch(list(prompt)), Branch(list(against)))

    @property
    def selector(self) -> Selector:
        return split_rows

    @property
    def token_ids(self) -> list[int]:
        return self.branches[0].token_ids

    def admissible(self, draft: Sequence[int]) -> int:
        return len(draft)

    def rows(self, draft: Draft) -> Wanted:
        return Wanted([BranchRows(draft.token_ids, len(draft.token_ids) + 1)] * 2)

    def fed(self) -> Sequence[Event]:
        return ()

    def commit(self, draft: Sequence[int], own: list[torch.Tensor]) -> Decision:
        decided, num_accepted = accept(draft, (2 * own[0] - own[1]).argmax(-1).tolist())
        for branch in self.branches:
            branch.token_ids += decided
        ended = len(self.token_ids) >= self._length
        finish = Finish(FinishReason.LENGTH) if ended else None
        return _decision(decided, num_accepted, finish)

    def end(self, finish: Finish) -> Decision:
        return _decision([], 0, finish)


class Herd:
    """Many branches: each round the best continuations of all of them, whosever they are."""

    verifies_others = False

    def __init__(self, prompt: Sequence[int], width: int, length: int) -> None:
        self.width = width
        self.token_ids = list(prompt)
        self.branches: Sequence[Branch] = (Branch(list(prompt)),)
        self._scores = [0.0]
        self._length = length

    @property
    def selector(self) -> Selector:
        return split_rows

    def admissible(self, draft: Sequence[int]) -> int:
        return 0

    def rows(self, draft: Draft) -> Wanted:
        return Wanted([BranchRows((), 1)] * len(self.branches))

    def fed(self) -> Sequence[Event]:
        return ()

    def commit(self, draft: Sequence[int], own: list[torch.Tensor]) -> Decision:
        chosen, self._scores = best_of(own, self._scores, self.width)
        self.branches = tuple(self.branches[parent].continued(token) for parent, token in chosen)
        if len(self.branches[0].token_ids) < self._length:
            return _decision([], 0, None)
        return self.end(Finish(FinishReason.LENGTH))

    def end(self, finish: Finish) -> Decision:
        best = self.branches[0].token_ids[len(self.token_ids) :]
        return _decision(best, 0, finish)


def best_of(
    log_probs: Sequence[torch.Tensor], scores: Sequence[float], width: int
) -> tuple[list[tuple[int, int]], list[float]]:
    """Parents and tokens of the best continuations, and their scores."""
    total = torch.stack([row[-1] + score for row, score in zip(log_probs, scores, strict=True)])
    best = total.flatten().topk(width)
    vocab_size = total.shape[1]
    chosen = [(index // vocab_size, index % vocab_size) for index in best.indices.tolist()]
    return chosen, best.values.tolist()


def _decision(decided: list[int], num_accepted: int, finish: Finish | None) -> Decision:
    drafted = [position < num_accepted for position in range(len(decided))]
    event = TokensDecided(0, decided, drafted, finish)
    return Decision(decided, num_accepted, len(decided), (event,), finish)


def contrast_by_hand(
    model: PreTrainedModel, prompt: Sequence[int], against: Sequence[int], length: int
) -> list[int]:
    """What `Contrast` commits, each token from two forwards over everything."""
    decided: list[int] = []
    while len(prompt) + len(decided) < length:
        rows = [_log_probs(model, [*start, *decided])[0] for start in (prompt, against)]
        decided.append(int((2 * rows[0][-1] - rows[1][-1]).argmax()))
    return decided


def herd_by_hand(
    model: PreTrainedModel, prompt: Sequence[int], width: int, length: int
) -> list[int]:
    """What `Herd` commits, each step from forwards over everything."""
    lines, scores = [list(prompt)], [0.0]
    while len(lines[0]) < length:
        chosen, scores = best_of(list(_log_probs(model, *lines)), scores, width)
        lines = [[*lines[parent], token] for parent, token in chosen]
    return lines[0][len(prompt) :]


def _log_probs(model: PreTrainedModel, *lines: Sequence[int]) -> torch.Tensor:
    """[lines, length, vocab] of lines of equal length."""
    with torch.inference_mode():
        logits: torch.Tensor = model(input_ids=torch.tensor(lines)).logits
    return logits.double().log_softmax(-1)
