"""A request's answer: the events of the engine, made into the responses of its stream."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator

import structlog
from outrider.v1 import generation_pb2 as pb

from outrider_target.constraints.constraint import Form
from outrider_target.engine.events import (
    BeamProgress,
    Event,
    RequestCompleted,
    RequestFailed,
    TokensDecided,
)
from outrider_target.requests.request import GenerationRequest
from outrider_target.serving import messages
from outrider_target.serving.canary import Served
from outrider_target.serving.failures import error_for_caller
from outrider_target.serving.serving import Serving
from outrider_target.serving.text import TextWriter

log = structlog.get_logger()

_CUT = (pb.FINISH_REASON_TIME, pb.FINISH_REASON_CANCELLED)


class Answer:
    """The text of a request's sequences as it grows, and how they end.

    Args:
        request: What is answered.
        form: What its text must look like, if anything.
        serving: Has the tokenizer, and whoever wants to hear of the end.
        skip_special_tokens: Whether special tokens have no text.
    """

    def __init__(
        self,
        request: GenerationRequest,
        form: Form | None,
        serving: Serving,
        *,
        skip_special_tokens: bool,
    ) -> None:
        self._request = request
        self._form = form
        self._serving = serving
        self._skip_special_tokens = skip_special_tokens
        self._writers = [self._writer() for _ in range(request.num_sequences)]
        self._told: list[list[int]] = [[] for _ in range(request.num_sequences)]
        self._results: list[pb.SequenceResult] = []

    async def responses(self, events: asyncio.Queue[Event]) -> AsyncIterator[pb.GenerateResponse]:
        """What is told as the events come, up to the end.

        Raises:
            OutriderError: The request failed.
        """
        while True:
            match await events.get():
                case TokensDecided() as decided:
                    for response in self._decided(decided):
                        yield response
                case BeamProgress(token_ids) as progress:
                    # Each is a text of its own: the next may be quite another.
                    text = self._writer().write(token_ids, last=False)
                    yield messages.beam_progress(progress, text)
                case RequestCompleted() as end:
                    self._note_end(end)
                    yield messages.complete(self._request, self._results, end)
                    return
                case RequestFailed() as failure:
                    raise error_for_caller(self._request, failure)

    def _decided(self, decided: TokensDecided) -> Iterator[pb.GenerateResponse]:
        index, token_ids, drafted, finish, log_probs, tensors, beam = decided
        yield from messages.tensor_chunks(index, tensors)
        text = self._writers[index].write(token_ids, last=finish is not None)
        told = self._told[index]
        told += token_ids
        if finish is not None:
            self._results.append(messages.sequence_result(index, finish, len(told), beam))
        if token_ids or text:
            chunk = pb.GenerateChunk(
                sequence_index=index,
                token_ids=token_ids,
                drafted=drafted,
                text=text,
                log_probs=map(messages.token_log_probs, log_probs),
            )
            yield pb.GenerateResponse(chunk=chunk)

    def _note_end(self, end: RequestCompleted) -> None:
        """Log it, count it, and let the canary have a look."""
        self._log_summary(end)
        self._serving.metrics.count_request(self._results, len(self._request.prompt), end)
        self._serving.canary.consider(
            Served(self._request, self._form, self._told),
            drafted=end.speculation.num_draft_tokens > 0,
            cut=any(result.finish_reason in _CUT for result in self._results),
        )

    def _log_summary(self, end: RequestCompleted) -> None:
        """One line a request; never its prompt or text."""
        reasons = [pb.FinishReason.Name(result.finish_reason) for result in self._results]
        log.info(
            "request_completed",
            request_id=self._request.id,
            finish_reasons=reasons,
            prompt_tokens=len(self._request.prompt),
            completion_tokens=end.num_completion_tokens,
            total_ms=round(end.total_seconds * 1000, 1),
            num_draft_tokens=end.speculation.num_draft_tokens,
            num_accepted_tokens=end.speculation.num_accepted_tokens,
        )

    def _writer(self) -> TextWriter:
        return self._serving.text.writer(
            self._request.prompt, skip_special_tokens=self._skip_special_tokens
        )
