"""Frames of the draft link: domain to protobuf and back."""

from __future__ import annotations

import math
import struct
import time
from collections.abc import Iterable, Iterator

from outrider.v1 import draft_pb2, speculation_pb2
from outrider_runtime.draft_tree import Limits, Proposal
from outrider_runtime.sparse_distribution import SparseDistribution

from outrider_target.drafting.remote.updates import (
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
        verification=speculation_pb2.VERIFICATION_SPECULATIVE_SAMPLING
        if update.request.speculation.by_ratio
        else speculation_pb2.VERIFICATION_EXACT,
        tenant=update.request.speculation.tenant,
        request_id=update.request.id,
        traceparent=update.request.traceparent,
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
    equal = size == len(grow.parent_ids) == len(grow.token_ids) == len(grow.log_probs)
    if not equal or not _distributions_fit(grow):
        return [Proposal(0, 0, 0, 0.0)]  # node id 0 does not exist
    return [
        # NaN would make the order of siblings depend on their order of arrival.
        Proposal(node, parent, token, -math.inf if math.isnan(log_prob) else log_prob, drawn)
        for node, parent, token, log_prob, drawn in zip(
            grow.node_ids,
            grow.parent_ids,
            grow.token_ids,
            grow.log_probs,
            _distributions(grow),
            strict=True,
        )
    ]


def _distributions_fit(grow: draft_pb2.Grow) -> bool:
    total = sum(grow.distribution_sizes)
    return (
        len(grow.distribution_sizes) in (0, len(grow.node_ids))
        and len(grow.distribution_token_ids) == total
        and len(grow.distribution_weights) == 2 * total
    )


def _distributions(grow: draft_pb2.Grow) -> Iterator[SparseDistribution | None]:
    """What each node was drawn from."""
    weights = struct.unpack(f"<{len(grow.distribution_token_ids)}H", grow.distribution_weights)
    first = 0
    for size in grow.distribution_sizes or [0] * len(grow.node_ids):
        span = slice(first, first + size)
        first = span.stop
        if size:
            yield SparseDistribution(grow.distribution_token_ids[span], weights[span])
        else:
            yield None
