"""The parts of a request in its trace: queue, prefill, decoding, and some of its rounds.

Told at the end, from the times that are kept anyhow. Knows nothing of who records it.
"""

from __future__ import annotations

import time

from outrider_runtime.tracing import Span

from outrider_target.engine.sequence import RequestState


def tell(span: Span, state: RequestState) -> None:
    """Add the parts of a request that has ended, however it did, to the span of its call."""
    now = time.monotonic()
    admitted = state.admitted_at
    span.part("queue", state.arrived_at, admitted or now, {})
    if admitted is None:
        return
    decided = state.first_token_at
    prompt = {"gen_ai.usage.input_tokens": len(state.request.prompt)}
    span.part("prefill", admitted, decided or now, prompt)
    if decided is None:
        return
    accepted = sum(sequence.counters.num_accepted_tokens for sequence in state.sequences)
    drafted = sum(sequence.counters.num_draft_tokens for sequence in state.sequences)
    decode = span.part(
        "decode",
        decided,
        now,
        {
            "gen_ai.usage.output_tokens": sum(s.num_generated for s in state.sequences),
            "outrider.num_sequences": len(state.sequences),
            "outrider.num_rounds": sum(s.counters.num_rounds for s in state.sequences),
            "outrider.num_draft_tokens": drafted,
            "outrider.num_accepted_tokens": accepted,
            "outrider.num_preemptions": sum(s.num_preemptions for s in state.sequences),
        },
    )
    for each in state.trace.rounds if state.trace is not None else ():
        decode.part(
            "round",
            each.began,
            each.ended,
            {
                "outrider.sequence_index": each.sequence_index,
                "outrider.round": each.number,
                "outrider.draft_method": each.method.value,
                "outrider.num_draft_tokens": each.num_draft_tokens,
                "outrider.num_accepted_tokens": each.num_accepted_tokens,
                "outrider.num_tokens": each.num_tokens,
            },
        )
