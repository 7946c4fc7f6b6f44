"""Several tokens of a chain in one go are those of steps of one token."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import pytest
from draft.harness import FINGERPRINT
from engine.compiled_llama import compiled_llama_runner, spoil_scores
from engine.compiler import needs_compiler
from engine.plain_model import random_ids
from engine.tiny_models import VOCAB_SIZE
from outrider_draft.metrics import DraftMetrics
from outrider_draft.model_proposer import ModelProposer
from outrider_draft.proposer import Description, Share
from outrider_draft.session import Session
from outrider_draft.updates import Opened, SessionKey, SessionRequest
from outrider_runtime.draft_tree import Limits
from outrider_runtime.model.ragged_runner import RaggedRunner
from outrider_runtime.model.runner import GreedySteps
from outrider_runtime.sampling_parameters import SamplingParameters
from prometheus_client import CollectorRegistry

pytestmark = [needs_compiler, pytest.mark.timeout(400)]  # the first time something is compiled

WINDOW = 6


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Steps of each call that does several in one go."""
    found: list[int] = []
    forward_greedily = RaggedRunner.forward_greedily

    def watched(
        self: RaggedRunner, batch: Any, num_steps: int, **options: Any
    ) -> GreedySteps | None:
        found.append(num_steps)
        return forward_greedily(self, batch, num_steps, **options)

    monkeypatch.setattr(RaggedRunner, "forward_greedily", watched)
    return found


def proposer(runner: RaggedRunner | None = None) -> ModelProposer:
    runner = runner or compiled_llama_runner()
    description = Description("model", "tiny", VOCAB_SIZE, FINGERPRINT, 512)
    model = ModelProposer(runner, description, DraftMetrics(CollectorRegistry()))
    model._chain_steps._step_seconds = 1e-4  # as if a step had been timed
    return model


def session(
    tokens: Sequence[int],
    *,
    number: int = 1,
    threshold: float = 0.0,
    window: int = WINDOW,
    draws: bool = False,
    **asked: Any,
) -> Session:
    parameters = dataclasses.replace(SamplingParameters(max_length=400), **asked)
    request = SessionRequest(parameters, len(tokens), vocab_size=VOCAB_SIZE, draws=draws)
    limits = Limits(window, window, 64, threshold)
    opened = Opened(SessionKey(1, number), tokens, request, limits)
    return Session.open(opened, max_length=400)


def extend(model: ModelProposer, *sessions: Session, num_tokens: int | None = None) -> None:
    """A step for sessions that grow, each told how many tokens are wanted."""
    shares = [
        Share(one, model.pending(one), num_tokens=num_tokens or one.num_missing)
        for one in sessions
        if one.room()
    ]
    for share, outcome in zip(shares, model.extend(shares), strict=True):
        share.session.extend(outcome.proposed)
        cached = model._cached[share.session.key]
        assert cached.length == len(share.session.tokens) - 1  # all but the last, always
        assert model._pool.length(cached.handle) == cached.length


def by_one(model: ModelProposer, one: Session) -> Session:
    while one.room():
        extend(model, one, num_tokens=1)
    return one


def chain(one: Session) -> list[tuple[int, Any]]:
    return [(node.token_id, pytest.approx(node.log_prob, abs=1e-4)) for node in one.chain]


def test_a_chain_is_that_of_single_steps(calls: list[int]) -> None:
    model, tokens = proposer(), random_ids(9)
    expected = by_one(model, session(tokens, number=1))
    assert not calls
    actual = session(tokens, number=2)
    extend(model, actual)
    assert calls == [WINDOW]
    assert chain(actual) == chain(expected)


def test_chains_of_several_sessions_after_corrections_and_full_acceptance(
    calls: list[int],
) -> None:
    model = proposer()
    sessions = [session(random_ids(5 + i, seed=i), number=i) for i in range(3)]
    twins = [session(random_ids(5 + i, seed=i), number=10 + i) for i in range(3)]
    for turn in range(4):
        extend(model, *sessions)
        for i, (one, twin) in enumerate(zip(sessions, twins, strict=True)):
            assert chain(one) == chain(by_one(model, twin))
            agreed = [node.token_id for node in one.chain][: (i + turn) % (WINDOW + 1)]
            for each in (one, twin):
                length = each.tree.committed_length
                walk = each.commit(length, [*agreed, 7], None)
                model.rewind(each.key, walk.unchanged)
    assert calls == 4 * [WINDOW]


def test_it_ends_with_the_first_token_that_is_not_sure(calls: list[int]) -> None:
    model, tokens = proposer(), random_ids(9)
    whole = by_one(model, session(tokens))
    sureness = [math.exp(node.log_prob) for node in whole.chain]
    unsure = min(range(WINDOW), key=lambda i: sureness[i])
    threshold = sureness[unsure] * 1.001
    expected = by_one(model, session(tokens, number=2, threshold=threshold))
    actual = session(tokens, number=3, threshold=threshold)
    extend(model, actual)
    assert calls == [WINDOW]
    assert chain(actual) == chain(expected)
    assert not actual.room()


def test_nothing_follows_an_end_of_text(calls: list[int]) -> None:
    model, tokens = proposer(), random_ids(9)
    third = by_one(model, session(tokens)).chain[2].token_id
    actual = session(tokens, number=2, eos_token_ids=(third,))
    extend(model, actual)
    assert calls == [WINDOW]
    assert actual.chain[-1].token_id == third
    assert len(actual.chain) <= 3


@pytest.mark.parametrize(
    "asked",
    [{"do_sample": True}, {"draws": True, "do_sample": True}, {"repetition_penalty": 1.2}],
    ids=str,
)
def test_where_more_than_the_highest_score_counts_it_goes_step_by_step(
    asked: dict[str, Any], calls: list[int]
) -> None:
    model = proposer()
    special, plain = session(random_ids(6), **asked), session(random_ids(7), number=2)
    extend(model, special)
    extend(model, plain, special)
    assert not calls
    assert len(special.chain) == 2


def test_where_several_do_not_fit_it_goes_step_by_step(calls: list[int]) -> None:
    model = proposer(compiled_llama_runner(num_blocks=3))
    cramped = session(random_ids(9))
    extend(model, cramped)
    assert not calls
    assert len(cramped.chain) == 1


def test_scores_that_are_not_numbers_leave_nothing_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    model, tokens = proposer(), random_ids(9)
    expected = by_one(model, session(tokens))
    spoilt = spoil_scores(monkeypatch)
    actual = session(tokens, number=2)
    while actual.room():
        extend(model, actual)
    assert spoilt
    assert chain(actual) == chain(expected)


def test_what_takes_long_goes_step_by_step(calls: list[int]) -> None:
    model = proposer()
    model._chain_steps._step_seconds = 0.1
    extend(model, session(random_ids(6)))
    assert not calls
