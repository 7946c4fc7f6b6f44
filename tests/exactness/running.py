"""Real services over loopback gRPC, and requests to them.

The target service runs in this process, on the event loop of a `LoopThread` and with its own engine
thread; draft services likewise, on another loop, or as child processes. Requests go through the
real client.

Models are loaded in float64. Equality to the token across batch shapes then holds: rows of
different batches differ by some 1e-16, which no two scores come close to. In float32 rows differ by
1e-6, and once in a while two scores are closer than that, so a token could flip without anything
being wrong.
"""

from __future__ import annotations

import functools
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest import mock

from draft import harness
from exactness.gated_runner import Gate, GatedRunner
from exactness.loop_thread import PATIENCE, ServiceThreads
from outrider_client import (
    Client,
    Completion,
    DraftLinkState,
    GenerationConfig,
    SpeculationConfig,
)
from outrider_draft import drafter as drafting
from outrider_draft.drafter import Drafter
from outrider_draft.metrics import DraftMetrics
from outrider_draft.settings import LookupSettings, SuffixSettings
from outrider_draft.settings import ModelSettings as DraftModelSettings
from outrider_target.engine import loaded_runner
from outrider_target.requests.request import DraftMethod
from outrider_target.service import TargetService
from outrider_target.settings import (
    BatchSettings,
    ModelSettings,
    SpeculationDefaults,
    TargetSettings,
)
from prometheus_client import CollectorRegistry

PLAIN = SpeculationConfig(enabled=False)
SYNCHRONOUS = SpeculationConfig(
    pacing="synchronous",
    draft_timeout_ms=60_000,
    max_assistant_tokens=64,
    draft_temperature=1.0,
    report_rounds=True,
)
"""Waits for the drafter however slow this machine is at the moment, and leaves it as it is."""

NUM_STREAMS = 8


@dataclass(frozen=True, slots=True)
class Request:
    """What a client asks for."""

    prompt: Sequence[int]
    options: Mapping[str, Any] = field(default_factory=dict)
    seed: int | None = None


@dataclass(slots=True)
class RunningTarget:
    """A target service that listens, and a client of it."""

    client: Client
    service: TargetService
    gate: Gate

    def generate(self, request: Request, speculation: SpeculationConfig = PLAIN) -> Completion:
        """Serve one request."""
        return self.client.generate(
            list(request.prompt),
            GenerationConfig(**request.options),
            seed=request.seed,
            speculation=speculation,
            timeout=PATIENCE,
        )

    def generate_together(
        self,
        requests: Sequence[Request],
        speculation: SpeculationConfig | Sequence[SpeculationConfig] = PLAIN,
    ) -> list[Completion]:
        """Serve requests, `NUM_STREAMS` at a time, each a call of its own."""
        each = (
            [speculation] * len(requests)
            if isinstance(speculation, SpeculationConfig)
            else speculation
        )
        with ThreadPoolExecutor(NUM_STREAMS) as threads:
            return list(threads.map(self.generate, requests, each))

    def wait_for_links(self, *states: DraftLinkState) -> None:
        """Wait until the links to drafters are in these states (all ready, if none are given)."""

        def reached() -> bool:
            found = [link.state for link in self.client.server_info().draft_links]
            return found == list(states or [DraftLinkState.READY] * len(found))

        wait_until(reached)

    def assert_nothing_left(self) -> None:
        """All blocks are free again and the KV pool is whole."""
        serving = self.service.serving
        assert serving is not None
        wait_until(lambda: self.client.loads().num_running_sequences == 0)
        assert self.client.loads().kv_cache_usage == 0
        assert len(serving.requests) == 0


def wait_until(condition: Callable[[], bool]) -> None:
    """Ask again and again; every question is a call that takes its time."""
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline, "it did not come to pass"


@contextmanager
def target(
    threads: ServiceThreads,
    model: Path,
    *,
    drafts: Sequence[str] = (),
    dtype: str = "float64",
    batch: BatchSettings | None = None,
    wait_for_links: bool = True,
    draft_method: DraftMethod = DraftMethod.REMOTE,
    plugins: Sequence[str] = (),
    **model_settings: Any,
) -> Iterator[RunningTarget]:
    """Run a target service until the block ends.

    Args:
        threads: Where it lives.
        model: The folder of its model.
        drafts: Addresses of draft services.
        dtype: Of the model.
        batch: How much runs at once.
        wait_for_links: Begin only when all links to drafters are ready.
        draft_method: Who drafts when a request does not say; not both, so that it is known who did.
        plugins: Names of installed ones that requests may use.
        model_settings: Further fields of the target's `ModelSettings`.
    """
    gate = Gate()
    settings = TargetSettings(
        ModelSettings(str(model), dtype=dtype, **{"kv_cache_tokens": 8192, **model_settings}),
        batch=batch or BatchSettings(),
        drafts=tuple(drafts),
        plugins=tuple(plugins),
        # Not by measured costs: tests say who drafts, and see to it that it happened.
        speculation=SpeculationDefaults(
            draft_method=draft_method, num_assistant_tokens_schedule="heuristic"
        ),
    )

    @asynccontextmanager
    async def running() -> Any:
        service = TargetService(settings)
        gated = functools.partial(GatedRunner, gate=gate)
        with mock.patch.object(loaded_runner, "RaggedRunner", gated):
            await service.start()
        try:
            yield service
        finally:
            gate.open()
            await service.stop()

    with (
        threads.targets.entered(running()) as service,
        Client(f"127.0.0.1:{service.port}") as client,
    ):
        started = RunningTarget(client, service, gate)
        if wait_for_links:
            started.wait_for_links()
        yield started


def model_drafter(folder: Path, *, dtype: str = "float64", **model_settings: Any) -> Drafter:
    """A drafter with a draft model."""
    settings = DraftModelSettings(str(folder), dtype=dtype, **model_settings)
    return drafting.build(settings, DraftMetrics(CollectorRegistry()))


def lookup_drafter() -> Drafter:
    """A drafter that needs no model."""
    return drafting.build(LookupSettings(), DraftMetrics(CollectorRegistry()))


def suffix_drafter() -> Drafter:
    """A drafter that needs no model either, and remembers."""
    return drafting.build(SuffixSettings(), DraftMetrics(CollectorRegistry()))


@contextmanager
def draft_service(threads: ServiceThreads, drafter: Drafter) -> Iterator[harness.RunningDrafter]:
    """Run a real draft service until the block ends."""
    with threads.drafters.entered(harness.draft_service(drafter)) as service:
        yield service


def tokens(completions: Sequence[Completion]) -> list[list[list[int]]]:
    """What must never change: the tokens of every sequence of every completion."""
    return [[sequence.token_ids for sequence in one.sequences] for one in completions]


def outcome(completion: Completion) -> list[tuple[object, ...]]:
    """Tokens, text and end of every sequence of a completion."""
    return [
        (
            sequence.token_ids,
            sequence.text,
            sequence.finish_reason,
            sequence.matched_stop_string,
            sequence.matched_stop_token_id,
        )
        for sequence in completion.sequences
    ]


def num_drafted(completions: Sequence[Completion]) -> int:
    """Draft tokens verified."""
    return sum(one.speculation.num_draft_tokens for one in completions)


def num_accepted(completions: Sequence[Completion]) -> int:
    """Draft tokens accepted."""
    return sum(one.speculation.num_accepted_tokens for one in completions)


def accepted_by_drafter(completions: Sequence[Completion]) -> Counter[str]:
    """Draft tokens accepted, by who proposed them."""
    accepted: Counter[str] = Counter()
    for completion in completions:
        for drafter in completion.speculation.drafters:
            accepted[drafter.method] += drafter.num_accepted_tokens
    return accepted
