"""A drafter on a CPU and a target on an accelerator choose alike: numpy and torch agree."""

from __future__ import annotations

import random

import pytest
import torch
from outrider_runtime.model import arrays, selection
from outrider_runtime.model.selection import select_tokens
from sampling.oracle import WARPERS, random_logits, random_request


def test_numpy_and_torch_choose_the_same_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    batches = []
    for case in range(60):
        rng = random.Random(case)
        vocab_size = rng.choice([60, 3000])
        groups = [
            random_request(
                rng,
                vocab_size=vocab_size,
                names=rng.sample([*WARPERS, "repetition_penalty"], rng.randint(0, 3)),
                do_sample=True,
            ).group()
            for _ in range(4)
        ]
        logits = random_logits(rng, sum(group.num_rows for group in groups), vocab_size)
        batches.append((logits, groups))
    in_numpy = [select_tokens(logits, groups) for logits, groups in batches]

    side = arrays.on_device(torch.device("cpu"))
    monkeypatch.setattr(selection, "arrays_of", lambda logits: (side, logits))
    in_torch = [select_tokens(logits, groups) for logits, groups in batches]

    assert [chosen.token_ids for chosen in in_torch] == [chosen.token_ids for chosen in in_numpy]
    assert len({token for chosen in in_numpy for token in chosen.token_ids}) > 100
    for ours, theirs in zip(in_numpy, in_torch, strict=True):
        assert ours.log_probs == pytest.approx(theirs.log_probs, abs=1e-4)
