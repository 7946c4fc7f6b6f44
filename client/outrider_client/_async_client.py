"""The client for event loops: one connection, typed calls, retries, errors with names.

The twin of `_client`: same methods, same arguments, same results.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterable, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, TypeVar

import grpc
from outrider.v1 import explanation_pb2, generation_pb2
from outrider.v1.generation_pb2_grpc import GenerationServiceStub

from outrider_client import _request
from outrider_client._async_stream import AsyncCall, AsyncStream
from outrider_client._completion import Completion
from outrider_client._connection import ChannelOption, Connection, TLSConfig
from outrider_client._explanation import Explanation
from outrider_client._info import Loads, ModelInfo, ServerInfo
from outrider_client._log_probs import Scores
from outrider_client._plugins import Plugin
from outrider_client._request import Config, Prompt
from outrider_client._retry import Attempts, check_max_retries, check_timeout
from outrider_client._retry_loop import retrying_async, task_is_cancelled
from outrider_client._speculation_config import SpeculationConfig
from outrider_client._structured_output import StructuredOutput
from outrider_client._tracing import CallSpan, call_span

if TYPE_CHECKING:  # exists for type checkers alone
    from outrider.v1.generation_pb2_grpc import GenerationServiceAsyncStub

_Request = TypeVar("_Request")
_Response = TypeVar("_Response")


class AsyncClient:
    """A connection to a target service. Use it as an async context manager, on one event loop.

    The connection is made by the first call, on the loop that runs then. Every call may raise an
    OutriderError.

    Args:
        address: Host and port, or any name gRPC knows ("dns:///targets:50051", "unix:/run/x").
        api_key: Sent as `authorization: Bearer`. Without `tls` it crosses the network readable.
        tls: Encrypts the connection. None is plain text, which is fine on loopback.
        timeout: Seconds for a whole call with its retries, unless the call says otherwise; None is
            no limit.
        max_retries: Further tries of a call that failed before its first message because the server
            could not be reached, was going away, or said when to come back.
        options: Further gRPC channel options.
        sleep: Waits between tries. For tests.
        clock: Seconds that only grow. For tests.

    Raises:
        ValueError: An argument has a value that cannot be right.
        OSError: A certificate cannot be read.
    """

    def __init__(
        self,
        address: str,
        *,
        api_key: str | None = None,
        tls: TLSConfig | None = None,
        timeout: float | None = None,
        max_retries: int = 2,
        options: Sequence[ChannelOption] = (),
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._connection = Connection.to(address, api_key=api_key, tls=tls, options=options)
        self._timeout = check_timeout(timeout)
        self._max_retries = check_max_retries(max_retries)
        self._sleep = sleep
        self._clock = clock
        self._channel: grpc.aio.Channel | None = None
        self._open_stub: GenerationServiceAsyncStub | None = None
        self._closed = False

    async def __aenter__(self) -> AsyncClient:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.close()

    async def generate(
        self,
        prompt: Prompt,
        config: Config | None = None,
        *,
        seed: int | None = None,
        speculation: SpeculationConfig | None = None,
        structured_output: StructuredOutput | None = None,
        timeout: float | None = None,
        request_id: str | None = None,
        skip_special_tokens: bool | None = None,
        log_probs: int | None = None,
        logits_processors: Sequence[Plugin | str] = (),
        stopping_criteria: Sequence[Plugin | str] = (),
        negative_prompt: Prompt | None = None,
    ) -> Completion:
        """Generates from one prompt and returns the whole answer.

        Args:
            prompt: Text, or token ids.
            config: How to generate; a GenerationConfig of this package or of transformers.
            seed: Seed of sampling, in [0, 2**64); the same one gives the same tokens.
            speculation: How to speculate. `SpeculationConfig(enabled=False)` is plain decoding.
            structured_output: The form that the text must have, such as a JSON Schema.
            timeout: Seconds for the whole call, in (0, 1e6].
            request_id: Name of the request, up to 128 printable ASCII characters.
            skip_special_tokens: Whether the text omits special tokens. Default: it does.
            log_probs: Tell each token's log-probabilities, with so many alternatives, in [0, 20].
            logits_processors: Plug-ins of the server that change the scores, in this order.
            stopping_criteria: Plug-ins of the server that may end a sequence.
            negative_prompt: What the text is guided away from, with `guidance_scale`; text, or
                token ids. Default: the last token of the prompt.

        Raises:
            InvalidRequestError: An argument cannot be right, or the server refuses it.
            StreamInterruptedError: The connection broke halfway; `partial` is what had arrived.
            DeadlineExceededError: The timeout passed; `partial` likewise.
            OutriderError: Any other of the tree.
        """
        async with self.stream(
            prompt,
            config,
            seed=seed,
            speculation=speculation,
            structured_output=structured_output,
            timeout=timeout,
            request_id=request_id,
            skip_special_tokens=skip_special_tokens,
            log_probs=log_probs,
            logits_processors=logits_processors,
            stopping_criteria=stopping_criteria,
            negative_prompt=negative_prompt,
        ) as stream:
            return await stream.collect()

    def stream(
        self,
        prompt: Prompt,
        config: Config | None = None,
        *,
        seed: int | None = None,
        speculation: SpeculationConfig | None = None,
        structured_output: StructuredOutput | None = None,
        timeout: float | None = None,
        request_id: str | None = None,
        skip_special_tokens: bool | None = None,
        log_probs: int | None = None,
        logits_processors: Sequence[Plugin | str] = (),
        stopping_criteria: Sequence[Plugin | str] = (),
        negative_prompt: Prompt | None = None,
        beam_progress_interval: int | None = None,
    ) -> AsyncStream:
        """Generates from one prompt and hands out tokens as they are decided.

        Args and errors as for `generate`. Use it in an `async with` block: entering sends the
        request, leaving cancels what still runs.

        With beams a `BeamProgress` comes every `beam_progress_interval` steps, see `updates`;
        default 1, 0 for none.
        """
        request = _request.generate_request(
            prompt,
            config,
            seed=seed,
            speculation=speculation,
            structured_output=structured_output,
            skip_special_tokens=skip_special_tokens,
            log_probs=log_probs,
            logits_processors=logits_processors,
            stopping_criteria=stopping_criteria,
            negative_prompt=negative_prompt,
            beam_progress_interval=beam_progress_interval,
        )

        def dial(left: float | None, name: str) -> AsyncCall:
            request.request_id = name
            span = CallSpan("Generate", name)
            metadata = self._connection.metadata(name) + span.metadata
            call = self._stub().Generate(request, timeout=left, metadata=metadata)
            span.over_async(call)
            return call

        return AsyncStream(
            dial,
            self._attempts(timeout),
            request_id=None if request_id is None else _request.check_request_id(request_id),
            sleep=self._sleep,
        )

    async def score(
        self,
        sequence: Prompt,
        config: Config | None = None,
        *,
        first_position: int | None = None,
        log_probs: int = 0,
        timeout: float | None = None,
        request_id: str | None = None,
    ) -> Scores:
        """Tells how probable a given text is, token by token.

        Args:
            sequence: The whole text, or its token ids; at least two tokens.
            config: What shapes the processed log-probabilities; the raw ones need none.
            first_position: Position of the first token to score; those before it are the prompt.
                Default 1.
            log_probs: Alternatives to tell for each position, in [0, 20].
            timeout: Seconds for the whole call, in (0, 1e6].
            request_id: Name of the request, up to 128 printable ASCII characters.

        Raises:
            InvalidRequestError: An argument cannot be right, or the server refuses it.
            OutriderError: Any other of the tree.
        """
        request = _request.score_request(
            sequence,
            config,
            first_position=first_position,
            log_probs=log_probs,
            request_id=request_id or _request.new_request_id(),
        )
        return Scores.from_message(await self._call(self._stub().Score, request, timeout))

    async def abort(
        self, request_ids: str | Iterable[str], *, timeout: float | None = None
    ) -> list[str]:
        """Ends running requests by id, whoever sent them; returns the ids that were running."""
        request = generation_pb2.AbortRequest(request_ids=_request.request_ids(request_ids))
        return list((await self._call(self._stub().Abort, request, timeout)).aborted_request_ids)

    async def model_info(self, *, timeout: float | None = None) -> ModelInfo:
        """Tells which model is served and its limits."""
        request = generation_pb2.GetModelInfoRequest()
        return ModelInfo.from_message(await self._call(self._stub().GetModelInfo, request, timeout))

    async def server_info(self, *, timeout: float | None = None) -> ServerInfo:
        """Tells how the server is set up, the state of its draft links, and what it supports."""
        request = generation_pb2.GetServerInfoRequest()
        return ServerInfo.from_message(
            await self._call(self._stub().GetServerInfo, request, timeout)
        )

    async def loads(self, *, timeout: float | None = None) -> Loads:
        """Tells how busy the server is."""
        request = generation_pb2.GetLoadsRequest()
        return Loads.from_message(await self._call(self._stub().GetLoads, request, timeout))

    async def explain(self, *, timeout: float | None = None) -> Explanation:
        """Tells what limits the server's speed at the moment, and what would help."""
        request = explanation_pb2.ExplainRequest()
        return Explanation.from_message(await self._call(self._stub().Explain, request, timeout))

    async def tokenize(
        self, text: str, *, add_special_tokens: bool | None = None, timeout: float | None = None
    ) -> list[int]:
        """Turns text into token ids, with special tokens unless told otherwise."""
        request = generation_pb2.TokenizeRequest(
            text=_request.utf8("text", text), add_special_tokens=add_special_tokens
        )
        return list((await self._call(self._stub().Tokenize, request, timeout)).token_ids)

    async def detokenize(
        self,
        ids: Iterable[int],
        *,
        skip_special_tokens: bool | None = None,
        timeout: float | None = None,
    ) -> str:
        """Turns token ids into text, without special tokens unless told otherwise."""
        request = generation_pb2.DetokenizeRequest(
            token_ids=_request.token_ids("token_ids", ids), skip_special_tokens=skip_special_tokens
        )
        return (await self._call(self._stub().Detokenize, request, timeout)).text

    async def close(self) -> None:
        """Closes the connection; running streams break off."""
        self._closed = True
        if self._channel is not None:
            await self._channel.close()

    def _stub(self) -> GenerationServiceAsyncStub:
        if self._closed:
            raise RuntimeError("the client is closed")
        if self._open_stub is None:  # not before: a channel belongs to the loop that is running
            self._channel = self._open()
            self._open_stub = GenerationServiceStub(self._channel)
        return self._open_stub

    def _open(self) -> grpc.aio.Channel:
        connection = self._connection
        if connection.credentials is None:
            return grpc.aio.insecure_channel(connection.address, options=connection.options)
        return grpc.aio.secure_channel(
            connection.address, connection.credentials, options=connection.options
        )

    def _attempts(self, timeout: float | None) -> Attempts:
        seconds = self._timeout if timeout is None else check_timeout(timeout)
        return Attempts(self._max_retries, timeout=seconds, clock=self._clock)

    async def _call(
        self,
        method: grpc.aio.UnaryUnaryMultiCallable[_Request, _Response],
        request: _Request,
        timeout: float | None,
    ) -> _Response:
        async def attempt(left: float | None, name: str) -> _Response:
            try:
                with call_span(request, name) as span:
                    metadata = self._connection.metadata(name) + span.metadata
                    return await method(request, timeout=left, metadata=metadata)
            except asyncio.CancelledError:
                if self._closed and not task_is_cancelled():  # `close()` ended the call, not us
                    raise RuntimeError("the client is closed") from None
                raise

        return await retrying_async(
            attempt, self._attempts(timeout), request_id=None, sleep=self._sleep
        )
