"""A target and a draft service that have served something, each with its metrics."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from draft import harness
from exactness.loop_thread import ServiceThreads
from exactness.running import wait_until
from observability.pages import Pair
from outrider_client import Client, DraftLinkState
from outrider_draft import drafter as drafting
from outrider_draft.metrics import DraftMetrics
from outrider_draft.settings import ModelSettings as DraftModelSettings
from outrider_runtime.metrics import new_registry
from outrider_runtime.tracing import Tracer
from outrider_target.service import TargetService
from outrider_target.settings import BatchSettings, ModelSettings, SpeculationDefaults
from outrider_target.settings import TargetSettings as Settings
from service.tiny_folder import save_tiny_folder


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_folder(tmp_path_factory.mktemp("observed") / "tiny")


@pytest.fixture(scope="session")
def pair(threads: ServiceThreads, tiny: Path) -> Iterator[Pair]:
    """The model drafts for itself, so that drafts are there and are accepted."""
    registry = new_registry()
    metrics = DraftMetrics(registry)
    drafter = drafting.build(DraftModelSettings(str(tiny), dtype="float64"), metrics)
    with (
        threads.drafters.entered(harness.draft_service(drafter, metrics=metrics)) as draft,
        threads.targets.entered(running_target(tiny, draft.address)) as target,
        Client(f"127.0.0.1:{target.port}") as client,
    ):
        wait_until(lambda: client.server_info().draft_links[0].state is DraftLinkState.READY)
        yield Pair(target, client, draft, registry)


@asynccontextmanager
async def running_target(
    folder: Path, draft: str, *, tracer: Tracer | None = None
) -> AsyncIterator[TargetService]:
    """A target with one draft service, until the block ends."""
    settings = Settings(
        ModelSettings(str(folder), dtype="float64", kv_cache_tokens=4096),
        batch=BatchSettings(max_num_seqs=4, max_waiting_requests=4),
        speculation=SpeculationDefaults(num_assistant_tokens_schedule="heuristic"),
        drafts=(draft,),
        metrics_port=0,
    )
    service = TargetService(settings, tracer)
    await service.start()
    try:
        yield service
    finally:
        await service.stop()
