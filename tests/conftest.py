"""What tests of several folders share."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator

import pytest
import structlog
import torch
from exactness.loop_thread import LoopThread, ServiceThreads

# More threads than cores wait for each other by spinning, and two processes test side by side.
os.environ.setdefault("OMP_NUM_THREADS", "1")  # for services, in other processes too
torch.set_num_threads(1)


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
def threads() -> Iterator[ServiceThreads]:
    """Where all services of this process live."""
    running = ServiceThreads(LoopThread("targets"), LoopThread("drafters"))
    yield running
    for thread in running:
        thread.close()
