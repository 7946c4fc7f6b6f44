"""Services that many tests share: one tiny pair with its drafters, and targets fed by them."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from draft.harness import RunningDrafter
from exactness.loop_thread import ServiceThreads
from exactness.model_pairs import ModelPair, make_pair
from exactness.reference import Reference
from exactness.running import (
    RunningTarget,
    draft_service,
    lookup_drafter,
    model_drafter,
    suffix_drafter,
    target,
)


@pytest.fixture(scope="session")
def pair(tmp_path_factory: pytest.TempPathFactory) -> ModelPair:
    """A tiny Llama and a draft of it."""
    return make_pair(tmp_path_factory.mktemp("llama"), "llama")


@pytest.fixture(scope="session")
def reference(pair: ModelPair) -> Reference:
    """The pair's target in transformers."""
    return Reference(pair.target)


@pytest.fixture(scope="session")
def model_draft(threads: ServiceThreads, pair: ModelPair) -> Iterator[RunningDrafter]:
    """A draft service with the pair's draft model."""
    with draft_service(threads, model_drafter(pair.draft)) as running:
        yield running


@pytest.fixture(scope="session")
def perfect_draft(threads: ServiceThreads, pair: ModelPair) -> Iterator[RunningDrafter]:
    """A draft service with the target model itself: everything it proposes is accepted."""
    with draft_service(threads, model_drafter(pair.target)) as running:
        yield running


@pytest.fixture(scope="session")
def lookup_draft(threads: ServiceThreads) -> Iterator[RunningDrafter]:
    """A draft service that needs no model."""
    with draft_service(threads, lookup_drafter()) as running:
        yield running


@pytest.fixture(scope="session")
def suffix_draft(threads: ServiceThreads) -> Iterator[RunningDrafter]:
    """A draft service that remembers what was written, and needs no model either."""
    with draft_service(threads, suffix_drafter()) as running:
        yield running


@pytest.fixture(scope="session")
def drafted_target(
    threads: ServiceThreads, pair: ModelPair, model_draft: RunningDrafter
) -> Iterator[RunningTarget]:
    """The pair's target, fed by its draft model."""
    with target(threads, pair.target, drafts=[model_draft.address]) as running:
        yield running


@pytest.fixture(scope="session")
def perfectly_drafted_target(
    threads: ServiceThreads, pair: ModelPair, perfect_draft: RunningDrafter
) -> Iterator[RunningTarget]:
    """The pair's target, fed by itself."""
    with target(threads, pair.target, drafts=[perfect_draft.address]) as running:
        yield running
