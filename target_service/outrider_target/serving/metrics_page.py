"""All that a target shows Prometheus beside its calls and requests, put together once."""

from __future__ import annotations

from outrider_runtime.recent_texts import RecentTexts
from prometheus_client import CollectorRegistry, Info

from outrider_target.drafting.remote.fleet import DraftFleet
from outrider_target.drafting.remote.links import DraftLinks
from outrider_target.engine.thread import Engine
from outrider_target.serving.link_metrics import LinkCollector
from outrider_target.serving.metrics import (
    Capacity,
    EngineCollector,
    ForesightCollector,
    MemoryCollector,
    RoundCollector,
)
from outrider_target.serving.serving import ModelIdentity


def export(
    registry: CollectorRegistry,
    *,
    engine: Engine,
    fleet: DraftFleet,
    links: DraftLinks,
    texts: RecentTexts,
    capacity: Capacity,
    identity: ModelIdentity,
) -> None:
    """Have a registry show what these count."""
    registry.register(EngineCollector(lambda: engine.loads, capacity))
    registry.register(RoundCollector(engine.tallies))
    registry.register(ForesightCollector(fleet.foresight))
    registry.register(LinkCollector(links, fleet))
    registry.register(MemoryCollector(texts))
    model = Info("outrider_model", "The served model.", registry=registry)
    model.info(
        {
            "model": identity.name,
            "architecture": identity.architecture,
            "dtype": identity.dtype,
            "device": identity.device,
        }
    )
