"""Frames of the draft link: domain to protobuf and back."""

from __future__ import annotations

import math
import time
from collections.abc import Iterable

from outrider.v1 import draft_pb2
from outrider_runtime.draft_tree import Limits, Proposal

from outrider_target.drafting.updates import (
    CommitTokens,
    Growth,
    LinkFrame,
    OpenSession,
    Resync,
    Update,
)


def frame(updates: Iterable[Update]) -> draft_pb2.SpeculateRequest:
    """All updates of a round as one frame."""
    message = draft_pb2.SpeculateRequest()
    for update in updates:
        if isinstance(update, OpenSession):
            message.opens.append(_open(update))
        elif isinstance(update, CommitTokens):
            message.commits.append(
                draft_pb2.Commit(
                    session=update.session,
                    base_length=update.base_length,
                    token_ids=update.token_ids,
                    limits=_limits(update.limits),
                )
            )
        else:
            message.closes.append(draft_pb2.Close(session=update.session))
    return message


def link_frame(link: int, message: draft_pb2.SpeculateResponse) -> LinkFrame:
    """What a drafter's frame says. Unequal arrays become an impossible proposal, an offence."""
    growths = [
        Growth(grow.session, grow.base_length, _proposals(grow), grow.complete)
        for grow in message.grows
    ]
    resyncs = [Resync(r.session, r.held_length, r.refused, r.reason) for r in message.resyncs]
    return LinkFrame(link, time.monotonic(), growths, resyncs)


def _open(update: OpenSession) -> draft_pb2.Open:
    return draft_pb2.Open(
        session=update.session,
        token_ids=update.token_ids,
        num_prompt_tokens=len(update.request.prompt),
        generation_config=update.request.effective_config,
        seed=update.request.seed,
        sample_index=update.sample_index,
        draft_temperature=update.draft_temperature,
        limits=_limits(update.limits),
        tenant=update.request.speculation.tenant,
    )


def _limits(limits: Limits) -> draft_pb2.Limits:
    return draft_pb2.Limits(
        window=limits.window,
        depth=limits.depth,
        max_nodes=limits.max_nodes,
        confidence_threshold=limits.confidence_threshold,
        fan_out=limits.fan_out,
    )


def _proposals(grow: draft_pb2.Grow) -> list[Proposal]:
    size = len(grow.node_ids)
    if not size == len(grow.parent_ids) == len(grow.token_ids) == len(grow.log_probs):
        return [Proposal(0, 0, 0, 0.0)]  # node id 0 does not exist
    return [
        # NaN would make the order of siblings depend on their order of arrival.
        Proposal(node, parent, token, -math.inf if math.isnan(log_prob) else log_prob)
        for node, parent, token, log_prob in zip(
            grow.node_ids, grow.parent_ids, grow.token_ids, grow.log_probs, strict=True
        )
    ]
