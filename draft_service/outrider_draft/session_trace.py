"""What a trace shows of a session: how long it was held, and some of its answers."""

from __future__ import annotations

from outrider_runtime.tracing import Span, Tracer

from outrider_draft.updates import SessionRequest

FIRST_ANSWERS = 16
"""Answers that are all shown."""

EVERY = 16
"""Of the later ones, one in so many is."""

MOST_ANSWERS = 64


class SessionTrace:
    """Records one session."""

    def __init__(self, span: Span) -> None:
        self._span = span
        self._num_answers = 0
        self._num_shown = 0
        self._num_proposed = 0

    @classmethod
    def of(cls, request: SessionRequest, *, length: int, tracer: Tracer) -> SessionTrace | None:
        """That of a session that begins; None when its request is not traced."""
        span = tracer.begin_session(
            request.traceparent,
            {
                "outrider.request_id": request.request_id,
                "outrider.sequence_index": request.sample_index,
                "outrider.committed_length": length,
            },
        )
        return None if span is None else cls(span)

    def answered(self, asked_at: float, now: float, *, num_proposed: int) -> None:
        """Show an answer. Times are of `time.monotonic()`."""
        number = self._num_answers
        self._num_answers += 1
        self._num_proposed += num_proposed
        if (number < FIRST_ANSWERS or number % EVERY == 0) and self._num_shown < MOST_ANSWERS:
            self._num_shown += 1
            attributes = {"outrider.answer": number, "outrider.num_proposed_tokens": num_proposed}
            self._span.part("draft", asked_at, now, attributes)

    def end(self) -> None:
        """The session is held no longer."""
        self._span.end(
            {
                "outrider.num_answers": self._num_answers,
                "outrider.num_proposed_tokens": self._num_proposed,
            }
        )
