"""Plug-ins of the operator's, named by requests: transformers' results, exact, and contained."""

from __future__ import annotations

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import pytest
import torch
from outrider.v1 import generation_pb2 as pb
from outrider_client import Client, GenerationConfig, Plugin, PluginKind
from outrider_contract.errors import Reason
from outrider_runtime.errors import StartupError
from outrider_target.plugins import load_plugins
from outrider_target.requests.plugin_rules import MAX_PARAMETER_BYTES, MAX_PLUGINS
from service.asking import LOOKUP, PLAIN, Answer, ask, collect
from service.harness import Caller, RunningService, settings_for
from service.plugin_package import NAMES, installed
from service.refusals import refused
from service.tiny_folder import ids_of
from transformers import AutoModelForCausalLM

Plugins = dict[str, dict[str, Any]]

PROMPT = "abcabcabcabc"


@pytest.fixture(scope="module")
def packages(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with installed(tmp_path_factory.mktemp("packages")):
        yield


@pytest.fixture(scope="module")
def plugged(folder: Path, packages: None) -> Iterator[RunningService]:
    with RunningService(settings_for(folder, plugins=NAMES)) as running:
        yield running


@pytest.fixture
def caller(plugged: RunningService) -> Iterator[Caller]:
    with Caller(plugged.address) as connected:
        yield connected
        connected.wait_until_idle()


@pytest.fixture
def client(plugged: RunningService) -> Iterator[Client]:
    with Client(plugged.address) as connected:
        yield connected


def request(
    processors: Plugins | None = None, criteria: Plugins | None = None, **options: Any
) -> pb.GenerateRequest:
    message = ask(options.pop("prompt", PROMPT), **options)
    for name, parameters in (processors or {}).items():
        message.logits_processors.add(name=name, parameters=json.dumps(parameters))
    for name, parameters in (criteria or {}).items():
        message.stopping_criteria.add(name=name, parameters=json.dumps(parameters))
    return message


CASES: dict[str, tuple[Plugins, Plugins, dict[str, Any]]] = {
    "a processor": ({"alternate": {"by": 9.0}}, {}, {}),
    # In this order: after the ban, whose token comes back.
    "several in order": (
        {"alternate": {}, "insist": {"token_id": 77}},
        {},
        {"suppress_tokens": [77], "repetition_penalty": 1.3},
    ),
    "a criterion": ({}, {"digest": {"divisor": 7}}, {}),
    "both": ({"alternate": {"by": 2}}, {"digest": {"divisor": 5}}, {"no_repeat_ngram_size": 3}),
    "the example": ({"avoid": {"letters": "aeiou", "by": 30.0}}, {}, {}),
}


@pytest.mark.parametrize("name", CASES)
def test_greedy_tokens_are_those_of_transformers_with_the_same_functions(
    caller: Caller, plugged: RunningService, folder: Path, name: str
) -> None:
    processors, criteria, options = CASES[name]
    registry = {(plugin.kind, plugin.name): plugin for plugin in plugged.serving.plugins.plugins}
    context = _context(plugged)

    def made(kind: str, plugins: Plugins) -> list[Any]:
        by_name = {name: plugin for (k, name), plugin in registry.items() if k == kind}
        return [by_name[name].make(context, **given) for name, given in plugins.items()]

    length = len(PROMPT) + 1
    answer = collect(caller.open(request(processors, criteria, max_new_tokens=24, **options)))
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float64).eval()
    model.generation_config.cache_implementation = None
    expected = model.generate(
        torch.tensor([[1, *ids_of(PROMPT)]]),
        attention_mask=torch.ones(1, length, dtype=torch.long),
        do_sample=False,
        num_beams=1,
        max_new_tokens=24,
        eos_token_id=None,
        logits_processor=[
            lambda ids, scores, run=run: run(ids[0].tolist(), length, scores[0].float())[None]
            for run in made("logits_processors", processors)
        ],
        stopping_criteria=[
            lambda ids, scores, run=run: torch.tensor([run(ids[0].tolist(), length)])
            for run in made("stopping_criteria", criteria)
        ],
        **options,
    )
    assert answer.token_ids == expected[0, length:].tolist()
    if criteria:
        assert answer.finish_reasons == ["STOP"]
        assert answer.complete.sequences[0].matched_stopping_criterion == "digest"
    else:
        assert answer.finish_reasons == ["LENGTH"]
        assert not answer.complete.sequences[0].HasField("matched_stopping_criterion")


def _context(plugged: RunningService) -> Any:
    from outrider_runtime.plugins import PluginContext

    serving = plugged.serving
    return PluginContext(serving.model.vocab_size, (), serving.text.tokenizer)


@pytest.mark.parametrize("do_sample", [False, True], ids=["greedy", "sampled"])
def test_drafting_does_not_change_what_plugins_make_of_a_text_alone_or_in_company(
    caller: Caller, do_sample: bool
) -> None:
    def served(speculation: Any, *, at_once: int) -> list[Answer]:
        asked = [
            request(
                processors,
                criteria,
                seed=index,
                max_new_tokens=40,
                do_sample=do_sample,
                num_return_sequences=1 + do_sample,
                speculation=speculation,
                **{"temperature": 0.7, **options},
            )
            for index, (processors, criteria, options) in enumerate([*CASES.values(), ({}, {}, {})])
        ]
        with ThreadPoolExecutor(at_once) as threads:
            return list(threads.map(lambda message: collect(caller.open(message)), asked))

    plain = served(PLAIN, at_once=1)
    for drafted in (served(LOOKUP, at_once=1), served(LOOKUP, at_once=6)):
        for one, other in zip(plain, drafted, strict=True):
            assert [p.token_ids for p in one.parts] == [p.token_ids for p in other.parts]
            assert one.finish_reasons == other.finish_reasons
        statistics = [one.complete.speculation for one in drafted]
        assert sum(one.num_draft_tokens for one in statistics) > 0
        assert do_sample or sum(one.num_accepted_tokens for one in statistics) > 0


def test_a_form_holds_whatever_a_processor_does(caller: Caller) -> None:
    message = request({"insist": {"token_id": 77}}, max_new_tokens=9, speculation=LOOKUP)
    message.structured_output.token_choices.lists.add(ids=[6, 8, 10])
    assert collect(caller.open(message)).token_ids == [6, 8, 10]


def test_log_probabilities_are_those_after_the_plugins(client: Client) -> None:
    completion = client.generate(
        "ab",  # ends with an odd id, as does all that follows
        GenerationConfig(max_new_tokens=3, clear_fields=["eos_token_id"]),
        logits_processors=[Plugin("insist", {"token_id": 77})],
        log_probs=1,
    )
    assert completion.token_ids == [77, 77, 77]
    for known in completion.log_probs:
        assert known.processed == 0.0
        assert known.raw < -1.0


def test_the_client_names_plugins_and_the_server_lists_those_it_offers(client: Client) -> None:
    offered = {(one.kind, one.name): one.summary for one in client.server_info().plugins}
    assert {name for _, name in offered} == set(NAMES)
    assert (
        offered[PluginKind.LOGITS_PROCESSOR, "alternate"]
        == "Favours a token that depends on how many there are."
    )
    assert offered[PluginKind.LOGITS_PROCESSOR, "wrong-shape"] == ""
    assert (PluginKind.STOPPING_CRITERION, "fail-late") in offered
    completion = client.generate(
        PROMPT,
        GenerationConfig(max_new_tokens=60, clear_fields=["eos_token_id"]),
        logits_processors=["alternate"],
        stopping_criteria=[Plugin("digest", {"divisor": 2})],
    )
    assert completion.finish_reason == "stop"
    assert completion.sequences[0].matched_stopping_criterion == "digest"
    assert sum(completion.token_ids) % 2 == 0


def test_the_examples_sentences_end_a_text(client: Client) -> None:
    bias = [[[a, b], 1e6] for a, b in zip(ids_of("xa. "), ids_of("a. a"), strict=True)]
    completion = client.generate(
        "x",
        GenerationConfig(max_new_tokens=60, sequence_bias=bias, clear_fields=["eos_token_id"]),
        stopping_criteria=[Plugin("sentences", {"at_most": 3})],
    )
    assert completion.text == "a. a. a."


@pytest.mark.parametrize(
    ("processor", "parameters", "field"),
    [
        ("unknown", "{}", "name"),
        ("hidden", "{}", "name"),
        ("digest", "{}", "name"),  # of the other kind
        ("", "{}", "name"),
        ("x" * 100_000, "{}", "name"),
        ("insist", "", "parameters"),  # lacks one
        ("insist", '{"token_id": 5, "more": 1}', "parameters"),
        ("insist", '{"token_id": 5, "context": 1}', "parameters"),
        ("avoid", '{"letters": ""}', "parameters"),
        ("avoid", '{"letters": 5}', "parameters"),
        ("alternate", "{", "parameters"),
        ("alternate", "[]", "parameters"),
        ("alternate", '{"by": NaN}', "parameters"),
        ("alternate", "[" * 60_000, "parameters"),
        ("alternate", json.dumps({"by": "x" * MAX_PARAMETER_BYTES}), "parameters"),
    ],
    ids=lambda value: value[:30],
)
def test_what_is_not_offered_or_wrongly_used_is_refused_by_name(
    caller: Caller, processor: str, parameters: str, field: str
) -> None:
    message = ask(PROMPT)
    message.logits_processors.add(name="alternate")
    message.logits_processors.add(name=processor, parameters=parameters)
    got = refused(caller, message)
    assert got.code is grpc.StatusCode.INVALID_ARGUMENT
    assert got.field == f"logits_processors[1].{field}"


def test_too_many_are_refused(caller: Caller) -> None:
    for kind in ("logits_processors", "stopping_criteria"):
        message = ask(PROMPT)
        for _ in range(MAX_PLUGINS + 1):
            getattr(message, kind).add(name="fail-late", parameters='{"at": 99}')
        assert refused(caller, message).field == kind


@pytest.mark.parametrize(
    ("processors", "criteria"),
    [
        ({"fail-late": {"at": 3}}, {}),
        ({}, {"fail-late": {"at": 3}}),
        ({"fail-at-once": {}}, {}),
        ({"wrong-shape": {}}, {}),
        ({"nothing": {}}, {}),
    ],
    ids=str,
)
def test_one_that_fails_ends_its_request_alone_and_tells_no_secrets(
    caller: Caller, processors: Plugins, criteria: Plugins
) -> None:
    def outcome(message: pb.GenerateRequest) -> Any:
        try:
            return collect(caller.open(message)).token_ids
        except grpc.RpcError as error:
            return error

    good = request({"alternate": {}}, max_new_tokens=30, speculation=LOOKUP)
    bad = request(processors, criteria, max_new_tokens=30, speculation=LOOKUP)
    alone = outcome(good)
    with ThreadPoolExecutor(4) as threads:
        *others, error = threads.map(outcome, [good, good, good, bad])
    assert others == [alone] * 3
    assert len(alone) == 30
    assert error.code() is grpc.StatusCode.INTERNAL
    (name,) = [*processors, *criteria]
    assert f"plug-in {name!r} failed" in error.details()
    assert "secret" not in error.details()


def test_none_is_offered_unless_it_is_named(folder: Path, packages: None) -> None:
    assert load_plugins(()).plugins == ()
    assert [plugin.name for plugin in load_plugins(["fail-late"]).plugins] == ["fail-late"] * 2
    for name, says in (
        ("unheard-of", "no installed package offers it"),
        ("not-callable", "cannot be called"),
        ("not-there", "cannot load awkward_plugins:Missing"),
    ):
        with pytest.raises(StartupError, match=rf"--plugin {name}: .*{says}"):
            load_plugins([name])


def test_a_server_without_plugins_refuses_all(service: RunningService) -> None:
    with Caller(service.address) as caller:
        got = refused(caller, request({"alternate": {}}))
    assert (got.reason, got.field) == (Reason.UNSUPPORTED_FIELD, "logits_processors[0].name")
    assert "none is" in got.message
