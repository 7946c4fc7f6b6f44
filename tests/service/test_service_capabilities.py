"""Every field of GenerationConfig is honoured or refused by name: none is silently dropped."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import grpc
import pytest
from outrider.v1.speculation_pb2 import SpeculationConfig
from outrider_client import Client
from outrider_client import FieldSupport as Told
from outrider_contract.errors import Reason
from outrider_contract.generation_config import FIELD_NAMES, from_json_dict, is_set
from outrider_target.capabilities import CAPABILITIES, Support
from service.asking import ENDLESS, LOOKUP, Answer, Config, ask, collect, emitting
from service.harness import Caller
from service.refusals import refused
from service.tiny_folder import ids_of

UNSERVED = [name for name, line in CAPABILITIES.items() if line.support is not Support.HONOURED]
HONOURED = [name for name in CAPABILITIES if name not in UNSERVED]

ASKS_FOR_SOMETHING: dict[str, tuple[Any, ...]] = {
    # The values of fields that are no plain scalars; for those any value but the neutral will do.
    "early_stopping": (True, "never"),
    "cache_config": ({"backend": "quanto"}, {}),
    "continuous_batching_config": ({"block_size": 8}, {}),
    "compile_config": ({"fullgraph": True}, {}),
    "decoder_start_token_id": (0, [1, 2]),
    "constraints": ("anything", ""),
    "speculation_type": ("dflash", ""),
    "use_cache": (False,),
}


def values_asking_for_something(name: str) -> tuple[Any, ...]:
    """Values of a field that are not neutral."""
    if name in ASKS_FOR_SOMETHING:
        return ASKS_FOR_SOMETHING[name]
    candidates: tuple[Any, ...] = (True, 2, 0, 1.5)
    return tuple(v for v in candidates if fits(name, v) and v not in CAPABILITIES[name].neutral)


def fits(name: str, value: Any) -> bool:
    """Whether a field takes values of this type."""
    try:
        return is_set(from_json_dict({name: value}), name)
    except ValueError:
        return False


def no_and_one(name: str, value: Any) -> tuple[Config, Config]:
    """A configuration without the field, and one with it."""
    return {}, {name: value}


def test_the_table_has_every_field_of_the_contract_and_no_other() -> None:
    assert set(CAPABILITIES) == set(FIELD_NAMES)
    assert list(CAPABILITIES) == sorted(CAPABILITIES, key=FIELD_NAMES.index)


def test_the_server_tells_the_whole_table(client: Client) -> None:
    told = {line.field: (line.support, line.note) for line in client.server_info().capabilities}
    assert told == {
        name: (Told(line.support.value.replace(" ", "-")), line.note)
        for name, line in CAPABILITIES.items()
    }


def test_the_page_says_what_the_server_tells(client: Client) -> None:
    page = (Path(__file__).parents[2] / "docs" / "generation_config.md").read_text("utf-8")
    rows = [line.strip("| ").split(" | ") for line in page.splitlines() if line.startswith("| `")]
    written = {row[0].strip("`"): row[1:3] for row in rows}
    told = client.server_info().capabilities
    assert [each.field for each in told] == list(written)
    for each in told:
        support, *note = written[each.field]
        assert support.strip(" |").replace(" ", "-") == each.support
        assert "".join(note).strip(" |") == each.note


@pytest.mark.parametrize("name", UNSERVED)
def test_a_field_that_is_not_served_says_why(name: str) -> None:
    assert CAPABILITIES[name].note


@pytest.mark.parametrize("name", UNSERVED)
def test_a_field_that_is_not_served_is_refused_by_name_for_any_value_that_asks_for_something(
    caller: Caller, name: str
) -> None:
    values = values_asking_for_something(name)
    assert values
    for value in values:
        got = refused(caller, ask("abc", max_new_tokens=1, **{name: value}))
        assert got.code is grpc.StatusCode.INVALID_ARGUMENT
        assert got.reason == Reason.UNSUPPORTED_FIELD, value
        assert got.field == f"generation_config.{name}"
        assert CAPABILITIES[name].note in got.message


MODES: dict[str, Config] = {
    "sampling": {"do_sample": True, "num_return_sequences": 2},
    "contrastive search": {"penalty_alpha": 0.5, "top_k": 3},
    "DoLa": {"dola_layers": "low"},
    "guidance": {"guidance_scale": 2.0},
    "early exit": {"assistant_early_exit": 1},
    "token healing": {"token_healing": True},
}


@pytest.mark.parametrize("mode", MODES)
def test_no_mode_forgets_to_refuse(caller: Caller, mode: str) -> None:
    asked = {"max_new_tokens": 1, **MODES[mode]}
    collect(caller.open(ask("abc", **asked)))
    for name in UNSERVED:
        for value in values_asking_for_something(name):
            got = refused(caller, ask("abc", **{**asked, name: value}))
            assert got.code is grpc.StatusCode.INVALID_ARGUMENT
            assert got.field == f"generation_config.{name}", got.message
            assert CAPABILITIES[name].note in got.message


@pytest.mark.parametrize(
    ("name", "value"), [(name, value) for name in UNSERVED for value in CAPABILITIES[name].neutral]
)
def test_a_value_that_asks_for_nothing_is_taken_and_changes_nothing(
    caller: Caller, name: str, value: Any
) -> None:
    without, given = (
        collect(caller.open(ask("abc", max_new_tokens=6, **config)))
        for config in no_and_one(name, value)
    )
    assert given.token_ids == without.token_ids


@pytest.mark.parametrize("name", FIELD_NAMES)
def test_any_field_may_be_cleared(caller: Caller, name: str) -> None:
    limit: Config = {} if name == "max_new_tokens" else {"max_new_tokens": 20}
    request = ask("abcabcab", speculation=LOOKUP, clear=(*ENDLESS, name), **limit)
    answer = collect(caller.open(request))
    if name != "max_length":  # the limit in force is always told
        assert not is_set(answer.started.effective_config, name)
    assert len(answer.token_ids) == 20
    assert answer.complete.speculation.num_draft_tokens > 0


# --- each honoured field does something, or says that it does not

BASE: dict[str, Any] = {"max_new_tokens": 24, "seed": 3}
SAMPLED: dict[str, Any] = {**BASE, "do_sample": True, "temperature": 1.5, "top_k": 0}
CYCLE: dict[str, Any] = {**BASE, **emitting("abcd")}

Observe = Callable[[Answer], object]


def tokens(answer: Answer) -> object:
    return [part.token_ids for part in answer.parts]


def drafts(answer: Answer) -> object:
    return [
        (each.num_draft_tokens, each.num_accepted_tokens)
        for each in answer.complete.speculation.rounds
    ]


def tensors(answer: Answer) -> object:
    return [(tensor.kind, tensor.index) for part in answer.parts for tensor in part.tensors]


def beams(answer: Answer) -> object:
    return [(end.beam.score, list(end.beam.beam_indices)) for end in answer.complete.sequences]


CHANGES: dict[str, tuple[dict[str, Any], object, Observe]] = {
    # field: what is asked for beside it, its value, what must differ from the answer without it
    "max_length": ({}, 30, tokens),
    "max_new_tokens": ({}, 3, tokens),
    "min_length": ({**CYCLE, "eos_token_id": ids_of("d")[0]}, 20, tokens),
    "min_new_tokens": ({**CYCLE, "eos_token_id": ids_of("d")[0]}, 9, tokens),
    "max_time": ({"max_new_tokens": 300}, 0.02, lambda a: a.finish_reasons),
    "stop_strings": (CYCLE, ["cda"], lambda a: a.text),
    "do_sample": (BASE, True, tokens),
    "temperature": (SAMPLED, 0.2, tokens),
    "top_k": ({**SAMPLED, "temperature": 3.0}, 2, tokens),
    "top_p": (SAMPLED, 0.1, tokens),
    "min_p": (SAMPLED, 0.9, tokens),
    "top_h": (SAMPLED, 0.05, tokens),
    "typical_p": (SAMPLED, 0.05, tokens),
    "epsilon_cutoff": (SAMPLED, 0.2, tokens),
    "eta_cutoff": (SAMPLED, 0.9, tokens),
    "encoder_repetition_penalty": (BASE, 50.0, tokens),
    "repetition_penalty": (BASE, 5.0, tokens),
    "encoder_no_repeat_ngram_size": (CYCLE, 2, tokens),
    "no_repeat_ngram_size": (CYCLE, 2, tokens),
    "bad_words_ids": (CYCLE, [ids_of("bc")], tokens),
    "forced_bos_token_id": ({**BASE, "prompt": [9]}, 77, tokens),
    "forced_eos_token_id": (BASE, 77, tokens),
    "remove_invalid_values": (
        {**SAMPLED, "repetition_penalty": 1e-45, "prompt": "aaaa"},
        True,
        tokens,
    ),
    "exponential_decay_length_penalty": ({**BASE, "eos_token_id": 77}, [2, 90.0], tokens),
    "suppress_tokens": (BASE, list(range(3, 240)), tokens),
    "begin_suppress_tokens": (CYCLE, ids_of("a"), tokens),
    "sequence_bias": (BASE, [[[77], 1e6]], tokens),
    "token_healing": ({**BASE, "prompt": "abcd "}, True, tokens),
    "guidance_scale": (BASE, 3.0, tokens),
    "watermarking_config": (BASE, {"bias": 50.0}, tokens),
    "num_beams": (BASE, 3, beams),
    "early_stopping": (
        {**BASE, "num_beams": 3, "length_penalty": 3.0, "eos_token_id": list(range(3, 250, 4))},
        "never",
        beams,
    ),
    "num_beam_groups": ({**BASE, "num_beams": 4, "diversity_penalty": 2.0}, 2, beams),
    "diversity_penalty": ({**BASE, "num_beams": 4, "num_beam_groups": 2}, 2.0, beams),
    "force_words_ids": ({**BASE, "num_beams": 4}, [[77, 78], [[90], [91, 92]]], tokens),
    "length_penalty": ({**BASE, "num_beams": 3}, 2.0, beams),
    "num_return_sequences": (SAMPLED, 2, tokens),
    "output_attentions": (BASE, True, tensors),
    "output_hidden_states": (BASE, True, tensors),
    "output_scores": (BASE, True, tensors),
    "output_logits": (BASE, True, tensors),
    "dola_layers": (BASE, "high", tokens),
    "penalty_alpha": ({**BASE, "top_k": 4}, 0.9, tokens),
    "eos_token_id": (CYCLE, ids_of("c")[0], tokens),
    "num_assistant_tokens": (CYCLE, 2, drafts),
    "num_assistant_tokens_schedule": (CYCLE, "constant", drafts),
    "prompt_lookup_num_tokens": (CYCLE, 3, drafts),
    "assistant_early_exit": (
        {**BASE, "speculation": SpeculationConfig(), "assistant_confidence_threshold": 0.0},
        2,
        drafts,
    ),
    "max_matching_ngram_size": (
        # "d" is what followed "ab"; what followed "b" the last time was "e".
        {"prompt": "abd.cbe.ab", "max_new_tokens": 4, "sequence_bias": [[ids_of("abd"), 1e6]]},
        1,
        drafts,
    ),
}
NO_EFFECT = ("without effect", "without meaning", "nothing is compiled", "informative")
FOR_A_DRAFT_MODEL = ("assistant_confidence_threshold", "assistant_lookbehind", "target_lookbehind")
"""Nothing to be seen in a service without one."""


@pytest.mark.parametrize("name", HONOURED)
def test_an_honoured_field_changes_something_or_says_that_it_does_not(
    caller: Caller, name: str
) -> None:
    if name not in CHANGES:
        note = CAPABILITIES[name].note
        assert name in FOR_A_DRAFT_MODEL or any(words in note for words in NO_EFFECT), note
        return
    beside, value, observed = CHANGES[name]
    without, given = (
        outcome(caller, {**beside, **field}, observed) for field in no_and_one(name, value)
    )
    assert given != without
    assert not isinstance(given, grpc.StatusCode)


@pytest.mark.parametrize("name", [name for name in HONOURED if name not in CHANGES])
def test_an_honoured_field_without_effect_is_taken_and_comes_back(
    caller: Caller, name: str
) -> None:
    values = ("paged",) if name == "cache_implementation" else (False, 0.5, 3, "4.57.0")
    value = next(v for v in values if fits(name, v))
    without, given = (
        collect(caller.open(ask("abc", max_new_tokens=6, **config)))
        for config in no_and_one(name, value)
    )
    assert given.token_ids == without.token_ids
    assert is_set(given.started.effective_config, name)


def outcome(caller: Caller, config: dict[str, Any], observed: Observe) -> object:
    """What is to be seen of a request, or the status it fails with."""
    config = dict(config)
    speculation = config.pop("speculation", LOOKUP)
    request = ask(config.pop("prompt", "abcd"), speculation=speculation, **config)
    request.speculation.report_rounds = True
    try:
        return observed(collect(caller.open(request)))
    except grpc.RpcError as error:
        failed: Any = error
        return failed.code()
