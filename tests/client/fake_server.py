"""A target service whose answers tests write, behind a real gRPC server on a loopback port.

Records what it is asked and which calls are cancelled. Knows nothing of the client.
"""

from __future__ import annotations

import queue
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent import futures
from types import TracebackType
from typing import Any, NamedTuple

import grpc
from google.rpc import error_details_pb2, status_pb2
from grpc_status import rpc_status
from outrider.v1 import (
    explanation_pb2,
    generation_pb2,
    generation_pb2_grpc,
    log_probs_pb2,
    plugins_pb2,
)
from outrider_contract.errors import DOMAIN, REQUEST_ID_KEY
from outrider_contract.generation_config import from_json_dict

PATIENCE = 20.0
"""Seconds after which a wait in a test has failed."""

Responses = Iterator[generation_pb2.GenerateResponse]
Script = Callable[[generation_pb2.GenerateRequest, Any], Responses]


class Received(NamedTuple):
    """A call as the server saw it."""

    method: str
    request: Any
    metadata: dict[str, str]
    seconds_left: float | None


class Failure(NamedTuple):
    """A status with details."""

    code: grpc.StatusCode
    message: str = "as scripted"
    reason: str = ""
    field: str = ""
    retry_after: float | None = None
    request_id: str = ""

    def raise_in(self, context: Any) -> None:
        """Ends the call with this status."""
        status = status_pb2.Status(code=self.code.value[0], message=self.message)
        if self.reason or self.request_id:
            info = error_details_pb2.ErrorInfo(domain=DOMAIN, reason=self.reason)
            if self.request_id:
                info.metadata[REQUEST_ID_KEY] = self.request_id
            status.details.add().Pack(info)
        if self.field:
            violation = error_details_pb2.BadRequest.FieldViolation(field=self.field)
            status.details.add().Pack(error_details_pb2.BadRequest(field_violations=[violation]))
        if self.retry_after is not None:
            retry = error_details_pb2.RetryInfo()
            retry.retry_delay.FromNanoseconds(int(self.retry_after * 1e9))
            status.details.add().Pack(retry)
        context.abort_with_status(rpc_status.to_status(status))


def started(
    request: generation_pb2.GenerateRequest, *, seed: int = 7, num_prompt_tokens: int = 3
) -> generation_pb2.GenerateResponse:
    """The first message; the configuration comes back with one field more than was sent."""
    effective = from_json_dict({"top_k": 50})
    effective.MergeFrom(request.generation_config)
    return generation_pb2.GenerateResponse(
        chunk=generation_pb2.GenerateChunk(
            started=generation_pb2.GenerationStarted(
                request_id=request.request_id or "made-up",
                seed=request.seed if request.HasField("seed") else seed,
                effective_config=effective,
                effective_speculation=request.speculation,
                num_prompt_tokens=num_prompt_tokens,
            )
        )
    )


def chunk(
    token_ids: Sequence[int],
    *,
    text: str | None = None,
    drafted: Sequence[bool] | None = None,
    sequence_index: int = 0,
) -> generation_pb2.GenerateResponse:
    """New tokens; their text is "<id>" each, and all but the last were drafted."""
    return generation_pb2.GenerateResponse(
        chunk=generation_pb2.GenerateChunk(
            sequence_index=sequence_index,
            token_ids=token_ids,
            drafted=[True] * (len(token_ids) - 1) + [False] if drafted is None else drafted,
            text=words(token_ids) if text is None else text,
        )
    )


def words(token_ids: Sequence[int]) -> str:
    """The text of tokens here."""
    return "".join(f"<{token}>" for token in token_ids)


def complete(
    counts: Sequence[int] = (4,),
    *,
    finish_reason: generation_pb2.FinishReason.ValueType = generation_pb2.FINISH_REASON_LENGTH,
) -> generation_pb2.GenerateResponse:
    """The last message, for sequences of these lengths."""
    message = generation_pb2.GenerateComplete(
        sequences=[
            generation_pb2.SequenceResult(
                sequence_index=index, finish_reason=finish_reason, num_completion_tokens=count
            )
            for index, count in enumerate(counts)
        ],
        usage=generation_pb2.Usage(
            prompt_tokens=3,
            completion_tokens=sum(counts),
            queue_seconds=0.25,
            time_to_first_token_seconds=0.5,
            total_seconds=2.0,
        ),
    )
    message.speculation.num_drafts = 2
    message.speculation.num_draft_tokens = 4
    message.speculation.num_accepted_tokens = 2
    message.speculation.num_accepted_tokens_per_pos.extend([2, 0])
    message.speculation.mean_acceptance_length = 2.0
    message.speculation.draft_acceptance_rate = 0.5
    message.speculation.num_rounds = 2
    return generation_pb2.GenerateResponse(complete=message)


def two_rounds(request: generation_pb2.GenerateRequest, context: Any) -> Responses:
    """Four tokens in two chunks: 10 and 11, then 12 and 13; the first of each was drafted."""
    yield started(request)
    yield chunk([10, 11])
    yield chunk([12, 13])
    yield complete()


def endless(request: generation_pb2.GenerateRequest, context: Any) -> Responses:
    """Two tokens, then silence until the call ends, as seen by the server."""
    over = threading.Event()
    context.add_callback(over.set)
    yield started(request)
    yield chunk([10, 11])
    if not over.wait(PATIENCE):
        raise AssertionError("nobody ended the call")


class FakeServer(generation_pb2_grpc.GenerationServiceServicer):
    """The service; a context manager that serves between entering and leaving.

    Attributes:
        script: What `Generate` does.
        failures: Statuses for the next calls of any method, each used once.
        received: All calls, in order.
        ended: Request ids of `Generate` calls as they end before their script is through: the
            server has seen the caller go.
    """

    def __init__(self, *, credentials: grpc.ServerCredentials | None = None) -> None:
        self.script: Script = two_rounds
        self.failures: deque[Failure] = deque()
        self.received: list[Received] = []
        self.ended: queue.Queue[str] = queue.Queue()
        self._server = grpc.server(
            futures.ThreadPoolExecutor(32), options=[("grpc.so_reuseport", 0)]
        )
        generation_pb2_grpc.add_GenerationServiceServicer_to_server(self, self._server)
        if credentials is None:
            self.port = self._server.add_insecure_port("127.0.0.1:0")
        else:
            self.port = self._server.add_secure_port("127.0.0.1:0", credentials)
        self.address = f"127.0.0.1:{self.port}"

    def __enter__(self) -> FakeServer:
        self._server.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.stop()

    def stop(self) -> None:
        """Ends all calls and the server."""
        self._server.stop(0).wait(PATIENCE)

    def Generate(self, request: Any, context: Any) -> Responses:
        self._receive("Generate", request, context)
        through = threading.Event()

        def when_over() -> None:
            if not through.is_set():
                self.ended.put(request.request_id)

        context.add_callback(when_over)
        yield from self.script(request, context)
        through.set()

    def Score(self, request: Any, context: Any) -> generation_pb2.ScoreResponse:
        self._receive("Score", request, context)
        first = request.first_position or 1
        scored = request.token_ids.ids[first:]
        return generation_pb2.ScoreResponse(
            request_id=request.request_id,
            token_ids=scored,
            log_probs=[
                log_probs_pb2.TokenLogProbs(
                    raw=-1.0,
                    processed=-0.5,
                    score=3.0,
                    top_raw=[log_probs_pb2.TokenLogProb(token_id=7, log_prob=-0.25)],
                )
                for _ in scored
            ],
        )

    def Abort(self, request: Any, context: Any) -> generation_pb2.AbortResponse:
        self._receive("Abort", request, context)
        known = [name for name in request.request_ids if name.startswith("known")]
        return generation_pb2.AbortResponse(aborted_request_ids=known)

    def GetModelInfo(self, request: Any, context: Any) -> generation_pb2.GetModelInfoResponse:
        self._receive("GetModelInfo", request, context)
        return generation_pb2.GetModelInfoResponse(
            served_model_name="fake",
            architecture="FakeForCausalLM",
            vocab_size=1000,
            max_model_len=2048,
            dtype="float32",
            has_tokenizer=True,
            tokenizer_fingerprint="f00",
            default_generation_config=from_json_dict({"temperature": 0.7, "eos_token_id": 2}),
        )

    def GetServerInfo(self, request: Any, context: Any) -> generation_pb2.GetServerInfoResponse:
        self._receive("GetServerInfo", request, context)
        return generation_pb2.GetServerInfoResponse(
            version="0.1.0",
            draft_protocol_version=1,
            draft_links=[
                generation_pb2.DraftLinkInfo(
                    address="127.0.0.1:50052",
                    state=generation_pb2.DRAFT_LINK_STATE_READY,
                    kind="model",
                    num_sessions=2,
                    latency_seconds=0.001,
                ),
                generation_pb2.DraftLinkInfo(
                    address="127.0.0.1:50053",
                    state=generation_pb2.DRAFT_LINK_STATE_REFUSED,
                    reason="the tokenizers differ",
                ),
            ],
            capabilities=[
                generation_pb2.FieldCapability(
                    field="top_p", support=generation_pb2.FIELD_SUPPORT_HONOURED
                ),
                generation_pb2.FieldCapability(
                    field="num_beams", support=generation_pb2.FIELD_SUPPORT_REFUSED, note="no beams"
                ),
            ],
            max_num_seqs=8,
            max_waiting_requests=64,
            kv_cache_tokens=65536,
            plugins=[
                plugins_pb2.PluginInfo(
                    name="avoid",
                    kind=plugins_pb2.PLUGIN_KIND_LOGITS_PROCESSOR,
                    summary="Avoids letters.",
                )
            ],
        )

    def GetLoads(self, request: Any, context: Any) -> generation_pb2.GetLoadsResponse:
        self._receive("GetLoads", request, context)
        response = generation_pb2.GetLoadsResponse(
            num_running_sequences=3,
            num_waiting_requests=1,
            kv_cache_usage=0.25,
            num_generated_tokens=1234,
            num_preemptions=5,
            draining=True,
            max_num_seqs=16,
            max_waiting_requests=8,
            oldest_waiting_seconds=2.5,
            num_free_kv_cache_tokens=4096,
            num_ready_draft_links=2,
        )
        response.speculation.CopyFrom(complete().complete.speculation)
        return response

    def Explain(self, request: Any, context: Any) -> explanation_pb2.ExplainResponse:
        self._receive("Explain", request, context)
        return explanation_pb2.ExplainResponse(
            num_rounds=10,
            num_sequence_rounds=20,
            num_drafts=5,
            num_draft_tokens=15,
            num_accepted_tokens=6,
            num_tokens=26,
            forward_seconds=0.05,
            between_seconds=0.01,
            silences=[
                explanation_pb2.DraftSilenceCount(
                    reason=explanation_pb2.DRAFT_SILENCE_NOT_WORTH_ASKING, num_sequence_rounds=14
                ),
                # Of a newer server.
                explanation_pb2.DraftSilenceCount(reason=77, num_sequence_rounds=1),  # type: ignore[arg-type]
            ],
            asking_cost_ratio=1.5,
            findings=[explanation_pb2.Finding(seen="Asking costs.", advice="Do not.")],
        )

    def Tokenize(self, request: Any, context: Any) -> generation_pb2.TokenizeResponse:
        self._receive("Tokenize", request, context)
        return generation_pb2.TokenizeResponse(token_ids=[ord(letter) for letter in request.text])

    def Detokenize(self, request: Any, context: Any) -> generation_pb2.DetokenizeResponse:
        self._receive("Detokenize", request, context)
        return generation_pb2.DetokenizeResponse(text=words(request.token_ids))

    def _receive(self, method: str, request: Any, context: Any) -> None:
        metadata = {item.key: item.value for item in context.invocation_metadata()}
        left = context.time_remaining()
        self.received.append(Received(method, request, metadata, left))
        if self.failures:
            self.failures.popleft().raise_in(context)
