"""transformers' `generate`: plain, assisted, with prompt lookup; on one model object."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import torch
import transformers
from transformers import AutoModelForCausalLM
from transformers.generation import candidate_generator

from benchmarks.peers.engine import Answer, Generated, Models, Setting, Work


class TransformersGenerate:
    """Plain decoding takes streams as a padded batch; with drafts it knows batches of one only."""

    def __init__(self, models: Models) -> None:
        self._model = _load(models.target)
        self._assistant = _load(models.draft)
        self._tally = _Tally()

    def run(self, work: Work, setting: Setting) -> Answer:
        """Setting: `mode` (plain, assisted, lookup), `threads`, and options of the drafter."""
        torch.set_num_threads(setting["threads"])
        self._tally.clear()
        streams = work.streams if setting["mode"] == "plain" else 1
        generated: list[Generated] = []
        for start in range(0, len(work.prompts), streams):
            generated += self._generate(work.prompts[start : start + streams], work, setting)
        return Answer(generated, self._tally.drafted, self._tally.accepted)

    def _generate(
        self, prompts: Sequence[Sequence[int]], work: Work, setting: Setting
    ) -> list[Generated]:
        eos = self._model.generation_config.eos_token_id
        width = max(map(len, prompts))
        ids = torch.tensor([[eos] * (width - len(p)) + list(p) for p in prompts])
        mask = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in prompts])
        options: dict[str, Any] = {"do_sample": work.temperature > 0}
        if work.temperature > 0:
            options |= {"temperature": work.temperature, "top_p": work.top_p}
            torch.manual_seed(7)
        if setting["mode"] == "lookup":
            options["prompt_lookup_num_tokens"] = setting["num_tokens"]
        elif setting["mode"] == "assisted":
            # "heuristic" writes its state back into the assistant's configuration.
            self._assistant.generation_config.update(**setting["assistant"])
            options["assistant_model"] = self._assistant
        clock = _Clock()
        output = self._model.generate(
            input_ids=ids,
            attention_mask=mask,
            max_new_tokens=work.new_tokens,
            pad_token_id=eos,
            streamer=clock,
            **options,
        )
        return [
            Generated(_until(row.tolist(), eos), clock.first, clock.last)
            for row in output[:, width:]
        ]


# transformers is untyped.
class _Clock(transformers.generation.streamers.BaseStreamer):  # type: ignore[misc]
    """Notes when the first and the last tokens came; the prompt comes before them."""

    def __init__(self) -> None:
        self._began = time.perf_counter()
        self._prompt_seen = False
        self.first = 0.0
        self.last = 0.0

    def put(self, value: torch.Tensor) -> None:
        if not self._prompt_seen:
            self._prompt_seen = True
            return
        self.last = time.perf_counter() - self._began
        self.first = self.first or self.last

    def end(self) -> None:
        """Nothing is held back."""


class _Tally:
    """Counts drafted and accepted tokens, which `generate` does not tell."""

    def __init__(self) -> None:
        self.clear()
        for kind in (
            candidate_generator.AssistedCandidateGenerator,
            candidate_generator.PromptLookupCandidateGenerator,
        ):
            self._watch(kind)

    def clear(self) -> None:
        self.drafted = self.accepted = 0

    def _watch(self, kind: Any) -> None:
        propose, learn = kind.get_candidates, kind.update_candidate_strategy

        def get_candidates(generator: Any, input_ids: torch.Tensor, *rest: Any, **more: Any) -> Any:
            candidates = propose(generator, input_ids, *rest, **more)
            self.drafted += candidates[0].shape[1] - input_ids.shape[1]
            return candidates

        def update(generator: Any, ids: torch.Tensor, scores: torch.Tensor, matches: int) -> Any:
            self.accepted += int(matches)
            return learn(generator, ids, scores, matches)

        kind.get_candidates, kind.update_candidate_strategy = get_candidates, update


def _load(folder: Any) -> transformers.PreTrainedModel:
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


def _until(token_ids: list[int], eos: int) -> list[int]:
    return token_ids[: token_ids.index(eos) + 1] if eos in token_ids else token_ids
