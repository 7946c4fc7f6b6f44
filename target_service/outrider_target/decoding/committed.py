"""The tokens a sequence has committed, and where they end. Knows nothing of drafting or models."""

from __future__ import annotations

from collections.abc import Sequence

from outrider_target.decoding.stopping import StopCheck
from outrider_target.requests.request import Finish


class Committed:
    """Committed tokens, prompt first.

    Attributes:
        token_ids: The tokens.
        finish: Set by the token that ended the sequence.
    """

    def __init__(self, prompt: Sequence[int], stop: StopCheck) -> None:
        self.token_ids = list(prompt)
        self.finish: Finish | None = None
        self._stop = stop

    def extend(self, decided: Sequence[int]) -> Sequence[int]:
        """Take decided tokens, up to the one that ends the sequence; returns those taken."""
        for count, token_id in enumerate(decided, start=1):
            self.token_ids.append(token_id)
            self.finish = self._stop.push(token_id, len(self.token_ids))
            if self.finish is not None:
                return decided[:count]
        return decided
