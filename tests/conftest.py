"""What tests of several folders share."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from exactness.loop_thread import LoopThread, ServiceThreads

# More threads than cores wait for each other by spinning, and two processes test side by side.
torch.set_num_threads(1)


@pytest.fixture(scope="session")
def threads() -> Iterator[ServiceThreads]:
    """Where all services of this process live."""
    running = ServiceThreads(LoopThread("targets"), LoopThread("drafters"))
    yield running
    for thread in running:
        thread.close()
