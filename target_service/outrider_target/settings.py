"""How a target service runs. Built once, in `__main__`; nothing else reads flags or environment."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from outrider_runtime.model.compiled.mode import Compile
from outrider_runtime.model.kernels.mode import CpuKernels, Quantization
from outrider_runtime.server import ServerSettings
from outrider_runtime.tracing import TracingSettings

from outrider_target.requests.request import DraftMethod

SUFFIX_CACHE_TOKENS = 65_536


@dataclass(frozen=True, slots=True)
class ModelSettings:
    """The target model and its engine."""

    model: str
    """A local folder, or a hub id."""

    served_model_name: str | None = None
    """Name shown to clients; None: the folder's own."""

    dtype: str = "auto"
    """Type of weights and cache: auto, float32, bfloat16, float16, float64."""

    device: str = "auto"
    """auto, cpu or cuda."""

    tensor_parallel_size: int = 1
    """Processes that share the model, each with a part of every layer; started by torchrun."""

    threads: int | None = None
    """Threads of one forward on the CPU; None: a core each, but for one for each draft service on
    the same machine."""

    cpu_kernels: CpuKernels = CpuKernels.AUTO
    """Whether float32 on the CPU runs on kernels of our own."""

    quantization: Quantization = Quantization.NONE
    """How those hold the weights of linear layers."""

    compile: Compile = Compile.AUTO
    """Whether forwards run as one program: compiled on those kernels, as graphs on a GPU."""

    max_model_len: int | None = None
    """Longest prompt plus output; None: what the model's configuration says."""

    block_size: int = 16
    """Tokens per block of the KV cache."""

    kv_cache_tokens: int | None = None
    """Size of the KV cache in tokens; None: `max_num_seqs` sequences of 2,048 tokens at most, and
    no less than one sequence of the longest possible."""

    kv_cache_bytes: int | None = None
    """Size of the KV cache in bytes, instead of tokens; with several ranks, of each one's part."""


@dataclass(frozen=True, slots=True)
class BatchSettings:
    """How much runs at once."""

    max_num_seqs: int = 16
    """Sequences in the running batch."""

    max_num_batched_tokens: int = 512
    """Rows of one forward; longer prompts are fed in chunks, so that nobody else has to wait."""

    plain_steps_ms: float = 16.0
    """Milliseconds that steps of plain decoding may take in one go, without a round for each; 0:
    each has its round. Only greedy ones where no draft can come, on compiled forwards."""

    max_waiting_requests: int = 256
    """Requests that may wait; more are refused with RESOURCE_EXHAUSTED."""

    max_tokens_per_minute_per_caller: int | None = None
    """Tokens that a caller may have, prompts and answers together; requests of one that had more
    are refused with RESOURCE_EXHAUSTED. None: any number."""

    prefix_caching: bool = True
    """Whether requests of a caller share the keys and values of a beginning that they have in
    common, also with requests that have ended."""

    max_tensor_bytes: int = 64 * 2**20
    """Bytes of tensors (scores, logits, hidden states, attention weights) that a request may ask
    for; they are held until its client has read them."""


@dataclass(frozen=True, slots=True)
class SpeculationDefaults:
    """What holds where neither request nor model says anything about speculation."""

    draft_method: DraftMethod | None = None
    """Who drafts; None: combined when there are draft services, else none."""

    num_assistant_tokens: int = 5
    """Window of the first round."""

    num_assistant_tokens_schedule: str = "auto"
    """How the window moves: auto, constant, heuristic or heuristic_transient."""

    assistant_confidence_threshold: float = 0.4
    """A draft ends after a token of lower draft probability."""

    max_assistant_tokens: int = 16
    """Upper bound of the window."""

    run_ahead: int = 0
    """Tokens beyond the window that are drafted while the target verifies."""

    draft_fan_out: int = 1
    """Guesses for each position of a draft that are continued meanwhile, the first included."""

    speedup_probe_rate: float = 0.01
    """Share of rounds that run plainly, to measure what drafting gains; only with the schedule
    auto. 0: none, and the gain is not known."""

    draft_tree_rows: int = 0
    """Rows that a round may spend on verifying such guesses beside the draft."""

    draft_timeout_ms: int = 1000
    """Longest wait for a drafter in one round."""

    def generation_defaults(self) -> Mapping[str, object]:
        """Those that are fields of GenerationConfig, by name."""
        return {
            "num_assistant_tokens": self.num_assistant_tokens,
            "num_assistant_tokens_schedule": self.num_assistant_tokens_schedule,
            "assistant_confidence_threshold": self.assistant_confidence_threshold,
        }


@dataclass(frozen=True, slots=True)
class TargetSettings:
    """All of a target service."""

    model: ModelSettings
    server: ServerSettings = field(default_factory=ServerSettings)
    batch: BatchSettings = field(default_factory=BatchSettings)
    speculation: SpeculationDefaults = field(default_factory=SpeculationDefaults)

    drafts: tuple[str, ...] = ()
    """Draft services: addresses, HOST:PORT, and names, dns:///NAME:PORT, for all behind one."""

    draft_ca_certs: Path | None = None
    """Authorities of the draft services' certificates, PEM; None: plaintext."""
    draft_ssl_keyfile: Path | None = None
    """Private key for draft services that ask for a certificate, PEM."""
    draft_ssl_certfile: Path | None = None
    """Certificate chain for those, PEM."""

    suffix_cache_tokens: int = SUFFIX_CACHE_TOKENS
    """Tokens of recent outputs that the suffix tree remembers, of all tenants together, some 300
    bytes each; 0: it knows the request's own text alone."""

    draft_api_key: str | None = None
    """API key of the draft services."""
    draft_api_key_file: Path | None = None
    """File with that key alone, instead; read again when it changes."""

    canary_rate: float = 0.0
    """Share of the finished requests that are decoded again plainly and compared; 0: none."""

    plugins: tuple[str, ...] = ()
    """Names of installed plug-ins that requests may use; none unless named."""

    tracing: TracingSettings = field(default_factory=TracingSettings)
    metrics_by_caller: bool = False
    """Whether requests and tokens are counted by the caller's name as well."""
    metrics_port: int | None = None
    """Port of the Prometheus page; None: no page."""

    @property
    def default_draft_method(self) -> DraftMethod:
        """Who drafts where nobody says anything."""
        if self.speculation.draft_method is not None:
            return self.speculation.draft_method
        return DraftMethod.COMBINED if self.drafts else DraftMethod.NONE
