"""What is measured, and Outrider's side of it: the service, through gRPC and the client."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

from outrider_client import Client, Completion, GenerationConfig, SpeculationConfig

Prompt = str | Sequence[int]


class Workload(NamedTuple):
    """What one measurement generates.

    Attributes:
        prompts: Texts to continue, or their token ids; peers take ids only.
        streams: How many at a time.
        sampled: Sampling (top_p=0.9) instead of greedy decoding.
        new_tokens: Tokens to generate for each prompt, unless its text ends before.
        temperature: Of sampling.
    """

    prompts: Sequence[Prompt]
    streams: int
    sampled: bool
    new_tokens: int
    temperature: float = 1.0


class Arrival(NamedTuple):
    """When a prompt's tokens came, in seconds from when it was sent."""

    first: float
    last: float


class Outcome(NamedTuple):
    """What one measurement gave."""

    num_tokens: int
    seconds: float
    acceptance: float
    """Accepted per drafted token; 0 without a drafter, or where that is not told."""
    token_ids: list[tuple[int, ...]]
    """Output of each prompt."""
    accepted_by_drafter: dict[str, int]
    """Accepted tokens by who proposed them, as far as that is told."""
    arrivals: Sequence[Arrival] = ()
    """For each prompt, in the order of the prompts."""


class Contender(Protocol):
    """One way to generate."""

    name: str

    def run(self, work: Workload) -> Outcome:
        """Generate all of it."""


@dataclass
class Outrider:
    """The service with some settings."""

    name: str
    client: Client
    speculation: SpeculationConfig | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    """Fields of GenerationConfig beyond those of the workload."""

    def run(self, work: Workload) -> Outcome:
        """Streams run at the same time, as clients do."""
        config = GenerationConfig(
            max_new_tokens=work.new_tokens, do_sample=work.sampled, **self.options
        )
        if work.sampled:
            config.top_p = 0.9
            config.temperature = work.temperature
        started = time.perf_counter()
        with ThreadPoolExecutor(work.streams) as pool:
            streamed = list(pool.map(lambda prompt: self._stream(prompt, config), work.prompts))
        seconds = time.perf_counter() - started
        completions = [completion for completion, _ in streamed]
        drafted = sum(c.speculation.num_draft_tokens for c in completions)
        accepted = sum(c.speculation.num_accepted_tokens for c in completions)
        by_drafter: Counter[str] = Counter()
        for completion in completions:
            for drafter in completion.speculation.drafters:
                by_drafter[drafter.method] += drafter.num_accepted_tokens
        return Outcome(
            sum(len(c.token_ids) for c in completions),
            seconds,
            accepted / drafted if drafted else 0.0,
            [tuple(c.token_ids) for c in completions],
            dict(by_drafter),
            [arrival for _, arrival in streamed],
        )

    def _stream(self, prompt: Prompt, config: GenerationConfig) -> tuple[Completion, Arrival]:
        began = time.perf_counter()
        first = 0.0
        with self.client.stream(prompt, config, seed=7, speculation=self.speculation) as stream:
            for _ in stream:
                first = first or time.perf_counter() - began
            last = time.perf_counter() - began
        return stream.final, Arrival(first, last)


def generate_together(
    client: Client,
    prompts: Sequence[str],
    config: GenerationConfig,
    speculation: SpeculationConfig | None,
    *,
    streams: int,
) -> tuple[list[Completion], float]:
    """Completions of all prompts, so many at a time, and the seconds they took."""
    started = time.perf_counter()
    with ThreadPoolExecutor(streams) as pool:
        completions = list(
            pool.map(
                lambda prompt: client.generate(prompt, config, seed=7, speculation=speculation),
                prompts,
            )
        )
    return completions, time.perf_counter() - started
