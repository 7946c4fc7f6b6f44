"""The draft never changes the text: one set of requests, served in every way there is.

The reference is plain decoding of each request alone. Every way must give its tokens, its text and
its end, for every sequence, and must have drafted while it did.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from typing import Any, Literal, NamedTuple

import pytest
from draft.harness import RunningDrafter
from draft.hostile import AdversarialDrafter, RandomDrafter, serving
from exactness.loop_thread import ServiceThreads
from exactness.model_pairs import ModelPair
from exactness.option_mixes import LONGEST_OUTPUT, LONGEST_PROMPT, Case, cases
from exactness.running import (
    PLAIN,
    RunningTarget,
    accepted_by_drafter,
    num_accepted,
    num_drafted,
    outcome,
    target,
)
from outrider_client import Completion, SpeculationConfig
from outrider_target.settings import BatchSettings

FEW = 24
MANY = 200

Outcomes = list[list[tuple[object, ...]]]


class Workload(NamedTuple):
    """Cases, and what plain decoding makes of each alone."""

    cases: Sequence[Case]
    plain: Outcomes

    def plain_token_ids(self, number: int) -> list[int]:
        """The first sequence of a case."""
        token_ids = self.plain[number][0][0]
        assert isinstance(token_ids, Sequence)
        return list(token_ids)


@pytest.fixture(scope="module")
def plain_target(threads: ServiceThreads, pair: ModelPair) -> Iterator[RunningTarget]:
    """A target without drafters."""
    with target(threads, pair.target) as running:
        yield running


def workload(plain_target: RunningTarget, count: int, *, seed: int) -> Workload:
    drawn = cases(count, seed=seed)
    completions = [plain_target.generate(case.request, PLAIN) for case in drawn]
    assert num_drafted(completions) == 0
    return Workload(drawn, [outcome(each) for each in completions])


@pytest.fixture(
    scope="module",
    params=[
        pytest.param((FEW, 0), id="few"),
        pytest.param((MANY, 1), id="many", marks=[pytest.mark.slow, pytest.mark.timeout(1500)]),
    ],
)
def work(request: pytest.FixtureRequest, plain_target: RunningTarget) -> Workload:
    count, seed = request.param
    return workload(plain_target, count, seed=seed)


def serve(
    running: RunningTarget,
    work: Workload,
    adapt: Callable[[SpeculationConfig], SpeculationConfig] = lambda speculation: speculation,
    *,
    together: bool = True,
) -> list[Completion]:
    """Serve a workload and compare; all cases at once, or one by one."""
    requests = [case.request for case in work.cases]
    speculations = [adapt(case.speculation) for case in work.cases]
    if together:
        completions = running.generate_together(requests, speculations)
    else:
        completions = list(map(running.generate, requests, speculations))
    for case, completion, plain in zip(work.cases, completions, work.plain, strict=True):
        assert outcome(completion) == plain, case
    assert num_drafted(completions) > 0
    running.assert_nothing_left()
    return completions


def test_a_workload_is_worth_the_trouble(work: Workload) -> None:
    """Texts of all kinds: greedy and sampled, cut by length, by tokens and by strings."""
    sampled = [case.request.options.get("do_sample", False) for case in work.cases]
    assert 0 < sum(sampled) < len(sampled)
    ends = {(end[2], end[3] is None) for sequences in work.plain for end in sequences}
    assert len(ends) == 3
    assert any(len(sequences) > 1 for sequences in work.plain)


def test_a_draft_model_changes_nothing(drafted_target: RunningTarget, work: Workload) -> None:
    completions = serve(drafted_target, work)
    assert num_accepted(completions) > 0
    assert num_accepted(completions) < num_drafted(completions)


def test_the_company_in_the_batch_changes_nothing(
    drafted_target: RunningTarget, work: Workload
) -> None:
    some = Workload(work.cases[1::2], work.plain[1::2])
    completions = serve(drafted_target, some, together=False)
    assert num_accepted(completions) > 0


@pytest.mark.parametrize("pacing", ["adaptive", "synchronous"])
def test_a_perfect_drafter_changes_nothing(
    perfectly_drafted_target: RunningTarget,
    work: Workload,
    pacing: Literal["adaptive", "synchronous"],
) -> None:
    completions = serve(
        perfectly_drafted_target,
        work,
        lambda speculation: replace(
            speculation, pacing=pacing, run_ahead=16, draft_temperature=None
        ),
    )
    assert num_accepted(completions) > num_drafted(completions) / 2


@pytest.mark.parametrize("kind", ["prompt-lookup", "suffix"])
def test_a_drafter_without_a_model_changes_nothing(
    threads: ServiceThreads,
    pair: ModelPair,
    lookup_draft: RunningDrafter,
    suffix_draft: RunningDrafter,
    work: Workload,
    kind: str,
) -> None:
    drafter = lookup_draft if kind == "prompt-lookup" else suffix_draft
    with target(threads, pair.target, drafts=[drafter.address]) as running:
        (link,) = running.client.server_info().draft_links
        assert link.kind == kind
        completions = serve(running, work)
        assert num_accepted(completions) > 0


@pytest.mark.parametrize(
    ("method", "rule"), [("prompt-lookup", "latest"), ("prompt-lookup", "first"), ("suffix", None)]
)
def test_looking_up_in_the_target_changes_nothing(
    plain_target: RunningTarget,
    work: Workload,
    method: Literal["prompt-lookup", "suffix"],
    rule: Literal["latest", "first"] | None,
) -> None:
    completions = serve(
        plain_target,
        work,
        lambda speculation: replace(speculation, method=method, lookup_rule=rule),
    )
    assert accepted_by_drafter(completions)[method] > 0


@pytest.mark.parametrize("method", ["prediction", "combined"])
def test_a_prediction_changes_nothing(
    plain_target: RunningTarget, work: Workload, method: Literal["prediction", "combined"]
) -> None:
    """What really comes, some of it left out and some of it wrong."""
    predictions = []
    for number in range(len(work.cases)):
        token_ids = work.plain_token_ids(number)
        del token_ids[5:7]
        predictions.append([*token_ids[:9], 1, *token_ids[10:]])
    each = iter(predictions)
    completions = serve(
        plain_target,
        work,
        lambda speculation: replace(speculation, method=method, prediction_token_ids=next(each)),
    )
    num_tokens = sum(len(work.plain_token_ids(number)) for number in range(len(work.cases)))
    assert accepted_by_drafter(completions)["prediction"] > num_tokens / 6


def test_both_drafters_side_by_side_change_nothing(
    drafted_target: RunningTarget, work: Workload
) -> None:
    completions = serve(
        drafted_target, work, lambda speculation: replace(speculation, method="combined")
    )
    accepted = accepted_by_drafter(completions)
    assert accepted["remote"] > 0
    assert accepted["prompt-lookup"] > 0


def test_a_random_drafter_changes_nothing(
    threads: ServiceThreads, pair: ModelPair, work: Workload
) -> None:
    drafter = RandomDrafter(familiar=0.7)
    with (
        threads.drafters.entered(serving(drafter)) as hostile,
        target(threads, pair.target, drafts=[hostile.address]) as running,
    ):
        serve(running, work)
    assert drafter.num_proposed > 0


def test_adversarial_drafters_change_nothing(
    threads: ServiceThreads, pair: ModelPair, work: Workload
) -> None:
    """Several, because a target has no patience with one for long."""
    drafters = [AdversarialDrafter(seed=seed) for seed in range(8)]
    with ExitStack() as stack:
        addresses = [
            stack.enter_context(threads.drafters.entered(serving(drafter))).address
            for drafter in drafters
        ]
        running = stack.enter_context(target(threads, pair.target, drafts=addresses))
        some = Workload(work.cases[::2], work.plain[::2])
        serve(running, some, lambda speculation: replace(speculation, draft_timeout_ms=20))
    assert sum(drafter.num_proposed for drafter in drafters) > 0
    assert len(set().union(*(drafter.attacks for drafter in drafters))) > 5


@contextmanager
def cramped(
    threads: ServiceThreads,
    pair: ModelPair,
    drafter: RunningDrafter,
    *,
    max_num_batched_tokens: int = 512,
    **cache: Any,
) -> Iterator[RunningTarget]:
    """A target with little room, in its cache or in its forwards."""
    batch = BatchSettings(max_num_batched_tokens=max_num_batched_tokens)
    with target(threads, pair.target, drafts=[drafter.address], batch=batch, **cache) as running:
        yield running


def test_preemption_changes_nothing(
    threads: ServiceThreads, pair: ModelPair, model_draft: RunningDrafter, work: Workload
) -> None:
    room = 2 * (LONGEST_PROMPT + LONGEST_OUTPUT) + 8
    with cramped(threads, pair, model_draft, kv_cache_tokens=room, block_size=4) as running:
        completions = serve(running, work)
        assert num_accepted(completions) > 0
        assert sum(each.usage.num_preemptions for each in completions) > 0


def test_prefill_in_chunks_changes_nothing(
    threads: ServiceThreads, pair: ModelPair, model_draft: RunningDrafter, work: Workload
) -> None:
    with cramped(threads, pair, model_draft, max_num_batched_tokens=12) as running:
        completions = serve(running, work)
        assert num_accepted(completions) > 0


def test_a_tiny_cache_fed_in_tiny_chunks_changes_nothing(
    threads: ServiceThreads, pair: ModelPair, perfect_draft: RunningDrafter, work: Workload
) -> None:
    room = LONGEST_PROMPT + LONGEST_OUTPUT + 16
    with cramped(
        threads,
        pair,
        perfect_draft,
        kv_cache_tokens=room,
        block_size=2,
        max_num_batched_tokens=9,
    ) as running:
        completions = serve(running, work)
        assert num_accepted(completions) > 0
        assert sum(each.usage.num_preemptions for each in completions) > 0


@pytest.mark.parametrize("window", [1, 2, 3, 8, 16])
def test_the_window_changes_nothing(
    drafted_target: RunningTarget, work: Workload, window: int
) -> None:
    fixed = Workload(
        [
            case._replace(
                request=replace(
                    case.request,
                    options={
                        **case.request.options,
                        "num_assistant_tokens": window,
                        "num_assistant_tokens_schedule": "constant",
                        "assistant_confidence_threshold": 0.0,
                    },
                )
            )
            for case in work.cases[::3]
        ],
        work.plain[::3],
    )
    completions = serve(
        drafted_target,
        fixed,
        lambda speculation: replace(
            speculation, pacing="synchronous", max_assistant_tokens=64, report_rounds=True
        ),
    )
    largest = max(each.num_draft_tokens for one in completions for each in one.speculation.rounds)
    assert largest == window
    assert num_accepted(completions) > 0
