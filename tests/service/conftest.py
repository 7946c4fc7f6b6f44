"""One tiny model folder and one service on it for all tests that do not change it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from outrider_client import Client
from service.harness import Caller, RunningService, settings_for
from service.tiny_folder import save_tiny_folder


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_folder(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture(scope="session")
def service(folder: Path) -> Iterator[RunningService]:
    with RunningService(settings_for(folder)) as running:
        yield running


@pytest.fixture
def caller(service: RunningService) -> Iterator[Caller]:
    with Caller(service.address) as connected:
        yield connected
        connected.wait_until_idle()


@pytest.fixture
def client(service: RunningService) -> Iterator[Client]:
    with Client(service.address) as connected:
        yield connected
