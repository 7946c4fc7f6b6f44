"""A watermark survives speculation: the same text with and without, and detectors find it."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from exactness.model_pairs import VOCAB_SIZE
from exactness.prompts import random_prompts
from exactness.running import (
    PLAIN,
    SYNCHRONOUS,
    Request,
    RunningTarget,
    num_accepted,
    num_drafted,
    tokens,
)
from outrider_client import SpeculationConfig
from outrider_runtime.watermarks import GreenList
from transformers import SynthIDTextWatermarkingConfig, WatermarkDetector

SYNTHID = {"ngram_len": 4, "keys": [654, 400, 836, 123, 340, 443, 597, 160, 57]}
WATERMARKS: dict[str, dict[str, Any]] = {
    "lefthash": {"bias": 4.0},
    "selfhash": {"bias": 4.0, "seeding_scheme": "selfhash", "context_width": 2},
    "synthid": SYNTHID,
    "synthid that starts late": {
        **SYNTHID,
        "skip_first_ngram_calls": True,
        "context_history_size": 4,
    },
}


def requests_with(mark: dict[str, Any], *, length: int = 40) -> list[Request]:
    """Sampled and greedy ones, one of them of two sequences."""
    sampled = {"do_sample": True, "top_k": 0, "num_return_sequences": 2}
    options: list[dict[str, Any]] = [sampled, {"do_sample": True, "temperature": 0.7}, {}]
    return [
        Request(prompt, {"max_new_tokens": length, "watermarking_config": mark, **option}, seed)
        for seed, (prompt, option) in enumerate(
            zip(random_prompts(len(options), seed=8), options, strict=True)
        )
    ]


@pytest.mark.parametrize("name", WATERMARKS)
def test_a_watermarked_text_is_the_same_with_drafts_right_and_wrong(
    name: str, drafted_target: RunningTarget
) -> None:
    requests = requests_with(WATERMARKS[name])
    plain = drafted_target.generate_together(requests, PLAIN)
    assert num_drafted(plain) == 0
    # Twice, in one batch: one waits for its drafter, the other does not.
    drafted = drafted_target.generate_together(
        [request for request in requests for _ in range(2)],
        [SYNCHRONOUS, SpeculationConfig(run_ahead=8)] * len(requests),
    )
    assert tokens(drafted) == [one for one in tokens(plain) for _ in range(2)]
    assert 0 < num_accepted(drafted) < num_drafted(drafted)


@pytest.mark.parametrize("name", WATERMARKS)
def test_a_drafter_with_the_target_s_model_foresees_every_watermarked_token(
    name: str, perfectly_drafted_target: RunningTarget
) -> None:
    drafted = perfectly_drafted_target.generate_together(
        requests_with(WATERMARKS[name]), SYNCHRONOUS
    )
    assert num_accepted(drafted) == num_drafted(drafted) > 0


@pytest.mark.parametrize("name", ["lefthash", "selfhash"])
def test_transformers_detector_finds_the_green_list_and_only_where_it_is(
    name: str, drafted_target: RunningTarget
) -> None:
    mark = WATERMARKS[name]
    marked, unmarked = (
        drafted_target.generate_together(requests_with(option, length=100)[:2], SYNCHRONOUS)
        for option in (mark, {**mark, "bias": 0.0})
    )
    detector = WatermarkDetector(
        SimpleNamespace(bos_token_id=-1, is_encoder_decoder=False, vocab_size=VOCAB_SIZE),
        "cpu",
        {"hashing_key": GreenList().hashing_key, "greenlist_ratio": 0.25, **mark},
    )
    for completions, found in ((marked, True), (unmarked, False)):
        texts = [sequence for one in tokens(completions) for sequence in one]
        assert detector(torch.tensor(texts)).tolist() == [found] * len(texts)
    assert num_accepted(marked) > 0


def test_synthid_leaves_its_bits_in_the_text(drafted_target: RunningTarget) -> None:
    marked = drafted_target.generate_together(requests_with(SYNTHID, length=100)[:2], SYNCHRONOUS)
    processor = SynthIDTextWatermarkingConfig(**SYNTHID).construct_processor(VOCAB_SIZE, "cpu")
    texts = [sequence for one in tokens(marked) for sequence in one]
    bits = processor.compute_g_values(torch.tensor(texts)).float()
    assert bits.mean() > 0.5 + 4 * 0.5 / bits.numel() ** 0.5
    assert num_accepted(marked) > 0
