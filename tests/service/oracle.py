"""What a sequence must be, token by token: the model alone, whole prefixes, no cache, no batch."""

from __future__ import annotations

from pathlib import Path

import torch
from outrider.v1 import generation_pb2 as pb
from outrider_runtime.conversion import sampling_parameters
from outrider_runtime.model.selection import RowGroup, select_tokens
from transformers import AutoModelForCausalLM


class Oracle:
    """The tiny model on transformers' own attention."""

    def __init__(self, folder: Path) -> None:
        self._model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float64).eval()

    @torch.inference_mode()
    def sequence(
        self, started: pb.GenerationStarted, prompt: list[int], *, sample_index: int, count: int
    ) -> list[int]:
        """The first `count` tokens of one sequence of the request that `started` answers."""
        parameters = sampling_parameters(
            started.effective_config,
            num_prompt_tokens=len(prompt),
            max_length=started.effective_config.max_length,
        )
        token_ids = list(prompt)
        for _ in range(count):
            logits = self._model(torch.tensor([token_ids]), use_cache=False).logits[0, -1:]
            group = RowGroup(
                parameters=parameters,
                seed=started.seed,
                sample_index=sample_index,
                token_ids=token_ids,
                num_rows=1,
                num_prompt_tokens=len(prompt),
            )
            token_ids += select_tokens(logits, [group]).token_ids
        return token_ids[len(prompt) :]
