"""ONNX Runtime GenAI: its engine for many streams, its generator for one, with n-grams or plain."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import onnxruntime_genai

from benchmarks.pairs.formats import converted
from benchmarks.peers.engine import Answer, Generated, Models, Setting, Work

_MAX_STREAMS = 64
_EVENTS = 256


class OnnxRuntime:
    """One model for all of it."""

    def __init__(self, models: Models) -> None:
        config = onnxruntime_genai.Config(str(converted("onnx", models.target)))
        batching = {"static_batching": {"max_batch_size": _MAX_STREAMS}}
        config.overlay(json.dumps({"engine": batching}))
        self._model = onnxruntime_genai.Model(config)
        self._engine: Any = None

    def run(self, work: Work, setting: Setting) -> Answer:
        """Setting: `mode` (plain, n-gram), and with n-grams options of speculation.

        The release speculates with one stream only, and greedily.
        """
        if setting["mode"] == "plain" and work.streams > 1:
            return self._together(work)
        answer = Answer([])
        for prompt in work.prompts:
            part = self._one(prompt, work, setting)
            answer = answer.with_more(part)
        return answer

    def _one(self, prompt: Sequence[int], work: Work, setting: Setting) -> Answer:
        began = time.perf_counter()
        parameters = onnxruntime_genai.GeneratorParams(self._model)
        parameters.set_search_options(
            max_length=len(prompt) + work.new_tokens,
            do_sample=work.temperature > 0,
            temperature=work.temperature or 1.0,
            top_p=work.top_p,
        )
        if setting["mode"] == "n-gram":
            parameters.set_speculative_options(
                **{key: value for key, value in setting.items() if key != "mode"}
            )
        generator = onnxruntime_genai.Generator(self._model, parameters)
        generator.append_tokens(np.array([prompt], dtype=np.int32))
        first = last = 0.0
        while not generator.is_done():
            generator.generate_next_token()
            last = time.perf_counter() - began
            first = first or last
        ids = [int(token) for token in generator.get_sequence(0)[len(prompt) :]]
        if setting["mode"] == "plain":
            return Answer([Generated(ids, first, last)])
        statistics = generator.get_speculative_stats()
        return Answer(
            [Generated(ids, first, last)],
            statistics["draft_tokens_proposed"],
            statistics["draft_tokens_accepted"],
        )

    def _together(self, work: Work) -> Answer:
        """Hands prompts to the engine as streams become free."""
        if self._engine is None:
            self._engine = onnxruntime_genai.Engine(self._model)
        buffer = self._engine.create_event_buffer(_EVENTS)
        waiting = list(enumerate(work.prompts))[::-1]
        running: dict[int, tuple[int, Any, float]] = {}
        found = [Generated([], 0.0, 0.0) for _ in work.prompts]
        while waiting or running:
            while waiting and len(running) < work.streams:
                index, prompt = waiting.pop()
                request = self._request(prompt, work)
                running[id(request)] = (index, request, time.perf_counter())
            for event in self._engine.run(buffer):
                index, request, began = running[id(event.request)]
                if event.flags & onnxruntime_genai.EngineEventFlags.TOKEN:
                    now = time.perf_counter() - began
                    ids, first, _ = found[index]
                    found[index] = Generated([*ids, int(event.token)], first or now, now)
                if event.flags & onnxruntime_genai.EngineEventFlags.TURN_FINISHED:
                    del running[id(request)]
                    request.close()
        return Answer(found)

    def _request(self, prompt: Sequence[int], work: Work) -> Any:
        options = onnxruntime_genai.RequestOptions()
        options.set_max_session_tokens(len(prompt) + work.new_tokens)
        request = self._engine.create_request(options=options)
        turn = onnxruntime_genai.TurnOptions(request)
        turn.set_do_sample(work.temperature > 0)
        if work.temperature > 0:
            turn.set_temperature(work.temperature)
            turn.set_top_p(work.top_p)
        turn.set_max_generated_tokens(work.new_tokens)
        request.begin_turn(np.array(prompt, dtype=np.int32), turn)
        return request
