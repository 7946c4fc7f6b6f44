"""Log-probabilities of generated tokens, as a caller sees them. Knows nothing of calls."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

from outrider.v1 import generation_pb2, log_probs_pb2


@dataclass(frozen=True, slots=True)
class TokenLogProb:
    """A token and the natural logarithm of its probability."""

    token_id: int
    log_prob: float


@dataclass(frozen=True, slots=True)
class TokenLogProbs:
    """What is known of one generated token."""

    raw: float
    """Log-probability under the model's own scores: softmax of the logits."""

    processed: float
    """Log-probability after processors, temperature and truncation: where it was chosen from."""

    score: float
    """Score after all processors, not normalised: what transformers' `scores` hold."""

    top_raw: tuple[TokenLogProb, ...] = ()
    """The most probable tokens under the model's own scores, most probable first."""

    top_processed: tuple[TokenLogProb, ...] = ()
    """The same after all processors; fewer where fewer can be chosen."""

    @classmethod
    def from_message(cls, message: log_probs_pb2.TokenLogProbs) -> TokenLogProbs:
        """What a message tells."""
        return cls(
            raw=message.raw,
            processed=message.processed,
            score=message.score,
            top_raw=_tokens(message.top_raw),
            top_processed=_tokens(message.top_processed),
        )


@dataclass(frozen=True, slots=True)
class Scores:
    """How probable a given text is, token by token."""

    token_ids: list[int]
    """The scored tokens."""

    log_probs: list[TokenLogProbs]
    """For each of them its log-probabilities."""

    @property
    def log_likelihood(self) -> float:
        """Sum of the log-probabilities under the model's own scores."""
        return math.fsum(known.raw for known in self.log_probs)

    @classmethod
    def from_message(cls, message: generation_pb2.ScoreResponse) -> Scores:
        """What a message tells."""
        return cls(
            list(message.token_ids), [TokenLogProbs.from_message(m) for m in message.log_probs]
        )


def _tokens(messages: Iterable[log_probs_pb2.TokenLogProb]) -> tuple[TokenLogProb, ...]:
    return tuple(TokenLogProb(each.token_id, each.log_prob) for each in messages)
