"""Every rule a request can break: refused with the field's name, just outside and not just inside.

After each the server serves on.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import grpc
import pytest
from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message import Message
from outrider.v1 import generation_pb2 as pb
from outrider.v1 import speculation_pb2
from outrider.v1.generation_config_pb2 import GenerationConfig
from outrider_contract.errors import Reason
from outrider_runtime.watermarks import MAX_KEYS, MAX_NGRAM_LEN, MAX_TABLE_SIZE
from outrider_target.requests.field_rules import MAX_PHRASE_TOKENS, MAX_STOP_STRINGS
from outrider_target.requests.speculation_rules import MAX_DRAFT_TIMEOUT_MS, MAX_FAN_OUT, MAX_WINDOW
from outrider_target.requests.validation import MAX_STOP_STRING_LENGTH
from outrider_target.serving.text import MAX_TEXT_LENGTH
from service.asking import LOOKUP, Config, ask, collect
from service.harness import PATIENCE, Caller
from service.refusals import refusal, refused
from service.tiny_folder import MAX_MODEL_LEN, TOKENIZER_SIZE, VOCAB_SIZE, ids_of

INVALID = grpc.StatusCode.INVALID_ARGUMENT
MAX_UINT32 = 2**32 - 1
TINY = 2.0**-40


@pytest.fixture(autouse=True)
def healthy_afterwards(caller: Caller) -> Iterator[None]:
    """A normal request is served as if nothing had been."""
    yield
    assert len(collect(caller.open(ask("abc", max_new_tokens=2))).token_ids) == 2


def check(
    caller: Caller, request: pb.GenerateRequest, field: str, reason: Reason = Reason.INVALID_FIELD
) -> str:
    """The request is refused because of the field; gives the message."""
    got = refused(caller, request)
    assert (got.code, got.reason, got.field) == (INVALID, reason, field), got.message
    return got.message


def served(caller: Caller, request: pb.GenerateRequest) -> None:
    """The request is taken; what becomes of it is nothing to this file."""
    call = caller.open(request)
    assert next(call).chunk.HasField("started")
    call.cancel()


# --- the prompt


def test_a_request_without_a_prompt_is_refused(caller: Caller) -> None:
    check(caller, pb.GenerateRequest(), "prompt")


@pytest.mark.parametrize(("prompt", "field"), [("", "text"), ([], "token_ids")])
def test_an_empty_prompt_is_refused(caller: Caller, prompt: Any, field: str) -> None:
    check(caller, ask(prompt), field, Reason.EMPTY_PROMPT)


@pytest.mark.parametrize("token_id", [VOCAB_SIZE, 2**31, MAX_UINT32])
def test_a_prompt_outside_the_vocabulary_is_refused(caller: Caller, token_id: int) -> None:
    message = check(caller, ask([5, token_id]), "token_ids")
    assert str(token_id) in message
    served(caller, ask([5, VOCAB_SIZE - 1], max_new_tokens=1))


@pytest.mark.parametrize(
    ("prompt", "field"), [([5] * MAX_MODEL_LEN, "token_ids"), ("a" * (MAX_MODEL_LEN - 1), "text")]
)
def test_a_prompt_that_leaves_no_room_is_refused(caller: Caller, prompt: Any, field: str) -> None:
    message = check(caller, ask(prompt, max_new_tokens=1), field, Reason.PROMPT_TOO_LONG)
    assert str(MAX_MODEL_LEN) in message
    served(caller, ask(prompt[1:], max_new_tokens=1))


def test_a_million_token_ids_are_refused_by_their_number(caller: Caller) -> None:
    check(caller, ask([5] * 1_000_000), "token_ids", Reason.PROMPT_TOO_LONG)


def test_text_is_refused_by_its_length_before_it_is_tokenized(caller: Caller) -> None:
    message = check(caller, ask("a" * (MAX_TEXT_LENGTH + 1)), "text")
    assert str(MAX_TEXT_LENGTH) in message


@pytest.mark.parametrize("text", ["\0", "\0" * 100, "\N{REPLACEMENT CHARACTER}", "\u2028\u202e"])
def test_any_text_that_is_unicode_is_served(caller: Caller, text: str) -> None:
    served(caller, ask(text, max_new_tokens=1))


# --- names


@pytest.mark.parametrize("request_id", ["a" * 129, "a\nb", "a\x1b[31m", "ä", "a\0", "\u202e"])
def test_a_request_id_that_could_forge_a_log_line_is_refused(
    caller: Caller, request_id: str
) -> None:
    check(caller, ask(request_id=request_id), "request_id")


@pytest.mark.parametrize("request_id", ["a" * 128, "spaces are fine", "{}[]<>'\"\\"])
def test_any_other_request_id_is_taken(caller: Caller, request_id: str) -> None:
    served(caller, ask(request_id=request_id, max_new_tokens=1))


# --- numbers that are none


def float_paths(descriptor: Descriptor, path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """Every float and double field of a message and of those inside."""
    for field in descriptor.fields:
        if field.message_type is not None:
            yield from float_paths(field.message_type, (*path, field.name))
        elif field.type in (FieldDescriptor.TYPE_FLOAT, FieldDescriptor.TYPE_DOUBLE):
            yield (*path, field.name)


def set_at(message: Message, path: tuple[str, ...], value: float) -> None:
    """Set a field inside a message; of a repeated message an entry is added."""
    for name in path[:-1]:
        part = getattr(message, name)
        message = part.add() if hasattr(part, "add") else part
    setattr(message, path[-1], value)


FLOATS = [
    *(("generation_config", *path) for path in float_paths(GenerationConfig.DESCRIPTOR)),
    *(("speculation", *path) for path in float_paths(speculation_pb2.SpeculationConfig.DESCRIPTOR)),
]


def test_the_float_fields_are_found() -> None:
    names = {path[-1] for path in FLOATS}
    assert {"temperature", "max_time", "bias", "decay_factor", "draft_temperature"} <= names
    assert len(FLOATS) > 20


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("path", FLOATS, ids=".".join)
def test_no_number_may_be_nan_or_infinite(
    caller: Caller, path: tuple[str, ...], value: float
) -> None:
    request = ask("abc", max_new_tokens=1)
    set_at(request, path, value)
    check(caller, request, ".".join(path))


# --- ranges

RANGES: dict[str, tuple[tuple[Any, ...], tuple[Any, ...]]] = {
    # field: (refused, accepted), both as near the border as the type allows
    "max_length": ((0, MAX_MODEL_LEN + 1, MAX_UINT32), (5, MAX_MODEL_LEN)),
    "max_new_tokens": ((0, MAX_MODEL_LEN - 3, MAX_UINT32), (1, MAX_MODEL_LEN - 4)),
    "max_time": ((0.0, -1.0), (TINY, 1e300)),
    "temperature": ((0.0, -TINY, -1.0, 1e-45, 1e-31), (1e-30, 1e-3, 3e38)),
    "top_p": ((-TINY, 1 + 1e-6, 2.0), (0.0, TINY, 1.0)),
    "min_p": ((-TINY, 1 + 1e-6), (0.0, 1.0)),
    "top_h": ((0.0, -TINY, 1 + 1e-6), (TINY, 1.0)),
    "typical_p": ((0.0, -TINY, 1 + 1e-6), (TINY, 1.0)),
    "epsilon_cutoff": ((-TINY, 1.0), (0.0, 1 - 1e-6)),
    "eta_cutoff": ((-TINY, 1.0), (0.0, 1 - 1e-6)),
    "repetition_penalty": ((0.0, -TINY), (TINY, 3e38)),
    "encoder_repetition_penalty": ((0.0, -TINY), (TINY, 3e38)),
    "encoder_no_repeat_ngram_size": ((), (0, 1, MAX_UINT32)),
    # The model has three layers.
    "assistant_early_exit": ((0, 3, MAX_UINT32), (1, 2)),
    # The last is what the others are contrasted with.
    "dola_layers": (([], [3], [0, 3], [MAX_UINT32], "middle"), ("low", "high", [0], [0, 2, 2])),
    "prefill_chunk_size": ((0,), (1, MAX_UINT32)),
    "num_return_sequences": ((0, 9, MAX_UINT32), (1, 8)),
    "num_assistant_tokens": ((0,), (1, MAX_UINT32)),
    "assistant_confidence_threshold": ((-TINY, 1 + 1e-6), (0.0, 1.0)),
    "prompt_lookup_num_tokens": ((0,), (1, MAX_UINT32)),
    "max_matching_ngram_size": ((0,), (1, MAX_UINT32)),
    "assistant_lookbehind": ((257, MAX_UINT32), (0, 1, 256)),
    "target_lookbehind": ((257, MAX_UINT32), (0, 1, 256)),
    "num_assistant_tokens_schedule": (
        ("", "linear", "Constant"),
        ("constant", "heuristic", "heuristic_transient", "auto"),
    ),
    "exponential_decay_length_penalty": (([0, -TINY],), ([0, 0.0], [MAX_UINT32, 3e38], [0, 3e38])),
    "top_k": ((), (0, 1, VOCAB_SIZE + 1, MAX_UINT32)),
    "no_repeat_ngram_size": ((), (0, 1, MAX_UINT32)),
    "min_length": ((25, MAX_UINT32), (0, 24)),
    "min_new_tokens": ((21, MAX_UINT32), (0, 20)),
}
PROMPT = "abc"  # 4 tokens; 20 may follow where nothing else is said


def in_ranges(column: int) -> list[tuple[str, Any]]:
    return [(field, value) for field, row in RANGES.items() for value in row[column]]


@pytest.mark.parametrize(("field", "value"), in_ranges(0))
def test_just_outside_its_range_a_value_is_refused(caller: Caller, field: str, value: Any) -> None:
    too_long = field in ("max_length", "max_new_tokens") and value != 0
    reason = Reason.PROMPT_TOO_LONG if too_long else Reason.INVALID_FIELD
    request = ask(PROMPT, do_sample=True, **{field: value})
    check(caller, request, f"generation_config.{field}", reason)


@pytest.mark.parametrize(("field", "value"), in_ranges(1))
def test_just_inside_its_range_a_value_is_served(caller: Caller, field: str, value: Any) -> None:
    config: Config = {"do_sample": True, "max_time": 0.5, field: value}
    answer = collect(caller.open(ask(PROMPT, speculation=LOOKUP, **config)))
    assert set(answer.finish_reasons) <= {"LENGTH", "TIME"}


SYNTHID: Config = {"ngram_len": 5, "keys": [1, 2]}
WATERMARK_RANGES: dict[str, tuple[tuple[Config, ...], tuple[Config, ...]]] = {
    # option: (refused, accepted), both as near the border as the type allows
    "greenlist_ratio": (
        ({"greenlist_ratio": 0.0}, {"greenlist_ratio": -TINY}, {"greenlist_ratio": 1.0}),
        ({"greenlist_ratio": TINY}, {"greenlist_ratio": 1 - 1e-6}),
    ),
    "bias": ((), ({"bias": -3e38}, {"bias": 3e38}, {"bias": 0.0})),
    "hashing_key": (
        ({"seeding_scheme": "selfhash", "hashing_key": 2**63},),
        (
            {"hashing_key": 2**64 - 1},
            {"hashing_key": 0},
            {"seeding_scheme": "selfhash", "hashing_key": 2**63 - 1},
        ),
    ),
    "seeding_scheme": (
        ({"seeding_scheme": ""}, {"seeding_scheme": "Lefthash"}, {"seeding_scheme": "x" * 99999}),
        ({"seeding_scheme": "lefthash"}, {"seeding_scheme": "selfhash"}),
    ),
    "context_width": (
        ({"context_width": 0},),
        (
            {"context_width": 1},
            {"context_width": MAX_UINT32},
            {"context_width": MAX_UINT32, "seeding_scheme": "selfhash"},
            {"context_width": 4, "seeding_scheme": "selfhash"},
        ),
    ),
    "ngram_len": (
        ({"keys": [1]}, {**SYNTHID, "ngram_len": 0}, {**SYNTHID, "ngram_len": MAX_NGRAM_LEN + 1}),
        ({**SYNTHID, "ngram_len": 1}, {**SYNTHID, "ngram_len": MAX_NGRAM_LEN}),
    ),
    "keys": (
        (
            {"ngram_len": 5},
            {**SYNTHID, "keys": []},
            {**SYNTHID, "keys": [1] * (MAX_KEYS + 1)},
            {**SYNTHID, "keys": [1] * 100_000},
            {**SYNTHID, "keys": [1, 2**63]},
        ),
        ({**SYNTHID, "keys": [0]}, {**SYNTHID, "keys": [2**63 - 1] * MAX_KEYS}),
    ),
    "context_history_size": (
        (),
        (
            {**SYNTHID, "context_history_size": 0},
            {**SYNTHID, "context_history_size": MAX_UINT32},
        ),
    ),
    "sampling_table_seed": ((), ({**SYNTHID, "sampling_table_seed": 2**64 - 1},)),
    "sampling_table_size": (
        (
            {**SYNTHID, "sampling_table_size": 0},
            {**SYNTHID, "sampling_table_size": MAX_TABLE_SIZE + 1},
            {**SYNTHID, "sampling_table_size": MAX_UINT32},
        ),
        ({**SYNTHID, "sampling_table_size": 1}, {**SYNTHID, "sampling_table_size": MAX_TABLE_SIZE}),
    ),
    "skip_first_ngram_calls": ((), ({**SYNTHID, "skip_first_ngram_calls": True},)),
    "debug_mode": ((), ({**SYNTHID, "debug_mode": False},)),
}


@pytest.mark.parametrize(
    ("option", "mark"), [(name, mark) for name, row in WATERMARK_RANGES.items() for mark in row[0]]
)
def test_outside_its_range_an_option_of_a_watermark_is_refused(
    caller: Caller, option: str, mark: Config
) -> None:
    request = ask(PROMPT, watermarking_config=mark)
    check(caller, request, f"generation_config.watermarking_config.{option}")


@pytest.mark.parametrize(
    "mark", [mark for row in WATERMARK_RANGES.values() for mark in row[1]], ids=str
)
@pytest.mark.parametrize("sample", [False, True], ids=["greedy", "sampled"])
def test_inside_its_range_an_option_of_a_watermark_gives_the_same_tokens_drafted_and_plainly(
    caller: Caller, mark: Config, sample: bool
) -> None:
    drafted, plain = (
        collect(
            caller.open(
                ask(
                    "abcabcab", seed=1, max_new_tokens=16, do_sample=sample, speculation=how,
                    watermarking_config=mark,
                )
            )
        )
        for how in (LOOKUP, speculation_pb2.SpeculationConfig(enabled=False))
    )  # fmt: skip
    assert drafted.token_ids == plain.token_ids
    assert drafted.complete.speculation.num_draft_tokens > 0


def test_every_option_of_a_watermark_has_its_range() -> None:
    config = GenerationConfig()
    kinds = (config.greenlist_watermarking_config, config.synthid_watermarking_config)
    options = {field.name for kind in kinds for field in kind.DESCRIPTOR.fields}
    assert options == set(WATERMARK_RANGES)


def test_the_debugging_aid_of_synthid_is_refused_as_not_served(caller: Caller) -> None:
    request = ask(PROMPT, watermarking_config={**SYNTHID, "debug_mode": True})
    field = "generation_config.watermarking_config.debug_mode"
    check(caller, request, field, Reason.UNSUPPORTED_FIELD)


SPECULATION_RANGES: dict[str, tuple[tuple[Any, ...], tuple[Any, ...]]] = {
    "max_assistant_tokens": ((0, MAX_WINDOW + 1, MAX_UINT32), (1, MAX_WINDOW)),
    "run_ahead": ((MAX_WINDOW + 1, MAX_UINT32), (0, MAX_WINDOW)),
    "draft_tree_rows": ((MAX_WINDOW + 1, MAX_UINT32), (0, MAX_WINDOW)),
    "draft_fan_out": ((0, MAX_FAN_OUT + 1, MAX_UINT32), (1, MAX_FAN_OUT)),
    "draft_timeout_ms": ((MAX_DRAFT_TIMEOUT_MS + 1, MAX_UINT32), (0, MAX_DRAFT_TIMEOUT_MS)),
    "draft_temperature": ((0.0, -1.0), (TINY, 3e38)),
    "method": ((9, 99, -1), (0, 1, 2, 3, 4, 6, 7)),
    "verification": ((3, 99, -1), (0, 1, 2)),
    "pacing": ((3, 99, -1), (0, 1, 2)),
}


@pytest.mark.parametrize(
    ("field", "value"), [(f, v) for f, row in SPECULATION_RANGES.items() for v in row[0]]
)
def test_outside_its_range_a_value_about_speculation_is_refused(
    caller: Caller, field: str, value: Any
) -> None:
    speculation = speculation_pb2.SpeculationConfig(**{field: value})
    check(caller, ask(PROMPT, speculation=speculation), f"speculation.{field}")


@pytest.mark.parametrize(
    ("field", "value"), [(f, v) for f, row in SPECULATION_RANGES.items() for v in row[1]]
)
def test_inside_its_range_a_value_about_speculation_is_served(
    caller: Caller, field: str, value: Any
) -> None:
    speculation = speculation_pb2.SpeculationConfig(**{field: value})
    answer = collect(caller.open(ask(PROMPT, max_new_tokens=3, speculation=speculation)))
    assert len(answer.token_ids) == 3


@pytest.mark.parametrize("do_sample", [True, False])
def test_drafts_are_accepted_by_ratio_where_that_is_asked_and_something_is_sampled(
    caller: Caller, do_sample: bool
) -> None:
    speculation = speculation_pb2.SpeculationConfig(
        method=speculation_pb2.DRAFT_METHOD_COMBINED,
        verification=speculation_pb2.VERIFICATION_SPECULATIVE_SAMPLING,
        draft_fan_out=4,
    )
    request = ask(PROMPT, max_new_tokens=3, do_sample=do_sample, speculation=speculation)
    in_force = collect(caller.open(request)).started.effective_speculation
    if do_sample:
        assert in_force.verification == speculation_pb2.VERIFICATION_SPECULATIVE_SAMPLING
        assert in_force.method == speculation_pb2.DRAFT_METHOD_REMOTE
        assert in_force.draft_fan_out == 1
    else:
        assert in_force.verification == speculation_pb2.VERIFICATION_EXACT
        assert in_force.method == speculation_pb2.DRAFT_METHOD_COMBINED
        assert in_force.draft_fan_out == 4


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("static", Reason.UNSUPPORTED_FIELD),
        ("hybrid", Reason.UNSUPPORTED_FIELD),
        ("offloaded", Reason.UNSUPPORTED_FIELD),
        ("offloaded_static", Reason.UNSUPPORTED_FIELD),
        ("quantized", Reason.UNSUPPORTED_FIELD),
        ("Dynamic", Reason.INVALID_FIELD),
        ("", Reason.INVALID_FIELD),
        ("x" * 99_999, Reason.INVALID_FIELD),
    ],
)
def test_a_cache_that_is_not_here_is_refused_for_its_own_reason(
    caller: Caller, name: str, reason: Reason
) -> None:
    request = ask(PROMPT, cache_implementation=name)
    check(caller, request, "generation_config.cache_implementation", reason)


@pytest.mark.parametrize("name", ["dynamic", "dynamic_full", "paged"])
def test_a_name_for_the_cache_that_is_here_is_taken(caller: Caller, name: str) -> None:
    answer = collect(caller.open(ask(PROMPT, max_new_tokens=2, cache_implementation=name)))
    assert answer.started.effective_config.cache_implementation == name


# --- token ids

ID_FIELDS: Config = {
    "suppress_tokens": [5, ...],
    "begin_suppress_tokens": [5, ...],
    "forced_bos_token_id": ...,
    "forced_eos_token_id": [5, ...],
    "eos_token_id": [5, ...],
    "bad_words_ids": [[5], [5, ...]],
    "sequence_bias": [[[5, ...], 1.0]],
}


def filled(shape: Any, token_id: int) -> Any:
    """A value with the token id where its shape has dots."""
    if isinstance(shape, list):
        return [filled(item, token_id) for item in shape]
    return token_id if shape is ... else shape


@pytest.mark.parametrize("token_id", [VOCAB_SIZE, MAX_UINT32])
@pytest.mark.parametrize("field", ID_FIELDS)
def test_a_token_id_outside_the_vocabulary_is_refused_wherever_it_stands(
    caller: Caller, field: str, token_id: int
) -> None:
    request = ask(PROMPT, **{field: filled(ID_FIELDS[field], token_id)})
    message = check(caller, request, f"generation_config.{field}")
    assert str(token_id) in message


@pytest.mark.parametrize("field", ID_FIELDS)
def test_the_last_token_id_of_the_vocabulary_is_served(caller: Caller, field: str) -> None:
    served(caller, ask(PROMPT, **{field: filled(ID_FIELDS[field], VOCAB_SIZE - 1)}))


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("bad_words_ids", []),
        ("bad_words_ids", [[]]),
        ("bad_words_ids", [[5], []]),
        ("sequence_bias", []),
        ("sequence_bias", [[[], 1.0]]),
    ],
)
def test_an_empty_phrase_is_refused(caller: Caller, field: str, value: Any) -> None:
    check(caller, ask(PROMPT, **{field: value}), f"generation_config.{field}")


def test_a_phrase_biased_twice_is_refused(caller: Caller) -> None:
    twice = [[[5, 6], 1.0], [[5], 1.0], [[5, 6], 2.0]]
    check(caller, ask(PROMPT, sequence_bias=twice), "generation_config.sequence_bias")


@pytest.mark.parametrize("token_id", [TOKENIZER_SIZE, MAX_UINT32])
def test_only_ids_of_the_tokenizer_become_text(caller: Caller, token_id: int) -> None:
    request = pb.DetokenizeRequest(token_ids=[5, token_id])
    got = refusal(lambda: caller.stub.Detokenize(request, timeout=PATIENCE))
    assert (got.code, got.field) == (INVALID, "token_ids")
    assert str(token_id) in got.message


def test_no_text_beyond_the_limit_becomes_ids(caller: Caller) -> None:
    request = pb.TokenizeRequest(text="a" * (MAX_TEXT_LENGTH + 1))
    got = refusal(lambda: caller.stub.Tokenize(request, timeout=PATIENCE))
    assert (got.code, got.field) == (INVALID, "text")


# --- what contradicts itself


@pytest.mark.parametrize(
    ("config", "field"),
    [
        ({"max_length": 4}, "max_length"),  # the prompt alone
        ({"max_length": 2}, "max_length"),
        ({"max_new_tokens": 5, "min_length": 10}, "min_length"),
        ({"max_new_tokens": 5, "min_new_tokens": 6}, "min_new_tokens"),
        ({"max_length": 8, "min_new_tokens": 5}, "min_new_tokens"),
        ({"num_return_sequences": 2}, "num_return_sequences"),
        ({"num_return_sequences": 9, "do_sample": True}, "num_return_sequences"),
        ({"forced_bos_token_id": 7, "suppress_tokens": [7]}, "forced_bos_token_id"),
        ({"forced_eos_token_id": [7], "suppress_tokens": [7]}, "forced_eos_token_id"),
        ({"suppress_tokens": list(range(VOCAB_SIZE))}, "suppress_tokens"),
    ],
    ids=str,
)
def test_options_that_contradict_each_other_are_refused(
    caller: Caller, config: Config, field: str
) -> None:
    check(caller, ask(PROMPT, **config), f"generation_config.{field}")


def test_max_new_tokens_wins_over_max_length(caller: Caller) -> None:
    answer = collect(caller.open(ask(PROMPT, max_new_tokens=3, max_length=1)))
    assert len(answer.token_ids) == 3


def test_a_drafter_named_by_a_request_that_wants_none_is_refused(caller: Caller) -> None:
    speculation = speculation_pb2.SpeculationConfig(
        enabled=False, method=speculation_pb2.DRAFT_METHOD_REMOTE
    )
    check(caller, ask(PROMPT, speculation=speculation), "speculation.method")


@pytest.mark.parametrize(
    "names", [["temperatur"], ["top_p", ""], ["clear_fields"], ["early_stopping_mode"], ["\0" * 99]]
)
def test_clearing_an_unknown_field_is_refused(caller: Caller, names: list[str]) -> None:
    check(caller, ask(PROMPT, clear=names), "generation_config.clear_fields")


def test_clearing_a_field_that_is_set_is_refused(caller: Caller) -> None:
    request = ask(PROMPT, top_k=5)
    request.generation_config.clear_fields.append("top_k")
    check(caller, request, "generation_config.clear_fields")


# --- too much of a good thing


@pytest.mark.parametrize(
    "strings",
    [
        ["a"] * (MAX_STOP_STRINGS + 1),
        [f"stop {i}" for i in range(100_000)],
        ["a" * (MAX_STOP_STRING_LENGTH + 1)],
        ["a" * 1_000_000],
        [""],
        ["a", ""],
    ],
    ids=["one too many", "100000", "one too long", "1 MB", "empty", "one empty"],
)
def test_stop_strings_without_bounds_are_refused(caller: Caller, strings: list[str]) -> None:
    check(caller, ask(PROMPT, stop_strings=strings), "generation_config.stop_strings")


def test_stop_strings_at_their_bounds_are_served(caller: Caller) -> None:
    strings = [f"{i:{MAX_STOP_STRING_LENGTH}}" for i in range(MAX_STOP_STRINGS)]
    answer = collect(caller.open(ask("a" * 900, max_new_tokens=5, stop_strings=strings)))
    assert len(answer.token_ids) == 5


@pytest.mark.parametrize(
    "config",
    [
        {"clear": ["x" * 2_000_000]},
        {"clear": ["x"] * 500_000},
        {"num_assistant_tokens_schedule": "x" * 2_000_000},
        {"num_assistant_tokens_schedule": "\N{PILE OF POO}" * 5000},
    ],
    ids=["one long name", "many names", "a long word", "a word that grows in headers"],
)
def test_what_is_sent_never_makes_the_refusal_too_long_to_send(
    caller: Caller, config: dict[str, Any]
) -> None:
    assert refused(caller, ask(PROMPT, **config)).code is INVALID


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("bad_words_ids", [[5, 6]] * (MAX_PHRASE_TOKENS + 1)),
        ("bad_words_ids", [[5] * 100] * (MAX_PHRASE_TOKENS // 100 + 1)),
        ("sequence_bias", [[[5, 6], 1.0]] * (MAX_PHRASE_TOKENS + 1)),
        ("force_words_ids", [[5, 6]] * (MAX_PHRASE_TOKENS + 1)),
        ("suppress_tokens", [5] * (VOCAB_SIZE + 1)),
        ("begin_suppress_tokens", [5] * (VOCAB_SIZE + 1)),
        ("eos_token_id", [5] * (VOCAB_SIZE + 1)),
        ("forced_eos_token_id", [5] * (VOCAB_SIZE + 1)),
    ],
    ids=lambda value: value if isinstance(value, str) else f"{len(value)}",
)
def test_no_list_is_so_long_that_everybody_would_wait_for_it(
    caller: Caller, field: str, value: Any
) -> None:
    check(caller, ask(PROMPT, max_new_tokens=2, **{field: value}), f"generation_config.{field}")


def test_phrases_at_their_bound_are_served(caller: Caller) -> None:
    words = [[5 + i % 200, 6 + i // 200] for i in range(MAX_PHRASE_TOKENS // 2)]
    answer = collect(caller.open(ask(PROMPT, max_new_tokens=3, bad_words_ids=words)))
    assert len(answer.token_ids) == 3


# --- JSON inside


@pytest.mark.parametrize("field", ["cache_config", "continuous_batching_config"])
@pytest.mark.parametrize("text", ["{}", "", "{", "[]", "null", "[" * 100_000, "NaN"])
def test_json_text_is_refused_whether_it_is_json_or_not(
    caller: Caller, field: str, text: str
) -> None:
    request = ask(PROMPT)
    setattr(request.generation_config, field, text)
    got = refused(caller, request)
    assert (got.code, got.field) == (INVALID, f"generation_config.{field}")


# --- extremes that are legal


@pytest.mark.parametrize(
    "config",
    [
        {"temperature": 1e-30},
        {"temperature": 3e38},
        {"repetition_penalty": 3e38},
        {"sequence_bias": [[[5], 1e38], [[6], -1e38]]},
        {"exponential_decay_length_penalty": [0, 3e38], "eos_token_id": [0]},
        {"typical_p": 1e-30, "top_p": 0.0, "top_k": 1, "min_p": 1.0, "eta_cutoff": 0.999},
        {"no_repeat_ngram_size": 1},
        {"bad_words_ids": [[i] for i in range(VOCAB_SIZE - 1)]},
        {"suppress_tokens": list(range(1, VOCAB_SIZE))},
    ],
    ids=str,
)
@pytest.mark.parametrize("sample", [False, True], ids=["greedy", "sampled"])
def test_extreme_but_legal_options_give_the_same_tokens_drafted_and_plainly(
    caller: Caller, config: Config, sample: bool
) -> None:
    drafted, plain = (
        collect(
            caller.open(
                ask(
                    "abcabcab", seed=1, max_new_tokens=16, do_sample=sample, speculation=how,
                    **config,
                )
            )
        )
        for how in (LOOKUP, speculation_pb2.SpeculationConfig(enabled=False))
    )  # fmt: skip
    assert drafted.token_ids == plain.token_ids
    assert drafted.complete.speculation.num_draft_tokens > 0


@pytest.mark.parametrize(
    "config",
    [
        {"repetition_penalty": 1e-45, "do_sample": True},
        {"bad_words_ids": [[i] for i in range(VOCAB_SIZE)]},
        {"no_repeat_ngram_size": 1, "suppress_tokens": [*range(100), *range(130, VOCAB_SIZE)]},
    ],
    ids=["infinite scores", "every word is bad", "every word was said"],
)
def test_options_that_leave_nothing_to_choose_from_are_the_callers_error(
    caller: Caller, config: Config
) -> None:
    call = caller.open(ask(ids_of("abcabc"), max_new_tokens=100, **config))
    with pytest.raises(grpc.RpcError) as caught:
        list(call)
    error: Any = caught.value
    assert error.code() is INVALID
    assert "generation_config" in error.details()
