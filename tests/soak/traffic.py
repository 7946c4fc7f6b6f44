"""Mixed requests of the shipped model: each knows how it is asked and what plain decoding says."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from outrider_client import (
    AsyncClient,
    Completion,
    GenerationConfig,
    SpeculationConfig,
    StructuredOutput,
)
from outrider_demo import processes

MODELS = Path(processes.__file__).parent / "models"
PROMPTS = Path(processes.__file__).parent / "prompts.json"

PLAIN = SpeculationConfig(enabled=False)
COMBINED = SpeculationConfig(method="combined")
REMOTE = SpeculationConfig(method="remote", draft_timeout_ms=300)
ENDLESS = ("eos_token_id",)

TokenIds = list[list[int]]
"""Of all sequences of an answer."""

_OBJECT = {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]}


@dataclass
class Kind:
    """A request that is sent again and again, and the only answer to it."""

    name: str
    prompt: str
    config: Mapping[str, Any]
    options: Mapping[str, Any] = field(default_factory=dict)
    drafted: bool = True
    """Whether anybody but the target itself proposes tokens for it."""
    expected: TokenIds = field(default_factory=list)

    def arguments(self, speculation: SpeculationConfig) -> dict[str, Any]:
        """For `AsyncClient.stream`."""
        config = GenerationConfig(**self.config, clear_fields=ENDLESS)
        return {
            "prompt": self.prompt,
            "config": config,
            "speculation": speculation,
            "seed": 7,
            **self.options,
        }


def kinds() -> list[Kind]:
    """The mix: short and long, alone and in company, free and in a form."""
    texts = [each["text"] for each in json.loads(PROMPTS.read_text())]
    always = {"num_assistant_tokens": 4, "num_assistant_tokens_schedule": "constant"}
    sampling = {"do_sample": True, "temperature": 0.8, "top_k": 40}
    return [
        Kind("greedy", texts[0], {"max_new_tokens": 48, **always}),
        Kind("greedy, priced", texts[1], {"max_new_tokens": 64}),
        Kind("sampled", texts[2], {"max_new_tokens": 48, **sampling, **always}),
        Kind("sampled, priced", texts[3], {"max_new_tokens": 64, **sampling, "top_p": 0.95}),
        Kind(
            "three sequences",
            texts[4],
            {"max_new_tokens": 24, "num_return_sequences": 3, **sampling, **always},
        ),
        Kind("penalties", texts[5], {"max_new_tokens": 32, "repetition_penalty": 1.2, **always}),
        Kind("long prompt", "\n".join(texts[:12])[:1200], {"max_new_tokens": 16, **always}),
        Kind("long answer", texts[6], {"max_new_tokens": 200, **always}),
        Kind("log-probabilities", texts[7], {"max_new_tokens": 24, **always}, {"log_probs": 3}),
        Kind("JSON", texts[8], {"max_new_tokens": 24, **always},
             {"structured_output": StructuredOutput(json_schema=_OBJECT)}),
        Kind("beams", texts[9], {"max_new_tokens": 16, "num_beams": 3}, drafted=False),
        Kind("guidance", texts[10], {"max_new_tokens": 16, "guidance_scale": 1.5, **always}),
        Kind("contrastive search", texts[11],
             {"max_new_tokens": 12, "penalty_alpha": 0.6, "top_k": 4}, drafted=False),
    ]  # fmt: skip


async def learn_expected(client: AsyncClient, mix: list[Kind]) -> None:
    """Ask for each alone and plainly: from here on there is no other right answer."""
    for kind in mix:
        completion = await client.generate(**kind.arguments(PLAIN))
        assert completion.speculation.num_draft_tokens == 0
        kind.expected = token_ids(completion)


def token_ids(completion: Completion) -> TokenIds:
    """All tokens of an answer."""
    return [list(sequence.token_ids) for sequence in completion.sequences]
