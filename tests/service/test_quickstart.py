"""The first lines of Python that a newcomer runs, as they are written down, on the real service."""

from __future__ import annotations

import textwrap
from typing import Any

import pytest
from outrider_client import Completion
from service.harness import Caller, RunningService

QUICKSTART = """
from outrider_client import Client, GenerationConfig
with Client("localhost:50051") as client:
    with client.stream("def main(", GenerationConfig(max_new_tokens=64, do_sample=True, top_p=0.9), seed=7) as stream:
        for chunk in stream:
            print(chunk.text, end="", flush=True)
    print(stream.final.speculation.mean_acceptance_length)
    completion = client.generate([1, 2, 3], GenerationConfig(max_new_tokens=8))   # token ids in, .text .token_ids .finish_reason .usage out
"""  # noqa: E501 - verbatim


def test_the_quickstart_runs_as_it_stands(
    service: RunningService, caller: Caller, capsys: pytest.CaptureFixture[str]
) -> None:
    names: dict[str, Any] = {}
    address = "localhost:" + service.address.partition(":")[2]
    exec(textwrap.dedent(QUICKSTART).replace("localhost:50051", address), names)
    final, completion = names["stream"].final, names["completion"]
    assert isinstance(final, Completion)
    assert capsys.readouterr().out == f"{final.text}{final.speculation.mean_acceptance_length}\n"
    assert final.seed == 7
    assert 0 < len(final.token_ids) <= 64
    assert 0 < len(completion.token_ids) <= 8
    assert completion.finish_reason in ("stop", "length")
    assert completion.usage.prompt_tokens == 3
    assert completion.usage.completion_tokens == len(completion.token_ids)
    assert isinstance(completion.text, str)
