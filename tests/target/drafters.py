"""Drafters that run in the caller's thread: perfect, sometimes right, random, hostile."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence

from outrider_target.drafting.drafter import NO_DRAFT, Draft, DraftSession, Outlook
from outrider_target.drafting.silence import Silence
from outrider_target.requests.request import DraftMethod, GenerationRequest

Propose = Callable[[GenerationRequest, int, list[int], int], list[int]]
"""From request, sample index, committed tokens and window to a draft."""


class ScriptedSession:
    """Knows the committed tokens and asks a function for more."""

    active = True
    outlook = Outlook.EXPECTED
    silence = Silence.NOTHING_PROPOSED

    def __init__(
        self, propose: Propose, request: GenerationRequest, index: int, token_ids: Sequence[int]
    ) -> None:
        self._propose = propose
        self._request = request
        self._index = index
        self.token_ids = list(token_ids)
        self.closed = False

    def commit(self, token_ids: Sequence[int], *, window: int) -> None:
        self.token_ids += token_ids

    def waiting_until(self, window: int, now: float) -> float | None:
        return None

    def proposal(self, window: int) -> Draft:
        token_ids = self._propose(self._request, self._index, self.token_ids, window)[:window]
        return Draft(token_ids, DraftMethod.REMOTE) if token_ids else NO_DRAFT

    def close(self) -> None:
        self.closed = True


class ScriptedDrafter:
    """Opens scripted sessions and remembers them."""

    def __init__(self, propose: Propose) -> None:
        self._propose = propose
        self.sessions: list[ScriptedSession] = []

    def open(
        self,
        request: GenerationRequest,
        *,
        sample_index: int,
        token_ids: Sequence[int],
        window: int,
    ) -> DraftSession:
        self.sessions.append(ScriptedSession(self._propose, request, sample_index, token_ids))
        return self.sessions[-1]


def sometimes_right(
    truth: dict[tuple[str, int], list[int]], *, probability: float, vocab_size: int, seed: int
) -> ScriptedDrafter:
    """Proposes the true continuation, each token replaced by a random one now and then.

    Args:
        truth: For (request id, sample index) the whole sequence, prompt included.
        probability: Of a proposed token being the true one. 1 is perfect, 0 is random.
        vocab_size: Range of the random tokens.
        seed: Of the random choices.
    """
    chance = random.Random(seed)

    def propose(
        request: GenerationRequest, index: int, token_ids: list[int], window: int
    ) -> list[int]:
        known = truth.get((request.id, index), [])[len(token_ids) :]
        return [
            known[i]
            if i < len(known) and chance.random() < probability
            else chance.randrange(vocab_size)
            for i in range(chance.randint(0, window))
        ]

    return ScriptedDrafter(propose)


def repeating(token_id: int) -> ScriptedDrafter:
    """Proposes one token for ever: the worst case of a useless drafter."""
    return ScriptedDrafter(lambda request, index, token_ids, window: [token_id] * window)
