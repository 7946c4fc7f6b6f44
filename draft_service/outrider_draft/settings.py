"""How a draft service runs. Built once, in `__main__`; nothing else reads the environment."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum

from outrider_runtime.model.compiled.mode import Compile
from outrider_runtime.model.kernels.mode import CpuKernels, Quantization
from outrider_runtime.prompt_lookup import LookupRule
from outrider_runtime.server import ServerSettings
from outrider_runtime.tracing import TracingSettings


class DraftMethod(StrEnum):
    """What proposes the tokens."""

    MODEL = "model"
    """A draft model."""

    PROMPT_LOOKUP = "prompt-lookup"
    """The sequence's own text; needs no model and no torch."""

    SUFFIX = "suffix"
    """A suffix tree of that text and of recent texts of its tenant; likewise."""


@dataclass(frozen=True, slots=True)
class SessionSettings:
    """How many sessions are held, and how long they may be."""

    max_sessions: int = 1024
    """Sessions of all targets together. Beyond it the least recently used one makes room."""

    max_sessions_per_target: int = 256
    """Sessions of one stream. More are refused, so that one target cannot push out another."""

    max_length: int = 131_072
    """Longest sequence, in tokens; longer ones are refused. A draft model may hold less."""

    idle_seconds: float = 1.0
    """A session may be pushed out once it was not used for this long. While all are in use, room is
    made by refusing the newest instead: pushing out sessions that come back next round would help
    nobody."""


@dataclass(frozen=True, slots=True)
class StepSettings:
    """How much one draft step does."""

    max_num_seqs: int = 64
    """Sessions that take part in one step."""

    max_num_batched_tokens: int = 512
    """Rows per step for sessions that have much to catch up with (new prompts). The others wait
    that long."""

    enumeration_rows: int = 6
    """Lines of a step up to which guesses beside the chains are grown. Shared by the sessions that
    grow, so that there are fewer guesses under load. Six rows cost little more than one on the
    CPU's kernels; a GPU has room for more."""


@dataclass(frozen=True, slots=True)
class ModelSettings:
    """The draft model and its engine."""

    model: str
    """A local folder, or a hub id."""

    dtype: str = "auto"
    """Type of weights and cache: auto, float32, bfloat16, float16, float64."""

    device: str = "auto"
    """auto, cpu or cuda."""

    threads: int = 1
    """Threads of one forward on the CPU."""

    cpu_kernels: CpuKernels = CpuKernels.AUTO
    """Whether float32 on the CPU runs on kernels of our own."""

    quantization: Quantization = Quantization.NONE
    """How those hold the weights of linear layers."""

    compile: Compile = Compile.AUTO
    """Whether forwards run as one program: compiled on those kernels, as graphs on a GPU."""

    max_model_len: int | None = None
    """Longest sequence the model extends; None: what its configuration says."""

    kv_cache_tokens: int = 65_536
    """Tokens whose keys and values are held, for all sessions together."""

    block_size: int = 16
    """Tokens per block of the cache."""

    target_tokenizers: tuple[str, ...] = ()
    """Folders or hub ids of the tokenizers of targets whose ids are not the draft model's: what it
    writes is translated for them."""


@dataclass(frozen=True, slots=True)
class LookupSettings:
    """Prompt lookup."""

    max_matching_ngram_size: int = 2
    """Longest n-gram that is matched where a request says nothing."""

    rule: LookupRule = LookupRule.LATEST
    """Which earlier occurrence is continued."""


@dataclass(frozen=True, slots=True)
class SuffixSettings:
    """The suffix tree."""

    cache_tokens: int = 1_000_000
    """Tokens of recent texts that are remembered, of all tenants together, some 300 bytes each;
    0: a session has its own text alone."""


ProposerSettings = ModelSettings | LookupSettings | SuffixSettings


@dataclass(frozen=True, slots=True)
class DraftSettings:
    """All of a draft service."""

    server: ServerSettings = field(default_factory=ServerSettings)
    sessions: SessionSettings = field(default_factory=SessionSettings)
    step: StepSettings = field(default_factory=StepSettings)
    proposer: ProposerSettings = field(default_factory=LookupSettings)
    tracing: TracingSettings = field(default_factory=TracingSettings)
    metrics_port: int | None = None
    """Port of the Prometheus page on the server's host; 0 takes a free one, None: no page."""
