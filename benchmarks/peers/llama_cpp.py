"""llama.cpp through llama-cpp-python: plain and with prompt lookup, one stream at a time."""

from __future__ import annotations

import os
import time
from typing import Any

from llama_cpp import Llama
from llama_cpp.llama_speculative import LlamaPromptLookupDecoding

from benchmarks.pairs.formats import converted
from benchmarks.peers.engine import Answer, Generated, Models, Setting, Work

_CONTEXT = 1024
_TOP_K = 50  # as transformers has it by default


class LlamaCpp:
    """The weights once, with a drafter for each setting that asked for one."""

    def __init__(self, models: Models) -> None:
        self._path = str(converted("gguf", models.target) / "model.gguf")
        self._loaded: dict[int, Any] = {}

    def run(self, work: Work, setting: Setting) -> Answer:
        """Setting: `num_pred_tokens`, 0 for plain decoding. Streams come one after another."""
        drafted = setting["num_pred_tokens"]
        if drafted not in self._loaded:
            self._loaded = {drafted: self._load(drafted)}
        model = self._loaded[drafted]
        return Answer([self._one(model, list(prompt), work) for prompt in work.prompts])

    def _load(self, drafted: int) -> Any:
        drafter = LlamaPromptLookupDecoding(num_pred_tokens=drafted) if drafted else None
        return Llama(
            self._path,
            n_ctx=_CONTEXT,
            n_batch=_CONTEXT,  # a prompt at once: with a drafter it needs the scores of all rows
            n_threads=os.cpu_count(),
            n_threads_batch=os.cpu_count(),
            draft_model=drafter,
            seed=7,
            verbose=False,
        )

    def _one(self, model: Any, prompt: list[int], work: Work) -> Generated:
        began = time.perf_counter()
        model.reset()  # else it would find the prompt of the last repetition in its cache
        ids: list[int] = []
        first = last = 0.0
        sampling = {"temp": work.temperature, "top_p": work.top_p, "min_p": 0.0, "top_k": _TOP_K}
        for token in model.generate(prompt, **sampling):
            last = time.perf_counter() - began
            first = first or last
            ids.append(int(token))
            if token == model.token_eos() or len(ids) == work.new_tokens:
                break
        return Generated(ids, first, last)
