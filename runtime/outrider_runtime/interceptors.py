"""What surrounds every call: request id, API key, errors into statuses, the count of calls.

One interceptor for unary and streaming calls alike, so that no handler can be registered without
it. Knows nothing of what the services do.
"""

from __future__ import annotations

import asyncio
import inspect
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import aclosing, asynccontextmanager, suppress
from typing import TYPE_CHECKING, Any, NamedTuple

import grpc
import structlog
from grpc_status import rpc_status
from outrider_contract.errors import Reason
from outrider_contract.metadata import AUTHORIZATION, BEARER_PREFIX, REQUEST_ID

from outrider_runtime import health
from outrider_runtime.caller_keys import CallerKeys
from outrider_runtime.errors import (
    InternalError,
    InvalidRequest,
    OutriderError,
    TooManyStreams,
    Unauthenticated,
)
from outrider_runtime.open_streams import OpenStreams
from outrider_runtime.request_context import (
    choose_request_id,
    current_account,
    set_caller,
    set_request_id,
    text_metadata,
    trace_of,
)
from outrider_runtime.tracing import Tracer, set_span

# Types of requests and responses differ per method and are nothing to this module.
if TYPE_CHECKING:
    Context = grpc.aio.ServicerContext[Any, Any]
    Handler = grpc.RpcMethodHandler[Any, Any]
_log = structlog.stdlib.get_logger(__name__)


class CallEnd(NamedTuple):
    """How a call ended."""

    method: str
    """Full path."""
    code: grpc.StatusCode
    seconds: float
    """Since it arrived."""
    reason: Reason | None
    """Of an error of ours; None: it was answered, cancelled, or ended by gRPC."""
    caller: str = ""
    """Name of who called; empty: nobody knows, or it was turned away."""


CallObserver = Callable[[CallEnd], None]
"""Told of every call that ended."""


class MalformedMessage:
    """Stands for a message whose bytes are not one."""


class CallInterceptor(grpc.aio.ServerInterceptor):
    """Gives each call an id, checks its key and turns exceptions into statuses.

    - The request id (the message's own, the `x-request-id` metadata, or a new one) goes into the
      log context and back as initial metadata.
    - With keys, every service but the open ones demands `authorization: Bearer KEY`. Whose key it
      is, or else whose certificate, goes into the log context.
    - A caller with as many open streams as it may have gets no other.
    - `OutriderError` ends the call with its rich status. Anything else ends it with INTERNAL, the
      request id and nothing more, and is logged with its traceback. Cancellation passes.
    - Bytes that are no message end the call with INVALID_ARGUMENT; grpc.aio itself would answer
      UNKNOWN with the exception's text.

    Handlers must be coroutines or async generators; calls of others fail.
    """

    def __init__(
        self,
        keys: CallerKeys | None = None,
        *,
        open_services: frozenset[str] = frozenset({health.SERVICE_NAME}),
        observe: CallObserver | None = None,
        tracer: Tracer | None = None,
        max_streams_per_caller: int | None = None,
    ) -> None:
        self._tracer = tracer
        most = max_streams_per_caller
        self._open_streams = None if most is None else OpenStreams(most)
        self._keys = keys or CallerKeys()
        self._open_services = open_services
        self._observe = observe
        self._wrapped: dict[str, tuple[Handler, Handler]] = {}

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Handler | None]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Handler | None:
        """Wraps the method's handler; once per method, not per call."""
        handler = await continuation(handler_call_details)
        if handler is None:
            return None
        method = _text(handler_call_details.method)
        known = self._wrapped.get(method)
        if known is None or known[0] is not handler:
            known = self._wrapped[method] = (handler, self._wrap(method, handler))
        return known[1]

    def _wrap(self, method: str, handler: Handler) -> Handler:
        deserializer = _tolerant(handler.request_deserializer)
        if handler.request_streaming and handler.response_streaming:
            wrap, behaviour = grpc.stream_stream_rpc_method_handler, handler.stream_stream
        elif handler.request_streaming:
            wrap, behaviour = grpc.stream_unary_rpc_method_handler, handler.stream_unary
        elif handler.response_streaming:
            wrap, behaviour = grpc.unary_stream_rpc_method_handler, handler.unary_stream
        else:
            wrap, behaviour = grpc.unary_unary_rpc_method_handler, handler.unary_unary
        if inspect.isasyncgenfunction(behaviour):
            if self._open_streams is not None and not self._is_open(method):
                behaviour = _as_one_of_few(behaviour, self._open_streams)
            wrapped = self._around_generator(method, behaviour)
        elif inspect.iscoroutinefunction(behaviour):
            wrapped = self._around_coroutine(method, behaviour)
        else:
            # Passing it on would leave it open to callers without a key.
            raise TypeError(
                f"the handler of {method} is neither a coroutine nor an async generator"
            )
        return wrap(wrapped, deserializer, handler.response_serializer)

    def _around_coroutine(self, method: str, behaviour: Callable[..., Any]) -> Callable[..., Any]:
        async def call(request: object, context: Context) -> object:
            async with self._surroundings(method, request, context):
                return await behaviour(_checked(request), context)
            raise AssertionError  # an aborted call does not get here

        return call

    def _around_generator(self, method: str, behaviour: Callable[..., Any]) -> Callable[..., Any]:
        # A coroutine that writes, not another generator: were the call cancelled while a response
        # is being sent, nothing would close a generator before the garbage collector does. This
        # way its `finally` runs at once and in this task.
        async def call(request: object, context: Context) -> None:
            async with (
                self._surroundings(method, request, context),
                aclosing(behaviour(_checked(request), context)) as responses,
            ):
                async for response in responses:
                    await context.write(response)

        return call

    @asynccontextmanager
    async def _surroundings(
        self, method: str, request: object, context: Context
    ) -> AsyncIterator[None]:
        started = time.monotonic()
        metadata = text_metadata(context.invocation_metadata())
        request_id = choose_request_id(request, metadata)
        set_request_id(request_id)
        structlog.contextvars.clear_contextvars()
        structlog.contextvars.bind_contextvars(
            request_id=request_id, method=method, **trace_of(metadata)
        )
        span = None
        if self._tracer is not None:
            span = self._tracer.begin_call(method, metadata, request_id)
            set_span(span)
            if span is not None:
                structlog.contextvars.bind_contextvars(trace_id=span.trace_id)
        code = grpc.StatusCode.OK
        reason: Reason | None = None
        caller: str | None = None
        try:
            await context.send_initial_metadata(((REQUEST_ID, request_id),))
            if (caller := self._caller(method, metadata, context)) is None:
                await _first_message(request)
                raise Unauthenticated
            set_caller(caller, address=_address(context))
            if caller:
                structlog.contextvars.bind_contextvars(caller=caller)
            yield
        except asyncio.CancelledError:
            code = grpc.StatusCode.CANCELLED
            raise
        except grpc.aio.AbortError:
            code = _code_of(context)
            raise
        except grpc.aio.InternalError as unsendable:
            code = _code_of_ended(context)
            raise asyncio.CancelledError from unsendable
        except OutriderError as error:
            code, reason = error.code, error.reason
            _log_refusal(error)
            await _abort(context, error, request_id)
        except Exception:  # a fault of ours: the caller gets an id, the log the rest
            code, reason = grpc.StatusCode.INTERNAL, Reason.INTERNAL
            _log.exception("call_failed")
            await _abort(context, InternalError(request_id), request_id)
        finally:
            if span is not None:
                fault = code.name if reason is not None else None
                span.end({"rpc.grpc.status_code": code.value[0]}, fault=fault)
            if self._observe is not None:
                self._observe(
                    CallEnd(method, code, time.monotonic() - started, reason, caller or "")
                )

    def _is_open(self, method: str) -> bool:
        return method.strip("/").partition("/")[0] in self._open_services

    def _caller(self, method: str, metadata: dict[str, str], context: Context) -> str | None:
        """Who calls, by key, else by certificate; empty: anybody; None: somebody who may not."""
        if self._is_open(method):
            return ""
        if not self._keys.required:
            names = context.auth_context().get("x509_common_name", ())
            return next((name.decode(errors="replace") for name in names), "")
        sent = metadata.get(AUTHORIZATION, "")
        if not sent.startswith(BEARER_PREFIX):
            return None
        return self._keys.name_of(sent.removeprefix(BEARER_PREFIX))


def _as_one_of_few(behaviour: Callable[..., Any], open_streams: OpenStreams) -> Callable[..., Any]:
    async def stream(request: object, context: Context) -> AsyncIterator[Any]:
        try:
            with open_streams.one_more(current_account()):
                async with aclosing(behaviour(request, context)) as responses:
                    async for response in responses:
                        yield response
        except TooManyStreams:
            await _first_message(request)
            raise

    return stream


def _address(context: Context) -> str:
    """Where a call comes from, without the port, which changes with each connection."""
    return context.peer().rpartition(":")[0]


async def _first_message(request: object) -> None:
    # A grpc.aio client that is still sending when its status arrives reports INTERNAL instead. The
    # first message of a stream is usually all it sends before it listens.
    if isinstance(request, AsyncIterator):
        with suppress(TimeoutError):
            async with asyncio.timeout(1):
                await anext(request, None)


def _log_refusal(error: OutriderError) -> None:
    """One line a refusal, without its text, which may quote the request."""
    # A flood of requests must not become one of lines: those are counted.
    floods = (Reason.OVERLOADED, Reason.TOO_MANY_STREAMS, Reason.TOKEN_QUOTA_EXCEEDED)
    level = logging.DEBUG if error.reason in floods else logging.INFO
    _log.log(level, "call_refused", code=error.code.name, reason=error.reason, field=error.field)


async def _abort(context: Context, error: OutriderError, request_id: str) -> None:
    status = error.to_status(request_id=request_id)
    try:
        await context.abort_with_status(rpc_status.to_status(status))
    except grpc.aio.InternalError as unsendable:  # nobody is left to tell
        raise asyncio.CancelledError from unsendable


def _tolerant(deserialize: Callable[[bytes], Any] | None) -> Callable[[bytes], Any] | None:
    if deserialize is None:
        return None

    def parse(data: bytes) -> object:
        try:
            return deserialize(data)
        except Exception:  # protobuf says DecodeError, its implementations more
            return MalformedMessage()

    return parse


def _checked(request: Any) -> Any:
    if isinstance(request, MalformedMessage):
        raise _malformed()
    return _checked_stream(request) if isinstance(request, AsyncIterator) else request


async def _checked_stream(requests: AsyncIterator[Any]) -> AsyncIterator[Any]:
    async for request in requests:
        if isinstance(request, MalformedMessage):
            raise _malformed()
        yield request


def _malformed() -> InvalidRequest:
    why = "the bytes are not a message of this method"
    return InvalidRequest("", why, reason=Reason.MALFORMED_MESSAGE)


def _code_of_ended(context: Context) -> grpc.StatusCode:
    """Of a call to which nothing can be sent any more: its time is up, or its caller has gone."""
    remaining = context.time_remaining()
    if remaining is not None and remaining <= 0:
        return grpc.StatusCode.DEADLINE_EXCEEDED
    return grpc.StatusCode.CANCELLED


def _code_of(context: Context) -> grpc.StatusCode:
    code = context.code()
    if isinstance(code, grpc.StatusCode):
        return code
    return _CODES.get(code, grpc.StatusCode.UNKNOWN)


_CODES = {code.value[0]: code for code in grpc.StatusCode}


def _text(method: str | bytes) -> str:
    return method.decode() if isinstance(method, bytes) else method
