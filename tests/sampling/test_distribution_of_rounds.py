"""What speculative rounds emit follows the exact joint law, under every kind of processing.

The law is enumerated: the model in transformers after each possible prefix, and transformers' own
processors on its logits. The sample is drawn by the engine's rounds with a drafter that proposes
what is likely, so drafts are accepted, rejected and recovered.
"""

from __future__ import annotations

import copy
import itertools
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pytest
import torch
from engine.tiny_models import build_tiny
from outrider_runtime.model.ragged_runner import RaggedRunner
from outrider_target.decoding import acceptance
from outrider_target.decoding.acceptance import Acceptance, accept
from sampling.chi_square import FALSE_ALARM, p_value
from sampling.oracle import Request, oracle_scores
from target.batch import Batch, request
from target.drafters import ScriptedDrafter

VOCAB = 6
PROMPT = (2, 5, 2)
DEPTH = 3
SEQUENCES = 2048
AT_ONCE = 256

Law = npt.NDArray[np.float64]
Counts = npt.NDArray[np.int64]

OPTIONS: dict[str, dict[str, Any]] = {
    "none": {},
    "temperature and top_p": {"temperature": 1.4, "top_p": 0.8},
    "top_k and a penalty": {"top_k": 4, "repetition_penalty": 1.5},
    "min_p and a bias": {"min_p": 0.15, "sequence_bias": [[[3], 1.5], [[2, 4], -2.0]]},
}


class Sampled(NamedTuple):
    """How often each continuation came, and how it was drafted."""

    counts: Counts
    num_drafted: int
    num_accepted: int


@pytest.fixture(scope="module")
def model() -> Any:
    """A model of few tokens, none of them certain."""
    built: Any = build_tiny("llama", vocab_size=VOCAB, num_hidden_layers=1, eos_token_id=None)
    with torch.no_grad():
        built.get_output_embeddings().weight.mul_(0.4)
    return built.to(torch.float64)


def exact_law(model: Any, options: Mapping[str, Any]) -> Law:
    """Probability of every continuation."""
    law = np.ones((VOCAB,) * DEPTH)
    for depth in range(DEPTH):
        continuations = list(itertools.product(range(VOCAB), repeat=depth))
        prefixes = [[*PROMPT, *each] for each in continuations]
        with torch.no_grad():
            logits = model(torch.tensor(prefixes)).logits[:, -1]
        asked = [
            Request({**options, "do_sample": True}, prefix, 1, len(PROMPT)) for prefix in prefixes
        ]
        chances = oracle_scores(logits.float(), asked).double().softmax(-1).numpy()
        law *= chances.reshape((VOCAB,) * (depth + 1) + (1,) * (DEPTH - depth - 1))
    return law


def likeliest(law: Law) -> ScriptedDrafter:
    """Proposes what most probably follows."""

    def propose(_: object, __: int, token_ids: list[int], window: int) -> list[int]:
        rest = law[tuple(token_ids[len(PROMPT) :])]
        return [int(token) for token in np.unravel_index(rest.argmax(), rest.shape)][:window]

    return ScriptedDrafter(propose)


def sampled(model: Any, options: Mapping[str, Any], law: Law) -> Sampled:
    """What the rounds emit, over seeds and sequences of one seed."""
    wanted = {**options, "do_sample": True, "max_length": len(PROMPT) + DEPTH}
    parameters = Request(wanted, PROMPT, 1, len(PROMPT)).group().parameters
    batch = Batch(
        RaggedRunner(copy.deepcopy(model), num_blocks=2 * AT_ONCE, block_size=4),
        likeliest(law),
        max_num_seqs=AT_ONCE,
        max_batched_tokens=8 * AT_ONCE,
    )
    each = 32
    answers = batch.run(
        *(
            request(PROMPT, seed=seed, num_sequences=each, parameters=parameters)
            for seed in range(SEQUENCES // each)
        )
    )
    counts = np.zeros(law.shape, np.int64)
    for answer in answers:
        for token_ids in answer.token_ids:
            counts[tuple(token_ids)] += 1
    totals = batch.rounds.totals
    return Sampled(counts, totals.num_draft_tokens, totals.num_accepted_tokens)


def pooled(counts: Counts, law: Law) -> float:
    """Chi-square with the rarest outcomes as one."""
    if counts[law == 0].any():
        return 0.0
    rare = law * SEQUENCES < 10
    seen = np.append(counts[~rare], counts[rare].sum())
    chances = np.append(law[~rare], law[rare].sum())
    kept = chances * SEQUENCES >= 5
    if not kept.all():
        seen, chances = seen[kept], chances[kept] / chances[kept].sum()
    return p_value(seen, chances / chances.sum())


@pytest.fixture(scope="module")
def unprocessed(model: Any) -> Sampled:
    """Without any options."""
    return sampled(model, {}, exact_law(model, {}))


@pytest.mark.parametrize("name", OPTIONS)
def test_drafted_texts_follow_the_exact_joint_law(
    name: str, model: Any, unprocessed: Sampled
) -> None:
    options = OPTIONS[name]
    law = exact_law(model, options)
    assert np.count_nonzero(law * SEQUENCES >= 10) > 20
    found = sampled(model, options, law) if options else unprocessed
    assert found.counts.sum() == SEQUENCES
    assert SEQUENCES / 10 < found.num_accepted < found.num_drafted
    assert pooled(found.counts, law) > FALSE_ALARM


@pytest.mark.parametrize("name", [name for name in OPTIONS if name != "none"])
def test_the_same_test_refuses_what_does_not_heed_the_options(
    name: str, model: Any, unprocessed: Sampled
) -> None:
    assert pooled(unprocessed.counts, exact_law(model, OPTIONS[name])) < FALSE_ALARM


def test_the_same_test_refuses_drafts_that_are_taken_too_often(
    model: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def lenient(draft: Sequence[int], own: Sequence[int]) -> Acceptance:
        """Now and then takes wrong draft tokens for right."""
        near = [x if x != y and own[-1] == 1 else y for x, y in zip(draft, own, strict=False)]
        return accept(draft, [*near, *own[len(draft) :]])

    monkeypatch.setattr(acceptance, "accept", lenient)
    law = exact_law(model, {})
    assert pooled(sampled(model, {}, law).counts, law) < FALSE_ALARM
