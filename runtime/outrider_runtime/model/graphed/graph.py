"""A function on fixed memory, recorded once and run again without Python. Knows nothing of models.

The port, and CUDA's graphs behind it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import torch

_WARM_UPS = 2
"""Runs before a recording: libraries set themselves up, which a recording does not allow."""


class Graph(Protocol):
    """One recording."""

    def record(self, run: Callable[[], None]) -> None:
        """Runs the function and keeps what it did.

        Raises:
            Exception: it did something that cannot be recorded, such as to wait for the device.
        """
        ...

    def replay(self) -> None:
        """Does the same again, on whatever is in the same memory now."""
        ...


MakeGraph = Callable[[], Graph]
"""Makes graphs that share their scratch memory: one of them runs at a time."""


def find(device: torch.device) -> MakeGraph | None:
    """Returns what makes graphs for a device; None if it has none."""
    return CudaGraphs(device) if device.type == "cuda" else None


class CudaGraphs:
    """Makes graphs of one device that share a pool of memory.

    Args:
        device: a GPU.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._pool: Any = None
        self._stream: torch.cuda.Stream | None = None

    def __call__(self) -> CudaGraph:
        """A graph, empty yet."""
        if self._stream is None:
            self._pool = torch.cuda.graph_pool_handle()
            self._stream = torch.cuda.Stream(self._device)  # type: ignore[no-untyped-call]
        return CudaGraph(self._device, pool=self._pool, stream=self._stream)


class CudaGraph:
    """A CUDA graph.

    Args:
        device: where it runs.
        pool: memory for what is computed on the way.
        stream: where it is recorded; it is replayed on the current one.
    """

    def __init__(self, device: torch.device, *, pool: Any, stream: torch.cuda.Stream) -> None:
        self._device = device
        self._pool = pool
        self._stream = stream
        self._graph = torch.cuda.CUDAGraph()

    def record(self, run: Callable[[], None]) -> None:
        """See `Graph.record`."""
        with torch.cuda.device(self._device):
            current = torch.cuda.current_stream()
            self._stream.wait_stream(current)
            with torch.cuda.stream(self._stream):
                for _ in range(_WARM_UPS):
                    run()
            current.wait_stream(self._stream)
            # Torch leaves a thread on the stream of a recording that it cannot end.
            with torch.cuda.stream(current):
                self._record(run)

    def replay(self) -> None:
        """See `Graph.replay`."""
        self._graph.replay()

    def _record(self, run: Callable[[], None]) -> None:
        cause: Exception | None = None
        try:
            with torch.cuda.graph(
                self._graph,
                pool=self._pool,
                stream=self._stream,
                # What other threads do meanwhile is theirs.
                capture_error_mode="thread_local",
            ):
                try:
                    run()
                except Exception as fault:
                    cause = fault
                    raise
        except Exception as fault:
            # The end of a recording that failed says no more than that.
            raise cause or fault from None
