"""What is compared: transformers in this process, Outrider in processes of its own."""

from __future__ import annotations

import os
import statistics
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import torch
import transformers
from outrider_client import Client, Completion, GenerationConfig, SpeculationConfig
from transformers import AutoModelForCausalLM, AutoTokenizer


class Workload(NamedTuple):
    """What one measurement generates.

    Attributes:
        prompts: Texts to continue.
        streams: How many at a time.
        sampled: Sampling (T=1, top_p=0.9) instead of greedy decoding.
        new_tokens: Tokens to generate for each prompt, unless its text ends before.
    """

    prompts: Sequence[str]
    streams: int
    sampled: bool
    new_tokens: int


class Outcome(NamedTuple):
    """What one measurement gave."""

    num_tokens: int
    seconds: float
    acceptance: float
    """Accepted per drafted token; 0 without a drafter."""
    token_ids: list[tuple[int, ...]]
    """Output of each prompt."""
    accepted_by_drafter: dict[str, int]
    """Accepted tokens by who proposed them, as far as that is told."""


class Contender(Protocol):
    """One way to generate."""

    name: str

    def run(self, work: Workload) -> Outcome:
        """Generate all of it."""


@dataclass
class Transformers:
    """transformers' `generate`, plain or assisted, on one model object."""

    name: str
    target: Path
    draft: Path | None = None
    assistant_options: tuple[tuple[str, object], ...] = ()

    def __post_init__(self) -> None:
        self._tokenizer = AutoTokenizer.from_pretrained(self.target, padding_side="left")
        if self._tokenizer.pad_token_id is None:
            self._tokenizer.pad_token_id = self._tokenizer.eos_token_id
        self._model = _load(self.target)
        self._assistant = None if self.draft is None else _load(self.draft)
        if self._assistant is not None:
            self._assistant.generation_config.update(**dict(self.assistant_options))

    def run(self, work: Workload) -> Outcome:
        """Plain decoding batches the streams; assisted generation knows batches of one only."""
        streams = work.streams if self._assistant is None else 1
        outputs: list[tuple[int, ...]] = []
        started = time.perf_counter()
        for first in range(0, len(work.prompts), streams):
            outputs += self._generate(work.prompts[first : first + streams], work)
        seconds = time.perf_counter() - started
        return Outcome(sum(map(len, outputs)), seconds, 0.0, outputs, {})

    def _generate(self, prompts: Sequence[str], work: Workload) -> list[tuple[int, ...]]:
        inputs = self._tokenizer(list(prompts), return_tensors="pt", padding=True)
        options: dict[str, object] = {"do_sample": work.sampled}
        if work.sampled:
            options["top_p"] = 0.9
            torch.manual_seed(7)
        # "heuristic" writes its state back into the assistant's configuration.
        if self._assistant is not None:
            self._assistant.generation_config.update(**dict(self.assistant_options))
            options["assistant_model"] = self._assistant
        output = self._model.generate(
            **inputs,
            max_new_tokens=work.new_tokens,
            pad_token_id=self._tokenizer.pad_token_id,
            **options,
        )
        eos = self._model.generation_config.eos_token_id
        return [_cut(row.tolist(), eos) for row in output[:, inputs["input_ids"].shape[1] :]]


@dataclass
class Outrider:
    """The service, through gRPC and the client."""

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
        completions, seconds = generate_together(
            self.client, work.prompts, config, self.speculation, streams=work.streams
        )
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
        )


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


def fastest_transformers_threads(contender: Transformers, work: Workload) -> int:
    """Threads with which transformers is fastest here; sets them."""
    speeds = {}
    for threads in range(1, (os.cpu_count() or 1) + 1):
        torch.set_num_threads(threads)
        speeds[threads] = speed_of(contender, work)
    best = max(speeds, key=lambda threads: speeds[threads])
    torch.set_num_threads(best)
    return best


def speed_of(contender: Contender, work: Workload) -> float:
    """Tokens per second, the median of three runs after one to warm up."""
    contender.run(work)
    outcomes = [contender.run(work) for _ in range(3)]
    return statistics.median(outcome.num_tokens / outcome.seconds for outcome in outcomes)


def _load(folder: Path) -> transformers.PreTrainedModel:
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


def _cut(token_ids: list[int], eos: int | None) -> tuple[int, ...]:
    if eos in token_ids:
        return tuple(token_ids[: token_ids.index(eos) + 1])
    return tuple(token_ids)
