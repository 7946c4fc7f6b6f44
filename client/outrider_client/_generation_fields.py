"""The fields of a GenerationConfig: transformers' names, with what each does here.

Knows nothing of what is done with them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, TypedDict

Schedule = Literal["constant", "heuristic", "heuristic_transient", "auto"]


class WatermarkingConfig(TypedDict, total=False):
    """Options of a green-list watermark (transformers' class of that name)."""

    greenlist_ratio: float
    bias: float
    hashing_key: int
    seeding_scheme: Literal["lefthash", "selfhash"]
    context_width: int


class SynthIDTextWatermarkingConfig(TypedDict, total=False):
    """Options of a SynthID watermark (transformers' class of that name)."""

    ngram_len: int
    keys: list[int]
    context_history_size: int
    sampling_table_seed: int
    sampling_table_size: int
    skip_first_ngram_calls: bool
    debug_mode: bool


class CompileConfig(TypedDict, total=False):
    """Options of torch.compile (transformers' class of that name)."""

    fullgraph: bool
    dynamic: bool
    backend: str
    mode: str


@dataclass(slots=True, kw_only=True, eq=False, repr=False)
class GenerationFields:
    """Every field of transformers' GenerationConfig as of releases 4.57 and 5.23; None is unset."""

    # How long
    max_length: int | None = None
    """Total length of prompt plus output, in tokens. `max_new_tokens` wins when both are set."""

    max_new_tokens: int | None = None
    """Number of tokens to generate, at least 1. Default: 20, as in transformers."""

    min_length: int | None = None
    """Total length before which end-of-sequence tokens are suppressed."""

    min_new_tokens: int | None = None
    """Number of generated tokens before which end-of-sequence tokens are suppressed."""

    early_stopping: bool | Literal["never"] | None = None
    """When beam search stops: at enough candidates, by a heuristic, or "never" before it must."""

    max_time: float | None = None
    """Seconds from admission after which generation stops; greater than 0. Checked once a round."""

    stop_strings: str | Sequence[str] | None = None
    """Strings that end generation. The text keeps the string and the rest of its last token."""

    # Which algorithm
    do_sample: bool | None = None
    """Whether to sample. Default false: greedy."""

    num_beams: int | None = None
    """Number of beams. Default 1: no beam search."""

    use_mtp: bool | None = None
    """Use the model's own multi-token prediction head as drafter."""

    # The cache
    use_cache: bool | None = None
    """Whether keys and values are cached. Always true here."""

    cache_implementation: str | None = None
    """Name of a cache implementation of transformers."""

    cache_config: Mapping[str, object] | None = None
    """Options of that cache."""

    return_legacy_cache: bool | None = None
    """Legacy output format of the cache."""

    max_cache_len: int | None = None
    """Length of a static cache."""

    prefill_chunk_size: int | None = None
    """Number of prompt tokens processed in one forward."""

    # What happens to the scores
    temperature: float | None = None
    """Divides the scores before sampling; greater than 0. Default 1.0."""

    top_k: int | None = None
    """Keep only this many most probable tokens; 0 keeps all. Default 50, as in transformers."""

    top_p: float | None = None
    """Keep the fewest most probable tokens that together reach this, in [0, 1]. Default 1.0."""

    min_p: float | None = None
    """Keep tokens at least this fraction as probable as the most probable one, in [0, 1]."""

    top_h: float | None = None
    """Keep tokens until their entropy reaches this share of the distribution's, in (0, 1]."""

    typical_p: float | None = None
    """Keep the most typical tokens until their probability reaches this, in (0, 1]. Default 1.0."""

    epsilon_cutoff: float | None = None
    """Drop tokens less probable than this, in [0, 1). Default 0.0: off."""

    eta_cutoff: float | None = None
    """Entropy-dependent form of epsilon_cutoff, in [0, 1). Default 0.0: off."""

    repetition_penalty: float | None = None
    """Penalty for tokens already in prompt or output; greater than 0. Default 1.0: none."""

    encoder_repetition_penalty: float | None = None
    """Penalty for tokens that are not in the prompt; greater than 0. Default 1.0: none."""

    length_penalty: float | None = None
    """Exponent of the length in the score of a beam. Default 1.0."""

    no_repeat_ngram_size: int | None = None
    """No n-gram of this size occurs twice. Default 0: off."""

    bad_words_ids: Sequence[Sequence[int]] | None = None
    """Token sequences that must not be generated."""

    renormalize_logits: bool | None = None
    """Whether the scores are normalised after all processors. Default false."""

    forced_bos_token_id: int | None = None
    """Token forced as the first one when the prompt is one token long (transformers' rule)."""

    forced_eos_token_id: int | Sequence[int] | None = None
    """Tokens of which one is forced at `max_length`."""

    remove_invalid_values: bool | None = None
    """Replace NaN and infinite scores instead of failing. Default false."""

    exponential_decay_length_penalty: tuple[int, float] | Sequence[float] | None = None
    """Growing bonus for ending: the generated length it starts at, and the base of its growth."""

    suppress_tokens: Sequence[int] | None = None
    """Tokens that are never generated."""

    begin_suppress_tokens: Sequence[int] | None = None
    """Tokens that are not generated first."""

    sequence_bias: Mapping[tuple[int, ...], float] | Sequence[Sequence[object]] | None = None
    """Biases of token sequences: {(ids): bias}, or the list form [[[ids], bias], ...]."""

    token_healing: bool | None = None
    """Rewrite the end of the prompt so that a token boundary there does not steer the text."""

    guidance_scale: float | None = None
    """Classifier-free guidance by the call's negative prompt. 1.0 is off."""

    watermarking_config: WatermarkingConfig | SynthIDTextWatermarkingConfig | None = None
    """The watermark put into the text."""

    # What comes back
    num_return_sequences: int | None = None
    """Number of sequences returned for the prompt, at least 1. Default 1."""

    output_attentions: bool | None = None
    """Return attention weights."""

    output_hidden_states: bool | None = None
    """Return hidden states."""

    output_scores: bool | None = None
    """Return processed scores."""

    output_logits: bool | None = None
    """Return raw logits."""

    return_dict_in_generate: bool | None = None
    """Output form of a Python call; without meaning on the wire, accepted either way."""

    # Special tokens
    pad_token_id: int | None = None
    """Padding token. No padding happens here; accepted for the sake of the model's file."""

    bos_token_id: int | None = None
    """Beginning-of-sequence token."""

    eos_token_id: int | Sequence[int] | None = None
    """End-of-sequence tokens: any of them ends a sequence and stays in its output."""

    # Encoder-decoder models
    encoder_no_repeat_ngram_size: int | None = None
    """As no_repeat_ngram_size, against n-grams of the prompt. Default 0: off."""

    decoder_start_token_id: int | Sequence[int] | None = None
    """Start token of an encoder-decoder model's decoder."""

    # The drafter; see SpeculationConfig for the rest
    is_assistant: bool | None = None
    """Set by transformers on a drafter's own config."""

    num_assistant_tokens: int | None = None
    """Number of draft tokens per round at the start, at least 1; its schedule moves it."""

    num_assistant_tokens_schedule: Schedule | None = None
    """How that number moves after each round."""

    assistant_confidence_threshold: float | None = None
    """Drafting stops after a token whose draft probability is below this, in [0, 1]. 0 is off."""

    prompt_lookup_num_tokens: int | None = None
    """Draft by prompt lookup, with this many tokens per round."""

    max_matching_ngram_size: int | None = None
    """Longest n-gram that prompt lookup matches. Default 2."""

    assistant_early_exit: int | None = None
    """Layer after which the target model itself is used as drafter."""

    assistant_lookbehind: int | None = None
    """Tokens of a drafter with another tokenizer that are read again with its draft. Default 10."""

    target_lookbehind: int | None = None
    """Tokens that such a drafter reads again with those decided since. Default 10."""

    assistant_ensemble_weight: float | None = None
    """Weight of the drafter in lossy ensemble verification, in (0, 1)."""

    speculation_type: str | None = None
    """Name of a speculation method of transformers ("dflash")."""

    # Performance of transformers itself
    compile_config: CompileConfig | None = None
    """Options of torch.compile."""

    disable_compile: bool | None = None
    """Never compile."""

    continuous_batching_config: Mapping[str, object] | None = None
    """Options of transformers' own continuous batching."""

    # Algorithms that transformers moved out of the library
    low_memory: bool | None = None
    """Contrastive search with less memory."""

    penalty_alpha: float | None = None
    """Degeneration penalty of contrastive search."""

    dola_layers: Literal["low", "high"] | Sequence[int] | None = None
    """Layers that DoLa contrasts: a choice by name, or their indices."""

    diversity_penalty: float | None = None
    """What a token loses for each beam of an earlier group that says it in the same step."""

    num_beam_groups: int | None = None
    """Groups that `num_beams` are divided into, to differ by `diversity_penalty`. Default 1."""

    constraints: object | None = None
    """transformers' constraint objects; they cannot cross a wire, so any value is refused."""

    force_words_ids: Sequence[Sequence[int] | Sequence[Sequence[int]]] | None = None
    """Phrases that must appear; one with alternatives is a list of token-id lists."""

    # Who wrote it. Not part of comparisons.
    transformers_version: str | None = None
    """Release of transformers that wrote the configuration. Informative."""

    # Ours: fields that are explicitly unset
    clear_fields: Sequence[str] = ()
    """Names of fields that are unset on purpose, whatever the model's file says."""
