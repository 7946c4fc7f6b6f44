"""A drafter that knows the text and uses that to mislead."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from draft.hostile import GuessedSession, RandomDrafter
from outrider.v1 import draft_pb2


class Traitor(RandomDrafter):
    """Says what is right up to some token, then what is nearly right, then anything.

    It has been told the texts beforehand. So drafts end in every way there is: within an accepted
    run, at the token that ends the text, behind it, in a text that another request would have got.
    """

    def __init__(self, *, seed: int = 0) -> None:
        super().__init__(seed=seed)
        self._texts: list[list[int]] = []

    def tell(self, texts: Sequence[list[int]]) -> None:
        """The whole texts, prompts included, that are about to be written."""
        self._texts = list(texts)

    def answer(
        self, sessions: list[GuessedSession], vocab_size: int
    ) -> Iterator[draft_pb2.SpeculateResponse]:
        if sessions:
            yield draft_pb2.SpeculateResponse(
                grows=[
                    session.chain(self._mislead(session.tree.token_ids, vocab_size, session.depth))
                    if not session.tree
                    else session.chain(())
                    for session in sessions
                ]
            )

    def _mislead(self, prefix: Sequence[int], vocab_size: int, depth: int) -> Iterator[int]:
        known = [text for text in self._texts if text[: len(prefix)] == list(prefix)]
        truth = self.random.choice(known)[len(prefix) :] if known else []
        honest = self.random.randint(0, depth)
        for position in range(depth):
            if position < honest and position < len(truth):
                yield truth[position]
            elif position == honest:
                yield (truth[position] + 1) % vocab_size if position < len(truth) else 0
            else:
                yield self._any(prefix, vocab_size)

    def _any(self, prefix: Sequence[int], vocab_size: int) -> int:
        if self.random.random() < 0.5:
            return self.random.choice(prefix)
        return self.random.randrange(vocab_size)
