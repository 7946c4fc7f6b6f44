"""docs/limits.md: its flags are the commands', its numbers the code's, its refusals real ones."""

from __future__ import annotations

import asyncio
import dataclasses
import re
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

import grpc
import pytest
import typer
from outrider.v1 import generation_pb2 as pb
from outrider.v1 import speculation_pb2
from outrider.v1.plugins_pb2 import PluginCall
from outrider.v1.structured_output_pb2 import StructuredOutput
from outrider_contract.metadata import MAX_REQUEST_ID_LENGTH
from outrider_draft import __main__ as draft_command
from outrider_draft.frames import MAX_UPDATES_PER_FRAME
from outrider_runtime import server, watermarks
from outrider_runtime.server import ServerSettings
from outrider_target import __main__ as target_command
from outrider_target.constraints import grammar
from outrider_target.requests import (
    field_rules,
    forced_phrases_rules,
    plugin_rules,
    score_validation,
    sharing,
    speculation_rules,
    structured_output_rules,
    validation,
)
from outrider_target.serving import text
from outrider_target.settings import BatchSettings
from service.asking import ask
from service.harness import PATIENCE, Caller, RunningService, settings_for
from service.refusals import Refusal, refusal
from service.tiny_folder import MAX_MODEL_LEN, VOCAB_SIZE

PAGE = Path(__file__).resolve().parents[2] / "docs" / "limits.md"
COMMANDS = {"Target": target_command.app, "Draft": draft_command.app}
REFUSES_NOTHING = {
    "--max-num-batched-tokens": "longer prompts are read in parts",
    "--max-assistant-tokens": "longer drafts are not asked for",
    "--max-matching-ngram-size": "longer matches are not looked for",
    "--draft-timeout-ms": "a drafter is waited for no longer",
    "--kv-cache-bytes": "--kv-cache-tokens in another unit",
}


class Row(NamedTuple):
    """A line of a table."""

    what: str
    at_most: str
    flag: str
    status: str
    reason: str = ""

    @property
    def number(self) -> int | None:
        """The first number in what there may be at most."""
        found = re.match(r"[\d,]+", self.at_most)
        return None if found is None else int(found[0].replace(",", ""))


def rows(service: str) -> dict[str, Row]:
    section = PAGE.read_text().partition(f"\n## {service} service\n")[2].partition("\n## ")[0]
    lines = [line for line in section.splitlines() if line.startswith("| ")][1:]
    found = [Row(*(cell.strip(" `") for cell in line.strip("|").split("|"))) for line in lines]
    assert len({row.what for row in found}) == len(found)
    return {row.what: row for row in found}


def flags(service: str) -> dict[str, Any]:
    """Defaults of a command's flags."""
    parameters = typer.main.get_command(COMMANDS[service]).params
    return {each.opts[0]: each.default for each in parameters}


# --- flags


@pytest.mark.parametrize("service", COMMANDS)
def test_a_flag_is_there_with_the_default_that_the_table_tells(service: str) -> None:
    defaults = flags(service)
    for row in rows(service).values():
        if not row.flag:
            continue
        default = defaults[row.flag]
        if row.flag == "--kv-cache-tokens" and default is None:
            sequences = defaults["--max-num-seqs"]
            assert row.at_most == f"{sequences} sequences of 2,048 tokens"
        elif default is None:
            assert row.number is None, row
        else:
            assert row.number == default, row


@pytest.mark.parametrize("service", COMMANDS)
def test_every_flag_that_bounds_something_is_in_the_table(service: str) -> None:
    bounds = {
        flag
        for flag in flags(service)
        if re.match(r"--max-|--kv-cache|.*-timeout|.*-per-", flag) or flag == "--max-num-seqs"
    }
    if service == "Draft":
        bounds -= {"--max-num-seqs"}  # sessions in a step: the others have the next one
    told = {row.flag for row in rows(service).values()}
    assert bounds - REFUSES_NOTHING.keys() <= told
    assert not told & REFUSES_NOTHING.keys()


# --- numbers

SIZES = structured_output_rules.MAX_BYTES
CONSTANTS: dict[str, float] = {
    "a message": server._MAX_MESSAGE_BYTES,
    "metadata of a call": dict(server._OPTIONS)["grpc.max_metadata_size"],
    "request_id": MAX_REQUEST_ID_LENGTH,
    "text": text.MAX_TEXT_LENGTH,
    "stop_strings": field_rules.MAX_STOP_STRINGS,
    "one of `stop_strings": validation.MAX_STOP_STRING_LENGTH,
    "bad_words_ids": field_rules.MAX_PHRASE_TOKENS,
    "sequence_bias": field_rules.MAX_PHRASE_TOKENS,
    "force_words_ids": forced_phrases_rules.MAX_FORCED_TOKENS,
    **{f"structured_output.{form}": size for form, size in SIZES.items()},
    "structured_output.token_choices": structured_output_rules.MAX_TOKEN_CHOICES,
    "patterns of a JSON Schema": structured_output_rules._MAX_PATTERN_BYTES,
    "time to compile a form": grammar._MAX_SECONDS,
    "wait for others' forms to compile": grammar._MAX_SECONDS,
    "log_probs.num_top": validation.MAX_TOP_LOG_PROBS,
    "numbers in an answer of `Score": score_validation.MAX_SCORED,
    "watermarking_config.keys": watermarks.MAX_KEYS,
    "assistant_lookbehind`, `target_lookbehind": field_rules.MAX_LOOKBEHIND,
    "speculation.cache_salt": sharing.MAX_SALT_BYTES,
    "speculation.max_assistant_tokens": speculation_rules.MAX_WINDOW,
    "speculation.draft_fan_out": speculation_rules.MAX_FAN_OUT,
    "speculation.draft_timeout_ms": speculation_rules.MAX_DRAFT_TIMEOUT_MS,
    "logits_processors`, and as many `stopping_criteria": plugin_rules.MAX_PLUGINS,
    "parameters of a plug-in": plugin_rules.MAX_PARAMETER_BYTES,
}


def test_what_has_no_flag_is_the_constant_of_the_code() -> None:
    told = {row.what: row.number for row in rows("Target").values() if not row.flag}
    assert {what: number for what, number in told.items() if number is not None} == CONSTANTS
    words = {row.at_most for row in rows("Target").values() if row.number is None and not row.flag}
    assert words == {"the vocabulary", "its deadline"}
    assert rows("Draft")["a message"].number == server._MAX_MESSAGE_BYTES
    assert rows("Draft")["updates in a frame"].number == MAX_UPDATES_PER_FRAME
    (streams,) = [value for name, value in server._OPTIONS if name.endswith("concurrent_streams")]
    assert f"carries {streams:,} calls" in PAGE.read_text()


# --- refusals

BATCH = BatchSettings(
    max_num_seqs=4,
    max_waiting_requests=1,
    max_tensor_bytes=1_000_000,
    max_tokens_per_minute_per_caller=2000,
)
MOST_STREAMS = 3


@pytest.fixture(scope="module")
def bounded(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningService]:
    keys = tmp_path_factory.mktemp("limits") / "keys"
    names = ("anna", "bert", "carl")
    keys.write_text("".join(f"{name} the-secret-key-of-{name}\n" for name in names))
    settings = settings_for(
        folder,
        server=ServerSettings(
            api_keys_file=keys, grace_seconds=PATIENCE, max_streams_per_caller=MOST_STREAMS
        ),
        batch=BATCH,
    )
    model = dataclasses.replace(settings.model, kv_cache_tokens=2048)
    with RunningService(dataclasses.replace(settings, model=model)) as service:
        yield service


class Sender:
    """A caller with a key, who asks for too much."""

    def __init__(
        self, service: RunningService, caller: Caller, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        self.service = service
        self.monkeypatch = monkeypatch
        self._stub: Any = caller.stub

    def options(self, name: str = "anna", **options: Any) -> dict[str, Any]:
        metadata = (("authorization", f"Bearer the-secret-key-of-{name}"),)
        return {"timeout": PATIENCE, "metadata": metadata, **options}

    def open(self, request: pb.GenerateRequest, name: str = "anna", **options: Any) -> Any:
        return self._stub.Generate(request, **self.options(name, **options))

    def generate(self, request: pb.GenerateRequest, name: str = "anna", **options: Any) -> Refusal:
        def read() -> None:
            for _ in self.open(request, name, **options):
                pass

        return refusal(read)

    def score(self, request: pb.ScoreRequest) -> Refusal:
        return refusal(lambda: self._stub.Score(request, **self.options()))


Send = Callable[[Sender], Refusal]


def asking(prompt: Any = (9, 9, 9), **config: Any) -> Send:
    return lambda sender: sender.generate(ask(list(prompt), **({"max_new_tokens": 4} | config)))


def speculating(**fields: Any) -> Send:
    return asking(speculation=speculation_pb2.SpeculationConfig(**fields))


def formed(**form: Any) -> Send:
    request = ask("abc", max_new_tokens=4)
    request.structured_output.CopyFrom(StructuredOutput(**form))
    return lambda sender: sender.generate(request)


def choosing(*token_lists: list[int]) -> Send:
    request = ask("abc", max_new_tokens=4)
    for token_ids in token_lists:
        request.structured_output.token_choices.lists.add(ids=token_ids)
    return lambda sender: sender.generate(request)


def plugged(*calls: PluginCall) -> Send:
    request = ask("abc", max_new_tokens=4)
    request.logits_processors.extend(calls)
    return lambda sender: sender.generate(request)


def scored(sender: Sender) -> Refusal:
    request = pb.ScoreRequest()
    request.log_probs.num_top = 200
    request.token_ids.ids.extend([9] * 1000)
    return sender.score(request)


def many_log_probs(sender: Sender) -> Refusal:
    request = ask("abc", max_new_tokens=4)
    request.log_probs.num_top = 21
    return sender.generate(request)


def slow_form(sender: Sender) -> Refusal:
    sender.monkeypatch.setattr(grammar, "_MAX_SECONDS", 0.05)
    grammars = sender.service.serving.grammars
    sender.monkeypatch.setattr(grammars, "_compile", lambda *_: time.sleep(0.5))
    return formed(regex="ab")(sender)


class Taken:
    """Turns that others have for ever."""

    async def acquire(self) -> None:
        await asyncio.Event().wait()

    def release(self) -> None:
        """One of them may end all the same."""


def forms_of_others(sender: Sender) -> Refusal:
    sender.monkeypatch.setattr(grammar, "_MAX_SECONDS", 0.05)
    sender.monkeypatch.setattr(sender.service.serving.grammars, "_turns", Taken())
    return formed(regex="ab")(sender)


def with_open(sender: Sender, *names: str, then: str) -> Refusal:
    """What one stream more is told while some are open."""
    with ExitStack() as streams, sender.service.gate.held():
        for name in names:
            call = sender.open(ask([9], max_new_tokens=300), name)
            streams.callback(call.cancel)
            next(call)
        return sender.generate(ask([9], max_new_tokens=1), then)


def over_quota(sender: Sender) -> Refusal:
    stopped = time.monotonic()  # or the bucket would fill while prompts are read
    sender.monkeypatch.setattr(sender.service.serving.quotas, "_clock", lambda: stopped)
    for _ in sender.open(ask([9] * 1000, max_new_tokens=4), "carl"):
        pass
    return sender.generate(ask([9] * 1000, max_new_tokens=4), "carl")


def too_late(sender: Sender) -> Refusal:
    with sender.service.gate.held():
        return sender.generate(ask([9], max_new_tokens=4), timeout=0.2)


def while_draining(sender: Sender) -> Refusal:
    sender.service.begin_to_drain()
    return sender.generate(ask([9], max_new_tokens=4))


def with_metadata(sender: Sender) -> Refusal:
    metadata = (*sender.options()["metadata"], ("x-much", "a" * 60_000))
    return sender.generate(ask([9]), metadata=metadata)


LENGTH = field_rules.MAX_PHRASE_TOKENS
BEAMS = {"num_beams": 4, "num_return_sequences": 1}
WATERMARK = {"ngram_len": 5, "keys": [1] * 65}
SCHEMA = '{"enum": ["' + "a" * SIZES["json_schema"] + '"]}'
PATTERNS = '{"type": "string", "pattern": "' + "a" * 2049 + '"}'
ONE_PLUGIN = PluginCall(name="avoid", parameters='{"letters": "' + "x" * 65_536 + '"}')

BEYOND: dict[str, Send] = {
    "a message": lambda sender: sender.generate(ask("a" * (5 << 20))),
    "metadata of a call": with_metadata,
    "request_id": asking(request_id="a" * 129),
    "text": lambda sender: sender.generate(ask("a" * 1_000_001)),
    "prompt and new tokens together": asking([9] * MAX_MODEL_LEN),
    "max_new_tokens": asking(max_new_tokens=MAX_MODEL_LEN - 2),
    "num_return_sequences": asking(do_sample=True, num_return_sequences=5),
    "num_beams": asking(num_beams=5),
    "top_k` of contrastive search": asking(penalty_alpha=0.6, top_k=5),
    "room in the KV cache, for beams and guidance": asking(num_beams=4, max_new_tokens=1000),
    "stop_strings": asking(stop_strings=["a"] * 65),
    "one of `stop_strings": asking(stop_strings=["a" * 1025]),
    "bad_words_ids": asking(bad_words_ids=[[5] * (LENGTH + 1)]),
    "sequence_bias": asking(sequence_bias=[[[5] * (LENGTH + 1), 1.0]]),
    "suppress_tokens`, and every other list of token ids": asking(
        suppress_tokens=[5] * (VOCAB_SIZE + 1)
    ),
    "force_words_ids": asking(**BEAMS, force_words_ids=[[5] * 1025]),
    "structured_output.json_schema": formed(json_schema=SCHEMA),
    "structured_output.regex": formed(regex="a" * (SIZES["regex"] + 1)),
    "structured_output.grammar": formed(grammar="start: " + '"a"' * SIZES["grammar"]),
    "structured_output.choices": formed(choices={"values": ["a" * SIZES["choices"], "b"]}),
    "structured_output.token_choices": choosing([5] * 65_536, [6]),
    "patterns of a JSON Schema": formed(json_schema=PATTERNS),
    "time to compile a form": slow_form,
    "wait for others' forms to compile": forms_of_others,
    "log_probs.num_top": many_log_probs,
    "numbers in an answer of `Score": scored,
    "tensors of a request (`output_scores` and the like)": asking(
        output_scores=True, max_new_tokens=1000
    ),
    "watermarking_config.keys": asking(do_sample=True, watermarking_config=WATERMARK),
    "assistant_lookbehind`, `target_lookbehind": asking(assistant_lookbehind=257),
    "speculation.prediction_token_ids": speculating(prediction_token_ids=[9] * 1025),
    "speculation.cache_salt": speculating(cache_salt="a" * 257),
    "speculation.max_assistant_tokens": speculating(max_assistant_tokens=65),
    "speculation.draft_fan_out": speculating(draft_fan_out=17),
    "speculation.draft_timeout_ms": speculating(draft_timeout_ms=60_001),
    "logits_processors`, and as many `stopping_criteria": plugged(*[PluginCall(name="a")] * 17),
    "parameters of a plug-in": plugged(ONE_PLUGIN),
    "open streams of a caller": lambda sender: with_open(sender, *["anna"] * 3, then="anna"),
    "tokens of a caller in a minute": over_quota,
    "requests that wait, of all callers": lambda sender: with_open(
        sender, *["anna"] * 3, *["bert"] * 2, then="bert"
    ),
    "time of a call": too_late,
    # The last one: afterwards the service lets nobody in.
    "time of a call after SIGTERM; a new one is refused": while_draining,
}


def test_every_row_is_tried() -> None:
    assert BEYOND.keys() == rows("Target").keys()


@pytest.mark.parametrize("what", BEYOND)
def test_one_more_is_refused_as_the_table_says(
    bounded: RunningService, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    row = rows("Target")[what]
    with Caller(bounded.address) as caller:
        got = BEYOND[what](Sender(bounded, caller, monkeypatch))
    assert (got.code, got.reason) == (grpc.StatusCode[row.status], row.reason)
    if got.code is grpc.StatusCode.RESOURCE_EXHAUSTED and row.reason:
        assert got.retry_after is not None
    word = row.what.partition("`")[0] or row.what
    if row.reason == "INVALID_FIELD" and re.fullmatch(r"[\w.]+", word):
        assert word in got.field, "the field is named"
