"""Which fields of GenerationConfig are served.

The one table: `GetServerInfo`, the validation and `docs/generation_config.md` all come from it. A
field is honoured with transformers' meaning, or refused by name unless it has a neutral value (one
that asks for nothing). Knows nothing of how a field is honoured.
"""

from __future__ import annotations

from enum import Enum
from typing import NamedTuple


class Support(Enum):
    """Whether a field is served."""

    HONOURED = "honoured"
    REFUSED = "refused"


class Capability(NamedTuple):
    """A line of the table.

    Attributes:
        support: Whether the field is served.
        note: The meaning here, or the reason for refusing.
        neutral: Values, in transformers' JSON form, that are accepted all the same.
    """

    support: Support
    note: str = ""
    neutral: tuple[object, ...] = ()


def _honoured(note: str = "") -> Capability:
    return Capability(Support.HONOURED, note)


def _refused(note: str, *neutral: object) -> Capability:
    return Capability(Support.REFUSED, note, neutral)


_ENCODER = "concerns encoder-decoder models; this service runs decoder-only models"
_TENSORS = (
    "as tensors, to requests that ask, not for a model's file; together at most the server's "
    "--max-tensor-bytes"
)

CAPABILITIES: dict[str, Capability] = {
    "max_length": _honoured("prompt plus output; `max_new_tokens` wins"),
    "max_new_tokens": _honoured("default 20, as in transformers"),
    "min_length": _honoured(),
    "min_new_tokens": _honoured(),
    "early_stopping": _honoured('true, false or "never", with num_beams'),
    "max_time": _honoured("from arrival; looked at once a round"),
    "stop_strings": _honoured("exact to the token, also inside an accepted draft"),
    "do_sample": _honoured("sampled with position-keyed noise: same seed, same text"),
    "num_beams": _honoured(
        "beam search, with speculation under prompt lookup, and beam sampling, seeded, without; "
        "not with log-probabilities or `output_*`"
    ),
    "use_mtp": _refused(
        "a model's prediction heads are no part of the model as transformers loads it; attach a "
        "draft service, or draft by prompt lookup",
        False,
    ),
    "use_cache": _refused(
        "keys and values are always cached; the text would be the same without, only later", True
    ),
    "cache_implementation": _honoured(
        "`dynamic`, `dynamic_full` and `paged` are what is here, so without effect; static, "
        "offloaded and quantized caches are refused, each for its reason"
    ),
    "cache_config": _refused(
        "configures a quantized cache; keys and values here have the model's own precision"
    ),
    "return_legacy_cache": _refused("a cache cannot be returned over the wire", False),
    "max_cache_len": _refused(
        "sizes a static cache; the one here grows with the text, see max_length"
    ),
    "prefill_chunk_size": _honoured(
        "most prompt tokens of the request fed in one round, within the server's "
        "--max-num-batched-tokens; without effect on the text"
    ),
    "temperature": _honoured(),
    "top_k": _honoured("default 50, as in transformers; 0 is off"),
    "top_p": _honoured(),
    "min_p": _honoured(),
    "top_h": _honoured(),
    "typical_p": _honoured(),
    "epsilon_cutoff": _honoured(),
    "eta_cutoff": _honoured(),
    "repetition_penalty": _honoured(),
    "encoder_repetition_penalty": _honoured("rewards the tokens of the prompt"),
    "length_penalty": _honoured("with num_beams"),
    "no_repeat_ngram_size": _honoured(),
    "bad_words_ids": _honoured(),
    "renormalize_logits": _honoured("without effect on the tokens: it changes no order"),
    "forced_bos_token_id": _honoured(),
    "forced_eos_token_id": _honoured(),
    "remove_invalid_values": _honoured(),
    "exponential_decay_length_penalty": _honoured(),
    "suppress_tokens": _honoured(),
    "begin_suppress_tokens": _honoured(),
    "sequence_bias": _honoured("in list form"),
    "token_healing": _honoured(
        "the last token of the stripped prompt is chosen again among those that begin with its "
        "text: the highest score, never sampled; the answer tells the prompt in use"
    ),
    "guidance_scale": _honoured(
        "other than 1: classifier-free guidance by the request's negative prompt, by default the "
        "last token of its prompt; takes a second place in the batch"
    ),
    "watermarking_config": _honoured(
        "green lists and SynthID, with the random numbers of transformers on CPU, whatever the "
        "device; not `debug_mode`"
    ),
    "num_return_sequences": _honoured(
        "more than one needs do_sample or num_beams; the prompt is shared"
    ),
    "output_attentions": _honoured(_TENSORS),
    "output_hidden_states": _honoured(_TENSORS),
    "output_scores": _honoured(_TENSORS),
    "output_logits": _honoured(_TENSORS),
    "return_dict_in_generate": _honoured("without meaning on the wire"),
    "pad_token_id": _honoured(
        "without effect, as nothing is padded here; but groups of beams are kept from saying it "
        "once another group is done"
    ),
    "bos_token_id": _honoured("without effect: prompts come with their own"),
    "eos_token_id": _honoured("any of the list ends a sequence"),
    "encoder_no_repeat_ngram_size": _honoured("concerns the n-grams of the prompt"),
    "decoder_start_token_id": _refused(_ENCODER),
    "is_assistant": _refused("set by transformers itself, on a drafter's own configuration", False),
    "num_assistant_tokens": _honoured("default: the server's --num-assistant-tokens"),
    "num_assistant_tokens_schedule": _honoured(
        "default: the server's --num-assistant-tokens-schedule; the state is the request's own"
    ),
    "assistant_confidence_threshold": _honoured(
        "each sequence moves its own, as in transformers with scikit-learn; "
        "default: the server's --assistant-confidence-threshold"
    ),
    "prompt_lookup_num_tokens": _honoured("drafts by prompt lookup, this many tokens a round"),
    "max_matching_ngram_size": _honoured("default 2"),
    "assistant_early_exit": _honoured(
        "drafts with so many of the target's own first layers; before prompt lookup, as in "
        "transformers"
    ),
    "assistant_lookbehind": _honoured(
        "tokens of a drafter with another tokenizer that are read again with its draft; default 10"
    ),
    "target_lookbehind": _honoured(
        "tokens that such a drafter reads again with those decided since; default 10"
    ),
    "assistant_ensemble_weight": _refused(
        "would let the drafter change the text, which nothing here does"
    ),
    "speculation_type": _refused(
        "names a kind of draft model that transformers attaches to a call; the drafters here are "
        "the server's, see `speculation.method`"
    ),
    "compile_config": _refused(
        "how the model runs is the server's to decide: others' requests are in the same forward"
    ),
    "disable_compile": _honoured(
        "without effect: how the model runs is the server's to decide; the text is the same"
    ),
    "continuous_batching_config": _refused(
        "the server's own flags set its batch; GetServerInfo tells them"
    ),
    "low_memory": _honoured("without effect: candidates share the cache of their context"),
    "penalty_alpha": _honoured(
        "contrastive search, with top_k of 2 or more and without sampling; nothing is drafted, "
        "as each token is compared with top_k - 1 others"
    ),
    "dola_layers": _honoured(
        "with any drafter; greedy and sampling; a repetition_penalty of 1.2 is advised"
    ),
    "diversity_penalty": _honoured("with num_beam_groups"),
    "num_beam_groups": _honoured(
        "group (diverse) beam search as in transformers 4.56; with diversity_penalty, without "
        "do_sample"
    ),
    "constraints": _refused("Python objects cannot cross the wire; see force_words_ids"),
    "force_words_ids": _honoured(
        "constrained beam search as in transformers 4.56; with num_beams, without do_sample and "
        "num_beam_groups"
    ),
    "transformers_version": _honoured("informative"),
}
"""By transformers' name, in the order of the contract."""
