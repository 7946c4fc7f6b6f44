"""transformers' continuous batching."""

from __future__ import annotations

import time
from typing import Any

import torch
from transformers import AutoModelForCausalLM, ContinuousBatchingConfig, GenerationConfig

from benchmarks.peers.engine import Answer, Generated, Models, Setting, Work

# By default it takes nine tenths of the memory for keys and values, and half a minute to do so.
_BLOCKS = 64
_PAGE = 256
_BATCH_TOKENS = 512
_RESULT_SECONDS = 120.0


class TransformersBatching:
    """One manager for all runs of a temperature, its thread running, as a server would have it."""

    def __init__(self, models: Models) -> None:
        self._model = AutoModelForCausalLM.from_pretrained(models.target, dtype=torch.float32)
        self._model.eval()
        self._manager: Any = None
        self._made_for: tuple[float, float] | None = None

    def run(self, work: Work, setting: Setting) -> Answer:
        """Setting: `threads`. Prompts are handed in as streams become free."""
        torch.set_num_threads(setting["threads"])
        manager = self._manager_for(work)
        waiting = list(enumerate(work.prompts))[::-1]
        running: dict[str, tuple[int, float]] = {}
        found: list[Generated | None] = [None] * len(work.prompts)
        while waiting or running:
            while waiting and len(running) < work.streams:
                index, prompt = waiting.pop()
                began = time.perf_counter()
                request = manager.add_request(
                    input_ids=list(prompt),
                    max_new_tokens=work.new_tokens,
                    record_timestamps=True,
                    eos_token_id=self._model.generation_config.eos_token_id,
                )
                running[request] = (index, began)
            result = manager.get_result(timeout=_RESULT_SECONDS)
            if result is None or result.error is not None:
                raise RuntimeError("no result" if result is None else result.error)
            if result.is_finished():
                index, began = running.pop(result.request_id)
                times = [each - began for each in result.timestamps]
                found[index] = Generated(list(result.generated_tokens), times[0], times[-1])
        return Answer([each for each in found if each is not None])

    def _manager_for(self, work: Work) -> Any:
        if self._made_for != (work.temperature, work.top_p):
            if self._manager is not None:
                self._manager.stop()
            self._manager = self._model.init_continuous_batching(
                generation_config=self._config(work),
                continuous_batching_config=ContinuousBatchingConfig(
                    num_blocks=_BLOCKS,
                    page_size=_PAGE,
                    max_batch_tokens=_BATCH_TOKENS,
                    # Every repetition asks the same: it would find its prompts in the cache.
                    allow_block_sharing=False,
                ),
            )
            self._manager.start()
            self._made_for = (work.temperature, work.top_p)
        return self._manager

    def _config(self, work: Work) -> GenerationConfig:
        eos = self._model.generation_config.eos_token_id
        config = GenerationConfig(
            max_new_tokens=work.new_tokens,
            do_sample=work.temperature > 0,
            eos_token_id=eos,
            pad_token_id=eos,
        )
        if work.temperature > 0:
            config.update(temperature=work.temperature, top_p=work.top_p)
        return config
