"""One tiny model folder and one service on it for all tests that do not change it."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import structlog
from outrider_client import Client
from service.harness import Caller, RunningService, settings_for
from service.tiny_folder import save_tiny_folder


@pytest.fixture(scope="session", autouse=True)
def plain_tracebacks() -> Iterator[None]:
    """As a service logs; structlog's own default takes seconds to draw a traceback."""
    before = structlog.get_config()
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.format_exc_info,
            structlog.processors.JSONRenderer(),
        ],
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
    )
    yield
    structlog.configure(**before)


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
