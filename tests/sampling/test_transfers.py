"""A choice on an accelerator: one transfer there, one back, and nothing else that is waited for.

On a pretended device (see `pretended_device`), whose numbers are a CPU's: so the tokens have to be
those that torch gives on the CPU.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from outrider_runtime.model import arrays, scores, selection
from outrider_runtime.model.drawing import draw_tokens
from outrider_runtime.model.log_probs import token_log_probs
from outrider_runtime.model.row_group import NamedProcessor, RowGroup
from outrider_runtime.model.scores import processed_scores
from outrider_runtime.model.selection import InvalidScores, Selection, select_tokens
from sampling.oracle import Request
from sampling.pretended_device import Record, pretended_device, put

SAMPLED = {"do_sample": True, "temperature": 0.8}
ALL_WARPERS = {
    "top_h": 0.9,
    "top_k": 40,
    "top_p": 0.95,
    "min_p": 0.01,
    "typical_p": 0.97,
    "epsilon_cutoff": 0.001,
    "eta_cutoff": 0.001,
}
EDITS = {
    "sequence_bias": [[[5], 1.0], [[7, 9], 2.0]],
    "encoder_repetition_penalty": 1.1,
    "repetition_penalty": 1.2,
    "no_repeat_ngram_size": 2,
    "encoder_no_repeat_ngram_size": 3,
    "bad_words_ids": [[3], [4, 5]],
    "min_length": 30,
    "eos_token_id": [1, 2],
    "remove_invalid_values": True,
    "exponential_decay_length_penalty": (1, 1.1),
    "suppress_tokens": [11, 12],
    "begin_suppress_tokens": [13],
    "renormalize_logits": True,
}
LEFTHASH = {"watermarking_config": {"greenlist_ratio": 0.3, "bias": 2.0}}
SELFHASH = {"watermarking_config": {"bias": 2.0, "seeding_scheme": "selfhash", "context_width": 2}}
SYNTHID = {"watermarking_config": {"ngram_len": 3, "keys": [3, 5, 7], "sampling_table_size": 1024}}

OPTIONS: dict[str, Sequence[dict[str, Any]]] = {
    "greedy": [{}],
    "greedy, edited": [EDITS],
    "forced": [{"forced_eos_token_id": 4, "max_length": 13, **SAMPLED}],
    "sampled": [SAMPLED],
    "top_k": [{**SAMPLED, "top_k": 50}],
    "top_p": [{**SAMPLED, "top_p": 0.9}],
    "all warpers": [{**SAMPLED, **ALL_WARPERS}],
    "all but top_k": [
        {**SAMPLED, **{name: ALL_WARPERS[name] for name in ALL_WARPERS if "top_" not in name}}
    ],
    "sampled, edited": [{**SAMPLED, **EDITS, "top_k": 50, "top_p": 0.9}],
    "lefthash": [{**SAMPLED, **LEFTHASH}, {**LEFTHASH}, {**SAMPLED, **LEFTHASH, "top_k": 50}],
    "synthid": [{**SAMPLED, **SYNTHID}, {**SYNTHID}, {**SAMPLED, **SYNTHID, "top_k": 50}],
    "all in one batch": [
        {},
        EDITS,
        SAMPLED,
        {**SAMPLED, "top_k": 50},
        {**SAMPLED, "top_k": 200, "repetition_penalty": 1.3},
        {**SAMPLED, **ALL_WARPERS},
        {**SAMPLED, "typical_p": 0.9},
        {**SAMPLED, **EDITS},
        {**SAMPLED, **SYNTHID},
        LEFTHASH,
    ],
}


def batch(
    name: str, *, vocab_size: int = 1000, copies: int = 1, rows: int = 4, masked: bool = False
) -> tuple[torch.Tensor, list[RowGroup]]:
    """Logits and groups of some options, several of each."""
    rng = random.Random(7)
    groups = []
    for options in [*OPTIONS[name]] * copies:
        token_ids = [rng.randrange(20, 60) for _ in range(15)]
        group = Request(options, token_ids, rows, 9, seed=rng.getrandbits(64)).group()
        if masked:
            mask = np.random.default_rng(rng.getrandbits(32)).random((rows, vocab_size)) < 0.2
            group = group._replace(allowed=mask)
        groups.append(group)
    generator = torch.Generator().manual_seed(3)
    logits = torch.randn(rows * len(groups), vocab_size, generator=generator) * 3
    return logits, groups


def on_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    """Has a CPU's rows chosen from by torch."""
    side = arrays.on_device(torch.device("cpu"))
    for module in (scores, selection):
        monkeypatch.setattr(module, "arrays_of", lambda logits: (side, logits))


def chosen_there(
    logits: torch.Tensor, groups: Sequence[RowGroup], **options: Any
) -> tuple[Selection, Record]:
    there = put(logits)
    with pretended_device() as record:
        selected = select_tokens(there, groups, **options)
    return selected, record


@pytest.mark.parametrize("masked", [False, True], ids=["free", "masked"])
@pytest.mark.parametrize("name", OPTIONS)
def test_one_transfer_there_and_one_back(
    monkeypatch: pytest.MonkeyPatch, name: str, masked: bool
) -> None:
    logits, groups = batch(name, masked=masked)
    select_tokens(logits, groups)
    for options in (
        {"with_log_probs": False},
        {"with_log_probs": True},
        {"with_log_probs": True, "num_runners_up": 3},
    ):
        chosen_there(logits, groups, **options)  # what stays on the device is there
        selected, record = chosen_there(logits, groups, **options)
        assert not record.waits
        assert len(record.fetched) == 1
        assert len(record.sent) <= 1
        with monkeypatch.context() as patch:
            on_torch(patch)
            assert selected == select_tokens(logits, groups, **options)


def test_bare_greedy_rows_send_nothing() -> None:
    _, record = chosen_there(*batch("greedy"), with_log_probs=False)
    assert not record.sent
    assert record.fetched == [2 * 8 * 4]


@pytest.mark.parametrize("name", OPTIONS)
def test_more_rows_make_no_more_transfers(name: str) -> None:
    chosen_there(*batch(name))
    counts = []
    for copies in (1, 5):
        _, record = chosen_there(*batch(name, copies=copies, masked=True))
        counts.append((len(record.sent), len(record.fetched), len(record.waits)))
    assert counts[0] == counts[1] == (1, 1, 0)


@pytest.mark.parametrize("name", OPTIONS)
def test_of_a_vocabulary_nothing_but_bits_is_sent(name: str) -> None:
    sent = []
    for vocab_size in (1000, 9000):
        logits, groups = batch(name, vocab_size=vocab_size)
        chosen_there(logits, groups)
        _, record = chosen_there(logits, groups)
        assert sum(record.fetched) <= 8 * 5 * len(logits)
        sent.append(sum(record.sent))
    rows = len(logits)
    masks = 3  # what was seen, what the prompt had, what is green
    assert sent[1] - sent[0] <= masks * rows * 8000 / 8
    if name in ("greedy", "sampled", "top_k", "top_p", "all warpers", "synthid", "forced"):
        assert sent[1] == sent[0]


def test_a_watermark_that_hashes_its_candidates_is_waited_for_once_more(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(OPTIONS, "selfhash", [{**SAMPLED, **SELFHASH}])
    logits, groups = batch("selfhash")
    selected, record = chosen_there(logits, groups)
    assert len(record.fetched) == 2
    assert len(record.sent) == 2
    assert not record.waits
    on_torch(monkeypatch)
    assert selected == select_tokens(logits, groups)


def test_rows_with_more_ties_than_a_window_holds_are_chosen_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    logits, groups = batch("top_k", copies=3)
    logits[5] = logits[5].mul(0.2).round()
    selected, record = chosen_there(logits, groups)
    assert len(record.fetched) == 2
    assert not record.waits
    on_torch(monkeypatch)
    assert selected == select_tokens(logits, groups)


def test_what_cannot_be_chosen_from_is_told_as_on_a_cpu() -> None:
    for name in ("greedy", "sampled", "top_k", "top_p"):
        logits, groups = batch(name, copies=3)
        logits[6, 10] = torch.nan
        with pytest.raises(InvalidScores) as here:
            select_tokens(logits, groups)
        with pytest.raises(InvalidScores) as there:
            chosen_there(logits, groups)
        assert str(there.value) == str(here.value)


@pytest.mark.parametrize("name", OPTIONS)
def test_scores_stay_on_the_device(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    logits, groups = batch(name, masked=True)
    chosen_there(logits, groups)
    there = put(logits)
    with pretended_device() as record:
        found = processed_scores(there, groups)
        windowed = len(record.fetched)
        numbers = found.cpu()
    assert windowed <= 1
    assert len(record.sent) <= 1
    assert not record.waits
    on_torch(monkeypatch)
    assert torch.equal(numbers, processed_scores(logits, groups))


@pytest.mark.parametrize("name", ["sampled", "top_k", "all warpers", "sampled, edited"])
def test_a_drafters_draw_is_one_transfer_there_and_one_back(
    monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    logits, groups = batch(name, copies=4, rows=1)
    there = put(logits)
    with pretended_device() as record:
        drawn = draw_tokens(there, groups, [15] * 4)
    assert len(record.fetched) == 1
    assert len(record.sent) <= 1
    assert not record.waits
    on_torch(monkeypatch)
    assert drawn == draw_tokens(logits, groups, [15] * 4)


def test_plugged_processors_run_on_the_device() -> None:
    logits, (group,) = batch("sampled", masked=True)
    plugin = NamedProcessor("halve", lambda _prefix, _length, row: row / 2)
    group = group._replace(processors=[plugin])
    _, record = chosen_there(logits, [group])
    assert (len(record.sent), len(record.fetched), record.waits) == (1, 1, [])


def test_log_probs_are_fetched_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    logits, (group,) = batch("sampled, edited")
    there = put(logits)
    with pretended_device() as record:
        told = token_log_probs(there, group, [3, 4, 5, 6], num_top=5)
    assert len(record.fetched) == 1
    assert len(record.sent) == 2
    assert not record.waits
    on_torch(monkeypatch)
    assert told == token_log_probs(logits, group, [3, 4, 5, 6], num_top=5)
