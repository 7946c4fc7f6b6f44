"""Beam search through the service and the client: transformers' answer, beside drafted requests."""

from __future__ import annotations

import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from outrider.v1 import generation_pb2 as pb
from outrider_client import (
    AsyncClient,
    BeamProgress,
    Chunk,
    Client,
    Completion,
    FinishReason,
    GenerationConfig,
    SpeculationConfig,
    StructuredOutput,
)
from outrider_contract.errors import Reason
from service.asking import ENDLESS, ask
from service.harness import Caller
from service.refusals import refused
from service.tiny_folder import byte_tokenizer, bytes_of
from transformers import AutoModelForCausalLM
from transformers import GenerationConfig as Theirs

PROMPT = [5, 9, 5, 9, 5, 9, 7, 5, 9]
LOOKUP = SpeculationConfig(method="prompt-lookup")
EOS = [40, 90]
BEAMS: dict[str, Any] = {
    "num_beams": 4,
    "num_return_sequences": 3,
    "max_new_tokens": 16,
    "eos_token_id": EOS,
    "length_penalty": 0.5,
    "do_sample": False,
}


@pytest.fixture(scope="module")
def expected(folder: Path) -> Iterator[Any]:
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float64).eval()
    model.generation_config = Theirs()
    config = Theirs(**BEAMS, output_scores=True, return_dict_in_generate=True, pad_token_id=0)
    with torch.no_grad():
        yield model.generate(torch.tensor([PROMPT]), generation_config=config)


def assert_as_expected(completion: Completion, expected: Any) -> None:
    assert len(completion.sequences) == 3
    for index, sequence in enumerate(completion.sequences):
        indices = expected.beam_indices[index]
        number = int((indices >= 0).sum())
        first = len(PROMPT)
        assert sequence.token_ids == expected.sequences[index, first : first + number].tolist()
        assert sequence.beam_indices == indices[:number].tolist()
        assert sequence.score == pytest.approx(float(expected.sequences_scores[index]), rel=1e-5)
        assert sequence.text == bytes_of(sequence.token_ids).decode(errors="replace")
        if sequence.token_ids[-1] in EOS:
            assert sequence.finish_reason is FinishReason.STOP
            assert sequence.matched_stop_token_id == sequence.token_ids[-1]
        else:
            assert sequence.finish_reason is FinishReason.LENGTH


def test_the_answer_is_transformers_own_beside_requests_that_draft(
    client: Client, expected: Any
) -> None:
    def beam(_: int) -> Completion:
        return client.generate(PROMPT, GenerationConfig(**BEAMS))

    def drafted(seed: int) -> Completion:
        config = GenerationConfig(max_new_tokens=40, do_sample=True, clear_fields=ENDLESS)
        return client.generate(PROMPT, config, seed=seed, speculation=LOOKUP)

    alone = [drafted(seed) for seed in range(2)]
    with ThreadPoolExecutor(4) as pool:
        beams, others = pool.map(beam, range(2)), pool.map(drafted, range(2))
        for completion in beams:
            assert_as_expected(completion, expected)
            assert not completion.effective_speculation.enabled
            assert completion.usage.completion_tokens == sum(
                len(sequence.token_ids) for sequence in completion.sequences
            )
        for completion, by_itself in zip(others, alone, strict=True):
            assert completion.token_ids == by_itself.token_ids
            assert completion.speculation.num_draft_tokens > 0


def test_progress_comes_first_and_chunks_are_final(client: Client, expected: Any) -> None:
    with client.stream(PROMPT, GenerationConfig(**BEAMS)) as stream:
        updates = list(stream.updates)
    progress = [update for update in updates if isinstance(update, BeamProgress)]
    assert updates[: len(progress)] == progress, "looks come before what is final"
    assert all(isinstance(update, Chunk) for update in updates[len(progress) :])
    assert len(progress) > 3
    assert all(look.score < 0 for look in progress)
    lengths = [len(look.token_ids) for look in progress if not look.finished]
    assert lengths == sorted(lengths)
    assert_as_expected(stream.final, expected)
    with client.stream(PROMPT, GenerationConfig(**BEAMS), beam_progress_interval=0) as stream:
        assert all(isinstance(update, Chunk) for update in stream.updates)


async def test_the_async_client_tells_the_same(client: Client, address: str) -> None:
    with client.stream(PROMPT, GenerationConfig(**BEAMS)) as stream:
        expected = list(stream.updates)
    async with (
        AsyncClient(address) as other,
        other.stream(PROMPT, GenerationConfig(**BEAMS)) as theirs,
    ):
        assert [update async for update in theirs.updates] == expected


@pytest.fixture
def address(service: Any) -> str:
    return str(service.address)


def test_a_stop_string_ends_hypotheses_where_transformers_ends_them(
    client: Client, folder: Path
) -> None:
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float64).eval()
    model.generation_config = Theirs()
    options = {**BEAMS, "eos_token_id": None}
    plain = client.generate(PROMPT, GenerationConfig(**options, clear_fields=ENDLESS))
    tokenizer = byte_tokenizer()
    letters = {
        tokenizer.decode([token_id])
        for sequence in plain.sequences
        for token_id in sequence.token_ids[3:]
    }
    strings = sorted(letter for letter in letters if letter.isascii() and letter)[:3]
    assert strings
    config = Theirs(
        **options,
        stop_strings=strings,
        output_scores=True,
        return_dict_in_generate=True,
        pad_token_id=0,
    )
    with torch.no_grad():
        expected = model.generate(
            torch.tensor([PROMPT]), generation_config=config, tokenizer=tokenizer
        )
    ours = client.generate(
        PROMPT, GenerationConfig(**options, stop_strings=strings, clear_fields=ENDLESS)
    )
    scores = [sequence.score for sequence in ours.sequences]
    assert scores == pytest.approx(expected.sequences_scores.tolist(), rel=1e-5)
    assert any(sequence.matched_stop_string for sequence in ours.sequences)


def test_every_beam_has_the_form_that_is_asked_for(client: Client) -> None:
    config = GenerationConfig(**{**BEAMS, "eos_token_id": None}, clear_fields=ENDLESS)
    completion = client.generate(
        PROMPT,
        config,
        speculation=LOOKUP,
        structured_output=StructuredOutput(regex="[a-c]{2,5};"),
    )
    texts = [sequence.text for sequence in completion.sequences]
    assert len(set(texts)) == 3
    assert all(re.fullmatch("[a-c]{2,5};", text) for text in texts)
    assert {sequence.finish_reason for sequence in completion.sequences} == {FinishReason.STOP}


def test_an_abandoned_search_leaves_nothing(client: Client, caller: Caller) -> None:
    config = GenerationConfig(**{**BEAMS, "max_new_tokens": 400}, clear_fields=())
    with client.stream("abc", config) as stream:
        next(iter(stream.updates))
    caller.wait_until_idle()


def structured() -> pb.GenerateRequest:
    request = ask("abc", num_beams=2, num_beam_groups=2, diversity_penalty=1.0)
    request.structured_output.regex = "a+"
    return request


def logged() -> pb.GenerateRequest:
    request = ask("abc", num_beams=2)
    request.log_probs.num_top = 1
    return request


@pytest.mark.parametrize(
    ("make", "field"),
    [
        (structured, "structured_output"),
        (logged, "log_probs"),
        (lambda: ask("abc", num_beams=2, output_logits=True), "generation_config.output_logits"),
        (lambda: ask("abc", num_beams=2, dola_layers="low"), "generation_config.dola_layers"),
        (lambda: ask("abc", num_beams=900), "generation_config.num_beams"),
    ],
)
def test_what_beams_cannot_do_is_refused_by_name(caller: Caller, make: Any, field: str) -> None:
    refusal = refused(caller, make())
    assert refusal.field == field
    assert refusal.reason in (Reason.UNSUPPORTED_FIELD, Reason.INVALID_FIELD)
