"""One tiny service for all faults: each has to leave it as it was."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from service.harness import RunningService, settings_for
from service.tiny_folder import save_tiny_folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_folder(tmp_path_factory.mktemp("faults") / "tiny")


@pytest.fixture(scope="module")
def service(folder: Path) -> Iterator[RunningService]:
    with RunningService(settings_for(folder)) as running:
        yield running
