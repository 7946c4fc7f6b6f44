"""Services set up differently: without a tokenizer, with limits, on a model with a messy file."""

from __future__ import annotations

import dataclasses
import json
import shutil
import socket
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest
from outrider.v1 import generation_pb2 as pb
from outrider_client import Client, DraftLinkState, GenerationConfig
from outrider_contract.errors import Reason
from service.asking import ENDLESS, ask, collect
from service.harness import PATIENCE, Caller, RunningService, settings_for, until
from service.refusals import refusal, refused
from service.tiny_folder import EOS, MAX_MODEL_LEN, VOCAB_SIZE, ids_of
from structlog.testing import capture_logs

INVALID = grpc.StatusCode.INVALID_ARGUMENT
BYTES_PER_TOKEN = 3 * 2 * 2 * 16 * 8
"""Layers, keys and values, heads, their width, bytes of a float64."""


@pytest.fixture
def copied(folder: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(folder, tmp_path / "model"))


@pytest.fixture
def mute(copied: Path) -> Iterator[Caller]:
    """A model without a tokenizer."""
    for file in copied.glob("*token*"):
        file.unlink()
    with RunningService(settings_for(copied)) as service, Caller(service.address) as caller:
        yield caller


def test_without_a_tokenizer_ids_are_served_and_text_is_refused(mute: Caller) -> None:
    answer = collect(mute.open(ask(ids_of("abc"), max_new_tokens=5)))
    assert len(answer.token_ids) == 5
    assert answer.text == ""
    info = mute.stub.GetModelInfo(pb.GetModelInfoRequest(), timeout=PATIENCE)
    assert not info.has_tokenizer
    assert info.tokenizer_fingerprint == ""
    for got, field in (
        (refused(mute, ask("abc")), "text"),
        (
            refused(mute, ask(ids_of("abc"), stop_strings=["a"])),
            "generation_config.stop_strings",
        ),
        (refusal(lambda: mute.stub.Tokenize(pb.TokenizeRequest(text="a"))), "text"),
        (refusal(lambda: mute.stub.Detokenize(pb.DetokenizeRequest(token_ids=[5]))), "token_ids"),
    ):
        assert (got.code, got.reason, got.field) == (INVALID, Reason.UNSUPPORTED_FIELD, field)


def test_limits_and_names_are_those_of_the_settings(folder: Path) -> None:
    settings = settings_for(folder)
    settings = dataclasses.replace(
        settings,
        model=dataclasses.replace(
            settings.model,
            served_model_name="a name",
            dtype="float64",
            max_model_len=64,
            kv_cache_tokens=None,
            kv_cache_bytes=BYTES_PER_TOKEN * 100,
        ),
    )
    with RunningService(settings) as service, Client(service.address) as client:
        model, server = client.model_info(), client.server_info()
        assert model.served_model_name == "a name"
        assert model.max_model_len == 64
        assert server.kv_cache_tokens == 96  # whole blocks of 8
        with Caller(service.address) as caller:
            got = refused(caller, ask([5] * 10, max_new_tokens=55))
            assert got.reason == Reason.PROMPT_TOO_LONG
            assert len(collect(caller.open(ask([5] * 10, max_new_tokens=54))).token_ids) == 54


def test_a_draft_service_that_is_not_there_is_told_of_and_costs_no_request(folder: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as nobody:
        address = f"127.0.0.1:{nobody.getsockname()[1]}"
    settings = settings_for(folder, drafts=(address,))
    with RunningService(settings) as service, Client(service.address) as client:
        completion = client.generate(
            "abc", GenerationConfig(max_new_tokens=5, clear_fields=ENDLESS)
        )
        assert len(completion.token_ids) == 5
        assert completion.effective_speculation.method == "combined"
        drafters = {drafter.method for drafter in completion.speculation.drafters}
        assert drafters <= {"prompt-lookup", "suffix"}
        (link,) = until(
            client.server_info, lambda info: bool(info.draft_links[0].reason)
        ).draft_links
        assert link.address == address
        assert link.state is DraftLinkState.CONNECTING
        assert link.num_sessions == 0


def test_the_type_of_the_weights_is_the_one_asked_for(folder: Path) -> None:
    settings = settings_for(folder)
    settings = dataclasses.replace(
        settings, model=dataclasses.replace(settings.model, dtype="float32")
    )
    with RunningService(settings) as service, Client(service.address) as client:
        assert client.model_info().dtype == "float32"
        assert len(client.generate("abc").token_ids) > 0


def test_a_models_own_defaults_never_make_requests_fail(copied: Path) -> None:
    values = {
        "temperature": 0.0,
        "top_p": 2.0,
        "typical_p": 0.9,
        "num_beams": 0,
        "num_return_sequences": 0,
        "num_assistant_tokens_schedule": "linear",
        "cache_config": {"backend": "quanto"},
        "max_length": 100_000,
        "eos_token_id": [EOS, VOCAB_SIZE, 10**9],
        "suppress_tokens": [VOCAB_SIZE + 1],
        "bad_words_ids": [[VOCAB_SIZE]],
        "forced_bos_token_id": VOCAB_SIZE,
        "an_option_of_tomorrow": True,
    }
    (copied / "generation_config.json").write_text(json.dumps(values))
    with (
        capture_logs() as lines,
        RunningService(settings_for(copied)) as service,
        Caller(service.address) as caller,
    ):
        prompt = ids_of("abc") * 100
        answer = collect(caller.open(ask(prompt, clear=())))
        effective = answer.started.effective_config
        assert list(effective.eos_token_id.ids) == [EOS]
        assert effective.temperature == 1.0
        assert effective.typical_p == pytest.approx(0.9)
        assert effective.max_length == MAX_MODEL_LEN  # as far as can be
        sampled = collect(caller.open(ask("abc", do_sample=True, max_new_tokens=3, clear=ENDLESS)))
        assert len(sampled.token_ids) == 3
    (warning,) = [line for line in lines if line["event"] == "model_defaults_dropped"]
    kept = {"typical_p", "max_length", "an_option_of_tomorrow"}
    assert warning["fields"].keys() == values.keys() - kept
    assert all(warning["fields"].values()), "each with its reason"


def test_what_a_request_asks_for_is_not_bent_to_what_is_possible(caller: Caller) -> None:
    got = refused(caller, ask("abc", max_length=100_000))
    assert (got.reason, got.field) == (Reason.PROMPT_TOO_LONG, "generation_config.max_length")
