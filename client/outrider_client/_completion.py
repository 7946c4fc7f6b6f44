"""What a caller gets back: chunks while it runs, a completion at the end.

Plain frozen values, made from messages by `_assembly`. Knows nothing of calls.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import StrEnum, unique

from outrider_client._generation_config import GenerationConfig
from outrider_client._log_probs import TokenLogProbs
from outrider_client._speculation_config import SpeculationConfig
from outrider_client._tensors import Tensor
from outrider_client._usage import SpeculationStats, Usage


@unique
class FinishReason(StrEnum):
    """Why a sequence ended."""

    STOP = "stop"
    """An end-of-sequence token, a stop string, a stopping criterion, or the end of the form."""

    LENGTH = "length"
    """The length limit."""

    TIME = "time"
    """The time limit (`max_time`)."""

    CANCELLED = "cancelled"
    """Aborted."""


@dataclass(frozen=True, slots=True)
class HealedPrompt:
    """The prompt in use, where `token_healing` was asked for."""

    token_ids: list[int]
    """Its tokens."""

    text: str
    """Its text, without special tokens: the generated text continues it."""


@dataclass(frozen=True, slots=True)
class Started:
    """What the server says before the first token."""

    request_id: str
    """The request's id: yours, or one made up."""

    seed: int
    """The seed in use: yours, or one drawn. Sending it again gives the same tokens."""

    effective_config: GenerationConfig
    """The configuration in force: yours over the model's over transformers' defaults."""

    effective_speculation: SpeculationConfig
    """The speculation settings in force."""

    num_prompt_tokens: int
    """Length of the prompt in tokens."""

    healed_prompt: HealedPrompt | None = None
    """The prompt in use; None without `token_healing`."""


@dataclass(frozen=True, slots=True)
class Chunk:
    """New tokens of one sequence. Final once received."""

    text: str
    """The new text. May lag behind the tokens until a character is complete."""

    token_ids: list[int]
    """The new tokens."""

    drafted: list[bool]
    """For each token: proposed by the drafter (accepted), or the target's own."""

    sequence_index: int
    """Which sequence of the request, from 0."""

    log_probs: list[TokenLogProbs] = field(default_factory=list)
    """For each token its log-probabilities; empty unless asked for."""


@dataclass(frozen=True, slots=True)
class BeamProgress:
    """The best text that a beam search has found so far. Not final: the next may be another."""

    text: str
    """Its text, as far as its characters are whole."""

    token_ids: list[int]
    """All its generated tokens."""

    score: float
    """Its score, as it would be if it ended here."""

    finished: bool
    """Whether it has ended; a beam that still grows may overtake it all the same."""


@dataclass(frozen=True, slots=True)
class GeneratedSequence:
    """One generated sequence."""

    text: str
    """The generated text, without the prompt."""

    token_ids: list[int]
    """The generated tokens, without the prompt."""

    drafted: list[bool]
    """For each token: proposed by the drafter (accepted), or the target's own."""

    finish_reason: FinishReason | None
    """Why it ended; None in a partial completion, or for a reason of a newer server."""

    matched_stop_string: str | None
    """The stop string that ended it, if one did."""

    matched_stop_token_id: int | None
    """The end-of-sequence token that ended it, if one did."""

    log_probs: list[TokenLogProbs] = field(default_factory=list)
    """For each token its log-probabilities; empty unless asked for."""

    scores: list[Tensor] = field(default_factory=list, repr=False)
    """For each token the scores it was chosen from, [vocabulary]; empty unless `output_scores`."""

    logits: list[Tensor] = field(default_factory=list, repr=False)
    """For each token the model's own scores, [vocabulary]; empty unless `output_logits`."""

    hidden_states: Sequence[tuple[Tensor, ...]] = field(default=(), repr=False)
    """For each token the hidden states behind it, one tensor [positions, hidden size] a layer, the
    embeddings first. The first token's are those of the whole prompt, each other's are of the token
    before it. Empty unless `output_hidden_states`."""

    attentions: Sequence[tuple[Tensor, ...]] = field(default=(), repr=False)
    """The like for attention weights, [heads, positions, keys] a layer; empty unless
    `output_attentions`."""

    matched_stopping_criterion: str | None = None
    """The name of the stopping criterion that ended it, if one did."""

    score: float | None = None
    """With beams: sum of the processed log-probabilities of its tokens, divided by their number to
    the power of `length_penalty` (transformers' `sequences_scores`); None without."""

    beam_indices: list[int] = field(default_factory=list)
    """With beams: for each token the beam that it continued; empty without."""

    def compute_transition_scores(self, *, normalize_logits: bool = False) -> list[float]:
        """Each token's score after all processors, as transformers' method of that name.

        Args:
            normalize_logits: Log-probabilities among what could be chosen, instead of scores.

        Raises:
            ValueError: The request did not ask for log-probabilities.
        """
        if len(self.log_probs) != len(self.token_ids):
            raise ValueError("the request did not ask for log-probabilities: log_probs=0 does")
        if normalize_logits:
            return [known.processed for known in self.log_probs]
        return [known.score for known in self.log_probs]


@dataclass(frozen=True, slots=True)
class Completion:
    """The answer to a request. `text`, `token_ids` and the like are those of sequence 0."""

    request_id: str
    """Id of the request."""

    sequences: tuple[GeneratedSequence, ...]
    """The `num_return_sequences` sequences, in order; with beams the best comes first."""

    usage: Usage
    """What the request consumed."""

    seed: int
    """The seed in use. Sending it again gives the same tokens."""

    effective_config: GenerationConfig
    """The configuration in force: yours over the model's over transformers' defaults."""

    effective_speculation: SpeculationConfig
    """The speculation settings in force."""

    speculation: SpeculationStats
    """What speculation did."""

    healed_prompt: HealedPrompt | None = None
    """The prompt in use; None without `token_healing`."""

    @property
    def text(self) -> str:
        """The generated text, without the prompt."""
        return self.sequences[0].text

    @property
    def token_ids(self) -> list[int]:
        """The generated tokens, without the prompt."""
        return self.sequences[0].token_ids

    @property
    def drafted(self) -> list[bool]:
        """For each token: proposed by the drafter (accepted), or the target's own."""
        return self.sequences[0].drafted

    @property
    def log_probs(self) -> list[TokenLogProbs]:
        """For each token its log-probabilities; empty unless asked for."""
        return self.sequences[0].log_probs

    @property
    def finish_reason(self) -> FinishReason | None:
        """Why the sequence ended; None in a partial completion."""
        return self.sequences[0].finish_reason

    @property
    def matched_stop_string(self) -> str | None:
        """The stop string that ended the sequence, if one did."""
        return self.sequences[0].matched_stop_string

    @property
    def matched_stop_token_id(self) -> int | None:
        """The end-of-sequence token that ended the sequence, if one did."""
        return self.sequences[0].matched_stop_token_id
