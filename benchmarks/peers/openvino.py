"""OpenVINO GenAI's continuous batching pipeline: plain, with a draft model, with prompt lookup."""

from __future__ import annotations

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
        self._target = converted("openvino", models.target)
        self._draft = converted("openvino", models.draft)
        self._pipeline: Any = None

    def run(self, work: Work, setting: Setting) -> Answer:
        """Setting: `mode` (plain, draft, lookup), `num_assistant_tokens`, `max_ngram_size`."""
        if self._pipeline is None:
            self._pipeline = self._load(setting["mode"])
        answer = Answer([])
        for start in range(0, len(work.prompts), work.streams):
            part = self._generate(work.prompts[start : start + work.streams], work, setting)
            answer = answer.with_more(part)
        return answer

    def _load(self, mode: str) -> Any:
        scheduler = openvino_genai.SchedulerConfig()
        scheduler.max_num_seqs = 64
        # Every repetition asks the same: what it remembered of the last would be all it needs.
        scheduler.enable_prefix_caching = False
        properties: dict[str, object] = {}
        if mode == "draft":
            properties["draft_model"] = openvino_genai.draft_model(str(self._draft), "CPU")
        elif mode == "lookup":
            properties["prompt_lookup"] = True
        return openvino_genai.ContinuousBatchingPipeline(
            str(self._target), scheduler, "CPU", properties
        )

    def _generate(self, prompts: Any, work: Work, setting: Setting) -> Answer:
        config = openvino_genai.GenerationConfig(
            max_new_tokens=work.new_tokens,
            do_sample=work.temperature > 0,
            **{key: value for key, value in setting.items() if key != "mode"},
        )
        if work.temperature > 0:
            config.temperature, config.top_p, config.top_k = work.temperature, work.top_p, _TOP_K
        tensors = [openvino.Tensor(np.array([prompt], dtype=np.int64)) for prompt in prompts]
        results = self._pipeline.generate(tensors, [config] * len(tensors))
        generated = []
        for result in results:
            ids = list(result.m_generation_ids[0])
            first = result.perf_metrics.get_ttft().mean / 1000
            step = result.perf_metrics.get_tpot().mean / 1000 if len(ids) > 1 else 0.0
            generated.append(Generated(ids, first, first + step * (len(ids) - 1)))
        # Counted for the pipeline's whole call, and told with each of its results.
        drafts = results[0].extended_perf_metrics
        if drafts is None:
            return Answer(generated)
        return Answer(generated, drafts.get_num_draft_tokens(), drafts.get_num_accepted_tokens())
