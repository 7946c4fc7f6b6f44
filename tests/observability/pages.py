"""Metrics pages of a running pair of services, read as Prometheus reads them."""

from __future__ import annotations

import urllib.request
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from draft.harness import RunningDrafter
from outrider_client import Client, Completion, GenerationConfig, SpeculationConfig
from outrider_target.service import TargetService
from prometheus_client import CollectorRegistry, Metric, generate_latest
from prometheus_client.parser import text_string_to_metric_families
from service.asking import ENDLESS

REMOTE = SpeculationConfig(method="remote", pacing="synchronous", draft_timeout_ms=60_000)
"""Waits for the draft service, however slow this machine is at the moment."""

ON_DEMAND = "spec_decode_speedup_ratio"
"""Absent until it was measured."""


@dataclass(frozen=True, slots=True)
class Page:
    """A metrics page as it was at one moment."""

    families: Mapping[str, Metric]
    """By name without our prefix; of ours alone."""

    @classmethod
    def of(cls, text: str) -> Page:
        families = text_string_to_metric_families(text)
        ours = (each for each in families if each.name.startswith("outrider_"))
        return cls({each.name.removeprefix("outrider_"): each for each in ours})

    def value(self, sample: str, **labels: str) -> float:
        """A sample by its full name without our prefix; 0 where there is none."""
        return sum(
            each.value
            for family in self.families.values()
            for each in family.samples
            if each.name == f"outrider_{sample}" and labels.items() <= each.labels.items()
        )

    @property
    def sample_names(self) -> set[str]:
        """What a query may name, with our prefix; of families without samples as well."""
        named = {each.name for family in self.families.values() for each in family.samples}
        return named | set(_possible(self.families.values()))


def _possible(families: Iterable[Metric]) -> Iterable[str]:
    endings = {"counter": ["_total"], "histogram": ["_bucket", "_sum", "_count"], "gauge": [""]}
    for family in families:
        for ending in endings.get(family.type, []):
            yield family.name + ending


@dataclass(frozen=True, slots=True)
class Pair:
    """A target, a client of it, and its draft service."""

    target: TargetService
    client: Client
    draft: RunningDrafter
    draft_registry: CollectorRegistry

    def target_page(self) -> Page:
        url = f"http://127.0.0.1:{self.target.metrics_port}/metrics"
        with urllib.request.urlopen(url, timeout=60) as answer:
            return Page.of(answer.read().decode())

    def draft_page(self) -> Page:
        return Page.of(generate_latest(self.draft_registry).decode())

    def generate(
        self, prompt: str, *, max_new_tokens: int = 20, request_id: str | None = None
    ) -> Completion:
        """Serve a request by the remote drafter, waiting for its drafts."""
        return self.client.generate(
            prompt,
            GenerationConfig(max_new_tokens=max_new_tokens, clear_fields=ENDLESS),
            request_id=request_id,
            speculation=REMOTE,
        )
