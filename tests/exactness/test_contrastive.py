"""Contrastive search: what transformers 4.55 gave, alone, in company and in a crowded pool."""

from __future__ import annotations

import functools
import json
import re
from pathlib import Path
from typing import Any

import golden
import pytest
import torch
from exactness.prompts import random_prompts
from exactness.reference import Reference
from exactness.running import PLAIN, SYNCHRONOUS, Request, RunningTarget, num_accepted, tokens
from golden.seeded_models import build
from outrider_client import (
    GenerationConfig,
    InvalidRequestError,
    SpeculationConfig,
    StructuredOutput,
)
from outrider_contract.generation_config import from_json_dict
from outrider_runtime.conversion import sampling_parameters
from outrider_runtime.model.ragged_runner import RaggedRunner
from outrider_target.requests.request import ContrastiveSettings, GenerationRequest
from target.batch import Batch, request

Case = dict[str, Any]
CASES: list[Case] = json.loads(Path(golden.__path__[0], "contrastive.json").read_text())
NEW_TOKENS = 20


def name_of(case: Case) -> str:
    return f"{case['model']}-{'-'.join(map(str, case['options'].values()))}"


@functools.cache
def model_of(name: str) -> Any:
    return build(name)


def runner_of(case: Case, *, num_blocks: int = 96) -> RaggedRunner:
    return RaggedRunner(model_of(case["model"]), num_blocks=num_blocks, block_size=4)


def generation(case: Case, runner: RaggedRunner) -> GenerationRequest:
    config = from_json_dict(case["options"])
    assert runner.layers is not None
    return request(
        case["prompt"],
        parameters=sampling_parameters(
            config,
            num_prompt_tokens=len(case["prompt"]),
            max_length=len(case["prompt"]) + NEW_TOKENS,
        ),
        contrastive=ContrastiveSettings(
            case["options"]["penalty_alpha"], config.top_k, runner.layers.num_layers
        ),
        num_top_log_probs=0,
    )


@pytest.mark.parametrize("case", CASES, ids=name_of)
def test_tokens_and_their_scores_are_those_of_transformers(case: Case) -> None:
    runner = runner_of(case)
    [answer] = Batch(runner).run(generation(case, runner))
    assert answer.token_ids == [case["token_ids"]]
    scores = [known.score for known in answer.log_probs]
    assert scores == pytest.approx(case["scores"], abs=1e-3)


@pytest.mark.parametrize("case", CASES[3:6], ids=name_of)
def test_company_and_prompts_in_pieces_change_nothing(case: Case) -> None:
    runner = runner_of(case)
    crowd = [
        request([7, 8, 9], do_sample=True, num_sequences=2),
        generation(case, runner),
        generation({**case, "prompt": case["prompt"][:2]}, runner),
    ]
    [_, accompanied, _] = Batch(runner, max_batched_tokens=7).run(*crowd)
    assert accompanied.token_ids == [case["token_ids"]]


def test_a_crowded_pool_gives_the_same_tokens() -> None:
    cases = [case for case in CASES if case["model"] == "llama"]
    runner = runner_of(cases[0], num_blocks=24)
    answers = Batch(runner).run(*[generation(case, runner) for case in cases for _ in range(2)])
    assert sum(answer.num_preemptions for answer in answers) > 0
    assert [answer.token_ids[0] for answer in answers] == [
        case["token_ids"] for case in cases for _ in range(2)
    ]


SEARCH: dict[str, Any] = {"penalty_alpha": 0.6, "top_k": 4}


def by_hand(reference: Reference, prompt: list[int], count: int) -> list[int]:
    """What the paper says, each step from forwards over everything."""
    text = list(prompt)

    def run(lines: list[list[int]]) -> tuple[torch.Tensor, torch.Tensor]:
        with torch.no_grad():
            output = reference.model(torch.tensor(lines), output_hidden_states=True)
        return output.logits[:, -1], output.hidden_states[-1]

    for _ in range(count):
        best = run([text])[0][0].softmax(-1).topk(4)
        hidden = run([[*text, token] for token in best.indices.tolist()])[1]
        hidden = hidden / hidden.norm(dim=-1, keepdim=True)
        penalty = (hidden[:, :-1] @ hidden[:, -1:].mT)[..., 0].amax(-1)
        text.append(int(best.indices[(0.4 * best.values - 0.6 * penalty).argmax()]))
    return text[len(prompt) :]


def test_a_service_gives_it_beside_others_and_drafts_nothing(
    drafted_target: RunningTarget, reference: Reference
) -> None:
    prompts = random_prompts(3, seed=17)
    searching = [Request(prompt, {"max_new_tokens": 16, **SEARCH}) for prompt in prompts]
    others = [Request(prompt, {"max_new_tokens": 40}) for prompt in prompts]
    completions = drafted_target.generate_together(
        [*searching, *others], [SpeculationConfig()] * 3 + [SYNCHRONOUS] * 3
    )
    for prompt, completion in zip(prompts, completions, strict=False):
        assert completion.token_ids == by_hand(reference, prompt, 16)
        assert completion.speculation.num_draft_tokens == 0
        assert completion.effective_speculation.method == "none"
    assert num_accepted(completions[3:]) > 0
    assert tokens(completions[3:]) == tokens(drafted_target.generate_together(others, PLAIN))
    drafted_target.assert_nothing_left()


def test_what_is_told_of_it_is_what_plain_forwards_give(
    drafted_target: RunningTarget, reference: Reference
) -> None:
    prompt = random_prompts(1, seed=18)[0]
    asked = ("output_scores", "output_logits", "output_hidden_states", "output_attentions")
    options: dict[str, Any] = {**SEARCH, **dict.fromkeys(asked, True)}
    config = GenerationConfig(max_new_tokens=6, **options)
    completion = drafted_target.client.generate(prompt, config, log_probs=0)
    [own] = completion.sequences
    with torch.no_grad():
        known = reference.model(
            torch.tensor([[*prompt, *own.token_ids[:-1]]]),
            output_hidden_states=True,
            output_attentions=True,
        )
    for step, token_id in enumerate(own.token_ids):
        row = len(prompt) - 1 + step
        rows = slice(0, len(prompt)) if step == 0 else slice(row, row + 1)
        logits = known.logits[0, row]
        close(own.logits[step], logits)
        close(own.scores[step], logits)
        log_prob = float(logits.log_softmax(-1)[token_id])
        assert own.log_probs[step].processed == pytest.approx(log_prob, abs=1e-5)
        for layer, state in zip(own.hidden_states[step], known.hidden_states, strict=True):
            close(layer, state[0, rows])
        for layer, weights in zip(own.attentions[step], known.attentions, strict=True):
            close(layer, weights[0, :, rows, : row + 1])
    assert len(own.hidden_states) == len(own.attentions) == len(own.token_ids)


def close(own: Any, expected: torch.Tensor) -> None:
    torch.testing.assert_close(
        torch.tensor(own.tolist()).double(), expected.double(), atol=1e-5, rtol=1e-5
    )


def test_its_text_may_have_to_have_a_form(drafted_target: RunningTarget) -> None:
    config = GenerationConfig(max_new_tokens=12, **SEARCH)
    form = StructuredOutput(regex="[0-9]{3,5};")
    completion = drafted_target.client.generate([5, 6], config, structured_output=form)
    assert re.fullmatch("[0-9]{3,5};", completion.text)


@pytest.mark.parametrize(
    ("options", "field"),
    [
        ({"penalty_alpha": 0.6, "top_k": 4, "do_sample": True}, "penalty_alpha"),
        ({"penalty_alpha": 0.6, "top_k": 1}, "penalty_alpha"),
        ({"penalty_alpha": 0.6, "top_k": 0}, "penalty_alpha"),
        ({"penalty_alpha": 0.6}, "top_k"),  # 50, which is more than run at once
        ({"penalty_alpha": 0.6, "top_k": 4, "dola_layers": "low"}, "dola_layers"),
    ],
)
def test_what_it_cannot_be_combined_with_is_refused_by_name(
    drafted_target: RunningTarget, options: dict[str, Any], field: str
) -> None:
    with pytest.raises(InvalidRequestError) as caught:
        drafted_target.generate(Request([5, 6], options))
    assert caught.value.field == f"generation_config.{field}"
