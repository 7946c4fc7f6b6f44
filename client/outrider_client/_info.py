"""What a server tells about itself: model, set-up, load.

Plain frozen values made from messages. Knows nothing of calls.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum, unique

from outrider.v1 import generation_pb2

from outrider_client._generation_config import GenerationConfig
from outrider_client._plugins import PluginInfo
from outrider_client._usage import SpeculationStats


@dataclass(frozen=True, slots=True)
class ModelInfo:
    """The served model."""

    served_model_name: str
    """Name under which it is served."""

    architecture: str
    """Architecture, as in its config.json."""

    vocab_size: int
    """Number of token ids the model can emit."""

    max_model_len: int
    """Longest prompt plus output, in tokens."""

    dtype: str
    """Number format of the weights, such as "float32"."""

    has_tokenizer: bool
    """Whether text is served; without a tokenizer only token ids are."""

    tokenizer_fingerprint: str
    """Fingerprint of the tokenizer; a drafter must have the same."""

    default_generation_config: GenerationConfig
    """The model's own generation defaults."""

    @classmethod
    def from_message(cls, message: generation_pb2.GetModelInfoResponse) -> ModelInfo:
        """The model in a message."""
        return cls(
            served_model_name=message.served_model_name,
            architecture=message.architecture,
            vocab_size=message.vocab_size,
            max_model_len=message.max_model_len,
            dtype=message.dtype,
            has_tokenizer=message.has_tokenizer,
            tokenizer_fingerprint=message.tokenizer_fingerprint,
            default_generation_config=GenerationConfig.from_message(
                message.default_generation_config
            ),
        )


@unique
class DraftLinkState(StrEnum):
    """State of a connection from the target service to a draft service."""

    UNKNOWN = "unknown"
    """A state of a newer server."""

    CONNECTING = "connecting"
    """Trying to connect."""

    READY = "ready"
    """Connected and in use."""

    REFUSED = "refused"
    """Refused for good, or closed after repeated offences; `reason` says why."""


@dataclass(frozen=True, slots=True)
class DraftLink:
    """A connection from the target service to a draft service."""

    address: str
    """Its address."""

    state: DraftLinkState
    """Its state."""

    reason: str
    """Why it is not ready, for people."""

    kind: str
    """What the drafter is, such as "model" or "prompt-lookup"."""

    num_sessions: int
    """Sequences that use it now."""

    latency_seconds: float
    """Smoothed time from asking to answer; 0 before the first answer."""

    num_offences: int
    """Proposals dropped because they broke the protocol."""

    @classmethod
    def from_message(cls, message: generation_pb2.DraftLinkInfo) -> DraftLink:
        """The link in a message."""
        return cls(
            address=message.address,
            state=_LINK_STATES.get(message.state, DraftLinkState.UNKNOWN),
            reason=message.reason,
            kind=message.kind,
            num_sessions=message.num_sessions,
            latency_seconds=message.latency_seconds,
            num_offences=message.num_offences,
        )


@unique
class FieldSupport(StrEnum):
    """Whether a field of GenerationConfig is served."""

    UNKNOWN = "unknown"
    """A word of a newer server."""

    HONOURED = "honoured"
    """Honoured with transformers' meaning."""

    REFUSED = "refused"
    """Refused by name unless it has its neutral value."""


@dataclass(frozen=True, slots=True)
class FieldCapability:
    """One line of the server's capability table."""

    field: str
    """Name in GenerationConfig."""

    support: FieldSupport
    """Whether it is served."""

    note: str
    """A remark for people: the meaning here, or the reason for refusing."""


@dataclass(frozen=True, slots=True)
class ServerInfo:
    """The server's set-up."""

    version: str
    """Release of Outrider."""

    draft_protocol_version: int
    """Version of the draft protocol."""

    draft_links: tuple[DraftLink, ...]
    """The links to draft services."""

    capabilities: tuple[FieldCapability, ...]
    """Which fields of GenerationConfig are served."""

    max_num_seqs: int
    """Sequences that may run at once."""

    max_waiting_requests: int
    """Requests that may wait."""

    kv_cache_tokens: int
    """Size of the KV cache in tokens."""

    plugins: tuple[PluginInfo, ...] = ()
    """The plug-ins that requests may name."""

    uptime_seconds: float = 0.0
    """Seconds since the server began to serve; 0 from servers that do not tell."""

    device: str = ""
    """What the model runs on; empty from servers that do not tell."""

    @classmethod
    def from_message(cls, message: generation_pb2.GetServerInfoResponse) -> ServerInfo:
        """The set-up in a message."""
        return cls(
            version=message.version,
            draft_protocol_version=message.draft_protocol_version,
            draft_links=tuple(DraftLink.from_message(link) for link in message.draft_links),
            capabilities=tuple(
                FieldCapability(
                    line.field, _SUPPORT.get(line.support, FieldSupport.UNKNOWN), line.note
                )
                for line in message.capabilities
            ),
            max_num_seqs=message.max_num_seqs,
            max_waiting_requests=message.max_waiting_requests,
            kv_cache_tokens=message.kv_cache_tokens,
            plugins=tuple(map(PluginInfo.from_message, message.plugins)),
            uptime_seconds=message.uptime_seconds,
            device=message.device,
        )


@dataclass(frozen=True, slots=True)
class Loads:
    """How busy the server is."""

    num_running_sequences: int
    """Sequences in the running batch."""

    num_waiting_requests: int
    """Requests waiting for admission."""

    kv_cache_usage: float
    """Share of the KV cache in use, in [0, 1]."""

    speculation: SpeculationStats
    """Totals over all requests since the start."""

    num_generated_tokens: int
    """Generated tokens since the start."""

    num_preemptions: int
    """Preemptions since the start."""

    speculation_speedup_ratio: float | None = None
    """Tokens a second over those of plain decoding, once measured."""

    draining: bool = False
    """Whether the server goes away: running requests go on, new ones are refused."""

    max_num_seqs: int = 0
    """Sequences that may run at once."""

    max_waiting_requests: int = 0
    """Requests that may wait; at that many the next is refused."""

    oldest_waiting_seconds: float = 0.0
    """Seconds that the longest waiting request has waited."""

    num_free_kv_cache_tokens: int = 0
    """Tokens of text that no running sequence occupies in the KV cache."""

    num_ready_draft_links: int = 0
    """Links to draft services that are ready."""

    @classmethod
    def from_message(cls, message: generation_pb2.GetLoadsResponse) -> Loads:
        """The load in a message."""
        return cls(
            num_running_sequences=message.num_running_sequences,
            num_waiting_requests=message.num_waiting_requests,
            kv_cache_usage=message.kv_cache_usage,
            speculation=SpeculationStats.from_message(message.speculation),
            num_generated_tokens=message.num_generated_tokens,
            num_preemptions=message.num_preemptions,
            speculation_speedup_ratio=message.speculation_speedup_ratio
            if message.HasField("speculation_speedup_ratio")
            else None,
            draining=message.draining,
            max_num_seqs=message.max_num_seqs,
            max_waiting_requests=message.max_waiting_requests,
            oldest_waiting_seconds=message.oldest_waiting_seconds,
            num_free_kv_cache_tokens=message.num_free_kv_cache_tokens,
            num_ready_draft_links=message.num_ready_draft_links,
        )


_LINK_STATES = {
    generation_pb2.DRAFT_LINK_STATE_CONNECTING: DraftLinkState.CONNECTING,
    generation_pb2.DRAFT_LINK_STATE_READY: DraftLinkState.READY,
    generation_pb2.DRAFT_LINK_STATE_REFUSED: DraftLinkState.REFUSED,
}
_SUPPORT = {
    generation_pb2.FIELD_SUPPORT_HONOURED: FieldSupport.HONOURED,
    generation_pb2.FIELD_SUPPORT_REFUSED: FieldSupport.REFUSED,
}
