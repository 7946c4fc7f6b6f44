"""A text of a required form is the same with real draft services, which do not know the form."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import pytest
from exactness.model_pairs import ModelPair
from exactness.running import (
    PLAIN,
    SYNCHRONOUS,
    RunningTarget,
    accepted_by_drafter,
    num_drafted,
    outcome,
)
from outrider_client import Completion, GenerationConfig, SpeculationConfig, StructuredOutput

NUM_TEXTS = 6

PATTERN = "[a-f]{6,24}(-[0-9]{3}){2,6};"
SCHEMA = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "pattern": "^[a-z]{0,6}$"},
        "sizes": {"type": "array", "maxItems": 3, "items": {"enum": [1, 22, 333]}},
        "kind": {"enum": ["accepted", "recovered", "bonus"]},
    },
    "required": ["name", "sizes", "kind"],
    "additionalProperties": False,
    "x-guidance": {"whitespace_flexible": False},  # else spaces without end
}


class Case(NamedTuple):
    """A form, and a prompt that shows it, so that lookup has something to draft."""

    form: StructuredOutput
    example: str


CASES = {
    "regex": Case(StructuredOutput(regex=PATTERN), "abcdef-123-456; abcabcabc-111-222-333;"),
    "json schema": Case(
        StructuredOutput(json_schema=SCHEMA),
        '{"name": "ab", "sizes": [1, 2, 3], "kind": "bonus"}',
    ),
    "choices": Case(
        StructuredOutput(choices=["the target decides", "the draft proposes"]),
        "the target decides; the draft proposes; ",
    ),
}


def generate(
    running: RunningTarget, pair: ModelPair, case: Case, speculation: SpeculationConfig
) -> list[Completion]:
    """Greedy and sampled texts of a form, all in one batch."""
    prompt = pair.tokenizer.encode(case.example)
    options: dict[str, Any] = {
        "max_new_tokens": 96,
        "num_assistant_tokens": 6,
        "num_assistant_tokens_schedule": "constant",
        "assistant_confidence_threshold": 0.0,
    }

    def one(seed: int) -> Completion:
        return running.client.generate(
            prompt,
            GenerationConfig(do_sample=seed > 0, **options),
            seed=seed,
            speculation=speculation,
            structured_output=case.form,
        )

    with ThreadPoolExecutor(NUM_TEXTS) as threads:
        return list(threads.map(one, range(NUM_TEXTS)))


def assert_of_the_form(name: str, completions: Sequence[Completion]) -> None:
    """Those that came to their end."""
    ended = [one.text for one in completions if one.finish_reason == "stop"]
    assert ended
    for text in ended:
        if name == "regex":
            assert re.fullmatch(PATTERN, text)
        elif name == "choices":
            assert text in ("the target decides", "the draft proposes")
        else:
            assert json.loads(text).keys() == {"name", "sizes", "kind"}


@pytest.mark.parametrize("name", CASES)
def test_a_form_is_kept_and_the_text_is_the_same_with_drafters(
    name: str,
    pair: ModelPair,
    drafted_target: RunningTarget,
    perfectly_drafted_target: RunningTarget,
) -> None:
    case = CASES[name]
    plain = generate(drafted_target, pair, case, PLAIN)
    assert num_drafted(plain) == 0
    assert_of_the_form(name, plain)
    accepted: Counter[str] = Counter()
    for running, speculation in (
        (drafted_target, SYNCHRONOUS),
        (perfectly_drafted_target, SYNCHRONOUS),
        (perfectly_drafted_target, SpeculationConfig(method="combined")),
        (drafted_target, SpeculationConfig(method="prompt-lookup")),
        (drafted_target, SpeculationConfig(method="grammar")),
    ):
        drafted = generate(running, pair, case, speculation)
        assert [outcome(one) for one in drafted] == [outcome(one) for one in plain]
        accepted.update(accepted_by_drafter(drafted))
        running.assert_nothing_left()
    assert accepted["grammar"] > 0
    assert name != "regex" or accepted["remote"] > 0  # the others leave little choice here
