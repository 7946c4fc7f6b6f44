"""Everything that shapes the scores of a sequence, resolved and validated.

Knows nothing of wire types, tensors or models. `conversion` builds these values from a request;
`model.processors` and `model.selection` act on them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from outrider_runtime.watermarks import Watermark


class BiasedPhrase(NamedTuple):
    """One entry of `sequence_bias`: when the text ends with all but the last id, bias the last."""

    token_ids: tuple[int, ...]
    bias: float


class Continuation(NamedTuple):
    """What a phrase adds to the score of its last token, once the ids before it stand there."""

    prefix: tuple[int, ...]
    token_id: int
    bias: float


class PhraseIndex:
    """Biased phrases, looked up by the token the text ends with.

    A request may bring thousands of bad words; a row then looks at the few whose next-to-last id is
    the row's last token, instead of comparing them all.
    """

    __slots__ = ("_by_last", "single")

    def __init__(self, phrases: tuple[BiasedPhrase, ...]) -> None:
        single: dict[int, float] = {}
        longer: dict[tuple[int, ...], float] = {}
        for token_ids, bias in phrases:  # as in transformers, the last of equal phrases counts
            if len(token_ids) == 1:
                single[token_ids[0]] = bias
            else:
                longer[token_ids] = bias
        self.single: Mapping[int, float] = single
        """Biases of one-token phrases, which apply after any text."""
        self._by_last: dict[int, list[Continuation]] = {}
        for token_ids, bias in longer.items():
            entry = Continuation(token_ids[:-1], token_ids[-1], bias)
            self._by_last.setdefault(token_ids[-2], []).append(entry)

    def ending_with(self, token_id: int) -> Sequence[Continuation]:
        """Longer phrases whose prefix ends with `token_id`; the caller compares the rest."""
        return self._by_last.get(token_id, ())


@dataclass(frozen=True, slots=True)
class SamplingParameters:
    """How the scores of one sequence are processed and its tokens chosen.

    Names and meanings are transformers' `GenerationConfig`'s. The defaults here are the neutral
    values (nothing is processed), not transformers' global defaults: those are merged in before.
    Values are not validated again; a service refuses bad ones by name before it gets here.
    """

    do_sample: bool = False
    """Sample with position-keyed noise; otherwise take the highest score."""
    temperature: float = 1.0
    """Divides the scores; greater than 0."""
    top_h: float | None = None
    """Keep tokens until their entropy reaches this share of the top 100's, in (0, 1]."""
    top_k: int = 0
    """Keep this many highest scores, and those equal to the last of them; 0 keeps all."""
    top_p: float = 1.0
    """Keep the smallest set of most probable tokens that reaches this probability, in [0, 1]."""
    min_p: float | None = None
    """Keep tokens at least this fraction as probable as the most probable one, in [0, 1]."""
    typical_p: float = 1.0
    """Keep the most typical tokens until their probability reaches this, in (0, 1]."""
    epsilon_cutoff: float = 0.0
    """Drop tokens less probable than this, in [0, 1)."""
    eta_cutoff: float = 0.0
    """Entropy-dependent epsilon cutoff, in [0, 1)."""
    min_tokens_to_keep: int = 1
    """Tokens that each truncation but top_h keeps at least; more than 1 for beams."""
    repetition_penalty: float = 1.0
    """Makes tokens of prompt and output less likely when above 1; greater than 0."""
    encoder_repetition_penalty: float = 1.0
    """Makes tokens of the prompt more likely when above 1; greater than 0."""
    no_repeat_ngram_size: int = 0
    """No n-gram of this size occurs twice in prompt and output; 0 is off."""
    encoder_no_repeat_ngram_size: int = 0
    """No n-gram of this size in the prompt occurs in the output; 0 is off."""
    bad_words_ids: tuple[tuple[int, ...], ...] = ()
    """Phrases that are never completed. Without those that are one end-of-sequence token."""
    min_length: int = 0
    """Total length, prompt included, below which the text does not end."""
    min_new_tokens: int | None = None
    """Number of generated tokens below which the text does not end."""
    forced_bos_token_id: int | None = None
    """Token forced as the second one of the whole text."""
    forced_eos_token_ids: tuple[int, ...] = ()
    """Tokens of which one is forced as the last that fits into `max_length`."""
    remove_invalid_values: bool = False
    """Turn NaN into 0 and infinities into the largest finite values."""
    exponential_decay_length_penalty: tuple[int, float] | None = None
    """(generated tokens after which it starts, base): a growing bonus for the end of sequence."""
    suppress_tokens: tuple[int, ...] = ()
    """Tokens that are never generated."""
    begin_suppress_tokens: tuple[int, ...] = ()
    """Tokens that are not generated first."""
    sequence_bias: tuple[BiasedPhrase, ...] = ()
    """Score biases of phrases."""
    watermark: Watermark | None = None
    """The watermark put into the text; also when not sampling."""
    renormalize_logits: bool = False
    """Replace the scores by their log-softmax after all else."""
    eos_token_ids: tuple[int, ...] = ()
    """Tokens that end a sequence, without repetition."""
    max_length: int = 0
    """Total length, prompt and output, at which the sequence ends."""

    bias_index: PhraseIndex | None = field(init=False, repr=False, compare=False)
    """`sequence_bias`, ready for look-up; None when there is none."""
    bad_words_index: PhraseIndex | None = field(init=False, repr=False, compare=False)
    """`bad_words_ids` as biases of minus infinity, ready for look-up; None when there are none."""
    truncations: tuple[str, ...] = field(init=False, repr=False, compare=False)
    """Names of the truncations that are on, in the order they apply; empty unless `do_sample`."""
    edits_scores: bool = field(init=False, repr=False, compare=False)
    """Whether anything before the sampling warpers touches the scores: false for most requests,
    which then cost nothing before the choice of the token."""

    def __post_init__(self) -> None:
        bad_words = tuple(BiasedPhrase(ids, float("-inf")) for ids in self.bad_words_ids)
        derive = object.__setattr__  # a frozen dataclass fills derived fields this way
        derive(self, "bias_index", PhraseIndex(self.sequence_bias) if self.sequence_bias else None)
        derive(self, "bad_words_index", PhraseIndex(bad_words) if bad_words else None)
        truncations = {
            "top_h": self.top_h is not None,
            "top_k": self.top_k > 0,
            "top_p": self.top_p < 1.0,
            "min_p": self.min_p is not None,
            "typical_p": self.typical_p < 1.0,
            "epsilon_cutoff": self.epsilon_cutoff > 0.0,
            "eta_cutoff": self.eta_cutoff > 0.0,
        }
        names = tuple(name for name, on in truncations.items() if on and self.do_sample)
        derive(self, "truncations", names)
        derive(
            self,
            "edits_scores",
            bool(
                self.sequence_bias
                or self.encoder_repetition_penalty != 1.0
                or self.repetition_penalty != 1.0
                or self.no_repeat_ngram_size
                or self.encoder_no_repeat_ngram_size
                or self.bad_words_ids
                or self.min_length
                or self.min_new_tokens
                or self.forced_bos_token_id is not None
                or self.forced_eos_token_ids
                or self.remove_invalid_values
                or self.exponential_decay_length_penalty is not None
                or self.suppress_tokens
                or self.begin_suppress_tokens
            ),
        )
