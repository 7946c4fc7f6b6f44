"""A request in domain terms: what the engine needs to know of one `Generate` call.

Knows nothing of gRPC: the servicer builds it, the engine serves it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum, StrEnum
from typing import TYPE_CHECKING, NamedTuple

from outrider.v1.generation_config_pb2 import GenerationConfig
from outrider_runtime.plugins import StoppingCriterion
from outrider_runtime.prompt_lookup import LookupRule
from outrider_runtime.sampling_parameters import SamplingParameters

from outrider_target.decoding.beams.settings import BeamSettings

if TYPE_CHECKING:  # numpy, which settings and `--help` do without
    from outrider_runtime.model.row_group import NamedProcessor


class FinishReason(Enum):
    """Why a sequence ended."""

    STOP = "stop"
    LENGTH = "length"
    TIME = "time"
    CANCELLED = "cancelled"


class DraftMethod(StrEnum):
    """Which drafter a request wants."""

    NONE = "none"
    REMOTE = "remote"
    PROMPT_LOOKUP = "prompt-lookup"
    SUFFIX = "suffix"
    """The request's own text and recent outputs of its tenant."""
    PREDICTION = "prediction"
    """The text that the request expects."""
    COMBINED = "combined"
    """Remote, prompt lookup, suffix tree and prediction: each round takes the draft that is worth
    most."""
    EARLY_EXIT = "early-exit"
    """The target's own first layers."""
    GRAMMAR = "grammar"
    """Nobody but the form of the text, where it leaves no choice."""


@dataclass(frozen=True, slots=True)
class SpeculationSettings:
    """How to speculate for a request. None of it can change the text, but for the verification."""

    method: DraftMethod
    synchronous: bool
    """Wait for the drafter's whole answer, up to the time-out, as transformers does."""
    window: int
    """Draft tokens of the first round."""
    schedule: str
    """One of `window.SCHEDULES`."""
    max_window: int
    """Upper bound of the window."""
    run_ahead: int
    """Tokens beyond the window that may be drafted while the target verifies."""
    tree_rows: int
    """Rows that a round may spend on paths beside the draft."""
    fan_out: int
    """Guesses for each position of the draft that may be continued meanwhile, the first included.
    """
    confidence_threshold: float
    """A draft ends after a token of lower draft probability. 0 is off."""
    timeout_seconds: float
    """Longest wait for the drafter in a round."""
    draft_temperature: float | None
    """Divides the drafter's scores before the shared noise is added; None leaves it to what has
    agreed most."""
    max_matching_ngram_size: int
    """Longest n-gram that in-process prompt lookup matches."""
    report_rounds: bool
    """Whether to keep the rounds one by one."""
    forced: bool
    """Whether to draft what the form of the text leaves no choice about, whoever drafts else."""
    early_exit: int = 0
    """Layers that draft; 0 unless the method is early exit."""
    lookup_rule: LookupRule = LookupRule.LATEST
    """Which earlier occurrence in-process prompt lookup continues."""
    prediction: Sequence[int] = ()
    """The text that is expected; empty without one."""
    tenant: bytes = b""
    """Opaque name of those among whom outputs are remembered; empty: nobody."""
    by_ratio: bool = False
    """Accept drafts by ratio (speculative sampling), not by agreement; only where it samples."""


class TextForm(StrEnum):
    """How the form of a text is written down."""

    JSON_SCHEMA = "json_schema"
    REGEX = "regex"
    GRAMMAR = "grammar"
    """In llguidance's Lark notation."""
    CHOICES = "choices"
    """In that notation, too."""
    TOKEN_CHOICES = "token_choices"
    """Lists of token ids."""


class TensorKind(StrEnum):
    """What a tensor that is told holds: the field that asks for it."""

    SCORES = "output_scores"
    LOGITS = "output_logits"
    HIDDEN_STATES = "output_hidden_states"
    ATTENTIONS = "output_attentions"


@dataclass(frozen=True, slots=True)
class TensorWishes:
    """The tensors that a request asks for."""

    kinds: frozenset[TensorKind] = frozenset()
    num_layers: int = 0
    """Of the model: hidden states have one entry more."""


NO_TENSORS = TensorWishes()


class ContrastiveSettings(NamedTuple):
    """How contrastive search chooses."""

    penalty_alpha: float
    """Weight of the degeneration penalty, against that of the probability."""
    top_k: int
    """Candidates for each token."""
    last_layer: int
    """Number of the model's last layer, whose hidden states are compared."""


class Structure(NamedTuple):
    """The form that a text must have."""

    field: str
    """The request's field that asks for it, for errors."""
    form: TextForm
    source: str
    token_lists: Sequence[Sequence[int]] = ()
    """In place of a source, for TOKEN_CHOICES."""


class Guidance(NamedTuple):
    """Classifier-free guidance."""

    scale: float
    negative_prompt: Sequence[int]
    """Empty: the last token of the prompt, as in transformers."""


class NamedCriterion(NamedTuple):
    """A stopping criterion made for a request, and its name."""

    name: str
    run: StoppingCriterion


class RequestPlugins(NamedTuple):
    """The plug-ins made for a request, in the order it names them."""

    processors: tuple[NamedProcessor, ...] = ()
    criteria: tuple[NamedCriterion, ...] = ()


NO_PLUGINS = RequestPlugins()


@dataclass(frozen=True, slots=True)
class GenerationRequest:
    """One validated request."""

    id: str
    prompt: Sequence[int]
    """Prompt token ids; not empty."""
    parameters: SamplingParameters
    """What shapes the scores, resolved for this prompt."""
    seed: int
    num_sequences: int
    stop_strings: tuple[str, ...]
    max_time: float | None
    """Seconds from arrival."""
    speculation: SpeculationSettings
    num_top_log_probs: int | None
    """Alternatives to tell with each token's log-probabilities; None: no log-probabilities."""
    given: Sequence[int]
    """The continuation, where it is to be scored and not generated; else empty."""
    effective_config: GenerationConfig
    """The merged configuration: echoed to the client, and passed on to drafters."""
    traceparent: str = ""
    """W3C trace context that drafters go on with; empty: the request is not traced."""
    prefill_chunk_size: int | None = None
    """Most tokens that a round feeds of those not cached yet; None leaves it to the batch."""
    structure: Structure | None = None
    """The form of the text; None when it is free. Drafters do not know it."""
    beams: BeamSettings | None = None
    """How to search with beams; None for other modes."""
    dola_layers: Sequence[int] = ()
    """Layers that DoLa contrasts the last one with; empty without it."""
    contrastive: ContrastiveSettings | None = None
    """Contrastive search; None for any other mode."""
    tensors: TensorWishes = NO_TENSORS
    """What to tell beside the tokens."""
    guidance: Guidance | None = None
    """How the scores are guided; None where they are not."""
    plugins: RequestPlugins = NO_PLUGINS
    """What else shapes scores and ends sequences. Drafters do not know it."""
    is_replay: bool = False
    """Whether it checks a text that was served: nobody asked for it, so it is counted nowhere."""

    @property
    def num_read_tokens(self) -> int:
        """Tokens that its sender gave."""
        return len(self.prompt) + len(self.given)

    @property
    def is_counted(self) -> bool:
        """Whether its tokens are generated for a caller."""
        return not self.given and not self.is_replay


class Finish(NamedTuple):
    """How a sequence ended."""

    reason: FinishReason
    stop_string: str | None = None
    stop_token_id: int | None = None
    criterion: str | None = None
    """Name of the plug-in that ended it."""
