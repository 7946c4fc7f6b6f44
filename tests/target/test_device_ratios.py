"""By ratio on a device: the same verdicts as on a CPU, for one transfer each way.

On a pretended device (`sampling.pretended_device`), whose numbers are a CPU's.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from outrider_runtime.model import arrays
from outrider_runtime.model.drawing import draw_tokens
from outrider_runtime.model.row_group import RowGroup
from outrider_runtime.model.selection import InvalidScores
from outrider_runtime.sampling_parameters import SamplingParameters
from outrider_target.decoding.acceptance import Acceptance
from outrider_target.decoding.device_ratios import judge
from outrider_target.decoding.drawn_rows import DrawnRows, DrawnToken
from outrider_target.decoding.speculative_sampling import decide_by_ratio
from sampling.pretended_device import Record, pretended_device, put

SAMPLED = SamplingParameters(do_sample=True)
OPTIONS = (
    SAMPLED,
    SamplingParameters(do_sample=True, temperature=0.7, top_k=20),
    SamplingParameters(do_sample=True, top_p=0.8, repetition_penalty=1.2),
)


def drafted(rng: random.Random, logits: torch.Tensor, parameters: SamplingParameters) -> DrawnRows:
    """A draft from what the target's scores nearly are; now and then a token that nobody drew."""
    prompt = [rng.randrange(logits.shape[1]) for _ in range(6)]
    group = RowGroup(parameters, rng.getrandbits(64), 0, prompt, 1, len(prompt))
    draft: list[DrawnToken] = []
    for row in logits[:-1]:
        text = [*prompt, *(token.token_id for token in draft)]
        near = row + torch.tensor([rng.gauss(0, 0.7) for _ in row])
        (drawn,) = draw_tokens(near[None], [group._replace(token_ids=text)], [len(prompt)])
        assert drawn is not None
        told = None if rng.random() < 0.2 else drawn.distribution
        draft.append(DrawnToken.of(drawn.token_id, told))
    text = [*prompt, *(token.token_id for token in draft)]
    return DrawnRows(group._replace(token_ids=text, num_rows=len(logits)), draft)


def batch(
    seed: int, *, num_sequences: int = 6, vocab_size: int = 40, longest: int = 6
) -> tuple[torch.Tensor, list[DrawnRows]]:
    """Logits and drafts of different lengths, some of none."""
    rng = random.Random(seed)
    generator = torch.Generator().manual_seed(seed)
    logits, wanted = [], []
    for _ in range(num_sequences):
        shape = rng.randint(1, longest + 1), vocab_size
        logits.append(torch.randn(shape, generator=generator) * 2)
        wanted.append(drafted(rng, logits[-1], rng.choice(OPTIONS)))
    return torch.cat(logits), wanted


def decided_there(
    logits: torch.Tensor, wanted: Sequence[DrawnRows]
) -> tuple[list[Acceptance], Record]:
    there = put(logits)
    with pretended_device() as record:
        decided = decide_by_ratio(there, wanted)
    return decided, record


def test_verdicts_are_those_of_a_cpu() -> None:
    kept = rejected = 0
    for seed in range(120):
        logits, wanted = batch(seed)
        decided, record = decided_there(logits, wanted)
        assert decided == decide_by_ratio(logits, wanted)
        assert not record.waits
        assert len(record.fetched) == 1
        kept += sum(one.num_accepted for one in decided)
        rejected += sum(
            one.num_accepted < len(rows.draft) for one, rows in zip(decided, wanted, strict=True)
        )
    assert kept > 500
    assert rejected > 200


@pytest.mark.parametrize("vocab_size", [100, 3000])
def test_transfers_do_not_grow_with_rows_or_vocabulary(vocab_size: int) -> None:
    counts = []
    for num_sequences in (2, 9):
        logits, wanted = batch(1, num_sequences=num_sequences, vocab_size=vocab_size)
        wanted = [rows._replace(group=rows.group._replace(parameters=SAMPLED)) for rows in wanted]
        _, record = decided_there(logits, wanted)
        counts.append((len(record.sent), len(record.fetched), record.waits))
        places = num_sequences * max(len(rows.draft) for rows in wanted)
        assert sum(record.sent) <= places * 64 * 8 + 1000 * num_sequences
    assert counts == [(1, 1, [])] * 2


def test_many_sequences_are_judged_in_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    logits, wanted = batch(3, num_sequences=7)
    side = arrays.on_device(torch.device("cpu"))
    whole = judge(logits, wanted)
    monkeypatch.setattr(side, "at_once", 2 * 40)
    assert judge(logits, wanted) == whole


def test_rows_with_more_ties_than_a_window_holds_are_judged_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    logits, wanted = batch(5, vocab_size=400)
    parameters = SamplingParameters(do_sample=True, top_k=20)
    wanted = [rows._replace(group=rows.group._replace(parameters=parameters)) for rows in wanted]
    logits[3] = logits[3].mul(0.1).round()
    decided, record = decided_there(logits, wanted)
    assert len(record.fetched) == 2
    assert not record.waits
    assert decided == decide_by_ratio(logits, wanted)


def test_a_text_that_a_form_restricts_ends_before_what_it_forbids() -> None:
    rng = random.Random(4)
    for seed in range(30):
        logits, wanted = batch(seed, longest=3)
        formed = []
        for rows in wanted:
            mask = (
                np.random.default_rng(rng.getrandbits(32)).random((rows.group.num_rows, 40)) < 0.5
            )
            for place, token in enumerate(rows.draft):
                mask[place, token.token_id] = True
            group = rows.group._replace(allowed=mask)
            if rows.draft:  # the last drafted token is impossible, and has no row behind it
                mask[-2, rows.draft[-1].token_id] = False
                group = group.first(group.num_rows - 1)
            formed.append(rows._replace(group=group))
        kept = [
            row
            for rows, first in zip(wanted, _first_rows(wanted), strict=True)
            for row in range(first, first + rows.group.num_rows - bool(rows.draft))
        ]
        decided, record = decided_there(logits[kept], formed)
        assert decided == decide_by_ratio(logits[kept], formed)
        assert not record.waits


def _first_rows(wanted: Sequence[DrawnRows]) -> list[int]:
    return [sum(rows.group.num_rows for rows in wanted[:i]) for i in range(len(wanted))]


def broken(row: int, value: float) -> tuple[torch.Tensor, list[DrawnRows]]:
    logits, wanted = batch(8)
    logits[row, 5 if value != -torch.inf else slice(None)] = value
    return logits, wanted


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_rows_from_which_nothing_can_be_chosen_end_a_draft(value: float) -> None:
    compared = 0
    for row in range(len(batch(8)[0])):
        logits, wanted = broken(row, value)
        there = _decided_or_why(decided_there, logits, wanted)
        assert there == _decided_or_why(lambda *of: (decide_by_ratio(*of), None), logits, wanted)
        compared += isinstance(there, list)
    assert compared


def _decided_or_why(
    decide: Any, logits: torch.Tensor, wanted: Sequence[DrawnRows]
) -> list[Acceptance] | str:
    try:
        decided: list[Acceptance] = decide(logits, wanted)[0]
    except InvalidScores as error:
        return str(error)
    return decided


def test_another_rule_shows() -> None:
    """What is compared above would not be the same for drafts that count as certain."""
    different = 0
    for seed in range(40):
        logits, wanted = batch(seed)
        certain = [
            rows._replace(draft=[DrawnToken.of(token.token_id, None) for token in rows.draft])
            for rows in wanted
        ]
        different += decided_there(logits, certain)[0] != decide_by_ratio(logits, wanted)
    assert different > 30
