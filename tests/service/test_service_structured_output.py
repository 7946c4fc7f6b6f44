"""Texts with a form, over the wire: they have it, and speculation does not change them."""

from __future__ import annotations

import dataclasses
import itertools
import json
import random
import re
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
import jsonschema
import pytest
from outrider.v1 import generation_pb2 as pb
from outrider.v1 import speculation_pb2
from outrider.v1.generation_config_pb2 import TokenIdLists, TokenIds
from outrider.v1.structured_output_pb2 import ChoiceList, StructuredOutput
from outrider_client import Client, GenerationConfig, SpeculationConfig
from outrider_client import StructuredOutput as Form
from outrider_target.constraints.grammar import INSTALL
from service.asking import LOOKUP, PLAIN, Answer, ask, collect
from service.harness import Caller, RunningService
from service.refusals import refused
from service.tiny_folder import EOS, VOCAB_SIZE, ids_of

FORCED = speculation_pb2.SpeculationConfig(method=speculation_pb2.DRAFT_METHOD_GRAMMAR)
EOS_ON = {"clear": (), "eos_token_id": EOS}
COMPACT = {"x-guidance": {"whitespace_flexible": False}}


def random_schema(chance: random.Random, depth: int = 2) -> dict[str, Any]:
    kinds = ["integer", "boolean", "enum", "string", "null"] + ["object", "array"] * (depth > 0)
    match chance.choice(kinds):
        case "integer":
            low = chance.randint(-50, 50)
            return {"type": "integer", "minimum": low, "maximum": low + chance.randint(0, 500)}
        case "enum":
            return {"enum": chance.sample(["red", "green", 'qu"ote', 7, None, "é"], 3)}
        case "string":
            return {"type": "string", "pattern": f"^[a-d]{{{chance.randint(0, 2)},4}}$"}
        case "object":
            names = chance.sample(["a", "bb", "c c", "d"], chance.randint(0, 3))
            return {
                "type": "object",
                "properties": {name: random_schema(chance, depth - 1) for name in names},
                "required": names,
                "additionalProperties": False,
            }
        case "array":
            items = random_schema(chance, depth - 1)
            return {"type": "array", "items": items, "maxItems": chance.randint(0, 3)}
        case kind:
            return {"type": kind}


def random_regex(chance: random.Random, depth: int = 3) -> str:
    if depth == 0:
        return chance.choice(["a", "b", "[a-c]", "x\\.y", "[0-9]", "é"])
    one, other = random_regex(chance, depth - 1), random_regex(chance, depth - 1)
    return chance.choice([one + other, f"({one}|{other})", f"({one}){{1,3}}", f"({one})?{other}"])


def random_grammar(chance: random.Random) -> tuple[str, str]:
    """A grammar whose rules use those behind them, and a regular expression that says the same."""
    regexes: list[str] = []
    rules: list[str] = []
    for number in range(chance.randint(2, 5)):
        used = [f"r{i}" for i in range(number)][-2:]
        known = dict(zip([f"r{i}" for i in range(number)], regexes, strict=True))
        known |= {'"ab"': "ab", '"x.y"': r"x\.y", "/[0-9]{1,2}/": "[0-9]{1,2}", '"é"': "é"}
        parts = [*used, *chance.sample(['"ab"', '"x.y"', "/[0-9]{1,2}/", '"é"'], 2)]
        chance.shuffle(parts)
        form = chance.choice(["{0} {1}", "{0} | {1} {2}", "{0}? {1}", "({0} | {1}) {2}"])
        parts = (parts * 2)[:3]
        rules.append(f"r{number}: " + form.format(*parts))
        plain = form.replace(" | ", "|").replace(" ", "")
        regexes.append("(?:" + plain.format(*(f"(?:{known[part]})" for part in parts)) + ")")
    return "\n".join([*rules, f"start: r{len(rules) - 1}"]), regexes[-1]


def few_or_many(few: int, many: int) -> pytest.MarkDecorator:
    """How many random forms to try."""
    slow = [pytest.mark.slow, pytest.mark.timeout(900)]
    return pytest.mark.parametrize("count", [few, pytest.param(many, marks=slow)])


def both_ways(
    caller: Caller, form: StructuredOutput, prompt: str, seed: int, **config: Any
) -> tuple[Answer, int]:
    """The answer, the same plain and drafted, and the number of draft tokens verified."""
    answers = []
    for speculation in (PLAIN, LOOKUP, FORCED):
        request = ask(prompt, seed=seed, speculation=speculation, **config)
        request.structured_output.CopyFrom(form)
        answers.append(collect(caller.open(request)))
    plain, drafted, forced = answers
    assert plain.complete.speculation.num_draft_tokens == 0
    for answer in (drafted, forced):
        for one, other in zip(plain.parts, answer.parts, strict=True):
            assert (one.token_ids, one.text) == (other.token_ids, other.text)
        assert plain.finish_reasons == answer.finish_reasons
    for share in forced.complete.speculation.drafters:
        assert share.method == speculation_pb2.DRAFT_METHOD_GRAMMAR
        assert share.num_accepted_tokens == share.num_draft_tokens
    return plain, drafted.complete.speculation.num_draft_tokens


@few_or_many(30, 250)
@pytest.mark.parametrize("do_sample", [False, True])
def test_json_fits_its_random_schema_and_speculation_does_not_change_it(
    caller: Caller, do_sample: bool, count: int
) -> None:
    chance = random.Random(2 * count + do_sample)
    num_drafted = num_complete = 0
    for seed in range(count):
        schema = random_schema(chance)
        form = StructuredOutput(json_schema=json.dumps(schema | COMPACT))
        prompt = '[{"a":1,"bb":true,"c c":"abcd","d":null},false,"red","green",0]' * 2
        answer, drafted = both_ways(
            caller, form, prompt, seed, max_new_tokens=200, do_sample=do_sample, **EOS_ON
        )
        num_drafted += drafted
        if answer.finish_reasons == ["STOP"]:
            num_complete += 1
            jsonschema.validate(json.loads(answer.text), schema)
    assert num_complete > count * 2 / 3
    assert num_drafted > 0


@few_or_many(10, 100)
def test_a_text_matches_its_random_grammar(caller: Caller, count: int) -> None:
    chance = random.Random(count)
    num_drafted = num_complete = 0
    for seed in range(count):
        grammar, regex = random_grammar(chance)
        config = {"max_new_tokens": 100, "do_sample": seed % 2 == 0, **EOS_ON}
        form = StructuredOutput(grammar=grammar)
        answer, drafted = both_ways(caller, form, "ab42x.yé" * 4, seed, **config)
        num_drafted += drafted
        if answer.finish_reasons == ["STOP"]:
            num_complete += 1
            assert re.fullmatch(regex, answer.text), (grammar, answer.text)
    assert num_complete > count / 2
    assert num_drafted > 0


@few_or_many(25, 200)
@pytest.mark.parametrize("ends", [EOS_ON, {}], ids=["eos", "no eos"])
def test_a_text_matches_its_random_regex(caller: Caller, ends: dict[str, Any], count: int) -> None:
    chance = random.Random(count)
    num_drafted = 0
    for seed in range(count):
        regex = random_regex(chance)
        answer, drafted = both_ways(
            caller,
            StructuredOutput(regex=regex),
            "abcabcx.yx.y0123é" * 2,
            seed,
            max_new_tokens=100,
            do_sample=seed % 2 == 0,
            num_return_sequences=1 + (seed % 2 == 0),
            **ends,
        )
        num_drafted += drafted
        for part, reason in zip(answer.parts, answer.finish_reasons, strict=True):
            assert reason == "STOP"
            assert re.fullmatch(regex, part.text), regex
    assert num_drafted > 0


def test_draft_windows_run_past_the_end_at_every_offset(caller: Caller) -> None:
    """The prompt repeats the text and goes on; the form ends in the middle of the draft."""
    num_drafted = 0
    for length in range(1, 13):
        word = "abcdefghijkl"[:length]
        lists = TokenIdLists(lists=[TokenIds(ids=ids_of(word))])
        forms = (
            StructuredOutput(choices=ChoiceList(values=[word])),
            StructuredOutput(token_choices=lists),
        )
        for ends, form in itertools.product((EOS_ON, {}), forms):
            answer, drafted = both_ways(
                caller, form, "abcdefghijklmnop " * 3, 0, max_new_tokens=40, **ends
            )
            num_drafted += drafted
            assert answer.text == word
            assert answer.finish_reasons == ["STOP"]
            assert (answer.token_ids[-1] == EOS) == bool(ends)
    assert num_drafted > 100


def test_what_the_form_forces_is_drafted_unless_plain_decoding_is_asked_for(caller: Caller) -> None:
    def accepted(speculation: speculation_pb2.SpeculationConfig | None) -> dict[int, int]:
        request = ask("a", max_new_tokens=40, speculation=speculation)
        request.structured_output.regex = "the target decides[0-9] what is [rw]"
        answer = collect(caller.open(request))
        assert re.fullmatch("the target decides[0-9] what is [rw]", answer.text)
        return {d.method: d.num_accepted_tokens for d in answer.complete.speculation.drafters}

    grammar = speculation_pb2.DRAFT_METHOD_GRAMMAR
    most = len("the target decides") + len(" what is ")
    for speculation in (None, FORCED, speculation_pb2.SpeculationConfig(enabled=True)):
        found = accepted(speculation)
        # A round's own token may be one that was forced, too.
        assert most / 2 < found.pop(grammar) <= most
        assert not found
    assert accepted(LOOKUP)[grammar] > most / 2
    assert not accepted(PLAIN)
    assert not accepted(speculation_pb2.SpeculationConfig(method=speculation_pb2.DRAFT_METHOD_NONE))


def test_an_earlier_ban_of_all_that_the_form_allows_gives_way(caller: Caller) -> None:
    form = StructuredOutput(choices=ChoiceList(values=["no"]))
    answer, _ = both_ways(caller, form, "a", 0, max_new_tokens=9, min_new_tokens=6, **EOS_ON)
    assert answer.text == "no"  # min_new_tokens bans the end, which is all that may follow


HOSTILE = {
    "syntax": Form(regex="a(b"),
    "look-ahead": Form(regex="(?=a)b"),
    "long regex": Form(regex="a" * 3000),
    "costly regex": Form(regex="(.|.)*" * 341),
    "parentheses": Form(regex="(" * 1000 + ")" * 1000),
    "no JSON": Form(json_schema="{"),
    "unknown type": Form(json_schema={"type": "foo"}),
    "deep": Form(json_schema='{"items":' * 1600 + "{}" + "}" * 1600),
    "remote": Form(json_schema={"$ref": "https://127.0.0.1:1/x"}),
    "endless": Form(json_schema={"$ref": "#"}),
    "nothing": Form(json_schema={"enum": []}),
    "multiple": Form(json_schema={"type": "integer", "multipleOf": 999983}),
    "multiples": Form(
        json_schema={"allOf": [{"type": "integer", "multipleOf": n} for n in (97, 89, 83)]}
    ),
    "patterns": Form(json_schema={"patternProperties": {"a" * 3000: {}}}),
    "large": Form(json_schema={"enum": [f"value {i}" for i in range(5000)]}),
    "unknown rule": Form(grammar="start: foo"),
    "embedded": Form(grammar='start: %json {"type": "integer"}'),
    "many": Form(choices=["x" * 100] * 500),
    "too many tokens": Form(token_choices=[[5] * 70_000]),
    "unknown token": Form(token_choices=[[5, VOCAB_SIZE]]),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_form_is_refused_at_once_by_name(caller: Caller, name: str) -> None:
    message = HOSTILE[name].to_message()
    request = ask(max_new_tokens=400)
    request.structured_output.CopyFrom(message)
    began = time.monotonic()
    call = caller.open(request)
    with pytest.raises(grpc.RpcError) as caught:
        list(call)  # what is costly only further on may begin
    assert time.monotonic() - began < 20
    error: Any = caught.value
    assert error.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert error.details().startswith(f"structured_output.{message.WhichOneof('form')}: ")


def test_no_form_at_all_is_refused(caller: Caller) -> None:
    request = ask()
    request.structured_output.SetInParent()
    assert refused(caller, request).field == "structured_output"


def test_without_llguidance_one_is_told_how_to_install_it(
    service: RunningService, caller: Caller, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(service.serving.grammars, "_vocabulary", None)
    monkeypatch.setitem(sys.modules, "llguidance", None)
    request = ask()
    request.structured_output.regex = "a"
    refusal = refused(caller, request)
    assert refusal.field == "structured_output"
    assert INSTALL in refusal.message


def test_without_a_tokenizer_it_is_refused(
    service: RunningService, caller: Caller, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = dataclasses.replace(service.serving.model, has_tokenizer=False)
    monkeypatch.setattr(service.serving, "model", model)
    request = ask([5, 6], max_new_tokens=5)
    request.structured_output.regex = "a"
    assert "tokenizer" in refused(caller, request).message
    request.structured_output.token_choices.lists.add(ids=[7, 8])
    assert collect(caller.open(request)).token_ids == [7, 8]


def test_free_and_bound_requests_in_one_batch_do_not_touch_each_other(client: Client) -> None:
    forms = [None, Form(regex="[a-f]{30}"), None, Form(choices=["abcabcabcabc", "bca"])]
    config = GenerationConfig(max_new_tokens=40, do_sample=True)
    speculation = SpeculationConfig(method="prompt-lookup")

    def generate(index: int) -> tuple[list[int], int]:
        done = client.generate(
            "abcabcabc", config, seed=index, speculation=speculation, structured_output=forms[index]
        )
        return done.token_ids, done.speculation.num_draft_tokens

    alone = [generate(index) for index in range(len(forms))]
    with ThreadPoolExecutor(len(forms)) as threads:
        together = list(threads.map(generate, range(len(forms))))
    assert [one for one, _ in together] == [one for one, _ in alone]
    assert sum(drafted for _, drafted in together) > 0


def test_a_cancelled_request_leaks_nothing(service: RunningService, caller: Caller) -> None:
    request = ask("abc" * 5, max_new_tokens=200, speculation=LOOKUP)
    request.structured_output.regex = "[a-c]*"
    with service.gate.held(after=3):
        call = caller.open(request)
        service.gate.wait_until_held()
        call.cancel()
    caller.wait_until_idle()
    assert len(service.requests) == 0


def test_the_field_is_a_message_of_the_contract() -> None:
    assert pb.GenerateRequest.DESCRIPTOR.fields_by_name["structured_output"].number == 8
