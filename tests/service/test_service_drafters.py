"""Drafting inside the target as callers ask for it: predictions, remembered outputs."""

from __future__ import annotations

import re
import urllib.request
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from outrider.v1 import generation_pb2 as pb
from outrider.v1 import speculation_pb2
from outrider_client import Client, GenerationConfig, InvalidRequestError, SpeculationConfig
from outrider_contract.errors import Reason
from outrider_target.requests.sharing import MAX_SALT_BYTES
from outrider_target.serving.text import MAX_TEXT_LENGTH
from service.asking import ENDLESS, ask, collect
from service.harness import PATIENCE, Caller, RunningService, settings_for, until
from service.refusals import refused
from service.tiny_folder import MAX_MODEL_LEN, VOCAB_SIZE

SAMPLED: dict[str, Any] = {"do_sample": True, "temperature": 2.0, "top_k": 0}


def write(client: Client, salt: str, *, seed: int = 1) -> tuple[list[int], int, int]:
    """Serve one request by the suffix tree; gives its tokens, those drafted and those accepted."""
    completion = client.generate(
        "once upon a time",
        GenerationConfig(max_new_tokens=60, clear_fields=ENDLESS, **SAMPLED),
        seed=seed,
        speculation=SpeculationConfig(method="suffix", cache_salt=salt),
    )
    stats = completion.speculation
    return completion.token_ids, stats.num_draft_tokens, stats.num_accepted_tokens


def test_what_was_written_is_drafted_to_the_same_tenant_again_and_to_no_other(
    client: Client,
) -> None:
    first = write(client, "anna")
    again = write(client, "anna")
    assert again[0] == first[0]
    assert again[2] > 40 > first[2]
    assert write(client, "bert") == first, "as to anybody who comes for the first time"
    assert write(client, "bert")[2] > 40


def test_what_is_remembered_is_counted(folder: Path) -> None:
    settings = replace(settings_for(folder), metrics_port=0, suffix_cache_tokens=100)
    with RunningService(settings) as service, Client(service.address) as client:
        url = f"http://127.0.0.1:{service.metrics_port}/metrics"

        def remembered() -> dict[str, float]:
            with urllib.request.urlopen(url, timeout=PATIENCE) as page:
                found = re.findall(
                    r"^outrider_suffix_cache_(\w+) (\S+)$", page.read().decode(), re.M
                )
            return {name: float(value) for name, value in found}

        assert remembered() == {"tokens": 0, "tenants": 0}
        for number in range(4):
            write(client, str(number % 3), seed=number)
        figures = until(remembered, lambda found: found["tenants"] > 0)
        assert figures["tokens"] <= 2 * 100
        assert figures["tenants"] <= 3


def test_callers_of_different_keys_are_different_tenants(folder: Path, tmp_path: Path) -> None:
    keys = {"anna": "k" * 16, "bert": "x" * 16, "bert again": "y" * 16}
    file = tmp_path / "keys"
    file.write_text("".join(f"{name.split()[0]} {key}\n" for name, key in keys.items()))
    settings = settings_for(folder)
    settings = replace(settings, server=replace(settings.server, api_keys_file=file))
    with ExitStack() as stack:
        service = stack.enter_context(RunningService(settings))
        anna, bert, bert_again = (
            stack.enter_context(Client(service.address, api_key=key)) for key in keys.values()
        )
        first = write(anna, "")
        assert write(anna, "")[2] > 40 > first[2]
        assert write(bert, "") == first, "as to anybody who comes for the first time"
        assert write(bert_again, "")[2] > 40, "a key is not who has it"


def test_a_prediction_is_drafted_from_and_changes_nothing(client: Client) -> None:
    config = GenerationConfig(max_new_tokens=60, clear_fields=ENDLESS, **SAMPLED)
    plain = client.generate("abc", config, seed=3, speculation=SpeculationConfig(enabled=False))
    predicted = list(plain.token_ids)
    del predicted[30:33]
    for speculation, method in (
        (SpeculationConfig(method="prediction", prediction_token_ids=predicted), "prediction"),
        (SpeculationConfig(prediction_token_ids=predicted), "combined"),
        (SpeculationConfig(enabled=False, prediction_token_ids=predicted), "none"),
    ):
        completion = client.generate("abc", config, seed=3, speculation=speculation)
        assert completion.token_ids == plain.token_ids
        assert completion.effective_speculation.method == method
        accepted = {
            each.method: each.num_accepted_tokens for each in completion.speculation.drafters
        }
        assert accepted.get("prediction", 0) > 40 or method == "none"


def test_a_prediction_may_be_text(client: Client) -> None:
    text = "the quick brown fox jumps over the lazy dog"
    bias: dict[str, Any] = {
        "sequence_bias": [[[3 + a, 3 + b], 1e6] for a, b in zip(b"!abc", b"abcd", strict=True)]
    }
    completion = client.generate(
        "!",
        GenerationConfig(max_new_tokens=4, clear_fields=ENDLESS, **bias),
        speculation=SpeculationConfig(method="prediction", prediction_text="abcd" + text),
    )
    assert completion.text == "abcd"
    (share,) = completion.speculation.drafters
    assert (share.method, share.num_accepted_tokens) == ("prediction", 3)


@pytest.mark.parametrize(
    ("speculation", "field"),
    [
        ({"prediction_text": "a" * (MAX_TEXT_LENGTH + 1)}, "prediction_text"),
        ({"prediction_text": "a" * (MAX_MODEL_LEN + 1)}, "prediction_text"),
        ({"prediction_token_ids": [5] * (MAX_MODEL_LEN + 1)}, "prediction_token_ids"),
        ({"prediction_token_ids": [5] * 900_000}, "prediction_token_ids"),
        ({"prediction_token_ids": [VOCAB_SIZE]}, "prediction_token_ids"),
        ({"prediction_token_ids": [5], "prediction_text": "a"}, "prediction_text"),
        ({"method": speculation_pb2.DRAFT_METHOD_PREDICTION}, "prediction_text"),
        (
            {"method": speculation_pb2.DRAFT_METHOD_SUFFIX, "prediction_text": "a"},
            "method",
        ),
        ({"cache_salt": "x" * (MAX_SALT_BYTES + 1)}, "cache_salt"),
        ({"lookup_rule": 9}, "lookup_rule"),
    ],
)
def test_what_cannot_be_drafted_from_is_refused_by_name(
    caller: Caller, speculation: dict[str, Any], field: str
) -> None:
    message = speculation_pb2.SpeculationConfig(**speculation)
    got = refused(caller, ask("abc", max_new_tokens=2, speculation=message))
    assert (got.reason, got.field) == (Reason.INVALID_FIELD, f"speculation.{field}"), got.message


def test_a_prediction_as_long_as_the_longest_sequence_is_taken(caller: Caller) -> None:
    message = speculation_pb2.SpeculationConfig(prediction_token_ids=[5] * MAX_MODEL_LEN)
    request: pb.GenerateRequest = ask("abc", max_new_tokens=2, speculation=message)
    assert len(collect(caller.open(request)).token_ids) == 2


def test_the_client_tells_a_refusal_by_its_field(client: Client) -> None:
    with pytest.raises(InvalidRequestError) as caught:
        client.generate("abc", speculation=SpeculationConfig(method="prediction"))
    assert caught.value.field == "speculation.prediction_text"
