"""Steps of plain decoding in one go: the text of rounds of one step, and fewer rounds."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import pytest
from engine.compiled_llama import compiled_llama_runner, spoil_scores
from engine.compiler import needs_compiler
from engine.plain_model import random_ids
from outrider_runtime.model.ragged_runner import RaggedRunner
from outrider_runtime.model.selection import InvalidScores
from outrider_runtime.tally import Tally
from outrider_target.drafting.drafter import Outlook
from outrider_target.drafting.pricing.gate import FIRST_INTERVAL, Gate
from outrider_target.drafting.pricing.runs import RUN, Regime
from outrider_target.requests.request import DraftMethod, FinishReason
from target.batch import SPECULATION, Answer, Batch, request
from target.drafters import ScriptedSession

pytestmark = [needs_compiler, pytest.mark.timeout(400)]  # the first time something is compiled

PLAIN = dataclasses.replace(SPECULATION, method=DraftMethod.NONE)
LOOKUP = dataclasses.replace(SPECULATION, method=DraftMethod.PROMPT_LOOKUP)
AMPLE = 60.0
"""Seconds for the steps of a round: they end with the shortest text."""
NEW_TOKENS = 24


@pytest.fixture(scope="module")
def runner() -> RaggedRunner:
    return compiled_llama_runner()


def served(
    runner: RaggedRunner, *options: dict[str, Any], seconds: float
) -> tuple[list[Answer], int]:
    """What requests with such options get, and the rounds it took."""
    batch = Batch(runner, steps_seconds=seconds, prefix_caching=False)
    asked = [
        request(random_ids(9, seed=i), **{"new_tokens": NEW_TOKENS, "speculation": PLAIN, **one})
        for i, one in enumerate(options)
    ]
    return batch.run(*asked), batch.num_rounds


def alike(runner: RaggedRunner, *options: dict[str, Any]) -> tuple[int, int]:
    """Rounds with one step each, and with many, once both gave the same texts."""
    expected, single = served(runner, *options, seconds=0.0)
    actual, several = served(runner, *options, seconds=AMPLE)
    for one, other in zip(actual, expected, strict=True):
        assert one.error is None
        assert one.token_ids == other.token_ids
        assert one.finishes == other.finishes
        assert one.counters == other.counters
    return single, several


def test_the_same_text_in_a_few_rounds(runner: RaggedRunner) -> None:
    assert alike(runner, {}) == (NEW_TOKENS, 3)  # the prompt, a step to time, all others


def test_all_that_counts_rounds_counts_the_steps(runner: RaggedRunner) -> None:
    def counts(tally: Tally) -> float:
        return tally.buckets.cumulative[-1][1]

    counted = []
    for seconds in (0.0, AMPLE):
        batch = Batch(runner, steps_seconds=seconds, prefix_caching=False)
        asked = [request(random_ids(9, seed=i), new_tokens=20, speculation=PLAIN) for i in (1, 2)]
        batch.run(*asked)
        recent, tallies = batch.rounds.log.recent(), batch.rounds.tallies
        counted.append(
            (
                (recent.num_rounds, recent.num_sequence_rounds, recent.num_tokens),
                recent.silences,
                [counts(tallies.seconds), counts(tallies.forward_seconds)],
                tallies.num_rows.buckets,
                tallies.num_sequences.buckets,
                counts(tallies.inter_token_seconds),
                batch.rounds.totals,
            )
        )
    assert batch.num_rounds == 3
    assert counted[1] == counted[0]
    assert counted[0][0] == (20, 40, 40)


def test_several_sequences_go_on_together_as_long_as_the_shortest(runner: RaggedRunner) -> None:
    single, several = alike(runner, {}, {"new_tokens": 11}, {"num_sequences": 3})
    assert (single, several) == (NEW_TOKENS + 1, 6)


def test_what_comes_behind_an_end_is_not_told(runner: RaggedRunner) -> None:
    (whole,), _ = served(runner, {}, seconds=0.0)
    end = whole.token_ids[0][13]
    first = whole.token_ids[0].index(end)
    single, several = alike(runner, {"eos_token_ids": (end,)})
    assert (single, several) == (first + 1, min(3, first + 1))
    (answer,), _ = served(runner, {"eos_token_ids": (end,)}, seconds=AMPLE)
    assert answer.finishes[0] is not None
    assert answer.finishes[0].reason is FinishReason.STOP


@pytest.mark.parametrize(
    "options",
    [
        {"do_sample": True, "seed": 3},
        {"repetition_penalty": 1.3},
        {"min_length": 30},
        {"num_top_log_probs": 1},
        {"no_repeat_ngram_size": 2},
    ],
    ids=lambda options: next(iter(options)),
)
def test_where_more_than_the_highest_score_counts_each_step_is_a_round(
    runner: RaggedRunner, options: dict[str, Any]
) -> None:
    assert alike(runner, options) == (NEW_TOKENS, NEW_TOKENS)
    single, several = alike(runner, options, {})  # nor do others beside it
    assert single == several


def test_nobody_waits_behind_many_steps(runner: RaggedRunner) -> None:
    rounds = []
    for seconds in (0.0, AMPLE):
        batch = Batch(runner, steps_seconds=seconds, max_num_seqs=1, prefix_caching=False)
        batch.run(*(request(random_ids(5), new_tokens=8, speculation=PLAIN) for _ in range(2)))
        rounds.append(batch.num_rounds)
    assert rounds == [16, 8 + 2]  # the last has nobody behind it; a step was timed before


def test_where_the_steps_do_not_fit_there_is_one(runner: RaggedRunner) -> None:
    cramped = compiled_llama_runner(num_blocks=9)
    single, several = alike(cramped, {}, {"new_tokens": 20})
    assert single > NEW_TOKENS  # somebody was preempted
    assert several < single  # and alone it went on in several steps


def test_what_a_drafter_finds_meanwhile_changes_no_text(runner: RaggedRunner) -> None:
    looking = {"speculation": LOOKUP, "new_tokens": 48}
    (expected,), _ = served(runner, {"new_tokens": 48}, seconds=0.0)
    (actual,), rounds = served(runner, looking, seconds=AMPLE)
    assert actual.token_ids == expected.token_ids
    assert actual.counters is not None
    assert actual.counters.num_accepted_tokens > 0
    assert rounds < 48


class Nothing:
    """Opens sessions that never propose anything."""

    def __init__(self, outlook: Outlook) -> None:
        self._outlook = outlook
        self.sessions: list[ScriptedSession] = []

    def open(self, request: Any, *, sample_index: int, token_ids: Any, window: int) -> Any:
        session = ScriptedSession(lambda *_: [], request, sample_index, token_ids)
        session.outlook = self._outlook
        self.sessions.append(session)
        return session


@pytest.mark.parametrize(
    ("outlook", "rounds"), [(Outlook.EXPECTED, 24), (Outlook.POSSIBLE, 11), (Outlook.NONE, 3)]
)
def test_how_far_it_goes_depends_on_what_may_come(
    runner: RaggedRunner, outlook: Outlook, rounds: int
) -> None:
    batch = Batch(runner, Nothing(outlook), steps_seconds=AMPLE, prefix_caching=False)
    batch.run(request(random_ids(9), new_tokens=NEW_TOKENS))
    assert batch.num_rounds == rounds


def test_a_drafter_hears_of_every_token_but_the_last(runner: RaggedRunner) -> None:
    """As where each step is a round: what it remembers of a text does not end earlier."""
    heard = []
    for seconds in (0.0, AMPLE):
        drafter = Nothing(Outlook.NONE)
        batch = Batch(runner, drafter, steps_seconds=seconds, prefix_caching=False)
        (answer,) = batch.run(request(random_ids(9), new_tokens=NEW_TOKENS))
        (session,) = drafter.sessions
        assert session.closed
        assert session.token_ids == [*random_ids(9), *answer.token_ids[0][:-1]]
        heard.append(session.token_ids)
    assert heard[0] == heard[1]


def test_scores_that_are_not_numbers_are_met_step_by_step(
    runner: RaggedRunner, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of the one request that they belong to."""
    expected, _ = served(runner, {}, {}, seconds=0.0)
    calls = spoil_scores(monkeypatch)
    actual, rounds = served(runner, {}, {}, seconds=AMPLE)
    assert calls
    assert [one.token_ids for one in actual] == [one.token_ids for one in expected]
    assert rounds == NEW_TOKENS


def test_a_fault_in_the_steps_is_not_the_end(
    runner: RaggedRunner, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[int] = []

    def broken(self: RaggedRunner, batch: Any, num_steps: int, **options: Any) -> None:
        calls.append(num_steps)
        raise RuntimeError("no")

    monkeypatch.setattr(RaggedRunner, "forward_greedily", broken)
    actual, _ = served(runner, {}, {}, seconds=AMPLE)
    assert calls
    assert [one.error for one in actual] == [None, None]


def test_what_a_model_is_at_fault_for_is_told_as_ever(
    runner: RaggedRunner, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A NaN in the logits of a step ends the request."""
    forward = RaggedRunner.forward

    def spoilt(self: RaggedRunner, batch: Any, **options: Any) -> Any:
        logits = forward(self, batch, **options)
        return logits * math.nan if self.pool.length(batch[0].handle) > 15 else logits

    monkeypatch.setattr(RaggedRunner, "forward", spoilt)
    spoil_scores(monkeypatch)
    (answer,), _ = served(runner, {}, seconds=AMPLE)
    assert isinstance(answer.error, InvalidScores)


class TestHorizon:
    """For how many rounds nobody asks."""

    def test_while_a_trial_runs_it_is_the_trial(self) -> None:
        gate = Gate()
        gate.gain_of(0)
        assert (gate.regime, gate.horizon) == (Regime.ASKED, 1)
        for _ in range(RUN):
            gate.observe(1.0, 1)
        assert (gate.regime, gate.horizon) == (Regime.QUIET, RUN)
        for _ in range(3):
            gate.observe(1.0, 1)
        assert gate.horizon == RUN - 3

    def test_where_everybody_decides_for_himself_it_is_a_round(self) -> None:
        gate = Gate()
        gain = gate.gain_of(0)
        for _ in range(4 * RUN):
            gate.allows(gain, asking=True)
            gate.observe(1.0, 1)
        assert (gate.regime, gate.horizon) == (Regime.FREE, 1)

    def test_without_anybody_to_ask_it_is_the_time_to_the_next_trial(self) -> None:
        gate = Gate()
        for _ in range(4 * RUN):
            gate.observe(1.0, 1)
        assert gate.horizon == FIRST_INTERVAL - 4 * RUN
