"""What the engine reports of a request. Domain terms; knows nothing of gRPC or text."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from outrider_runtime.model.log_probs import TokenLogProbs

from outrider_target.decoding.beams.beam import BeamScore
from outrider_target.decoding.tensors import TokenTensor
from outrider_target.engine.statistics import SpeculationCounters
from outrider_target.requests.request import Finish


class TokensDecided(NamedTuple):
    """New tokens of a sequence, and its end if this is it.

    Attributes:
        sequence_index: Which sequence of the request.
        token_ids: The tokens; may be empty when the sequence ends without one.
        drafted: For each token whether the drafter had proposed it.
        finish: Set when the sequence ended.
        log_probs: For each token its log-probabilities, where they were asked for.
        tensors: What was asked for and is known by now; also of a prompt, before the first token.
        beam: How beam search found the sequence, which is then whole.
    """

    sequence_index: int
    token_ids: Sequence[int]
    drafted: Sequence[bool]
    finish: Finish | None
    log_probs: Sequence[TokenLogProbs] = ()
    tensors: Sequence[TokenTensor] = ()
    beam: BeamScore | None = None


class BeamProgress(NamedTuple):
    """The best hypothesis of a beam search so far; the next one may be quite another.

    Attributes:
        token_ids: Its generated tokens.
        score: As it would be if it ended here.
        finished: Whether it has ended; a live beam may still overtake it.
    """

    token_ids: Sequence[int]
    score: float
    finished: bool


class RequestCompleted(NamedTuple):
    """The end of a request; times in seconds from its arrival."""

    queue_seconds: float
    time_to_first_token_seconds: float
    total_seconds: float
    num_completion_tokens: int
    num_preemptions: int
    num_cached_prompt_tokens: int
    """Of the prompt, tokens that earlier requests had left in the KV pool."""
    speculation: SpeculationCounters


class RequestFailed(NamedTuple):
    """A request that ended by a fault.

    Attributes:
        error: What went wrong; for the log. An InvalidRequest is for the sender as it is.
        refusal: Set when the request's own options are at fault: what its sender is told.
    """

    error: Exception
    refusal: str | None = None


Event = TokensDecided | BeamProgress | RequestCompleted | RequestFailed
