"""What transformers' assisted generation cannot do, and what is below it: held here.

As in `test_upstream_defects`, each test is a property that holds here and not in transformers, as
pinned; there it is run as well, and must fail.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch
from draft.hostile import GuessedSession, RandomDrafter, serving
from engine.tiny_models import build_tiny
from exactness.loop_thread import ServiceThreads
from exactness.model_pairs import VOCAB_SIZE, ModelPair, byte_tokenizer, save
from exactness.prompts import random_prompts
from exactness.reference import Reference
from exactness.running import (
    PLAIN,
    SYNCHRONOUS,
    Request,
    RunningTarget,
    draft_service,
    model_drafter,
    num_drafted,
    target,
)
from exactness.sides import sides
from outrider.v1 import draft_pb2
from outrider_client import DraftLinkState, FinishReason
from outrider_runtime.model.batch import SequenceRows
from outrider_runtime.model.kv_pool import KVPool
from outrider_runtime.model.ragged_runner import RaggedRunner
from outrider_runtime.model.selection import RowGroup, select_tokens
from outrider_runtime.model.support import UnsupportedModel, check_supported
from outrider_runtime.sampling_parameters import SamplingParameters
from outrider_target.decoding import own_tokens
from outrider_target.decoding.acceptance import accept
from sampling.chi_square import FALSE_ALARM, p_value
from target.batch import Batch, request
from transformers import DynamicCache
from transformers.generation import TemperatureLogitsWarper
from transformers.generation.candidate_generator import AssistantToTargetTranslator
from transformers.generation.utils import _speculative_sampling

CORPUS = """
Whoever hath her wish, thou hast thy Will, and Will to boot, and Will in overplus;
More than enough am I that vex thee still, to thy sweet will making addition thus.
Wilt thou, whose will is large and spacious, not once vouchsafe to hide my will in thine?
"""
"""Where another tokenizer learns other pieces."""
WINDOW = {
    "num_assistant_tokens": 5,
    "num_assistant_tokens_schedule": "constant",
    "assistant_confidence_threshold": 0.0,
}


@pytest.fixture(scope="module")
def assistant(pair: ModelPair) -> Reference:
    return Reference(pair.target)


def assisted(reference: Reference, prompts: Sequence[Sequence[int]], **extras: Any) -> Any:
    """transformers' assisted generation."""
    with torch.no_grad():
        return reference.model.generate(torch.tensor([list(one) for one in prompts]), **extras)


@sides("it batches no assisted generation: the assistant's state is the one call's")
def test_requests_with_windows_of_their_own_are_drafted_side_by_side(
    side: str,
    perfectly_drafted_target: RunningTarget,
    reference: Reference,
    assistant: Reference,
) -> None:
    prompts = [[5, 6, 7, 8], [9, 10, 11, 12]]
    plain = [reference.greedy(prompt, {"max_new_tokens": 20}) for prompt in prompts]
    if side == "theirs":
        extras = {"assistant_model": assistant.model, "max_new_tokens": 20}
        assert assisted(reference, prompts, **extras)[:, 4:].tolist() == plain
    requests = [
        Request(prompt, {"max_new_tokens": 20, **WINDOW, "num_assistant_tokens": window})
        for prompt, window in zip(prompts, (2, 5), strict=True)
    ]
    completions = perfectly_drafted_target.generate_together(requests, SYNCHRONOUS)
    assert [one.token_ids for one in completions] == plain
    windows = [max(r.num_draft_tokens for r in one.speculation.rounds) for one in completions]
    assert windows == [2, 5]


@sides("the whole prompt is fed again behind what the cache holds of it")
def test_a_text_that_goes_on_from_an_earlier_one_goes_on_as_without_drafts(
    side: str,
    perfectly_drafted_target: RunningTarget,
    reference: Reference,
    assistant: Reference,
) -> None:
    (first,) = random_prompts(1, seed=31)
    said = reference.greedy(first, {"max_new_tokens": 8})
    second = [*first, *said, 7, 8, 9]
    plain = reference.greedy(second, {"max_new_tokens": 16})
    if side == "theirs":
        cache = DynamicCache()
        assisted(reference, [first], max_new_tokens=8, past_key_values=cache, do_sample=False)
        extras = {"past_key_values": cache, "assistant_model": assistant.model}
        whole = assisted(reference, [second], max_new_tokens=16, do_sample=False, **extras)
        assert whole[0, len(second) :].tolist() == plain
    earlier = perfectly_drafted_target.generate(Request(first, {"max_new_tokens": 8}), SYNCHRONOUS)
    assert earlier.token_ids == said
    later = perfectly_drafted_target.generate(
        Request(second, {"max_new_tokens": 16, **WINDOW}), SYNCHRONOUS
    )
    assert later.token_ids == plain
    assert later.speculation.num_accepted_tokens > 0


@pytest.fixture(scope="module")
def padded_draft(pair: ModelPair, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A draft model with the target's tokenizer and a few rows of padding more."""
    folder = tmp_path_factory.mktemp("padded")
    model = build_tiny("llama", vocab_size=VOCAB_SIZE + 8, max_position_embeddings=512, seed=3)
    save(model, pair.tokenizer, folder)
    return folder


@pytest.mark.parametrize(
    "side",
    [
        "ours",
        pytest.param(
            "theirs", marks=pytest.mark.xfail(strict=True, reason="p and q differ in size")
        ),
        pytest.param(
            "theirs, told of the tokenizers",
            marks=pytest.mark.xfail(strict=True, reason="nothing to translate breaks translation"),
        ),
    ],
)
def test_a_draft_model_with_a_padded_vocabulary_drafts(
    side: str, threads: ServiceThreads, pair: ModelPair, padded_draft: Path, reference: Reference
) -> None:
    (prompt,) = random_prompts(1, seed=32)
    if side != "ours":
        extras: dict[str, Any] = {"assistant_model": Reference(padded_draft).model}
        if side != "theirs":
            extras |= {"tokenizer": pair.tokenizer, "assistant_tokenizer": pair.tokenizer}
        assisted(reference, [prompt], max_new_tokens=12, do_sample=True, **extras)
        return
    request = Request(prompt, {"max_new_tokens": 24, "do_sample": True, **WINDOW}, seed=8)
    with (
        draft_service(threads, model_drafter(padded_draft)) as drafter,
        target(threads, pair.target, drafts=[drafter.address]) as running,
    ):
        drafted = running.generate(request, SYNCHRONOUS)
        assert drafted.token_ids == running.generate(request, PLAIN).token_ids
        assert num_drafted([drafted]) > 0


@sides("scores of shared tokens are put into another order than they come in")
def test_a_drafters_token_means_the_same_token_to_the_target(
    side: str,
    threads: ServiceThreads,
    pair: ModelPair,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    foreign = byte_tokenizer(CORPUS)
    model: Any = build_tiny("llama", vocab_size=VOCAB_SIZE, max_position_embeddings=512)
    if side == "theirs":
        hidden = torch.randn(64, generator=torch.Generator().manual_seed(1))
        whole = model.lm_head(hidden)
        translator = AssistantToTargetTranslator(pair.tokenizer, foreign, VOCAB_SIZE, model, True)
        told = translator.get_target_logits(model.get_output_embeddings()(hidden))
        shared = translator.target_to_assistant_input_ids
        assert len(shared) > 200
        for target_id, draft_id in shared.items():
            assert told[target_id] == whole[draft_id]
        return
    save(model, foreign, folder := tmp_path_factory.mktemp("foreign"))
    with (
        draft_service(threads, model_drafter(folder)) as drafter,
        target(threads, pair.target, drafts=[drafter.address], wait_for_links=False) as running,
    ):
        running.wait_for_links(DraftLinkState.REFUSED)
        assert "tokenizer" in running.client.server_info().draft_links[0].reason
        refused = running.generate(Request([5, 6, 7], {"max_new_tokens": 8}), SYNCHRONOUS)
        assert refused.speculation.num_draft_tokens == 0


@sides("a call costs several forwards before it begins")
def test_a_request_costs_little_beside_its_tokens(side: str, reference: Reference) -> None:
    """In calls of functions: seconds would depend on the machine."""
    prompt = [5, 6, 7, 8, 9, 10]
    if side == "theirs":
        ids = torch.tensor([prompt])

        def serve(num_tokens: int) -> None:
            assisted(reference, [prompt], max_new_tokens=num_tokens, min_new_tokens=num_tokens)

        with torch.no_grad():
            forward = num_calls(lambda: reference.model(ids[:, -1:]))
    else:
        runner = RaggedRunner(build_tiny("llama"), num_blocks=16, block_size=8)

        def serve(num_tokens: int) -> None:
            Batch(runner).run(request(prompt, new_tokens=num_tokens))

        handle = runner.pool.create()
        forward = num_calls(lambda: runner.forward([SequenceRows(handle, prompt[:1], 1)]))
        runner.pool.free(handle)
    fixed = 2 * num_calls(lambda: serve(1)) - num_calls(lambda: serve(2))
    assert fixed < forward


def num_calls(work: Callable[[], object]) -> int:
    """Python functions called by a piece of work, once it has been done before."""
    work()
    count = 0

    def counting(frame: object, event: str, argument: object) -> None:
        nonlocal count
        count += event == "call"

    sys.setprofile(counting)
    try:
        work()
    finally:
        sys.setprofile(None)
    return count


@sides("a token that was drafted as the best is judged as if it had been drawn")
def test_a_greedy_draft_does_not_bend_the_law(side: str) -> None:
    chance = np.random.default_rng(4)
    p = torch.from_numpy(chance.normal(size=6)).float()
    q = p + torch.from_numpy(chance.normal(size=6)).float() * 0.7
    best = int(q.argmax())
    torch.manual_seed(0)
    counts, num_accepted = np.zeros(6), 0
    for seed in range(3000):
        if side == "theirs":
            tokens, _ = _speculative_sampling(
                torch.tensor([[best]]), q[None, None], 1, torch.stack([p, p])[None]
            )
            counts[int(tokens[0, 0])] += 1
            continue
        group = RowGroup(SamplingParameters(do_sample=True), seed, 0, [0, best], 2, 1)
        decided, accepted = accept([best], select_tokens(torch.stack([p, p]), [group]).token_ids)
        counts[decided[0]] += 1
        num_accepted += accepted
    assert p_value(counts, p.double().softmax(-1).numpy()) > FALSE_ALARM
    assert num_accepted > 0


@sides("processors run in a loop over the positions of a draft")
def test_processors_run_once_a_round_however_long_the_draft(
    side: str,
    perfectly_drafted_target: RunningTarget,
    reference: Reference,
    assistant: Reference,
) -> None:
    sampled = {"do_sample": True, "temperature": 0.5, "max_new_tokens": 24, **WINDOW}
    if side == "theirs":
        with mock.patch.object(
            TemperatureLogitsWarper, "__call__", side_effect=lambda ids, scores: scores
        ) as calls:
            del sampled["num_assistant_tokens"], sampled["num_assistant_tokens_schedule"]
            torch.manual_seed(0)
            whole = assisted(
                reference, [[5, 6, 7]], prompt_lookup_num_tokens=5, attention_mask=None, **sampled
            )
        assert calls.call_count <= whole.shape[1] - 3
        return
    with mock.patch.object(own_tokens, "select_tokens", wraps=select_tokens) as calls:
        done = perfectly_drafted_target.generate(Request([5, 6, 7], sampled, seed=1), SYNCHRONOUS)
    assert done.speculation.num_draft_tokens > 10
    assert calls.call_count == done.speculation.num_rounds


class Silent(RandomDrafter):
    """Never answers."""

    def answer(
        self, sessions: list[GuessedSession], vocab_size: int
    ) -> Iterator[draft_pb2.SpeculateResponse]:
        return iter(())


def test_a_slow_drafter_does_not_take_more_time_than_a_request_has(
    threads: ServiceThreads, pair: ModelPair
) -> None:
    """transformers looks at the time once a round, and drafting is a part of the round."""
    patient = replace(SYNCHRONOUS, draft_timeout_ms=1500)
    with (
        threads.drafters.entered(serving(Silent())) as drafter,
        target(threads, pair.target, drafts=[drafter.address]) as running,
    ):

        def seconds(**limits: Any) -> tuple[float, FinishReason | None]:
            began = time.monotonic()
            done = running.generate(Request([5, 6, 7], {"max_new_tokens": 2, **limits}), patient)
            return time.monotonic() - began, done.finish_reason

        in_time, finish = seconds(max_time=0.1)
        assert finish is FinishReason.TIME
        waited, _ = seconds()
        assert waited > 1.5, "without that limit the drafter is waited for"
        assert in_time < 1.2


@sides("the number says how many tokens to remove, in some releases how many to keep")
def test_rolling_back_names_what_is_left(side: str) -> None:
    if side == "theirs":
        cache = DynamicCache()
        cache.update(torch.zeros(1, 1, 5, 2), torch.zeros(1, 1, 5, 2), 0)
        cache.crop(3)
        assert cache.get_seq_length() == 3
        return
    pool = KVPool(num_blocks=4, block_size=2)
    handle = pool.create()
    pool.append(handle, 5)
    pool.truncate(handle, 3)
    assert pool.length(handle) == 3
    pool.check_integrity()


@sides("it is found out when a call asks for drafts")
@pytest.mark.parametrize("name", ["mamba", "qwen3_next"])
def test_a_model_that_cannot_be_rolled_back_is_refused_before_it_serves(
    name: str, side: str
) -> None:
    model: Any = build_tiny(name)
    if side == "theirs":
        prompt = torch.tensor([[5, 6, 7, 8]])
        model.generate(prompt, max_new_tokens=4, assistant_model=model)
        return
    with pytest.raises(UnsupportedModel, match=r"recurrent|layers other than"):
        check_supported(model)
