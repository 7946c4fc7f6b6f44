"""What the servicer serves with: the engine and what it must know of model, links and limits."""

from __future__ import annotations

import time
from dataclasses import dataclass, field

from outrider.v1 import explanation_pb2
from outrider.v1 import generation_pb2 as pb
from outrider_runtime.draft_protocol import PROTOCOL_VERSION
from outrider_runtime.version import release

from outrider_target.constraints.grammar import GrammarCompiler
from outrider_target.decoding.healing import Healer
from outrider_target.drafting.remote.fleet import DraftFleet
from outrider_target.drafting.remote.link import LinkStatus
from outrider_target.drafting.remote.links import DraftLinks
from outrider_target.engine.admission import LiveRequests
from outrider_target.engine.thread import Engine
from outrider_target.engine.token_quotas import TokenQuotas
from outrider_target.plugins import PluginRegistry
from outrider_target.requests.request import GenerationRequest
from outrider_target.requests.validation import ServedModel
from outrider_target.serving import messages
from outrider_target.serving.canary import Canary
from outrider_target.serving.metrics import RequestMetrics
from outrider_target.serving.text import TextCodec
from outrider_target.settings import BatchSettings, SpeculationDefaults


@dataclass(frozen=True, slots=True)
class ModelIdentity:
    """What clients are told of the model beyond its limits."""

    name: str
    architecture: str
    dtype: str
    device: str
    """Such as cpu or cuda."""
    fingerprint: str


@dataclass(slots=True)
class Serving:
    """A running target service, as its servicer sees it."""

    engine: Engine
    requests: LiveRequests
    quotas: TokenQuotas
    text: TextCodec
    grammars: GrammarCompiler
    healer: Healer | None
    """None without a tokenizer."""
    plugins: PluginRegistry
    model: ServedModel
    identity: ModelIdentity
    batch: BatchSettings
    speculation_defaults: SpeculationDefaults
    fleet: DraftFleet
    links: DraftLinks
    num_blocks: int
    block_size: int
    metrics: RequestMetrics
    canary: Canary
    began: float = field(default_factory=time.monotonic)
    """When it was put together, by `time.monotonic()`."""

    def let_in(self, request: GenerationRequest, account: str) -> None:
        """Charge what a request has read; what it has written is charged as it comes.

        Raises:
            OutriderError: There is no room for it, or its caller has had its tokens; nothing is
                charged.
        """
        self.requests.check_room(request.id)
        self.quotas.take(account, request.num_read_tokens)

    def model_info(self) -> pb.GetModelInfoResponse:
        """See the contract."""
        return pb.GetModelInfoResponse(
            served_model_name=self.identity.name,
            architecture=self.identity.architecture,
            vocab_size=self.model.vocab_size,
            max_model_len=self.model.max_model_len,
            dtype=self.identity.dtype,
            has_tokenizer=self.model.has_tokenizer,
            tokenizer_fingerprint=self.identity.fingerprint,
            default_generation_config=self.model.generation_config,
        )

    def server_info(self) -> pb.GetServerInfoResponse:
        """See the contract."""
        return pb.GetServerInfoResponse(
            version=release(),
            draft_protocol_version=PROTOCOL_VERSION,
            draft_links=[
                messages.link_info(link, self.fleet.state(index))
                for index, link in self.links.present
            ],
            capabilities=messages.capabilities(),
            max_num_seqs=self.batch.max_num_seqs,
            max_waiting_requests=self.batch.max_waiting_requests,
            kv_cache_tokens=self.num_blocks * self.block_size,
            plugins=messages.plugins(self.plugins.plugins),
            uptime_seconds=time.monotonic() - self.began,
            device=self.identity.device,
        )

    def loads(self) -> pb.GetLoadsResponse:
        """See the contract."""
        loads = self.engine.loads
        since = loads.waiting_since
        ready = [link for _, link in self.links.present if link.status is LinkStatus.READY]
        return pb.GetLoadsResponse(
            num_running_sequences=loads.num_running_sequences,
            num_waiting_requests=loads.num_waiting_requests,
            kv_cache_usage=1 - loads.num_free_blocks / self.num_blocks,
            speculation=messages.speculation_stats(loads.speculation),
            num_generated_tokens=loads.num_generated_tokens,
            num_preemptions=loads.num_preemptions,
            speculation_speedup_ratio=loads.speedup_ratio,
            draining=self.requests.draining,
            max_num_seqs=self.batch.max_num_seqs,
            max_waiting_requests=self.batch.max_waiting_requests,
            oldest_waiting_seconds=0.0 if since is None else time.monotonic() - since,
            num_free_kv_cache_tokens=loads.num_free_blocks * self.block_size,
            num_ready_draft_links=len(ready),
        )

    def explanation(self) -> explanation_pb2.ExplainResponse:
        """See the contract."""
        return messages.explanation(self.engine.figures)
