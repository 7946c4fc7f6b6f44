"""Finished requests decoded again plainly: what is found, what is counted, and who comes first."""

from __future__ import annotations

import urllib.request
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from outrider.v1 import generation_pb2 as pb
from outrider_target.decoding import token_strategy
from outrider_target.decoding.acceptance import Acceptance
from outrider_target.serving.canary import MAX_PENDING, Canary, Served
from outrider_target.serving.comparison import Result
from prometheus_client import CollectorRegistry
from prometheus_client.parser import text_string_to_metric_families
from service.asking import LOOKUP, PLAIN, ask, collect
from service.harness import Caller, RunningService, settings_for, until
from structlog.testing import capture_logs
from target.batch import request as replayable

PROMPT = "abcabcabcabc"
SAMPLED = {"do_sample": True, "temperature": 1.5, "top_k": 8}
NOT_SERVED = ("generation_tokens_total", "prompt_tokens_total", "prefix_cache_queries_total")


@pytest.fixture(scope="module")
def watched(folder: Path) -> Iterator[RunningService]:
    with RunningService(settings_for(folder, canary_rate=1.0, metrics_port=0)) as running:
        yield running


@pytest.fixture
def watched_caller(watched: RunningService) -> Iterator[Caller]:
    with Caller(watched.address) as connected:
        yield connected
        connected.wait_until_idle()


def samples(service: RunningService) -> dict[str, float]:
    """What the metrics page shows without our prefix; results of the canary by their own name."""
    with urllib.request.urlopen(f"http://127.0.0.1:{service.metrics_port}/metrics") as answer:
        page = answer.read().decode()
    return {
        each.labels.get("result", each.name.removeprefix("outrider_")): each.value
        for family in text_string_to_metric_families(page)
        for each in family.samples
    }


def found(service: RunningService, before: dict[str, float], number: int) -> dict[str, float]:
    """Wait for so many results; how often there was which."""
    names = ("same", "near_tie", "different", "inconclusive", "skipped")

    def gained() -> dict[str, float]:
        after = samples(service)
        return {name: after[name] - before[name] for name in names if after[name] > before[name]}

    return until(gained, lambda results: sum(results.values()) == number)


def request(**options: Any) -> pb.GenerateRequest:
    defaults: dict[str, Any] = {"speculation": LOOKUP, "seed": 5, "max_new_tokens": 40}
    return ask(PROMPT, **(defaults | options))


def accept_everything(
    draft: Sequence[int], own: Sequence[int], others: object, own_on_others: object
) -> Acceptance:
    """The fault to be found: a draft is believed, whatever the target says."""
    return Acceptance([*draft, own[len(draft)]], len(draft))


@pytest.mark.parametrize(
    "options",
    [
        {},
        SAMPLED,
        {**SAMPLED, "num_return_sequences": 2},
        {"repetition_penalty": 1.05, "min_new_tokens": 3},
        {"guidance_scale": 1.2},
        {"dola_layers": "low"},
        {"stop_strings": ["a", "b", "c"], "max_new_tokens": 200},
    ],
    ids=["greedy", "sampled", "two sequences", "processors", "guided", "dola", "stop strings"],
)
def test_a_drafted_text_is_that_of_plain_decoding(
    watched: RunningService, watched_caller: Caller, options: dict[str, Any]
) -> None:
    before = samples(watched)
    answer = collect(watched_caller.open(request(**options)))
    assert answer.complete.speculation.num_draft_tokens > 0
    assert found(watched, before, 1) == {"same": 1}


def test_drafts_were_accepted_and_a_replay_is_in_no_count(
    watched: RunningService, watched_caller: Caller
) -> None:
    before = samples(watched)
    answer = collect(watched_caller.open(request()))
    assert answer.complete.speculation.num_accepted_tokens > 0
    assert found(watched, before, 1) == {"same": 1}
    after = samples(watched)
    usage = answer.complete.usage
    assert [after[name] - before[name] for name in NOT_SERVED] == [
        usage.completion_tokens,
        usage.prompt_tokens,
        usage.prompt_tokens,
    ]


@pytest.mark.parametrize(
    "options", [{}, {"do_sample": True, "top_k": 0}], ids=["greedy", "sampled"]
)
def test_a_fault_in_acceptance_is_found(
    watched: RunningService,
    watched_caller: Caller,
    options: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    before = samples(watched)
    asked = request(request_id="wronged", **options)
    right = collect(watched_caller.open(request(speculation=PLAIN, **options)))
    with capture_logs() as lines:
        monkeypatch.setattr(token_strategy, "accept_furthest", accept_everything)
        wrong = collect(watched_caller.open(asked))
        assert found(watched, before, 2) == {"inconclusive": 1, "different": 1}
    (line,) = [each for each in lines if each["event"] == "canary_different"]
    pairs = zip(right.token_ids, wrong.token_ids, strict=True)
    assert line["position"] == next(i for i, (a, b) in enumerate(pairs) if a != b)
    assert (line["log_level"], line["request_id"]) == ("warning", "wronged")
    assert line.keys() == {
        *("event", "log_level", "request_id", "sequence_index", "position", "draft_method")
    }, "no text, no token"


@pytest.mark.parametrize(
    "options", [{"speculation": PLAIN}, {"num_beams": 2}], ids=["plain", "beams"]
)
def test_what_proves_nothing_is_counted_apart(
    watched: RunningService, watched_caller: Caller, options: dict[str, Any]
) -> None:
    before = samples(watched)
    collect(watched_caller.open(request(**options)))
    assert found(watched, before, 1) == {"inconclusive": 1}


def test_no_more_than_a_few_are_kept(watched: RunningService) -> None:
    registry = CollectorRegistry()
    canary = Canary(
        watched.serving.engine,
        watched.requests,
        None,
        registry,
        rate=1.0,
        tolerance=0.0,
        max_num_seqs=8,
    )  # not started, so that nothing leaves its queue
    served = Served(replayable([5, 9]), None, [[5]])
    for _ in range(MAX_PENDING + 3):
        canary.consider(served, drafted=True, cut=False)
    canary.consider(served, drafted=True, cut=True)
    canary.consider(served, drafted=False, cut=False)
    counted = {result: value(registry, result) for result in Result}
    assert counted.pop(Result.SKIPPED) == 3
    assert counted.pop(Result.INCONCLUSIVE) == 2
    assert not any(counted.values())


def value(registry: CollectorRegistry, result: str) -> float | None:
    return registry.get_sample_value("outrider_canary_total", {"result": result})


def test_a_replay_gives_way_to_who_must_wait(
    watched: RunningService, watched_caller: Caller
) -> None:
    before = samples(watched)
    collect(watched_caller.open(request(max_new_tokens=400)))
    with watched.gate.held(after=3):
        watched.gate.wait_until_held()
        # The replay runs in a batch of eight, so the last of these has no place.
        calls = [
            watched_caller.open(request(speculation=PLAIN, max_new_tokens=300)) for _ in range(8)
        ]
        for call in calls:
            next(call)
    for call in calls:
        assert sum(len(message.chunk.token_ids) for message in call) == 300
    assert found(watched, before, 9) == {"inconclusive": 9}


def test_at_rate_zero_nothing_is_looked_at(folder: Path) -> None:
    with (
        RunningService(settings_for(folder, metrics_port=0)) as service,
        Caller(service.address) as caller,
    ):
        before = samples(service)
        for _ in range(3):
            collect(caller.open(request()))
        forwards = service.gate.num_forwards
        caller.wait_until_idle()
        assert found(service, before, 0) == {}
        assert service.gate.num_forwards == forwards
