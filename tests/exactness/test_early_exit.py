"""The target's own first layers as drafter: the same text, sooner."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from engine.tiny_models import build_tiny
from exactness.loop_thread import ServiceThreads
from exactness.model_pairs import MAX_POSITIONS, VOCAB_SIZE, byte_tokenizer, save
from exactness.prompts import random_prompts
from exactness.reference import Reference
from exactness.running import (
    PLAIN,
    SYNCHRONOUS,
    Request,
    RunningTarget,
    accepted_by_drafter,
    num_accepted,
    num_drafted,
    target,
    tokens,
)
from outrider_client import (
    GenerationConfig,
    InvalidRequestError,
    SpeculationConfig,
    StructuredOutput,
)

NUM_LAYERS = 6
OPTIONS: dict[str, dict[str, Any]] = {
    "greedy": {},
    "guided": {"repetition_penalty": 1.3, "guidance_scale": 1.5},
    "sampled": {"do_sample": True, "top_k": 0, "num_return_sequences": 2},
}
OFF = {"assistant_confidence_threshold": 0.0}


def save_exitable(folder: Path, architecture: str) -> Path:
    """A model whose first layers say nearly what all of them say, as training for it makes them."""
    depth = "n_layer" if architecture == "gpt2" else "num_hidden_layers"
    positions = "n_positions" if architecture == "gpt2" else "max_position_embeddings"
    model = build_tiny(
        architecture,
        **{depth: NUM_LAYERS, positions: MAX_POSITIONS},
        vocab_size=VOCAB_SIZE,
        bos_token_id=None,
        eos_token_id=None,
        pad_token_id=None,
        tie_word_embeddings=False,
    )
    with torch.no_grad():
        model.get_output_embeddings().weight.mul_(6.0)
        for name, parameter in model.named_parameters():
            late = any(f".{layer}." in name for layer in range(2, NUM_LAYERS))
            if late and name.endswith(("down_proj.weight", "o_proj.weight", "c_proj.weight")):
                parameter.mul_(0.2)
    save(model, byte_tokenizer(), folder)
    return folder


SLOW = pytest.mark.slow


@pytest.fixture(
    scope="module",
    params=["llama", pytest.param("gpt2", marks=SLOW), pytest.param("gemma2", marks=SLOW)],
)
def exitable(
    request: pytest.FixtureRequest,
    threads: ServiceThreads,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[tuple[RunningTarget, Reference]]:
    folder = save_exitable(tmp_path_factory.mktemp("exitable"), request.param)
    with target(threads, folder) as running:
        yield running, Reference(folder)


def requests(options: dict[str, Any], *, new_tokens: int = 30) -> list[Request]:
    return [
        Request(prompt, {"max_new_tokens": new_tokens, **options}, seed)
        for seed, prompt in enumerate(random_prompts(3, seed=31))
    ]


def early(requests: list[Request], depths: list[int]) -> list[Request]:
    return [
        Request(one.prompt, {**one.options, **OFF, "assistant_early_exit": depth}, one.seed)
        for one, depth in zip(requests, itertools.cycle(depths), strict=False)
    ]


@pytest.mark.parametrize("name", OPTIONS)
def test_the_text_is_the_same_and_drafts_are_accepted(
    exitable: tuple[RunningTarget, Reference], name: str
) -> None:
    running, reference = exitable
    wanted = requests(OPTIONS[name])
    plain = running.generate_together(wanted, PLAIN)
    # Different depths in one batch, beside somebody who does not draft.
    drafted = running.generate_together(
        [*early(wanted, [2, 3, 1]), wanted[0]], [SpeculationConfig()] * len(wanted) + [PLAIN]
    )
    assert tokens(drafted) == tokens([*plain, plain[0]])
    assert set(accepted_by_drafter(drafted)) == {"early-exit"}
    assert 0 < num_accepted(drafted) < num_drafted(drafted)
    if not wanted[0].options.get("do_sample"):
        for one, completion in zip(wanted, plain, strict=True):
            assert completion.token_ids == reference.greedy(one.prompt, one.options)
    running.assert_nothing_left()


def test_a_text_with_a_form_is_drafted_as_well(
    exitable: tuple[RunningTarget, Reference],
) -> None:
    running, _ = exitable
    form = StructuredOutput(regex="[a-z0-9 ]{40}")
    [wanted] = early(requests({})[:1], [NUM_LAYERS - 1])
    plain, drafted = (
        running.client.generate(
            list(wanted.prompt),
            GenerationConfig(**wanted.options),
            structured_output=form,
            speculation=speculation,
        )
        for speculation in (PLAIN, SpeculationConfig())
    )
    assert drafted.token_ids == plain.token_ids
    assert accepted_by_drafter([drafted])["early-exit"] > 0


def test_more_layers_agree_more_often(exitable: tuple[RunningTarget, Reference]) -> None:
    running, _ = exitable
    rates = []
    for depth in (1, NUM_LAYERS - 1):
        drafted = running.generate_together(early(requests({}), [depth]), SYNCHRONOUS)
        rates.append(num_accepted(drafted) / num_drafted(drafted))
    assert rates[0] < rates[1]


def test_a_full_pool_costs_drafts_and_nothing_else(threads: ServiceThreads, tmp_path: Path) -> None:
    folder = save_exitable(tmp_path, "llama")
    wanted = [one for one in requests({}, new_tokens=40) for _ in range(2)]
    with target(threads, folder, kv_cache_tokens=112) as crowded:
        plain = crowded.generate_together(wanted, PLAIN)
        drafted = crowded.generate_together(early(wanted, [2]), SYNCHRONOUS)
        assert tokens(drafted) == tokens(plain)
        assert num_accepted(drafted) > 0
        assert sum(one.usage.num_preemptions for one in drafted) > 0
        crowded.assert_nothing_left()


@pytest.mark.parametrize("depth", [NUM_LAYERS, 2**32 - 1])
def test_a_depth_that_the_model_has_not_is_refused_by_name(
    exitable: tuple[RunningTarget, Reference], depth: int
) -> None:
    running, _ = exitable
    with pytest.raises(InvalidRequestError, match=str(NUM_LAYERS - 1)) as caught:
        running.generate(Request([5], {"assistant_early_exit": depth}), SpeculationConfig())
    assert caught.value.field == "generation_config.assistant_early_exit"


def test_a_method_without_a_depth_is_refused_by_name(
    exitable: tuple[RunningTarget, Reference],
) -> None:
    running, _ = exitable
    with pytest.raises(InvalidRequestError) as caught:
        running.generate(Request([5], {}), SpeculationConfig(method="early-exit"))
    assert caught.value.field == "generation_config.assistant_early_exit"


def test_who_switches_speculation_off_gets_no_drafts(
    exitable: tuple[RunningTarget, Reference],
) -> None:
    running, _ = exitable
    completion = running.generate(early(requests({}), [2])[0], PLAIN)
    assert completion.speculation.num_draft_tokens == 0
    assert completion.effective_speculation.method == "none"
