"""A request once more, decoded plainly: what the canary compares a served text with."""

from __future__ import annotations

import secrets
from dataclasses import replace

from outrider_target.requests.request import (
    NO_PLUGINS,
    NO_TENSORS,
    DraftMethod,
    GenerationRequest,
)


def is_replayable(request: GenerationRequest) -> bool:
    """Whether plain decoding must give the same tokens, one by one, and says how sure it was.

    By ratio only the distribution is the same. Beams and contrastive search do not choose by
    log-probability. Plug-ins may remember what they saw. What `typical_p` keeps has edges that
    rounding moves and that log-probabilities do not show.
    """
    return not (
        request.speculation.by_ratio
        or request.beams is not None
        or request.contrastive is not None
        or request.plugins != NO_PLUGINS
        or (request.parameters.do_sample and request.parameters.typical_p < 1)
    )


def replay_of(request: GenerationRequest, *, num_top_log_probs: int) -> GenerationRequest:
    """The same with nobody drafting.

    Under a tenant of its own, so that it reads no keys and values that a drafted round has left in
    the prefix cache: they may be what is wrong.
    """
    return replace(
        request,
        speculation=replace(
            request.speculation,
            method=DraftMethod.NONE,
            forced=False,
            early_exit=0,
            prediction=(),
            report_rounds=False,
            tenant=secrets.token_bytes(16),
        ),
        num_top_log_probs=num_top_log_probs,
        max_time=None,
        traceparent="",
        tensors=NO_TENSORS,
        is_replay=True,
    )
