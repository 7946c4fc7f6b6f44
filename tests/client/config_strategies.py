"""Random values for every field of GenerationConfig, valid ones and wrong ones. For hypothesis."""

from __future__ import annotations

from typing import Any

from hypothesis import strategies as st
from outrider_contract.json_values import shortest_float


def _floats(low: float, high: float, *, open_: bool = False) -> st.SearchStrategy[float]:
    """Numbers that have 32 bits on the wire and come back as they were written."""
    numbers = st.floats(low, high, width=32, exclude_min=open_, exclude_max=open_)
    return numbers.map(shortest_float)


_ID = st.integers(0, 2**32 - 1)
_IDS = st.lists(_ID, min_size=1, max_size=4)
_COUNT = st.integers(1, 1000)
_SIZE = st.integers(0, 1000)
_SHARE = _floats(0.0, 1.0)
_SHARE_INSIDE = _floats(0.0, 1.0, open_=True)
_POSITIVE = _floats(0.0, 1e6, open_=True)
_NUMBER = _floats(-1e6, 1e6)
_WORDS = st.text(st.characters(codec="utf-8"), min_size=1, max_size=8)
_JSON = st.dictionaries(_WORDS, st.booleans() | _SIZE | _WORDS, min_size=1, max_size=3)

VALID: dict[str, st.SearchStrategy[Any]] = {
    "max_length": _COUNT,
    "max_new_tokens": _COUNT,
    "min_length": _SIZE,
    "min_new_tokens": _SIZE,
    "early_stopping": st.booleans() | st.just("never"),
    "max_time": _POSITIVE,
    "stop_strings": st.lists(_WORDS, min_size=1, max_size=3),
    "do_sample": st.booleans(),
    "num_beams": st.integers(1, 4),
    "use_mtp": st.booleans(),
    "use_cache": st.booleans(),
    "cache_implementation": st.sampled_from(["static", "dynamic", "offloaded", "paged"]),
    "cache_config": _JSON,
    "return_legacy_cache": st.booleans(),
    "max_cache_len": _COUNT,
    "prefill_chunk_size": _COUNT,
    "temperature": _POSITIVE,
    "top_k": _SIZE,
    "top_p": _SHARE,
    "min_p": _SHARE,
    "top_h": _SHARE_INSIDE,
    "typical_p": _SHARE_INSIDE,
    "epsilon_cutoff": _SHARE_INSIDE,
    "eta_cutoff": _SHARE_INSIDE,
    "repetition_penalty": _POSITIVE,
    "encoder_repetition_penalty": _POSITIVE,
    "length_penalty": _NUMBER,
    "no_repeat_ngram_size": _SIZE,
    "bad_words_ids": st.lists(_IDS, min_size=1, max_size=3),
    "renormalize_logits": st.booleans(),
    "forced_bos_token_id": _ID,
    "forced_eos_token_id": _ID | st.lists(_ID, min_size=2, max_size=3),
    "remove_invalid_values": st.booleans(),
    "exponential_decay_length_penalty": st.tuples(_SIZE, _POSITIVE).map(list),
    "suppress_tokens": _IDS,
    "begin_suppress_tokens": _IDS,
    "sequence_bias": st.lists(
        st.tuples(_IDS, _NUMBER).map(list), min_size=1, max_size=3, unique_by=lambda e: tuple(e[0])
    ),
    "token_healing": st.booleans(),
    "guidance_scale": _NUMBER,
    "watermarking_config": st.fixed_dictionaries(
        {
            "greenlist_ratio": _SHARE_INSIDE,
            "bias": _NUMBER,
            "hashing_key": st.integers(0, 2**64 - 1),
            "seeding_scheme": st.sampled_from(["lefthash", "selfhash"]),
            "context_width": _COUNT,
        }
    ),
    "num_return_sequences": st.integers(1, 4),
    "output_attentions": st.booleans(),
    "output_hidden_states": st.booleans(),
    "output_scores": st.booleans(),
    "output_logits": st.booleans(),
    "return_dict_in_generate": st.booleans(),
    "pad_token_id": _ID,
    "bos_token_id": _ID,
    "eos_token_id": _ID | st.lists(_ID, min_size=2, max_size=3),
    "encoder_no_repeat_ngram_size": _SIZE,
    "decoder_start_token_id": _ID | st.lists(_ID, min_size=2, max_size=3),
    "is_assistant": st.booleans(),
    "num_assistant_tokens": _COUNT,
    "num_assistant_tokens_schedule": st.sampled_from(
        ["constant", "heuristic", "heuristic_transient", "auto"]
    ),
    "assistant_confidence_threshold": _SHARE,
    "prompt_lookup_num_tokens": _SIZE,
    "max_matching_ngram_size": _COUNT,
    "assistant_early_exit": _COUNT,
    "assistant_lookbehind": _SIZE,
    "target_lookbehind": _SIZE,
    "assistant_ensemble_weight": _SHARE_INSIDE,
    "speculation_type": st.just("dflash"),
    "compile_config": st.fixed_dictionaries({"fullgraph": st.booleans(), "mode": _WORDS}),
    "disable_compile": st.booleans(),
    "continuous_batching_config": _JSON,
    "low_memory": st.booleans(),
    "penalty_alpha": _SHARE,
    "dola_layers": st.sampled_from(["low", "high"]) | _IDS,
    "diversity_penalty": _NUMBER,
    "num_beam_groups": st.integers(1, 4),
    "force_words_ids": st.lists(_IDS | st.lists(_IDS, min_size=2, max_size=3), min_size=1),
    "transformers_version": _WORDS,
}
"""A strategy per field, in the shapes that JSON gives. `constraints` has no valid value."""

_NAN, _INFINITY = float("nan"), float("inf")

WRONG: dict[str, list[Any]] = {
    "max_length": [0, -1, 2**32, 1.5, True, "9"],
    "max_new_tokens": [0, -1, 2**32, 1.5, True, "9"],
    "min_length": [-1, 1.0],
    "min_new_tokens": [-1],
    "early_stopping": ["always", 1, 0.0],
    "max_time": [0.0, -1.0, _NAN, _INFINITY, "1"],
    "stop_strings": [[], "", ["a", ""], [5], "\ud800"],
    "do_sample": [1, "true"],
    "num_beams": [0, -1],
    "cache_implementation": ["bogus", 5],
    "cache_config": [[1], {"key": object()}, {"key": _NAN}],
    "max_cache_len": [0],
    "prefill_chunk_size": [0],
    "temperature": [0.0, -1.0, _NAN, _INFINITY, True, "1", 1e39],
    "top_k": [-1, 2.0],
    "top_p": [-0.1, 1.1, _NAN],
    "min_p": [-0.1, 1.1, _NAN],
    "top_h": [0.0, 1.1, _NAN],
    "typical_p": [0.0, 1.1, _NAN],
    "epsilon_cutoff": [-0.1, 1.0, _NAN],
    "eta_cutoff": [-0.1, 1.0, _NAN],
    "repetition_penalty": [0.0, -1.0, _NAN, _INFINITY],
    "encoder_repetition_penalty": [0.0, _NAN],
    "length_penalty": [_NAN, _INFINITY],
    "no_repeat_ngram_size": [-1],
    "bad_words_ids": [[], [[]], [[-1]], [1], 5],
    "forced_bos_token_id": [-1, [1]],
    "forced_eos_token_id": [-1, [2**32], 1.5],
    "exponential_decay_length_penalty": [[1], [1, 0.0], [1, _NAN], [-1, 1.5], [1.5, 1.5], 3],
    "suppress_tokens": [[-1], 5, [1.5]],
    "begin_suppress_tokens": [[-1], 5],
    "sequence_bias": [
        [],
        {},
        [[[], 1.0]],
        [[[1], _NAN]],
        [[[1], 1.0], [[1], 2.0]],
        [[[1]]],
        {"(1, 2)": 1.0},
    ],
    "guidance_scale": [_NAN, _INFINITY],
    "watermarking_config": [
        {"greenlist_ratio": 0.0},
        {"greenlist_ratio": 1.5},
        {"bias": _NAN},
        {"seeding_scheme": "bogus"},
        {"context_width": 0},
        {"unknown": 1},
        {"ngram_len": 5},
        {"ngram_len": 0, "keys": [1]},
        {"ngram_len": 5, "keys": [1], "sampling_table_size": 2**24 + 1},
        5,
    ],
    "num_return_sequences": [0, 2],
    "pad_token_id": [-2],
    "eos_token_id": [-1, [-1], 1.5, "</s>"],
    "num_assistant_tokens": [0, -1],
    "num_assistant_tokens_schedule": ["bogus", 5],
    "assistant_confidence_threshold": [-0.1, 1.1, _NAN],
    "prompt_lookup_num_tokens": [-1],
    "max_matching_ngram_size": [0],
    "assistant_early_exit": [0],
    "assistant_ensemble_weight": [0.0, 1.0, _NAN],
    "compile_config": [{"unknown": True}, "inductor"],
    "penalty_alpha": [-0.1, _NAN],
    "dola_layers": ["middle", [-1]],
    "diversity_penalty": [_NAN],
    "num_beam_groups": [0],
    "force_words_ids": [[], [[]], [[[]]], [[-1]], 5],
    "clear_fields": [["bogus"], "top_k", [5], ["clear_fields"]],
}
"""Values that each field refuses, on its own."""


def configs(*, without: tuple[str, ...] = ()) -> st.SearchStrategy[dict[str, Any]]:
    """Some fields with valid values each; together they may still contradict each other."""
    fields = {name: value for name, value in VALID.items() if name not in without}
    return st.lists(st.sampled_from(sorted(fields)), max_size=8, unique=True).flatmap(
        lambda names: st.fixed_dictionaries({name: fields[name] for name in names})
    )
