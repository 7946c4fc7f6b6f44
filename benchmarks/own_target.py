"""A target in the benchmark's own process, for what is measured from inside."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from outrider_runtime.otel import OtelTracer
from outrider_target.service import TargetService
from outrider_target.settings import TargetSettings


@contextmanager
def running(settings: TargetSettings, tracer: OtelTracer | None = None) -> Iterator[TargetService]:
    """Serve on an event loop of its own until the block ends."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()

    def run(coroutine: Any) -> Any:
        return asyncio.run_coroutine_threadsafe(coroutine, loop).result(300)

    service = TargetService(settings, tracer)
    run(service.start())
    try:
        yield service
    finally:
        run(service.stop())
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
