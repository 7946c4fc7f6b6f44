"""DoLa: what transformers 4.55 gave, with and without drafts."""

from __future__ import annotations

import functools
import json
import math
import re
from pathlib import Path
from typing import Any

import golden
import pytest
import torch
from exactness.prompts import random_prompts
from exactness.reference import Reference
from exactness.running import (
    PLAIN,
    SYNCHRONOUS,
    Request,
    RunningTarget,
    num_accepted,
    num_drafted,
    tokens,
)
from golden.seeded_models import VOCAB_SIZE, build
from outrider_client import (
    GenerationConfig,
    InvalidRequestError,
    SpeculationConfig,
    StructuredOutput,
)
from outrider_contract.generation_config import from_json_dict
from outrider_runtime.conversion import sampling_parameters
from outrider_runtime.model.batch import SequenceRows
from outrider_runtime.model.layer_contrast import contrast_layers
from outrider_runtime.model.layer_reading import LayerReading
from outrider_runtime.model.ragged_runner import RaggedRunner
from outrider_runtime.model.row_group import RowGroup
from outrider_runtime.model.scores import processed_scores
from outrider_target.requests.dola_rules import premature_layers
from outrider_target.requests.request import GenerationRequest
from target.batch import Answer, Batch, request
from target.drafters import sometimes_right

Case = dict[str, Any]
CASES: list[Case] = json.loads(Path(golden.__path__[0], "dola.json").read_text())
GREEDY = [case for case in CASES if not case["options"].get("do_sample")]
TOLERANCE = 1e-3
"""Of scores: the old release has the last layer's in single precision."""


def name_of(case: Case) -> str:
    return f"{case['model']}-{'-'.join(map(str, case['options'].values()))}"


@functools.cache
def model_of(name: str) -> Any:
    return build(name)


def runner_of(case: Case) -> RaggedRunner:
    return RaggedRunner(model_of(case["model"]), num_blocks=64, block_size=4)


def generation(case: Case, runner: RaggedRunner) -> GenerationRequest:
    config = from_json_dict(case["options"])
    total = len(case["prompt"]) + len(case["token_ids"])
    return request(
        case["prompt"],
        parameters=sampling_parameters(
            config, num_prompt_tokens=len(case["prompt"]), max_length=total
        ),
        dola_layers=premature_layers(config, runner.layers),
    )


@pytest.mark.parametrize("case", GREEDY, ids=name_of)
def test_greedy_tokens_are_those_of_transformers_with_drafts_right_and_wrong(case: Case) -> None:
    runner = runner_of(case)
    wanted = generation(case, runner)
    [plain] = Batch(runner).run(wanted)
    assert plain.token_ids == [case["token_ids"]]
    truth = {(wanted.id, 0): [*case["prompt"], *case["token_ids"]]}
    drafter = sometimes_right(truth, probability=0.7, vocab_size=VOCAB_SIZE, seed=1)
    crowd = [request([7, 8, 9], do_sample=True), wanted]
    [_, drafted] = Batch(runner, drafter).run(*crowd)
    assert drafted.token_ids == plain.token_ids
    assert 0 < accepted(drafted) < drafted_tokens(drafted)


def accepted(answer: Answer) -> int:
    assert answer.counters is not None
    return answer.counters.num_accepted_tokens


def drafted_tokens(answer: Answer) -> int:
    assert answer.counters is not None
    return answer.counters.num_draft_tokens


@pytest.mark.parametrize("case", CASES, ids=name_of)
def test_scores_are_those_of_transformers(case: Case) -> None:
    """Also where it sampled: along the tokens that it drew."""
    runner = runner_of(case)
    whole = [*case["prompt"], *case["token_ids"]]
    wanted = generation(case, runner)
    reading = LayerReading(len(case["token_ids"]), logits_of=wanted.dola_layers)
    handle, fed = runner.pool.create(), whole[:-1]
    logits = runner.forward([SequenceRows(handle, fed, reading.num_rows, [reading])])
    premature = [reading.logits[layer] for layer in wanted.dola_layers]
    group = RowGroup(wanted.parameters, 0, 0, fed, reading.num_rows, len(case["prompt"]))
    scores = processed_scores(contrast_layers(logits, premature), [group])
    assert (scores > -math.inf).sum(-1).tolist() == case["num_possible"]
    for row, ids, values in zip(scores, case["best"], case["scores"], strict=True):
        possible = [value for value in values if value is not None]
        best = row.topk(len(possible)).values
        torch.testing.assert_close(best.tolist(), possible, atol=TOLERANCE, rtol=0)
        assert set(row.topk(len(possible)).indices.tolist()) == set(ids[: len(possible)])


def test_log_probs_and_logits_tell_of_the_model_and_scores_of_the_contrast(
    drafted_target: RunningTarget, reference: Reference
) -> None:
    prompt = random_prompts(1, seed=4)[0]
    completion = drafted_target.client.generate(
        prompt,
        GenerationConfig(
            max_new_tokens=12, dola_layers=[0, 1], output_logits=True, output_scores=True
        ),
        speculation=SYNCHRONOUS,
        log_probs=0,
    )
    assert completion.speculation.num_accepted_tokens > 0
    [sequence] = completion.sequences
    for i, known in enumerate(sequence.log_probs):
        token_id = sequence.token_ids[i]
        logits = torch.tensor(reference.next_logits([*prompt, *sequence.token_ids[:i]]))
        own = torch.tensor(sequence.logits[i].tolist())
        torch.testing.assert_close(own, logits, atol=1e-5, rtol=0, check_dtype=False)
        assert known.raw == pytest.approx(float(logits.log_softmax(-1)[token_id]), abs=1e-5)
        scores = sequence.scores[i].tolist()
        assert known.score == pytest.approx(scores[token_id]) == pytest.approx(max(scores))
        assert scores.count(-math.inf) > 0


@pytest.mark.parametrize("sampling", [{}, {"do_sample": True, "temperature": 0.8}])
def test_where_the_form_forbids_what_is_probable_the_model_s_own_scores_decide(
    drafted_target: RunningTarget, sampling: dict[str, Any]
) -> None:
    pattern = "answers: [0-9]{4,9}[xyz]"
    form = StructuredOutput(regex=pattern)
    config = GenerationConfig(max_new_tokens=30, dola_layers=[0, 1], **sampling)
    texts = []
    for speculation in (PLAIN, SYNCHRONOUS):
        completion = drafted_target.client.generate(
            [5, 6, 7], config, seed=1, structured_output=form, speculation=speculation
        )
        assert re.fullmatch(pattern, completion.text)
        texts.append(completion.token_ids)
    assert texts[0] == texts[1]
    assert completion.speculation.num_accepted_tokens > 0


def test_a_given_text_is_not_scored_by_contrast(drafted_target: RunningTarget) -> None:
    with pytest.raises(InvalidRequestError) as caught:
        drafted_target.client.score([5, 6, 7], GenerationConfig(dola_layers="low"))
    assert caught.value.field == "generation_config.dola_layers"


def requests(options: dict[str, Any]) -> list[Request]:
    return [
        Request(prompt, {"max_new_tokens": 30, **options}, seed)
        for seed, prompt in enumerate(random_prompts(3, seed=21))
    ]


@pytest.mark.parametrize(
    "options",
    [
        {"dola_layers": "low"},
        {"dola_layers": "high", "do_sample": True, "top_k": 0, "num_return_sequences": 2},
        {"dola_layers": [0, 1, 2], "do_sample": True, "temperature": 0.7},
    ],
    ids=["low", "high, sampled", "a list, sampled"],
)
def test_a_service_gives_the_same_text_whoever_drafts(
    options: dict[str, Any], drafted_target: RunningTarget
) -> None:
    wanted = requests(options)
    plain = drafted_target.generate_together(wanted, PLAIN)
    assert num_drafted(plain) == 0
    drafted = drafted_target.generate_together(
        [one for one in wanted for _ in range(2)],
        [SYNCHRONOUS, SpeculationConfig(method="prompt-lookup")] * len(wanted),
    )
    assert tokens(drafted) == [one for one in tokens(plain) for _ in range(2)]
    assert 0 < num_accepted(drafted) < num_drafted(drafted)
    without = [
        Request(one.prompt, {**one.options, "dola_layers": None}, one.seed) for one in wanted
    ]
    assert tokens(drafted_target.generate_together(without, PLAIN)) != tokens(plain)
