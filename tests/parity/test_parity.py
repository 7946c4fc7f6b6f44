"""Any configuration, of any mode, gives what transformers' plain `generate` gives.

Greedy and sampled texts and beams token for token, with the law of each token where its
log-probabilities are asked for and the scores and indices of beams; on several architectures, in
mixed batches, with a drafter that does its worst.

DoLa and contrastive search are in transformers 5 no more: among the others they are served with
drafts and without, which must be the same, and golden files of transformers 4.55 say what it is
(`exactness/test_dola.py`, `exactness/test_contrastive.py`). So are texts bound to a grammar, a
schema, an expression or choices, which must be of that form; lists of token ids are compared.
"""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from outrider_target.capabilities import CAPABILITIES, Support
from parity.additions import Additions
from parity.comparison import Comparison, Tally
from parity.configurations import BATCH, MODES, Configuration, batches, fields_tried

NOT_TRIED = {
    "max_time": "what fits into a time is not always the same",
    "num_beam_groups": "transformers 5 no longer has groups of beams: see tests/golden",
    "diversity_penalty": "likewise",
    "force_words_ids": "likewise",
    "token_healing": "rewrites the prompt, by a sampled token in transformers",
}
"""Honoured fields that are left out here, and why."""


def test_every_field_that_is_honoured_is_tried() -> None:
    honoured = {name for name, line in CAPABILITIES.items() if line.support is Support.HONOURED}
    assert honoured == fields_tried() | NOT_TRIED.keys()


def tallied(comparison: Comparison, count: int) -> Tally:
    """Compare so many batches, always the same ones."""
    tally = Tally()

    @settings(
        max_examples=count,
        derandomize=True,
        database=None,
        deadline=None,
        phases=[Phase.generate],  # shrinking a batch takes minutes; what fails is named anyway
        suppress_health_check=list(HealthCheck),
    )
    @given(batches(comparison.texts, comparison.vocab_size))
    def compare(batch: Sequence[Configuration]) -> None:
        comparison.compare(batch, tally)

    compare()
    return tally


@pytest.mark.parametrize(
    "share",
    [
        pytest.param(1, id="few"),
        pytest.param(20, id="many", marks=[pytest.mark.slow, pytest.mark.timeout(1500)]),
    ],
)
def test_any_configuration_gives_what_generate_gives(comparison: Comparison, share: int) -> None:
    count = comparison.num_batches * share
    tally = tallied(comparison, count)
    assert tally.modes.total() >= count * len(BATCH)
    compared = {name for name, mode in MODES.items() if mode.compared}
    assert {name for name, number in tally.by_transformers.items() if number} == compared
    assert set(Additions._fields) == {name for name, number in tally.additions.items() if number}
    assert tally.num_refused < tally.modes.total() / 5  # options that contradict each other
    assert tally.accepted["remote"] > 0  # who else drafts is a question of time, now and then
    assert tally.accepted.total() < tally.num_drafted
