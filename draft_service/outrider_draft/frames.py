"""Frames of the draft link: protobuf to domain and back. What a target sends is checked here."""

from __future__ import annotations

import math
import struct
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import fields
from typing import Literal, NamedTuple, cast

from outrider.v1 import draft_pb2, generation_config_pb2, speculation_pb2
from outrider_contract.generation_config import GLOBAL_DEFAULTS
from outrider_contract.metadata import is_request_id
from outrider_runtime.conversion import sampling_parameters
from outrider_runtime.draft_tree import Limits
from outrider_runtime.errors import InvalidRequest
from outrider_runtime.request_context import is_traceparent
from outrider_runtime.sampling_parameters import SamplingParameters
from outrider_runtime.sparse_distribution import SparseDistribution

from outrider_draft.proposer import Description
from outrider_draft.updates import (
    Broken,
    Closed,
    Committed,
    Grown,
    Message,
    Opened,
    SessionKey,
    SessionRequest,
    Update,
)

MAX_UPDATES_PER_FRAME = 16_384
"""More in one frame is refused: a round has a few per running sequence."""

MAX_DEPTH = 256
"""Deepest tree that is grown, whatever a target grants."""

MAX_TENANT_SIZE = 64
"""Bytes in the name of a tenant."""
MAX_FAN_OUT = 16
"""Most proposals for one position, whatever a target grants."""

MAX_SAMPLE_INDEX = 2**24
"""Sample indices from here on do not fit the noise's counter."""


LookbehindField = Literal["assistant_lookbehind", "target_lookbehind"]


MAX_LOOKBEHIND = 256
"""Most tokens that are read again, whatever a request says: it costs time in every step."""


class Bounds(NamedTuple):
    """What a stream's updates are checked against."""

    stream: int
    target_vocab_size: int
    """Ids the target can emit; ids at or above it make no sense."""
    own_vocab_size: int
    """Ids the drafter knows; 0: any."""
    max_length: int
    """Longest sequence, in tokens."""
    scope: bytes = b""
    """Tenants of streams of different scopes are different, whatever they are called."""
    tokenizer: str = ""
    """Fingerprint of the target's tokenizer where its ids are not the drafter's own."""


class _Malformed(Exception):
    """An update makes no sense; the text says why."""


def updates(frame: draft_pb2.SpeculateRequest, bounds: Bounds) -> list[Update]:
    """What a frame says, in the order in which it applies. What makes no sense becomes `Broken`.

    Raises:
        InvalidRequest: The frame itself makes no sense.
    """
    if frame.HasField("hello"):
        raise InvalidRequest("hello", "comes once, as the first frame")
    size = len(frame.opens) + len(frame.commits) + len(frame.closes)
    if size > MAX_UPDATES_PER_FRAME:
        raise InvalidRequest(
            "opens", f"{size} updates in one frame; at most {MAX_UPDATES_PER_FRAME} are taken"
        )
    return list(_updates(frame, bounds))


def response(messages: Iterable[Message]) -> draft_pb2.SpeculateResponse:
    """All that a target should be told now, as one frame."""
    frame = draft_pb2.SpeculateResponse()
    for message in messages:
        if isinstance(message, Grown):
            frame.grows.append(_grow(message))
        else:
            frame.resyncs.append(
                draft_pb2.Resync(
                    session=message.key.number,
                    held_length=message.held_length,
                    refused=message.refused,
                    reason=message.reason,
                )
            )
    return frame


def _grow(grown: Grown) -> draft_pb2.Grow:
    proposals = grown.proposals
    grow = draft_pb2.Grow(
        session=grown.key.number,
        base_length=grown.base_length,
        node_ids=[p.id for p in proposals],
        parent_ids=[p.parent_id for p in proposals],
        token_ids=[p.token_id for p in proposals],
        log_probs=[p.log_prob for p in proposals],
        complete=grown.complete,
    )
    if any(p.distribution for p in proposals):
        drawn = [p.distribution or SparseDistribution((), ()) for p in proposals]
        weights = [weight for one in drawn for weight in one.weights]
        grow.distribution_sizes.extend(len(one.token_ids) for one in drawn)
        grow.distribution_token_ids.extend(token for one in drawn for token in one.token_ids)
        grow.distribution_weights = struct.pack(f"<{len(weights)}H", *weights)
    return grow


def describe(
    description: Description, *, max_sessions: int, max_length: int
) -> draft_pb2.DrafterDescription:
    """A drafter's description on the wire."""
    return draft_pb2.DrafterDescription(
        kind=description.kind,
        model_id=description.model_id,
        vocab_size=description.vocab_size,
        tokenizer_fingerprint=description.tokenizer_fingerprint,
        max_sessions=max_sessions,
        max_length=max_length,
        translated_fingerprints=sorted(description.translates),
    )


def _updates(frame: draft_pb2.SpeculateRequest, bounds: Bounds) -> Iterator[Update]:
    for opened in frame.opens:
        key = SessionKey(bounds.stream, opened.session)
        try:
            yield _opened(key, opened, bounds)
        except _Malformed as problem:
            yield Broken(key, str(problem))
    for commit in frame.commits:
        key = SessionKey(bounds.stream, commit.session)
        try:
            token_ids = _token_ids(commit.token_ids, bounds)
            limits = _limits(commit.limits) if commit.HasField("limits") else None
            yield Committed(key, commit.base_length, token_ids, limits)
        except _Malformed as problem:
            yield Broken(key, str(problem))
    for close in frame.closes:
        yield Closed(SessionKey(bounds.stream, close.session))


def _opened(key: SessionKey, opened: draft_pb2.Open, bounds: Bounds) -> Opened:
    token_ids = _token_ids(opened.token_ids, bounds)
    num_prompt_tokens = opened.num_prompt_tokens
    if not token_ids:
        raise _Malformed("token_ids: at least one token is needed")
    if not 1 <= num_prompt_tokens <= len(token_ids):
        raise _Malformed(f"num_prompt_tokens: {num_prompt_tokens} of {len(token_ids)} tokens")
    if opened.sample_index >= MAX_SAMPLE_INDEX:
        raise _Malformed(f"sample_index: {opened.sample_index} is too large")
    temperature = opened.draft_temperature or 1.0
    if not math.isfinite(temperature) or temperature < 0:
        raise _Malformed(f"draft_temperature: {temperature} is not a positive number")
    if len(opened.tenant) > MAX_TENANT_SIZE:
        raise _Malformed(f"tenant: {len(opened.tenant)} bytes are too many")
    if not opened.HasField("limits"):
        raise _Malformed("limits: are missing")
    config = opened.generation_config
    parameters = _parameters(config, num_prompt_tokens, bounds)
    by_ratio = opened.verification == speculation_pb2.VERIFICATION_SPECULATIVE_SAMPLING
    by_ratio = by_ratio and parameters.do_sample
    if by_ratio and bounds.tokenizer:
        temperature = 0.0  # what is translated has no distribution, and fares best if most probable
    request = SessionRequest(
        parameters=parameters,
        num_prompt_tokens=num_prompt_tokens,
        seed=opened.seed,
        sample_index=opened.sample_index,
        draft_temperature=temperature,
        vocab_size=bounds.target_vocab_size,
        draws=by_ratio and not bounds.tokenizer,
        max_matching_ngram_size=config.max_matching_ngram_size or None,
        tenant=opened.tenant and bounds.scope + opened.tenant,
        tokenizer=bounds.tokenizer,
        request_id=opened.request_id if is_request_id(opened.request_id) else "",
        traceparent=opened.traceparent if is_traceparent(opened.traceparent) else "",
        assistant_lookbehind=_lookbehind(config, "assistant_lookbehind"),
        target_lookbehind=_lookbehind(config, "target_lookbehind"),
    )
    return Opened(key, token_ids, request, _limits(opened.limits))


def _parameters(
    config: generation_config_pb2.GenerationConfig, num_prompt_tokens: int, bounds: Bounds
) -> SamplingParameters:
    if config.HasField("max_new_tokens"):
        max_length = num_prompt_tokens + config.max_new_tokens
    elif config.HasField("max_length"):
        max_length = config.max_length
    else:
        max_length = bounds.max_length
    try:
        parameters = sampling_parameters(
            config, num_prompt_tokens=num_prompt_tokens, max_length=max_length
        )
    except InvalidRequest as error:
        raise _Malformed(f"generation_config.{error}") from error
    except (ArithmeticError, ValueError) as error:  # a float that is none, and the like
        raise _Malformed("generation_config: a value makes no sense") from error
    if not all(map(math.isfinite, _floats_named(parameters))):
        raise _Malformed("generation_config: a value is not a finite number")
    highest = max(_ids_named(parameters), default=0)
    if highest >= bounds.target_vocab_size:
        raise _Malformed(
            f"generation_config: token id {highest} lies outside the target's vocabulary"
        )
    return parameters


def _lookbehind(config: generation_config_pb2.GenerationConfig, name: LookbehindField) -> int:
    """Tokens read again; as in transformers where nothing is said, and never very many."""
    if not config.HasField(name):
        return cast("int", GLOBAL_DEFAULTS[name])  # those of all fields: of these it is an int
    said: int = getattr(config, name)
    return min(said, MAX_LOOKBEHIND)


def _floats_named(parameters: SamplingParameters) -> Iterator[float]:
    """All numbers that shape scores: with one that is none every score would become none."""
    for field in fields(parameters):
        value = getattr(parameters, field.name)
        if isinstance(value, float):
            yield value
    if parameters.exponential_decay_length_penalty is not None:
        yield parameters.exponential_decay_length_penalty[1]
    yield from (phrase.bias for phrase in parameters.sequence_bias)


def _ids_named(parameters: SamplingParameters) -> Iterator[int]:
    """All token ids that the processing of scores touches."""
    yield from parameters.eos_token_ids
    yield from parameters.forced_eos_token_ids
    yield from parameters.suppress_tokens
    yield from parameters.begin_suppress_tokens
    if parameters.forced_bos_token_id is not None:
        yield parameters.forced_bos_token_id
    for phrase in parameters.bad_words_ids:
        yield from phrase
    for biased in parameters.sequence_bias:
        yield from biased.token_ids


def _limits(limits: draft_pb2.Limits) -> Limits:
    threshold = limits.confidence_threshold
    if not 0 <= threshold <= 1:  # NaN, too
        raise _Malformed(f"limits.confidence_threshold: {threshold} is not in [0, 1]")
    if not 1 <= limits.window <= limits.depth <= limits.max_nodes:
        raise _Malformed(
            "limits: needed is 1 <= window <= depth <= max_nodes, "
            f"got {limits.window}, {limits.depth}, {limits.max_nodes}"
        )
    return Limits(
        window=min(limits.window, MAX_DEPTH),
        depth=min(limits.depth, MAX_DEPTH),
        max_nodes=limits.max_nodes,
        confidence_threshold=threshold,
        fan_out=min(max(1, limits.fan_out), MAX_FAN_OUT),
    )


def _token_ids(token_ids: Sequence[int], bounds: Bounds) -> list[int]:
    if len(token_ids) > bounds.max_length:
        raise _Malformed(f"longer than the {bounds.max_length} tokens served here")
    highest = max(token_ids, default=0)
    if highest >= bounds.target_vocab_size:
        raise _Malformed(f"token_ids: {highest} lies outside the target's vocabulary")
    if bounds.own_vocab_size and highest >= bounds.own_vocab_size:
        raise _Malformed(
            f"token_ids: {highest} lies outside the drafter's vocabulary of {bounds.own_vocab_size}"
        )
    return list(token_ids)
