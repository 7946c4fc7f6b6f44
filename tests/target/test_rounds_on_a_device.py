"""Whole rounds of both engines, their logits on a device: what is waited for, and what comes out.

The device is a pretended one (`sampling.pretended_device`), and the model's own forward is not on
it: what is counted is all that is done with its logits.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from engine.tiny_models import build_tiny
from outrider.v1.generation_config_pb2 import GenerationConfig
from outrider_draft.metrics import DraftMetrics
from outrider_draft.model_proposer import ModelProposer
from outrider_draft.proposer import Description
from outrider_runtime.model.ragged_runner import RaggedRunner
from outrider_target.requests.request import GenerationRequest
from prometheus_client import CollectorRegistry
from sampling.pretended_device import Record, pretended_device, put
from target.batch import SPECULATION, Answer, Batch, request
from target.wired_drafter import WiredDrafter
from transformers import PreTrainedModel

VOCAB_SIZE = 60
PROMPT = (1, 2, 0, 7, 9, 2, 0)
DRAFTED = dataclasses.replace(SPECULATION, window=4, timeout_seconds=0.0)
BY_RATIO = dataclasses.replace(DRAFTED, by_ratio=True)
SAMPLED = {"do_sample": True, "temperature": 0.8}

REQUESTS: dict[str, Sequence[dict[str, Any]]] = {
    "greedy": [{}],
    "sampled": [SAMPLED, {**SAMPLED, "top_k": 20, "top_p": 0.9}],
    "penalties": [{**SAMPLED, "repetition_penalty": 1.2}, {"no_repeat_ngram_size": 3}],
    "log-probabilities": [{**SAMPLED, "num_top_log_probs": 2}, {"num_top_log_probs": 0}],
    "by ratio": [{**SAMPLED, "speculation": BY_RATIO}],
    "by ratio, truncated": [{**SAMPLED, "top_p": 0.9, "speculation": BY_RATIO}],
    "both ways": [SAMPLED, {**SAMPLED, "speculation": BY_RATIO}],
}
FETCHES = {"log-probabilities": 5, "both ways": 2}
"""Most transfers back of a round, where that is not one: one for each request that asks for
log-probabilities and one for each way of accepting."""


@pytest.fixture(scope="module")
def models() -> tuple[PreTrainedModel, PreTrainedModel]:
    """A target and a draft of it that is often right."""
    size = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1}
    target, draft = (
        build_tiny("llama", vocab_size=VOCAB_SIZE, dtype=torch.float64, **size) for _ in range(2)
    )
    noise = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in draft.parameters():
            parameter.add_(0.1 * parameter.std() * torch.randn(parameter.shape, generator=noise))
    return target, draft


class RunnerElsewhere(RaggedRunner):
    """Its logits are on the device. Counts what was recorded between two forwards."""

    record: Record | None = None
    most_fetched = 0
    most_sent = 0
    num_forwards = 0

    def forward(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        logits = super().forward(*args, **kwargs)
        if self.record is None:
            return logits
        self.note()
        self.num_forwards += 1
        return put(logits.clone())

    def note(self) -> None:
        """Take over what was recorded since the last forward of either engine."""
        assert self.record is not None
        assert not self.record.waits
        self.most_fetched = max(self.most_fetched, len(self.record.fetched))
        self.most_sent = max(self.most_sent, len(self.record.sent))
        self.record.clear()


def requests(name: str) -> Iterator[GenerationRequest]:
    for seed, options in enumerate([*REQUESTS[name]] * 2):
        options = {"speculation": DRAFTED, **options}
        known = {k: v for k, v in options.items() if k not in ("speculation", "num_top_log_probs")}
        config = GenerationConfig(max_new_tokens=20, **known)
        made = request(PROMPT, new_tokens=20, seed=seed, **options)
        yield dataclasses.replace(made, effective_config=config)


@contextmanager
def perhaps(elsewhere: bool) -> Iterator[Record | None]:
    if not elsewhere:
        yield None
        return
    with pretended_device() as record:
        yield record


def served(
    models: tuple[PreTrainedModel, PreTrainedModel], name: str, *, elsewhere: bool
) -> tuple[list[Answer], list[RunnerElsewhere]]:
    runners = [
        RunnerElsewhere(copy.deepcopy(model), num_blocks=512, block_size=4) for model in models
    ]
    description = Description("model", "tiny", VOCAB_SIZE, "", 100)
    proposer = ModelProposer(runners[1], description, DraftMetrics(CollectorRegistry()))
    wired = WiredDrafter(proposer, vocab_size=VOCAB_SIZE, max_steps=6)
    batch = Batch(runners[0], wired.fleet, before_round=wired.before_round)
    with perhaps(elsewhere) as record:
        for runner in runners:
            runner.record = record
        answers = batch.run(*requests(name))
        if elsewhere:
            runners[0].note()
    assert not any(answer.error for answer in answers)
    assert batch.rounds.totals.num_accepted_tokens
    return answers, runners


@pytest.mark.parametrize("name", REQUESTS)
def test_a_round_waits_once_and_gives_the_same(
    models: tuple[PreTrainedModel, PreTrainedModel], name: str
) -> None:
    there, (target, draft) = served(models, name, elsewhere=True)
    here, _ = served(models, name, elsewhere=False)
    assert [answer.token_ids for answer in there] == [answer.token_ids for answer in here]
    assert target.num_forwards > 5
    assert draft.num_forwards > 5
    most_fetched = max(target.most_fetched, draft.most_fetched)
    assert most_fetched == FETCHES.get(name, 1)
    assert max(target.most_sent, draft.most_sent) <= 2 * most_fetched
