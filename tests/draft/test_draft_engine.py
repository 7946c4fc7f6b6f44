"""Drafting for many sessions, without threads or gRPC: any order of events ends in the same
trees."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import pytest
from draft.harness import ScriptedProposer, counting
from hypothesis import event, given, settings
from hypothesis import strategies as st
from outrider_conformance.target import MAX_NODES
from outrider_draft.engine import DraftEngine
from outrider_draft.lookup_proposer import LookupProposer
from outrider_draft.metrics import DraftMetrics
from outrider_draft.proposer import Proposer
from outrider_draft.settings import LookupSettings, SessionSettings, StepSettings
from outrider_draft.updates import (
    Closed,
    Committed,
    Grown,
    Message,
    Opened,
    Resynced,
    SessionKey,
    SessionRequest,
    StreamEnded,
)
from outrider_runtime.draft_tree import DraftTree, Limits
from outrider_runtime.prompt_lookup import LookupRule
from outrider_runtime.sampling_parameters import SamplingParameters
from prometheus_client import CollectorRegistry

VOCAB_SIZE = 5


def scrambled(tokens: Sequence[int]) -> tuple[int, float]:
    """A continuation that depends on the whole text, with varied probabilities."""
    mixed = hash(tuple(tokens))
    return mixed % VOCAB_SIZE, -(mixed % 7) / 4


def other_guesses(tokens: Sequence[int]) -> list[int]:
    """Whatever it was not, in an order that depends on the text."""
    return [(hash(tuple(tokens)) + shift) % VOCAB_SIZE for shift in (2, 1, 4, 3)]


def engine_of(
    proposer: Proposer, *, sessions: SessionSettings | None = None, step: StepSettings | None = None
) -> DraftEngine:
    return DraftEngine(
        proposer,
        sessions=sessions or SessionSettings(),
        steps=step or StepSettings(),
        metrics=DraftMetrics(CollectorRegistry()),
    )


def opened(
    key: SessionKey, tokens: Sequence[int], *, window: int = 3, depth: int = 3, ngram: int = 2
) -> Opened:
    request = SessionRequest(
        SamplingParameters(max_length=10_000),
        num_prompt_tokens=len(tokens),
        vocab_size=VOCAB_SIZE,
        max_matching_ngram_size=ngram,
    )
    return Opened(key, tokens, request, Limits(window, depth, MAX_NODES, 0.0))


@dataclass
class Target:
    """The target's side of a session, and frames that are still on their way."""

    key: SessionKey
    tree: DraftTree
    limits: Limits
    arriving: list[Message] = field(default_factory=list)
    departing: list[Committed] = field(default_factory=list)
    complete_at: int | None = None

    def hear(self) -> None:
        message = self.arriving.pop(0)
        assert isinstance(message, Grown), message
        growth = self.tree.grow(
            message.base_length,
            message.proposals,
            vocab_size=VOCAB_SIZE,
            max_nodes=MAX_NODES,
        )
        assert growth.offences == 0
        if message.complete:
            self.complete_at = message.base_length

    def decide(self, accepted: int, own: int, repeated: int) -> None:
        tokens = [node.token_id for node in self.tree.best_path(accepted)]
        self.tree.commit(self.tree.committed_length, [*tokens, own])
        base = max(1, self.tree.committed_length - len(tokens) - 1 - repeated)
        self.departing.append(Committed(self.key, base, self.tree.token_ids[base:], self.limits))


events = st.lists(
    st.one_of(
        st.tuples(
            st.just("decide"),
            st.integers(0, 3),
            st.integers(0, 5),
            st.integers(0, VOCAB_SIZE - 1),
            st.integers(0, 2),
        ),
        st.tuples(
            st.sampled_from(["hear", "listen", "step", "step", "flush"]),
            st.integers(0, 3),
            st.just(0),
            st.just(0),
            st.just(0),
        ),
    ),
    max_size=60,
)


@settings(max_examples=150, deadline=None)
@given(
    events,
    st.integers(1, 4),
    st.integers(0, 4),
    st.integers(1, 3),
    st.integers(1, 4),
    st.integers(1, 6),
)
def test_in_any_order_of_events_every_target_ends_up_with_the_drafters_own_chain(
    script: list[tuple[str, int, int, int, int]],
    window: int,
    run_ahead: int,
    fan_out: int,
    max_num_seqs: int,
    max_num_batched_tokens: int,
) -> None:
    proposer = ScriptedProposer(scrambled, guess=other_guesses)
    engine = engine_of(
        proposer,
        step=StepSettings(max_num_seqs=max_num_seqs, max_num_batched_tokens=max_num_batched_tokens),
    )
    limits = Limits(window, window + run_ahead, MAX_NODES, 0.3, fan_out)
    targets = []
    for number in range(4):
        prompt = [number % VOCAB_SIZE] * (1 + 30 * number)
        key = SessionKey(number % 2, number)
        engine.apply(opened(key, prompt)._replace(limits=limits))
        targets.append(Target(key, DraftTree(prompt), limits))
    by_key = {target.key: target for target in targets}

    def flush() -> None:
        for message in engine.take_messages():
            by_key[message.key].arriving.append(message)

    for verb, number, accepted, own, repeated in script:
        target = targets[number]
        if verb == "decide":
            target.decide(accepted, own, repeated)
        elif verb == "hear" and target.arriving:
            target.hear()
        elif verb == "listen" and target.departing:
            engine.apply(target.departing.pop(0))
        elif verb == "step" and engine.has_growth:
            engine.step()
        elif verb == "flush":
            flush()
    for target in targets:
        for committed in target.departing:
            engine.apply(committed)
    for _ in range(2000):
        if not engine.has_growth:
            break
        engine.step()
        flush()
    assert not engine.has_growth
    flush()
    for target in targets:
        while target.arriving:
            target.hear()
        expected: list[int] = []
        for _ in range(limits.depth):
            token_id, log_prob = scrambled([*target.tree.token_ids, *expected])
            expected.append(token_id)
            if log_prob < -1.21:  # log 0.3, up to rounding; probabilities are quarters apart
                break
        assert [node.token_id for node in target.tree.best_path()] == expected
        if fan_out == 1:
            assert len(target.tree) == len(expected)
        check_tree(target.tree, fan_out)
        assert target.complete_at == target.tree.committed_length
        event(f"chain of {len(expected)}")


def check_tree(tree: DraftTree, fan_out: int) -> None:
    """Whatever follows a node, the drafter's own choice there is in it and ranks first."""
    pending = [(0, list(tree.token_ids))]
    while pending:
        node_id, tokens = pending.pop()
        children = tree.children(node_id)
        assert len(children) <= fan_out
        if children:
            first = max(children, key=lambda node: node.log_prob)
            assert first.token_id == scrambled(tokens)[0]
            assert len({node.token_id for node in children}) == len(children)
        pending += [(node.id, [*tokens, node.token_id]) for node in children]


def grown_by(engine: DraftEngine) -> list[Message]:
    """Everything that is said until nothing grows any more."""
    messages = engine.take_messages()
    for _ in range(1000):
        if not engine.has_growth:
            return messages
        engine.step()
        messages += engine.take_messages()
    raise AssertionError("grows forever")


def chain_in(messages: Sequence[Message]) -> list[int]:
    return [p.token_id for m in messages if isinstance(m, Grown) for p in m.proposals]


def test_the_end_of_a_stream_forgets_its_sessions_and_no_others() -> None:
    proposer = ScriptedProposer(counting)
    engine = engine_of(proposer)
    keys = [SessionKey(stream, number) for stream in (1, 2) for number in range(3)]
    for key in keys:
        engine.apply(opened(key, [1]))
    engine.step()
    engine.apply(StreamEnded(1))
    assert engine.num_sessions == 3
    assert set(proposer.held) == set(keys[3:])
    assert {message.key for message in grown_by(engine)} == set(keys[3:])
    engine.apply(StreamEnded(1))
    engine.apply(Closed(SessionKey(9, 9)))


def test_a_step_after_everything_was_forgotten_does_nothing() -> None:
    engine = engine_of(ScriptedProposer(counting))
    engine.apply(opened(SessionKey(1, 1), [1]))
    engine.apply(Closed(SessionKey(1, 1)))
    assert not engine.has_growth
    assert engine.take_messages() == []


def test_a_session_that_does_not_fit_even_alone_is_refused() -> None:
    engine = engine_of(ScriptedProposer(counting, capacity=4))
    engine.apply(opened(SessionKey(1, 1), [1] * 5))
    (message,) = grown_by(engine)
    assert isinstance(message, Resynced)
    assert message.refused
    assert engine.num_sessions == 0


@pytest.mark.parametrize("rule", LookupRule)
def test_prompt_lookup_goes_on_along_the_copied_run(rule: LookupRule) -> None:
    text = [1, 2, 3, 4, 5, 6, 7, 8, 9]
    key = SessionKey(1, 1)
    engine = engine_of(LookupProposer(LookupSettings(rule=rule)))
    engine.apply(opened(key, [*text, 1, 2], window=3, depth=3))
    assert chain_in(grown_by(engine)) == [3, 4, 5]
    engine.apply(Committed(key, 11, [3, 4, 5, 6], None))  # all accepted, and the bonus
    assert chain_in(grown_by(engine)) == [7, 8, 9]
    engine.apply(Committed(key, 15, [0], None))  # new: nothing to look up
    (message,) = grown_by(engine)
    assert message == Grown(key, 16, [], complete=True)


def test_prompt_lookup_runs_ahead_along_the_copied_run() -> None:
    text = list(range(40))
    key = SessionKey(1, 1)
    engine = engine_of(LookupProposer(LookupSettings()))
    engine.apply(opened(key, [*text, 0, 1], window=2, depth=6))
    assert chain_in(grown_by(engine)) == [2, 3, 4, 5, 6, 7]
    engine.apply(Committed(key, 42, [2, 3, 4], None))
    assert chain_in(grown_by(engine)) == [8, 9, 10]


def test_the_request_says_how_long_an_ngram_is_matched() -> None:
    # The last token occurred before; the last two never did.
    text = [1, 2, 9, 9, 4, 2]
    for ngram, rule, expected in ((1, "latest", [9, 9, 4]), (2, "first", [9, 9, 4])):
        engine = engine_of(LookupProposer(LookupSettings(rule=LookupRule(rule))))
        engine.apply(opened(SessionKey(1, 1), text, ngram=ngram))
        assert chain_in(grown_by(engine)) == expected
    longer = [1, 2, 3, 7, 5, 2, 3, 8, 1, 2, 3]
    engine = engine_of(LookupProposer(LookupSettings()))
    engine.apply(opened(SessionKey(1, 1), longer, ngram=2))
    assert chain_in(grown_by(engine))[0] == 8
    engine.apply(opened(SessionKey(1, 2), longer, ngram=3))
    assert chain_in(grown_by(engine))[0] == 7


def test_prompt_lookup_follows_a_target_that_changes_its_mind() -> None:
    key = SessionKey(1, 1)
    engine = engine_of(LookupProposer(LookupSettings()))
    engine.apply(opened(key, [1, 2, 3, 4, 1, 2]))
    assert chain_in(grown_by(engine)) == [3, 4, 1]
    engine.apply(Committed(key, 2, [7, 8, 1, 2], None))
    assert chain_in(grown_by(engine)) == [7, 8, 1]
