"""What the engine's tests share."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import transformers


@pytest.fixture(scope="session", autouse=True)
def _quiet_transformers() -> Iterator[None]:
    """Keeps the progress bars of saving tiny models out of the test output."""
    transformers.logging.disable_progress_bar()
    yield
    transformers.logging.enable_progress_bar()
