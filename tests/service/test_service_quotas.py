"""Tokens a minute for each caller: what is read and written counts, and nothing is cut short."""

from __future__ import annotations

import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from outrider.v1 import generation_pb2 as pb
from outrider_client import Client, GenerationConfig, OverloadedError
from outrider_contract.errors import Reason
from outrider_runtime.server import ServerSettings
from outrider_target.settings import BatchSettings
from service.asking import ENDLESS, LOOKUP, ask, collect
from service.harness import PATIENCE, Caller, RunningService, settings_for, until
from service.refusals import Refusal, refusal

PER_MINUTE = 60
"""One a second: slow enough that a busy machine changes nothing."""


class Clock:
    """The service's time, which may leap."""

    def __init__(self) -> None:
        self.leapt = 0.0

    def __call__(self) -> float:
        return time.monotonic() + self.leapt


@pytest.fixture(scope="module")
def quota(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningService]:
    keys = tmp_path_factory.mktemp("quota") / "keys"
    names = ("reader", "writer", "several", "gone", "waits", "scores", "bert", "counted")
    keys.write_text("".join(f"{name} the-secret-key-of-{name}\n" for name in names))
    settings = settings_for(
        folder,
        server=ServerSettings(api_keys_file=keys, grace_seconds=PATIENCE),
        batch=BatchSettings(
            max_num_seqs=4, max_waiting_requests=4, max_tokens_per_minute_per_caller=PER_MINUTE
        ),
        metrics_port=0,
    )
    with RunningService(settings) as service:
        yield service


class Named:
    """A caller with a key."""

    def __init__(self, caller: Caller, name: str) -> None:
        self.options: dict[str, Any] = {
            "metadata": (("authorization", f"Bearer the-secret-key-of-{name}"),),
            "timeout": PATIENCE,
        }
        self.stub: Any = caller.stub

    def open(self, *args: Any, **config: Any) -> Any:
        return self.stub.Generate(ask(*args, **config), **self.options)

    def is_refused(self, *args: Any, **config: Any) -> Refusal:
        got = refusal(lambda: next(self.open(*args, **config)))
        assert (got.code, got.reason) == (
            grpc.StatusCode.RESOURCE_EXHAUSTED,
            Reason.TOKEN_QUOTA_EXCEEDED,
        )
        return got


@pytest.fixture
def caller(quota: RunningService) -> Iterator[Caller]:
    with Caller(quota.address) as connected:
        yield connected


def test_a_long_prompt_is_read_and_then_paid_off(caller: Caller) -> None:
    reader = Named(caller, "reader")
    assert len(collect(reader.open([9] * 100, max_new_tokens=1)).token_ids) == 1
    got = reader.is_refused([9], max_new_tokens=1)
    assert got.retry_after is not None
    assert 30 < got.retry_after <= 42  # 101 had, 60 there were, one is wanted
    longer = reader.is_refused([9] * 20, max_new_tokens=1)
    assert longer.retry_after is not None
    assert 15 < longer.retry_after - got.retry_after <= 19
    others = Named(caller, "bert")
    assert len(collect(others.open([9], max_new_tokens=1)).token_ids) == 1


def test_a_running_answer_is_never_cut_and_what_it_wrote_is_charged(caller: Caller) -> None:
    writer = Named(caller, "writer")
    answer = collect(writer.open([9] * 3, max_new_tokens=200, speculation=LOOKUP))
    assert len(answer.token_ids) == 200
    got = writer.is_refused([9])
    assert got.retry_after is not None
    assert 100 < got.retry_after <= 144


def test_each_sequence_is_charged_the_prompt_once(caller: Caller) -> None:
    several = Named(caller, "several")
    request = {"do_sample": True, "num_return_sequences": 3, "max_new_tokens": 20}
    usage = collect(several.open([9] * 30, **request)).complete.usage
    assert usage.prompt_tokens + usage.completion_tokens == 90
    got = several.is_refused([9])
    assert got.retry_after is not None
    assert 15 < got.retry_after <= 31


def test_who_leaves_pays_for_what_was_written_and_for_no_more(
    quota: RunningService, caller: Caller
) -> None:
    gone = Named(caller, "gone")
    call = gone.open([9] * 3, max_new_tokens=900)
    num_read = 0
    for message in call:
        num_read += len(message.chunk.token_ids)
        if num_read > 100:
            break
    call.cancel()
    until(lambda: len(quota.requests), lambda number: number == 0)
    got = gone.is_refused([9])
    assert got.retry_after is not None
    assert 20 < got.retry_after < 860


def test_a_score_is_charged_its_text_once(caller: Caller) -> None:
    scores = Named(caller, "scores")
    request = pb.ScoreRequest(first_position=1)
    request.token_ids.ids.extend([9] * 100)
    scores.stub.Score(request, **scores.options)
    got = refusal(lambda: scores.stub.Score(request, **scores.options))
    assert got.reason == Reason.TOKEN_QUOTA_EXCEEDED
    assert got.retry_after is not None
    assert 70 < got.retry_after <= 100  # from 40 below empty to full
    # What neither reads nor writes is answered all the same.
    assert scores.stub.Tokenize(pb.TokenizeRequest(text="abc"), **scores.options).token_ids


def test_a_client_that_is_told_to_come_back_comes_back_in_time(
    quota: RunningService, caller: Caller, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = Clock()
    monkeypatch.setattr(quota.serving.quotas, "_clock", clock)
    waits: list[float] = []

    def wait(seconds: float) -> None:
        waits.append(seconds)
        clock.leapt += seconds

    config = GenerationConfig(max_new_tokens=90, clear_fields=ENDLESS)
    with Client(quota.address, api_key="the-secret-key-of-waits", sleep=wait) as client:
        assert len(client.generate([9] * 5, config).token_ids) == 90
        assert not waits
        assert len(client.generate([9] * 5, config).token_ids) == 90
        (seconds,) = waits
        assert 25 < seconds <= 1.1 * 40
    config = GenerationConfig(max_new_tokens=600, clear_fields=ENDLESS)
    with Client(quota.address, api_key="the-secret-key-of-waits", sleep=wait) as client:
        clock.leapt += 600
        client.generate([9] * 5, config)
        with pytest.raises(OverloadedError) as refused:
            client.generate([9] * 5, config)  # nine minutes are for its caller to decide
        assert refused.value.reason == Reason.TOKEN_QUOTA_EXCEEDED
        assert refused.value.retry_after is not None
        assert refused.value.retry_after > 400
    assert len(waits) == 1


def test_refusals_are_counted_by_their_reason(quota: RunningService, caller: Caller) -> None:
    reader = Named(caller, "counted")
    collect(reader.open([9] * 100, max_new_tokens=1))
    before = num_refused(quota)
    reader.is_refused([9])
    until(lambda: num_refused(quota), lambda number: number == before + 1)


def num_refused(service: RunningService) -> float:
    url = f"http://127.0.0.1:{service.metrics_port}/metrics"
    with urllib.request.urlopen(url, timeout=PATIENCE) as page:
        lines = page.read().decode().splitlines()
    (line,) = [
        line
        for line in lines
        if line.startswith("outrider_grpc_server_refused_total")
        and "TOKEN_QUOTA" in line
        and "/Generate" in line
    ]
    return float(line.rpartition(" ")[2])
