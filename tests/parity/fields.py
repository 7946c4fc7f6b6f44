"""Values of the fields of GenerationConfig, for hypothesis.

Token ids come mostly from texts that the model writes, so that what is asked for has something to
bite on: an end of sequence that comes, a phrase that is about to be completed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from hypothesis import strategies as st

LONGEST_OUTPUT = 12

Options = Mapping[str, Any]
"""Fields of GenerationConfig, in transformers' JSON form."""
Strategies = Mapping[str, st.SearchStrategy[Any]]
"""Values by field."""


class Text(NamedTuple):
    """A prompt, and what the model greedily makes of it."""

    prompt: Sequence[int]
    continuation: Sequence[int]
    pieces: Sequence[str]
    """Texts of some of its tokens."""


WATERMARKS: Sequence[Options] = (
    {"bias": 3.0},
    {"greenlist_ratio": 0.5, "bias": -2.0, "hashing_key": 17},
    {"bias": 3.0, "seeding_scheme": "selfhash", "context_width": 3},
    {"ngram_len": 3, "keys": [654, 400, 836, 123], "context_history_size": 2},
    {"ngram_len": 5, "keys": [17], "skip_first_ngram_calls": True},
)
DRAFTING: Strategies = {
    "num_assistant_tokens": st.integers(1, 9),
    "num_assistant_tokens_schedule": st.sampled_from(
        ["constant", "heuristic", "heuristic_transient"]
    ),
    "assistant_confidence_threshold": st.sampled_from([0.0, 0.4]),
    "prompt_lookup_num_tokens": st.integers(1, 8),
    "max_matching_ngram_size": st.integers(1, 4),
    "assistant_early_exit": st.just(1),
    "assistant_lookbehind": st.just(3),
    "target_lookbehind": st.just(3),
}
"""What concerns drafters alone."""
REPORTS: Strategies = {
    "output_scores": st.booleans(),
    "output_logits": st.booleans(),
    "output_hidden_states": st.booleans(),
    "output_attentions": st.booleans(),
    "return_dict_in_generate": st.booleans(),
}
"""What comes back beside the text."""
WITHOUT_EFFECT: Strategies = {
    "cache_implementation": st.sampled_from(["dynamic", "paged"]),
    "disable_compile": st.booleans(),
    "low_memory": st.booleans(),
    "transformers_version": st.just("4.57.0"),
}
NOT_TOLD = {*DRAFTING, *REPORTS, *WITHOUT_EFFECT}
"""What transformers is not told: some of it would make it another kind of generation."""


def floats(low: float, high: float) -> st.SearchStrategy[float]:
    """Numbers with few digits, which survive the 32 bits of the wire."""
    return st.integers(round(low * 1000), round(high * 1000)).map(lambda n: n / 1000)


class Fields:
    """Values of fields for one text."""

    def __init__(self, text: Text, vocab_size: int) -> None:
        familiar = st.sampled_from(sorted({*text.continuation, *text.prompt}))
        self._prompt_length = len(text.prompt)
        self._token = familiar | familiar | st.integers(0, vocab_size - 1)
        self._tokens = st.lists(self._token, min_size=1, max_size=4, unique=True)
        pairs = zip(text.continuation, text.continuation[1:], strict=False)
        self._phrases = st.lists(
            self._tokens.map(lambda tokens: tokens[:2]) | st.sampled_from(list(map(list, pairs))),
            min_size=1,
            max_size=3,
            unique_by=tuple,
        )
        self._stops = st.lists(
            st.sampled_from([*text.pieces, "th", "\n", "not to be found"]),
            min_size=1,
            max_size=2,
            unique=True,
        )

    def limits(self) -> Strategies:
        """One of them has to be."""
        length = st.integers(1, LONGEST_OUTPUT)
        return {
            "max_new_tokens": length,
            "max_length": length.map(lambda n: self._prompt_length + n),
        }

    def ends(self) -> Strategies:
        """What ends a text, and what keeps it from ending."""
        return {
            "eos_token_id": self._token | self._tokens,
            "forced_eos_token_id": self._token | self._tokens,
            "min_length": st.integers(0, self._prompt_length + 6),
            "min_new_tokens": st.integers(0, 6),
            "exponential_decay_length_penalty": st.tuples(st.integers(0, 6), floats(0.9, 1.6)),
            "stop_strings": self._stops,
        }

    def edits(self) -> Strategies:
        """What changes scores."""
        biased = self._phrases.flatmap(
            lambda phrases: st.tuples(*(st.tuples(st.just(p), floats(-8, 8)) for p in phrases))
        )
        return {
            "repetition_penalty": floats(0.7, 1.8),
            "encoder_repetition_penalty": floats(0.6, 2.0),
            "no_repeat_ngram_size": st.integers(0, 3),
            "encoder_no_repeat_ngram_size": st.integers(0, 3),
            "bad_words_ids": self._phrases,
            "sequence_bias": biased.map(lambda entries: [list(entry) for entry in entries]),
            "suppress_tokens": self._tokens,
            "begin_suppress_tokens": self._tokens,
            "forced_bos_token_id": self._token,
            "renormalize_logits": st.booleans(),
            "remove_invalid_values": st.booleans(),
            "watermarking_config": st.sampled_from(WATERMARKS),
        }

    def truncations(self) -> Strategies:
        """What concerns sampling; greedy decoding must not heed it."""
        return {
            "temperature": floats(0.2, 2.0),
            "top_k": st.sampled_from([0, 1, 2, 5, 20, 400]),
            "top_p": st.just(0.0) | floats(0.05, 0.999) | st.just(1.0),
            "min_p": st.just(0.0) | floats(0.001, 0.5),
            "top_h": floats(0.05, 0.98),
            "typical_p": floats(0.05, 0.98),
            "epsilon_cutoff": floats(0.001, 0.1),
            "eta_cutoff": floats(0.001, 0.1),
        }

    def several(self) -> Strategies:
        """More than one text."""
        return {"num_return_sequences": st.integers(1, 3)}

    def beams(self) -> Strategies:
        """What concerns beam search."""
        return {
            "early_stopping": st.sampled_from([False, True, "never"]),
            "length_penalty": floats(-1, 2),
            "num_return_sequences": st.integers(1, 4),
        }

    def quiet(self) -> Strategies:
        """What has no effect on the text."""
        return {
            "prefill_chunk_size": st.integers(1, 20),
            "pad_token_id": self._token,
            "bos_token_id": self._token,
            **REPORTS,
            **WITHOUT_EFFECT,
        }

    def drafting(self) -> Strategies:
        """What concerns drafters alone."""
        return DRAFTING


Group = Callable[[Fields], Strategies]
"""Fields that go together."""
