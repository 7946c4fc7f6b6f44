"""What target and drafter tell each other, in domain terms. Knows nothing of the wire."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import NamedTuple

from outrider_runtime.draft_tree import Limits, Proposal
from outrider_runtime.sampling_parameters import SamplingParameters


class SessionKey(NamedTuple):
    """Names a session among those of all targets: numbers are unique on their stream only."""

    stream: int
    number: int
    line: int = 0
    """Which of its lines: 0 is the chain, and names the session as a whole."""


@dataclass(frozen=True, slots=True)
class SessionRequest:
    """What stays the same over the life of a session."""

    parameters: SamplingParameters
    """How the request's scores are processed: the drafter processes its own alike."""

    num_prompt_tokens: int
    """How many of the first committed tokens are the prompt."""

    seed: int = 0
    """Seed of the shared noise, 64 bits."""

    sample_index: int = 0
    """Which sequence of the request."""

    draft_temperature: float = 1.0
    """Divides the drafter's scores before the noise is added."""

    vocab_size: int = 0
    """Token ids the target can emit; ids at or above it are never proposed."""

    draws: bool = False
    """Whether the target accepts by ratios: tokens are then drawn from distributions that are sent
    along, and sent as soon as they are drawn."""

    max_matching_ngram_size: int | None = None
    """Longest n-gram of prompt lookup; None: the server's default."""

    tenant: bytes = b""
    """Opaque name of those whose texts may be drafted from; empty: none but its own."""

    tokenizer: str = ""
    """Fingerprint of the target's tokenizer where its ids are not the drafter's own."""

    request_id: str = ""
    """Name of the request that it belongs to, for the log; empty: not told."""

    traceparent: str = ""
    """W3C trace context that it may be recorded under; empty: not traced."""

    assistant_lookbehind: int = 10
    """Draft tokens that are read again when what follows them becomes target ids."""

    target_lookbehind: int = 10
    """Target tokens that are read again when what follows them becomes draft ids."""


class Opened(NamedTuple):
    """A session to open, or to replace."""

    key: SessionKey
    token_ids: Sequence[int]
    request: SessionRequest
    limits: Limits


class Committed(NamedTuple):
    """Positions from `base_length` on are these tokens."""

    key: SessionKey
    base_length: int
    token_ids: Sequence[int]
    limits: Limits | None
    """None: as before."""


class Closed(NamedTuple):
    """A session to forget."""

    key: SessionKey


class Broken(NamedTuple):
    """An update of a session makes no sense: the session is not served any more."""

    key: SessionKey
    reason: str


class Refusal(StrEnum):
    """Why a session is not served; a label of metrics."""

    MALFORMED = "malformed"
    TOO_LONG = "too_long"
    QUOTA = "quota"
    NO_ROOM = "no_room"
    FAILED = "failed"


class StreamEnded(NamedTuple):
    """A target is gone: all its sessions are to be forgotten."""

    stream: int


Update = Opened | Committed | Closed | Broken | StreamEnded


class Grown(NamedTuple):
    """New nodes of a session's tree."""

    key: SessionKey
    base_length: int
    proposals: Sequence[Proposal]
    complete: bool


class Resynced(NamedTuple):
    """Less of a session is held than its target thinks."""

    key: SessionKey
    held_length: int
    refused: bool = False
    reason: str = ""


Message = Grown | Resynced
