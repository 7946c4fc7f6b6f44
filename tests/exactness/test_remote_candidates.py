"""Transformers' own generate, assisted by a draft service: same tokens, fewer forwards."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from draft.harness import RunningDrafter
from exactness.loop_thread import ServiceThreads
from exactness.model_pairs import VOCAB_SIZE, ModelPair, byte_tokenizer
from exactness.reference import Reference
from exactness.running import draft_service, lookup_drafter, model_drafter, wait_until
from outrider_transformers import DrafterRefused, RemoteDrafter, assisted_by
from outrider_transformers.candidate_generator import RemoteCandidateGenerator
from transformers import GenerationConfig

PROMPT = [7, 8, 9] * 5
OPTIONS = {"max_new_tokens": 40, "num_assistant_tokens": 4}


def generate(reference: Reference, **options: Any) -> list[int]:
    output = reference.model.generate(torch.tensor([PROMPT]), **{**OPTIONS, **options})
    tokens: list[int] = output[0, len(PROMPT) :].tolist()
    return tokens


@pytest.fixture
def generators(monkeypatch: pytest.MonkeyPatch) -> list[RemoteCandidateGenerator]:
    """Every candidate generator that was made."""
    made: list[RemoteCandidateGenerator] = []
    original = RemoteCandidateGenerator.__init__

    def spy(self: RemoteCandidateGenerator, *arguments: Any) -> None:
        original(self, *arguments)
        made.append(self)

    monkeypatch.setattr(RemoteCandidateGenerator, "__init__", spy)
    return made


@pytest.mark.parametrize("schedule", ["constant", "heuristic"])
@pytest.mark.parametrize("penalty", [1.0, 1.3])
def test_generate_gives_the_same_tokens(
    reference: Reference,
    model_draft: RunningDrafter,
    generators: list[RemoteCandidateGenerator],
    schedule: str,
    penalty: float,
) -> None:
    drafter = RemoteDrafter(model_draft.address, vocab_size=VOCAB_SIZE, tokenizer=byte_tokenizer())
    options = {"num_assistant_tokens_schedule": schedule, "repetition_penalty": penalty}
    assisted = generate(reference, custom_generate=assisted_by(drafter), **options)
    assert assisted == generate(reference, repetition_penalty=penalty)
    (generator,) = generators
    assert generator.num_accepted > 0
    drafter.close()
    wait_until(lambda: model_draft.service.worker.num_sessions == 0)


def test_sampling_draws_from_the_model(
    reference: Reference, perfect_draft: RunningDrafter, generators: list[RemoteCandidateGenerator]
) -> None:
    drafter = RemoteDrafter(
        perfect_draft.address, vocab_size=VOCAB_SIZE, tokenizer=byte_tokenizer()
    )
    torch.manual_seed(3)
    sampled = {"do_sample": True, "temperature": 0.7}
    tokens = generate(reference, custom_generate=assisted_by(drafter), **sampled)
    assert len(tokens) == OPTIONS["max_new_tokens"]
    assert 0 < generators[0].num_accepted < generators[0].num_candidates
    drafter.close()


def test_a_dead_drafter_costs_speed_alone(reference: Reference, threads: ServiceThreads) -> None:
    with draft_service(threads, lookup_drafter()) as running:
        drafter = RemoteDrafter(running.address, vocab_size=VOCAB_SIZE, timeout=0.2)
        alive = generate(reference, custom_generate=assisted_by(drafter))
    dead = generate(reference, custom_generate=assisted_by(drafter))
    drafter.close()
    assert alive == dead == generate(reference)


def test_a_drafter_that_dies_meanwhile_costs_speed_alone(
    reference: Reference, threads: ServiceThreads, pair: ModelPair
) -> None:
    config = GenerationConfig(**OPTIONS, max_length=100)
    with draft_service(threads, model_drafter(pair.target)) as running:
        drafter = RemoteDrafter(running.address, vocab_size=VOCAB_SIZE, tokenizer=byte_tokenizer())
        generator = RemoteCandidateGenerator(drafter, config)
        input_ids = torch.tensor([PROMPT])
        drafted, scores = generator.get_candidates(input_ids)
        assert drafted.shape == (1, len(PROMPT) + 4)
        assert scores is None
    assert generator.get_candidates(drafted)[0].tolist() == drafted.tolist()
    generator.close()
    drafter.close()


def test_a_rewritten_text_is_drafted_for_anew(
    reference: Reference, perfect_draft: RunningDrafter
) -> None:
    """Callers may go back: the drafter is told the whole text again."""
    config = GenerationConfig(**OPTIONS, max_length=100)
    drafter = RemoteDrafter(
        perfect_draft.address, vocab_size=VOCAB_SIZE, tokenizer=byte_tokenizer()
    )
    generator = RemoteCandidateGenerator(drafter, config)
    for prompt in ([5, 6, 7, 8], [5, 6, 9], [5, 6, 9, 9, 9]):
        drafted, _ = generator.get_candidates(torch.tensor([prompt]))
        options = {"max_new_tokens": 4}
        assert drafted[0, len(prompt) :].tolist() == reference.greedy(prompt, options)
    generator.close()
    drafter.close()


def test_a_drafter_of_another_tokenizer_is_refused(
    reference: Reference, model_draft: RunningDrafter
) -> None:
    drafter = RemoteDrafter(model_draft.address, vocab_size=VOCAB_SIZE)
    with pytest.raises(DrafterRefused, match="tokenizer"):
        generate(reference, custom_generate=assisted_by(drafter))
    drafter.close()
