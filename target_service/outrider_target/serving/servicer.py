"""GenerationService: the wire's side of a request. Everything between is the engine's."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from collections.abc import Sequence as SequenceOf
from contextlib import asynccontextmanager
from dataclasses import replace
from functools import partial

import grpc.aio
from outrider.v1 import explanation_pb2, generation_pb2_grpc
from outrider.v1 import generation_pb2 as pb
from outrider_contract.metadata import is_request_id
from outrider_runtime.errors import InvalidRequest, RequestAborted
from outrider_runtime.plugins import PluginContext
from outrider_runtime.request_context import (
    current_account,
    current_caller,
    current_request_id,
)
from outrider_runtime.tracing import current_span

from outrider_target.decoding.healing import choosing_state
from outrider_target.engine.events import Event, RequestCompleted, RequestFailed, TokensDecided
from outrider_target.engine.sequence import RequestState, new_state
from outrider_target.requests.plugin_rules import plugin_calls
from outrider_target.requests.request import GenerationRequest, RequestPlugins
from outrider_target.requests.score_validation import validate_score
from outrider_target.requests.sharing import Sharing
from outrider_target.requests.validation import validate
from outrider_target.serving import messages, request_spans
from outrider_target.serving.answer import Answer
from outrider_target.serving.failures import error_for_caller
from outrider_target.serving.serving import Serving


class GenerationServicer(generation_pb2_grpc.GenerationServiceServicer):
    """Answers clients. `Serving` is what it serves with."""

    def __init__(self, serving: Serving) -> None:
        self._serving = serving

    async def Generate(
        self,
        request: pb.GenerateRequest,
        context: grpc.aio.ServicerContext[pb.GenerateRequest, pb.GenerateResponse],
    ) -> AsyncIterator[pb.GenerateResponse]:
        """See the contract."""
        serving = self._serving
        request_id = _request_id(request)
        serving.requests.check_room(request_id)
        prompt = await self._token_ids(request, "prompt")
        negative = await self._negative_prompt(request)
        predicted = await self._prediction(request)
        generation = self._validated(request, request_id, prompt, negative, predicted)
        serving.quotas.check(current_account(), generation.num_read_tokens)
        plugins = await self._plugins(request, generation)
        form = None
        if generation.structure is not None:
            form = await serving.grammars.compile(generation.structure)
        serving.let_in(generation, current_account())
        choosing = healed = None
        if generation.effective_config.token_healing:
            generation, choosing = await self._heal(request, generation)
            healed = await serving.text.decode(generation.prompt, skip_special_tokens=True)
        generation = replace(generation, plugins=plugins)
        build = partial(new_state, generation, serving.text.tokenizer, form, after=choosing)
        # Stop strings may begin in the prompt: thousands of its tokens are looked at.
        state = await asyncio.to_thread(build) if generation.stop_strings else build()
        if (seconds_left := context.time_remaining()) is not None and seconds_left <= 0:
            # gRPC has ended the call, or is about to: a bare return could still reach the client
            # as an answer without a word. What it asked for need not begin.
            await context.abort(
                grpc.StatusCode.DEADLINE_EXCEEDED, "the deadline passed before the request began"
            )
        skip = request.skip_special_tokens if request.HasField("skip_special_tokens") else True
        answer = Answer(generation, form, serving, skip_special_tokens=skip)
        async with self._running(state) as events:
            yield messages.started(generation, healed)
            async for response in answer.responses(events):
                yield response

    def _validated(
        self,
        request: pb.GenerateRequest,
        request_id: str,
        prompt: SequenceOf[int],
        negative_prompt: SequenceOf[int],
        prediction: SequenceOf[int],
    ) -> GenerationRequest:
        validated = validate(
            request,
            request_id=request_id,
            prompt=prompt,
            negative_prompt=negative_prompt,
            prediction=prediction,
            sharing=Sharing(current_caller()),
            model=self._serving.model,
            defaults=self._serving.speculation_defaults,
        )
        if (span := current_span()) is not None:
            return replace(validated, traceparent=span.traceparent)
        return validated

    async def _plugins(
        self, request: pb.GenerateRequest, generation: GenerationRequest
    ) -> RequestPlugins:
        context = PluginContext(
            vocab_size=self._serving.model.vocab_size,
            eos_token_ids=generation.parameters.eos_token_ids,
            tokenizer=self._serving.text.tokenizer,
        )
        return await self._serving.plugins.make(plugin_calls(request), context)

    @asynccontextmanager
    async def _running(self, state: RequestState) -> AsyncIterator[asyncio.Queue[Event]]:
        """Have a request served; gives the queue of its events."""
        span = current_span()
        state.caller, state.account = current_caller(), current_account()
        events = self._serving.requests.add(state)
        self._serving.engine.submit(state)
        try:
            yield events
        finally:
            # Whatever ended the call, a client that went away or our own fault: nothing stays.
            self._serving.requests.remove(state)
            self._serving.engine.cancel(state, report=False)
            if span is not None:
                request_spans.tell(span, state)

    async def _heal(
        self, request: pb.GenerateRequest, generation: GenerationRequest
    ) -> tuple[GenerationRequest, RequestState | None]:
        """Rewrite the end of the prompt; gives the new request and what was run for it, if so."""
        assert self._serving.healer is not None, "checked with the request"
        cut = await self._serving.healer.cut(generation.prompt)
        if tuple(cut.prompt) != generation.prompt:  # perhaps too long now
            negative = await self._negative_prompt(request)
            generation = self._validated(
                request, generation.id, cut.prompt, negative, generation.speculation.prediction
            )
        if not cut.candidates:
            return generation, None
        choosing = choosing_state(generation, cut, vocab_size=self._serving.model.vocab_size)
        chosen = cut.prompt[-1]
        async with self._running(choosing) as events:
            while True:
                match await events.get():
                    case TokensDecided(_, token_ids):
                        chosen = next(iter(token_ids), chosen)
                    case RequestCompleted():
                        break
                    case RequestFailed() as failure:
                        raise error_for_caller(generation, failure)
        if choosing.aborted:  # perhaps too late for the engine, which had one round to run
            raise RequestAborted(generation.id)
        return replace(generation, prompt=(*cut.prompt[:-1], chosen)), choosing

    async def _token_ids(self, request: pb.GenerateRequest | pb.ScoreRequest, of: str) -> list[int]:
        if request.HasField("text"):
            return await self._serving.text.encode(request.text)
        if request.HasField("token_ids"):
            return list(request.token_ids.ids)
        raise InvalidRequest(of, "is missing: set text or token_ids")

    async def _negative_prompt(self, request: pb.GenerateRequest) -> list[int]:
        if request.HasField("negative_text"):
            return await self._serving.text.encode(request.negative_text, field="negative_text")
        return list(request.negative_token_ids.ids)

    async def _prediction(self, request: pb.GenerateRequest) -> list[int]:
        speculation = request.speculation
        if speculation.prediction_text and not speculation.prediction_token_ids:
            return await self._serving.text.encode(
                speculation.prediction_text,
                add_special_tokens=False,
                field="speculation.prediction_text",
            )
        return list(speculation.prediction_token_ids)

    async def Score(
        self,
        request: pb.ScoreRequest,
        context: grpc.aio.ServicerContext[pb.ScoreRequest, pb.ScoreResponse],
    ) -> pb.ScoreResponse:
        """See the contract."""
        serving = self._serving
        request_id = _request_id(request)
        serving.requests.check_room(request_id)
        scoring = validate_score(
            request,
            request_id=request_id,
            token_ids=await self._token_ids(request, "sequence"),
            model=serving.model,
            defaults=serving.speculation_defaults,
        )
        serving.let_in(scoring, current_account())
        response = pb.ScoreResponse(request_id=request_id)
        async with self._running(new_state(scoring, None)) as events:
            while True:
                match await events.get():
                    case TokensDecided(_, token_ids, _, _, log_probs, _):
                        response.token_ids.extend(token_ids)
                        response.log_probs.extend(map(messages.token_log_probs, log_probs))
                    case RequestCompleted():
                        break
                    case RequestFailed() as failure:
                        raise error_for_caller(scoring, failure)
        if len(response.token_ids) < len(scoring.given):
            raise RequestAborted(request_id)
        return response

    async def Abort(
        self,
        request: pb.AbortRequest,
        context: grpc.aio.ServicerContext[pb.AbortRequest, pb.AbortResponse],
    ) -> pb.AbortResponse:
        """See the contract."""
        aborted = []
        for request_id in request.request_ids:
            if (state := self._serving.requests.get(request_id)) is not None:
                state.aborted = True
                self._serving.engine.cancel(state, report=True)
                aborted.append(request_id)
        return pb.AbortResponse(aborted_request_ids=aborted)

    async def GetModelInfo(
        self,
        request: pb.GetModelInfoRequest,
        context: grpc.aio.ServicerContext[pb.GetModelInfoRequest, pb.GetModelInfoResponse],
    ) -> pb.GetModelInfoResponse:
        """See the contract."""
        return self._serving.model_info()

    async def GetServerInfo(
        self,
        request: pb.GetServerInfoRequest,
        context: grpc.aio.ServicerContext[pb.GetServerInfoRequest, pb.GetServerInfoResponse],
    ) -> pb.GetServerInfoResponse:
        """See the contract."""
        return self._serving.server_info()

    async def GetLoads(
        self,
        request: pb.GetLoadsRequest,
        context: grpc.aio.ServicerContext[pb.GetLoadsRequest, pb.GetLoadsResponse],
    ) -> pb.GetLoadsResponse:
        """See the contract."""
        return self._serving.loads()

    async def Explain(
        self,
        request: explanation_pb2.ExplainRequest,
        context: grpc.aio.ServicerContext[
            explanation_pb2.ExplainRequest, explanation_pb2.ExplainResponse
        ],
    ) -> explanation_pb2.ExplainResponse:
        """See the contract."""
        return self._serving.explanation()

    async def Tokenize(
        self,
        request: pb.TokenizeRequest,
        context: grpc.aio.ServicerContext[pb.TokenizeRequest, pb.TokenizeResponse],
    ) -> pb.TokenizeResponse:
        """See the contract."""
        special = request.add_special_tokens if request.HasField("add_special_tokens") else True
        token_ids = await self._serving.text.encode(request.text, add_special_tokens=special)
        return pb.TokenizeResponse(token_ids=token_ids)

    async def Detokenize(
        self,
        request: pb.DetokenizeRequest,
        context: grpc.aio.ServicerContext[pb.DetokenizeRequest, pb.DetokenizeResponse],
    ) -> pb.DetokenizeResponse:
        """See the contract."""
        skip = request.skip_special_tokens if request.HasField("skip_special_tokens") else True
        text = await self._serving.text.decode(request.token_ids, skip_special_tokens=skip)
        return pb.DetokenizeResponse(text=text)


def _request_id(request: pb.GenerateRequest | pb.ScoreRequest) -> str:
    """The message's own id, else the one its metadata or the interceptor gave the call."""
    if request.request_id and not is_request_id(request.request_id):
        raise InvalidRequest("request_id", "must be 1 to 128 printable ASCII characters")
    request_id = request.request_id or current_request_id()
    assert request_id is not None, "the interceptor names every call"
    return request_id
