"""What limits a deployment: each cause is named, with its figure and what would help."""

from __future__ import annotations

import dataclasses

import pytest
from engine.tiny_models import VOCAB_SIZE
from outrider_target.drafting.drafter import NullDrafter
from outrider_target.drafting.pricing.control import Control
from outrider_target.drafting.pricing.step_costs import MEASURED_ROWS, Measured, RowCurve
from outrider_target.drafting.silence import Silence
from outrider_target.engine.explanation import Figures, explain
from outrider_target.engine.round_log import Recent, RoundLog, RoundRecord
from outrider_target.requests.request import DraftMethod
from target.batch import SPECULATION, Batch, request
from target.drafters import repeating, sometimes_right
from target.test_hopeless_drafts import NewRunner

BUSY = Recent(
    num_rounds=100,
    num_sequence_rounds=200,
    num_drafts=100,
    num_draft_tokens=300,
    num_accepted_tokens=200,
    num_tokens=400,
    forward_seconds=1.0,
    between_seconds=0.05,
)


def figures(recent: Recent, **known: float) -> Figures:
    return Figures(recent, *(known.get(name) for name in Figures._fields[1:]))


def test_nothing_is_said_of_nothing() -> None:
    (only,) = explain(figures(Recent()))
    assert "Nothing has been generated" in only.seen


def test_a_deployment_that_does_well_is_told_so() -> None:
    (gain, only) = explain(figures(BUSY, speedup_ratio=1.75))
    assert "1.75 times" in gain.seen
    assert not only.advice


@pytest.mark.parametrize(
    ("silence", "figure"),
    [
        (Silence.NO_DRAFTER, "60%"),
        (Silence.NO_LINK, "60%"),
        (Silence.NOT_WORTH_ASKING, "1.40 times as long"),
        (Silence.LATE, "12.5 ms"),
        (Silence.NOTHING_PROPOSED, "60%"),
        (Silence.NOT_WORTH_VERIFYING, "60%"),
    ],
)
def test_why_there_are_no_drafts_is_said_with_what_would_help(
    silence: Silence, figure: str
) -> None:
    recent = BUSY._replace(silences=[(silence, 120), (Silence.MEASURING, 80)])
    (only,) = explain(figures(recent, asking_cost_ratio=1.4, answer_seconds=0.0125))
    assert figure in only.seen
    assert only.advice


def test_rejected_drafts_and_idle_time_are_seen() -> None:
    rejected, idle = explain(figures(BUSY._replace(num_accepted_tokens=30, between_seconds=3.0)))
    assert "10% were accepted" in rejected.seen
    assert "75% of the time" in idle.seen


def test_the_log_keeps_the_last_rounds() -> None:
    log = RoundLog()
    for number in range(600):
        late = (Silence.LATE,) * (number % 2)
        log.add(RoundRecord(1, 2, 6, 1, 4, number // 599, 3, 0.5, 0.25, late))
    recent = log.recent()
    assert recent.num_rounds == 512
    assert (recent.num_sequence_rounds, recent.num_accepted_tokens) == (1024, 1)
    assert recent.silences == [(Silence.LATE, 256)]
    assert recent.forward_seconds == 256.0


def test_rounds_are_recorded_with_why_nothing_was_drafted(new_runner: NewRunner) -> None:
    plain = Batch(new_runner(), NullDrafter())
    nobody = dataclasses.replace(SPECULATION, method=DraftMethod.NONE)
    (answer,) = plain.run(request([5, 6, 7], speculation=nobody))
    recent = plain.rounds.log.recent()
    assert recent.num_tokens == recent.num_rounds == len(answer.token_ids[0])
    assert recent.silences == [(Silence.NO_DRAFTER, recent.num_rounds)]
    assert recent.forward_seconds > 0

    asked = request([5, 6, 7])
    truth = {(asked.id, 0): [5, 6, 7, *answer.token_ids[0]]}
    drafter = sometimes_right(truth, probability=1.0, vocab_size=VOCAB_SIZE, seed=1)
    drafted = Batch(new_runner(), drafter)
    drafted.run(asked)
    recent = drafted.rounds.log.recent()
    assert recent.num_tokens == len(answer.token_ids[0])
    assert recent.num_drafts > 0
    assert recent.num_accepted_tokens > recent.num_drafts
    assert sum(count for _, count in recent.silences) == recent.num_rounds - recent.num_drafts


def test_drafts_that_do_not_pay_are_recorded_as_such(new_runner: NewRunner) -> None:
    controlled = dataclasses.replace(SPECULATION, schedule="auto")
    dear = RowCurve([Measured(rows, 3.0 * rows) for rows in MEASURED_ROWS])
    batch = Batch(new_runner(), repeating(3), control=Control(dear))
    batch.run(*(request([5, 6, 7], new_tokens=60, speculation=controlled) for _ in range(4)))
    silences = dict(batch.rounds.log.recent().silences)
    assert silences[Silence.NOT_WORTH_VERIFYING] > 0
