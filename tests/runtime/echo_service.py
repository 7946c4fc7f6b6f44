"""A service of the contract that does what a request's text says, for what surrounds calls."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from typing import Any, NamedTuple

import grpc
from outrider.v1 import draft_pb2, generation_pb2
from outrider_runtime.errors import InvalidRequest, Overloaded
from outrider_runtime.request_context import current_caller, current_request_id
from outrider_runtime.server import GrpcServer, ServerSettings
from prometheus_client import CollectorRegistry

GENERATION = "outrider.v1.GenerationService"
DRAFT = "outrider.v1.DraftService"


class EchoGeneration:
    """`Tokenize` counts characters, `Generate` streams them; some texts misbehave."""

    def __init__(self) -> None:
        self.seen_ids: list[str | None] = []
        self.seen_callers: list[str] = []
        self.closed = asyncio.Event()
        self.started = asyncio.Event()
        self.release = asyncio.Event()

    async def Tokenize(self, request: Any, context: Any) -> generation_pb2.TokenizeResponse:
        self.seen_ids.append(current_request_id())
        self.seen_callers.append(current_caller())
        self.started.set()
        await self._behave(request.text, context)
        return generation_pb2.TokenizeResponse(token_ids=[len(request.text)])

    async def Generate(
        self, request: Any, context: Any
    ) -> AsyncIterator[generation_pb2.GenerateResponse]:
        self.seen_ids.append(current_request_id())
        self.seen_callers.append(current_caller())
        try:
            yield _chunk("")
            self.started.set()
            await self._behave(request.text, context)
            for character in request.text:
                yield _chunk(character)
            while request.text == "endless":
                yield _chunk("x" * 1000)
        finally:
            self.closed.set()

    async def _behave(self, text: str, context: Any) -> None:
        match text:
            case "crash":
                raise ValueError("a secret")
            case "invalid":
                raise InvalidRequest("text", "must not say so")
            case "overloaded":
                raise Overloaded(1.5)
            case "abort":
                await context.abort(grpc.StatusCode.NOT_FOUND, "on purpose")
            case "abort late":
                time.sleep(0.2)  # the loop hears nothing of the deadline meanwhile
                await context.abort(grpc.StatusCode.NOT_FOUND, "on purpose")
            case "invalid late":
                time.sleep(0.2)
                raise InvalidRequest("text", "must not say so")
            case "wait":
                await self.release.wait()


class EchoDraft:
    """`Speculate` answers each opened session with one token."""

    async def Speculate(
        self, request_iterator: Any, context: Any
    ) -> AsyncIterator[draft_pb2.SpeculateResponse]:
        async for request in request_iterator:
            for opened in request.opens:
                if opened.session == 666:
                    raise ValueError("a secret")
                yield draft_pb2.SpeculateResponse(
                    grows=[draft_pb2.Grow(session=opened.session, token_ids=[7])]
                )


class Echo(NamedTuple):
    """Both ends of a running echo service."""

    generation: EchoGeneration
    server: GrpcServer
    channel: grpc.aio.Channel
    registry: CollectorRegistry


def echo_server(
    generation: EchoGeneration, settings: ServerSettings | None = None, **options: Any
) -> GrpcServer:
    """A server with both echo services."""

    draft = EchoDraft()

    def register_generation(server: grpc.aio.Server) -> None:
        handlers: dict[str, Any] = {
            "Tokenize": grpc.unary_unary_rpc_method_handler(
                generation.Tokenize,
                generation_pb2.TokenizeRequest.FromString,
                generation_pb2.TokenizeResponse.SerializeToString,
            ),
            "Generate": grpc.unary_stream_rpc_method_handler(
                generation.Generate,
                generation_pb2.GenerateRequest.FromString,
                generation_pb2.GenerateResponse.SerializeToString,
            ),
        }
        server.add_generic_rpc_handlers(
            (grpc.method_handlers_generic_handler(GENERATION, handlers),)
        )

    def register_draft(server: grpc.aio.Server) -> None:
        handlers: dict[str, Any] = {
            "Speculate": grpc.stream_stream_rpc_method_handler(
                draft.Speculate,
                draft_pb2.SpeculateRequest.FromString,
                draft_pb2.SpeculateResponse.SerializeToString,
            )
        }
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(DRAFT, handlers),))

    return GrpcServer(
        settings or ServerSettings(),
        services=[(GENERATION, register_generation), (DRAFT, register_draft)],
        **options,
    )


def _chunk(text: str) -> generation_pb2.GenerateResponse:
    return generation_pb2.GenerateResponse(chunk=generation_pb2.GenerateChunk(text=text))
