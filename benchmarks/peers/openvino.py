"""OpenVINO GenAI's continuous batching pipeline: plain, with a draft model, with prompt lookup."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import openvino
import openvino_genai

from benchmarks.pairs.formats import converted
from benchmarks.peers.engine import Answer, Generated, Models, Setting, Work

_TOP_K = 50  # as transformers has it by default


class OpenVino:
    """A pipeline, made for the mode of the first run."""

    def __init__(self, models: Models) -> None:
        self._models = models
        self._pipeline: Any = None

    def run(self, work: Work, setting: Setting) -> Answer:
        """Setting: `mode` (plain, draft, lookup), `precision` (f32, bf16), and drafting."""
        if self._pipeline is None:
            self._pipeline = self._load(setting["mode"], setting["precision"])
        if work.streams > 1:
            return self._together(work, self._config(work, setting))
        answer = Answer([])
        for prompt in work.prompts:
            answer = answer.with_more(self._one(prompt, self._config(work, setting)))
        return answer

    def _load(self, mode: str, precision: str) -> Any:
        scheduler = openvino_genai.SchedulerConfig()
        scheduler.max_num_seqs = 64
        # Every repetition asks the same: what it remembered of the last would be all it needs.
        scheduler.enable_prefix_caching = False
        # bf16 is its default where the processor multiplies that.
        properties: dict[str, object] = {"INFERENCE_PRECISION_HINT": precision}
        if precision == "f32":
            properties["KV_CACHE_PRECISION"] = precision  # 8 bits by default
        if mode == "draft":
            properties["draft_model"] = openvino_genai.draft_model(
                str(converted("openvino", self._models.draft)), "CPU", **properties
            )
        elif mode == "lookup":
            properties["prompt_lookup"] = True
        return openvino_genai.ContinuousBatchingPipeline(
            str(converted("openvino", self._models.target)), scheduler, "CPU", properties
        )

    def _config(self, work: Work, setting: Setting) -> Any:
        config = openvino_genai.GenerationConfig(
            max_new_tokens=work.new_tokens,
            do_sample=work.temperature > 0,
            **{key: value for key, value in setting.items() if key not in ("mode", "precision")},
        )
        if work.temperature > 0:
            config.temperature, config.top_p, config.top_k = work.temperature, work.top_p, _TOP_K
        return config

    def _one(self, prompt: Sequence[int], config: Any) -> Answer:
        (result,) = self._pipeline.generate([_tensor(prompt)], [config])
        ids = list(result.m_generation_ids[0])
        first = result.perf_metrics.get_ttft().mean / 1000
        step = result.perf_metrics.get_tpot().mean / 1000 if len(ids) > 1 else 0.0
        generated = [Generated(ids, first, first + step * (len(ids) - 1))]
        drafts = result.extended_perf_metrics
        if drafts is None:
            return Answer(generated)
        return Answer(generated, drafts.get_num_draft_tokens(), drafts.get_num_accepted_tokens())

    def _together(self, work: Work, config: Any) -> Answer:
        """Hands prompts in as streams become free. What was drafted is not told this way."""
        waiting = list(enumerate(work.prompts))[::-1]
        running: dict[int, tuple[Any, float]] = {}
        found = [Generated([], 0.0, 0.0) for _ in work.prompts]
        while waiting or running:
            while waiting and len(running) < work.streams:
                index, prompt = waiting.pop()
                began = time.perf_counter()
                running[index] = (
                    self._pipeline.add_request(index, _tensor(prompt), config), began
                )  # fmt: skip
            self._pipeline.step()
            for index, (handle, began) in list(running.items()):
                if handle.can_read():
                    ids, first, _ = found[index]
                    now = time.perf_counter() - began
                    more = next(iter(handle.read().values())).generated_ids
                    found[index] = Generated([*ids, *more], first or now, now)
                if handle.get_status() == openvino_genai.GenerationStatus.FINISHED:
                    del running[index]
        return Answer(found)


def _tensor(prompt: Sequence[int]) -> Any:
    return openvino.Tensor(np.array([prompt], dtype=np.int64))
