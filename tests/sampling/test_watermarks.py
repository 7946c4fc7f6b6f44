"""Watermarks: what transformers' stateful processors do token by token, drafts are judged by.

And transformers' own detectors find them in what comes out.
"""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from outrider_runtime.model.scores import processed_scores
from outrider_runtime.model.selection import RowGroup, select_tokens
from outrider_runtime.sampling_parameters import SamplingParameters
from outrider_runtime.watermarks import GreenList, SynthId, Watermark, WatermarkError
from transformers import WatermarkDetector
from transformers.generation.logits_process import (
    SynthIDTextWatermarkLogitsProcessor,
    WatermarkLogitsProcessor,
)

VOCAB = 50
KEYS = (654, 400, 836, 123, 340, 443, 597, 160, 57)

WATERMARKS: dict[str, Watermark] = {
    "lefthash": GreenList(),
    "selfhash": GreenList(seeding_scheme="selfhash", context_width=3, bias=3.0),
    "synthid": SynthId(4, KEYS),
    "synthid without memory": SynthId(2, KEYS, context_history_size=0),
    "synthid with a short memory": SynthId(2, KEYS[:3], context_history_size=5),
    "synthid that starts late": SynthId(5, KEYS, skip_first_ngram_calls=True),
    "synthid of single tokens": SynthId(1, KEYS),
}


def theirs(mark: Watermark, vocab_size: int = VOCAB) -> Any:
    """transformers' processor; a new one knows of no text."""
    options = {field.name: getattr(mark, field.name) for field in dataclasses.fields(mark)}
    if isinstance(mark, GreenList):
        return WatermarkLogitsProcessor(vocab_size, "cpu", **options)
    return SynthIDTextWatermarkLogitsProcessor(
        **{**options, "keys": list(mark.keys)}, device=torch.device("cpu")
    )


def logits_after(token_ids: Sequence[int], vocab_size: int = VOCAB) -> torch.Tensor:
    """[1, vocab]: a little model, which likes to repeat itself."""
    generator = torch.Generator().manual_seed(hash(tuple(token_ids[-2:])) % 2**60)
    return torch.randn(1, vocab_size, generator=generator) * 2


def group_of(
    mark: Watermark, token_ids: Sequence[int], *, prompt: int, rows: int = 1, **sampling: Any
) -> RowGroup:
    parameters = SamplingParameters(watermark=mark, **sampling)
    return RowGroup(parameters, 7, 0, token_ids, rows, prompt)


def plain(mark: Watermark, prompt: Sequence[int], count: int) -> tuple[list[int], torch.Tensor]:
    """A greedy text by transformers' processor, and the scores on the way."""
    processor, token_ids, scores = theirs(mark), list(prompt), []
    for _ in range(count):
        scores.append(processor(torch.tensor([token_ids]), logits_after(token_ids)))
        token_ids.append(int(scores[-1].argmax()))
    return token_ids[len(prompt) :], torch.cat(scores)


def chances(scores: torch.Tensor) -> torch.Tensor:
    return scores.softmax(-1)


@pytest.mark.parametrize("name", WATERMARKS)
@settings(max_examples=10, deadline=None)
@given(
    prompt=st.lists(st.integers(0, VOCAB - 1), min_size=1, max_size=6),
    seed=st.integers(0, 2**32),
)
def test_rounds_of_right_and_wrong_drafts_write_the_text_that_plain_decoding_writes(
    name: str, prompt: list[int], seed: int
) -> None:
    mark, rng = WATERMARKS[name], random.Random(seed)
    expected, their_scores = plain(mark, prompt, 24)
    written, accepted, rejected = list(prompt), 0, 0
    while (done := len(written) - len(prompt)) < len(expected):
        draft = [
            token if rng.random() < 0.7 else rng.randrange(VOCAB)
            for token in expected[done : done + rng.randint(0, 6)]
        ]
        if done == 0:  # whatever chance brings, some are right and one is wrong
            draft = [*expected[:2], (expected[2] + 1) % VOCAB]
        prefix = [*written, *draft]
        logits = torch.cat(
            [logits_after(prefix[: len(written) + row]) for row in range(len(draft) + 1)]
        )
        group = group_of(mark, prefix, prompt=len(prompt), rows=len(draft) + 1)
        scores = processed_scores(logits, [group])
        own = select_tokens(logits, [group]).token_ids
        agreed = 0
        while agreed < len(draft) and draft[agreed] == own[agreed]:
            agreed += 1
        rows = min(agreed + 1, len(expected) - done)
        torch.testing.assert_close(
            chances(scores[:rows]), chances(their_scores[done : done + rows]), rtol=1e-4, atol=2e-6
        )
        accepted, rejected = accepted + agreed, rejected + len(draft) - agreed
        written += own[: agreed + 1]
    assert written[len(prompt) :][: len(expected)] == expected
    assert accepted > 0
    assert rejected > 0


@pytest.mark.parametrize("name", WATERMARKS)
def test_a_watermark_changes_the_text(name: str) -> None:
    text, _ = plain(WATERMARKS[name], [1, 2, 3], 24)
    unmarked = [1, 2, 3]
    for _ in range(24):
        unmarked.append(int(logits_after(unmarked).argmax()))
    assert text != unmarked[3:]


@pytest.mark.parametrize("name", ["lefthash", "selfhash"])
@pytest.mark.parametrize("do_sample", [False, True])
def test_the_detector_of_transformers_finds_green_lists_and_only_where_they_are(
    name: str, do_sample: bool
) -> None:
    mark = WATERMARKS[name]
    assert isinstance(mark, GreenList)
    marked, unmarked = (
        text(group_of(one, [1, 2, 3], prompt=3, do_sample=do_sample), 120)
        for one in (mark, dataclasses.replace(mark, bias=0.0))
    )
    detector = WatermarkDetector(
        SimpleNamespace(bos_token_id=-1, is_encoder_decoder=False, vocab_size=VOCAB),
        "cpu",
        {field.name: getattr(mark, field.name) for field in dataclasses.fields(mark)},
    )
    assert detector(torch.tensor([marked])).tolist() == [True]
    assert detector(torch.tensor([unmarked])).tolist() == [False]


def test_what_synthid_writes_has_more_ones_than_chance_gives() -> None:
    mark = SynthId(4, KEYS)
    group = group_of(mark, [1, 2, 3], prompt=3, do_sample=True, temperature=2.0)
    values = theirs(mark).compute_g_values(torch.tensor([text(group, 300)])).float()
    assert values.mean() > 0.5 + 4 * 0.5 / values.numel() ** 0.5


def text(group: RowGroup, count: int) -> list[int]:
    """What our selection writes, without the prompt."""
    token_ids = list(group.token_ids)
    for _ in range(count):
        here = group._replace(token_ids=token_ids)
        token_ids += select_tokens(logits_after(token_ids), [here]).token_ids
    return token_ids[group.num_prompt_tokens :]


@pytest.mark.parametrize("name", WATERMARKS)
def test_the_work_for_a_row_does_not_grow_with_the_text_before_it(name: str) -> None:
    class Watched(list[int]):
        """Notes how much of it is read."""

        read = 0

        def __getitem__(self, index: Any) -> Any:
            found = super().__getitem__(index)
            self.read += len(found) if isinstance(index, slice) else 1
            return found

    token_ids = Watched([5] * 100_000)
    select_tokens(logits_after([5]), [group_of(WATERMARKS[name], token_ids, prompt=10)])
    assert token_ids.read <= 1024 + 8


def test_the_global_random_numbers_are_left_alone() -> None:
    torch.manual_seed(1)
    before = torch.get_rng_state()
    for mark in WATERMARKS.values():
        select_tokens(logits_after([1, 2, 9]), [group_of(mark, [1, 2, 9], prompt=2)])
    assert torch.equal(torch.get_rng_state(), before)


def test_truncated_tokens_stay_impossible_and_the_rest_are_marked() -> None:
    for mark in WATERMARKS.values():
        logits = logits_after([4, 5, 6, 7, 8, 9])
        group = group_of(mark, [4, 5, 6, 7, 8, 9], prompt=1, do_sample=True, top_k=5)
        scores = processed_scores(logits, [group])[0]
        assert set(scores.isfinite().nonzero().flatten().tolist()) <= set(
            logits[0].topk(5).indices.tolist()
        )


@pytest.mark.parametrize(
    ("options", "field"),
    [
        ({"ngram_len": 0}, "ngram_len"),
        ({"ngram_len": 257}, "ngram_len"),
        ({"keys": ()}, "keys"),
        ({"keys": (1,) * 65}, "keys"),
        ({"keys": (1, 2**63)}, "keys"),
        ({"sampling_table_size": 0}, "sampling_table_size"),
        ({"sampling_table_size": 2**24 + 1}, "sampling_table_size"),
        ({"debug_mode": True}, "debug_mode"),
    ],
)
def test_a_synthid_watermark_without_sense_cannot_be_built(
    options: dict[str, Any], field: str
) -> None:
    with pytest.raises(WatermarkError) as refused:
        SynthId(**{"ngram_len": 5, "keys": (1, 2), **options})
    assert refused.value.field == field
