"""A whole draft service: proposer, drafting thread and gRPC server, from start to drain."""

from __future__ import annotations

import asyncio

import structlog
from outrider.v1 import draft_pb2_grpc
from outrider_runtime.server import GrpcServer, run_until_signalled
from outrider_runtime.tracing import Tracer

from outrider_draft.drafter import Drafter
from outrider_draft.engine import DraftEngine
from outrider_draft.metrics import DraftMetrics
from outrider_draft.servicer import SERVICE_NAME, DraftServicer
from outrider_draft.settings import DraftSettings
from outrider_draft.worker import DraftWorker

log = structlog.get_logger(__name__)


class DraftingStopped(Exception):
    """The drafting thread failed, and with it the service."""


class DraftService:
    """Owns everything that runs. Lives on one event loop."""

    def __init__(
        self,
        settings: DraftSettings,
        drafter: Drafter,
        metrics: DraftMetrics,
        tracer: Tracer | None = None,
    ) -> None:
        """Put the parts together; call it on the event loop.

        Args:
            settings: Of the whole service.
            drafter: What proposes; belongs to the service from now on.
            metrics: Counters.
            tracer: Records calls and sessions; belongs to whoever made it. None: nothing does.
        """
        self._drafter = drafter
        self._host = settings.server.host
        engine = DraftEngine(
            drafter.proposer,
            sessions=settings.sessions,
            steps=settings.step,
            metrics=metrics,
            tracer=tracer,
        )
        self._servicer = DraftServicer(
            drafter.proposer.description,
            limits=settings.sessions,
            max_length=engine.max_length,
            metrics=metrics,
        )
        self._loop = asyncio.get_running_loop()
        self._failed = False
        self._stopping = asyncio.Event()
        self.worker = DraftWorker(
            engine, deliver=self._servicer.deliver, failed=self._drafting_failed
        )
        self._servicer.attach(self.worker)
        metrics.num_frames_waiting.set_function(lambda: self.worker.num_waiting)
        description = drafter.proposer.description
        metrics.drafter.info({"kind": description.kind, "model": description.model_id})
        self._server = GrpcServer(
            settings.server,
            services=[
                (
                    SERVICE_NAME,
                    lambda server: draft_pb2_grpc.add_DraftServiceServicer_to_server(
                        self._servicer, server
                    ),
                )
            ],
            observe=metrics.calls.observe,
            tracer=tracer,
        )

    async def start(self) -> int:
        """Start serving.

        Returns:
            The bound port.

        Raises:
            StartupError: The port is taken.
        """
        port = await self._server.start()
        self.worker.start()
        self._server.set_serving(True)
        log.info("service_started", host=self._host, port=port, drafter=self._drafter.title)
        return port

    async def stop(self, grace: float | None = None) -> None:
        """Answer what was taken in, end all links, stop."""
        self._server.set_serving(False)
        await self._drain()
        await self._server.stop(grace)
        self.worker.stop()

    async def kill(self) -> None:
        """Stop at once, as a crash would."""
        await self._server.stop(0)
        self.worker.stop()

    async def serve_until_signalled(self) -> None:
        """Serve until SIGTERM or SIGINT and drain.

        Raises:
            DraftingStopped: The drafting thread failed; its reason is in the log.
        """
        await run_until_signalled(self._server, drain=self._drain, stopping=self._stopping)
        self.worker.stop()
        if self._failed:
            raise DraftingStopped

    async def _drain(self) -> None:
        # A thread that is gone answers nothing any more.
        await self._servicer.drain(answer=not self._failed)

    def _drafting_failed(self) -> None:
        """The thread cannot go on; called there. Starting again is the orchestrator's work."""
        self._failed = True
        self._loop.call_soon_threadsafe(self._stopping.set)
