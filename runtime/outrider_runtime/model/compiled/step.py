"""A compiled forward, bound to a model's weights: what the runner calls in place of the model.

Knows nothing of how it was compiled.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import cast

import torch
from transformers import PreTrainedModel

from outrider_runtime.model.batch import RaggedBatch


class UnusableStep(Exception):
    """The compiled forward does not fit the model; says why in one line."""


class CompiledStep:
    """One library call a forward. Other threads of the interpreter run meanwhile.

    Args:
        package: what `compiler` wrote.
        model: whose weights it works on, where they lie; must be kept.

    Raises:
        UnusableStep: it is not of this model, or cannot be loaded.
    """

    def __init__(self, package: Path, model: PreTrainedModel) -> None:
        own = dict(model.named_parameters(remove_duplicate=False))
        own |= model.named_buffers(remove_duplicate=False)
        self._every = torch.arange(512)
        try:
            self._step = torch.classes.outrider.Step(str(package))
            # The program calls the model `model`.
            names = [(name, name.removeprefix("model.")) for name in self._step.weights()]
            unknown = next((known for _, known in names if known not in own), None)
            if unknown is not None:
                raise UnusableStep(f"the model has no {unknown}")
            self._step.bind({name: own[known].detach() for name, known in names})
        except RuntimeError as error:
            raise UnusableStep(str(error).splitlines()[0]) from error

    def run(self, inputs: list[torch.Tensor]) -> torch.Tensor:
        """Appends a batch's keys and values to the storage and computes logits.

        Args:
            inputs: see `inputs`.

        Returns:
            float32 [wanted rows, vocab].
        """
        logits = self._step.run(inputs)
        return cast("torch.Tensor", logits)[0]

    def run_greedily(
        self,
        inputs: list[torch.Tensor],
        places: torch.Tensor,
        least_log_probs: torch.Tensor | None,
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
        """As `run`, and then goes on with the token that each sequence's last row scored highest.

        Args:
            inputs: see `inputs`; logits are wanted of the last row of each sequence.
            places: int64 [further steps, 4, sequences]: of the row of each its position, its slot,
                its sequence in the batch and its place there.
            least_log_probs: float32 [sequences], see `Runner.forward_greedily`.

        Returns:
            Of each step the tokens, int64, their scores, float32, and given `least_log_probs` their
            log-probabilities, float32; [steps, sequences].
        """
        found = self._step.run_greedily(inputs, places, least_log_probs)
        return cast("tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]", found)

    def inputs(self, batch: RaggedBatch, layers: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """What the program is given, in the order of `compiler.Inputs`.

        Args:
            batch: what to compute.
            layers: of each layer the rows of its KV storage.
        """
        pages = batch.pages
        wanted = batch.logits_rows
        if wanted is None:
            wanted = self._first(batch.input_ids.shape[1])
        return [
            batch.input_ids,
            batch.position_ids,
            batch.write_slots,
            pages.rows_of,
            pages.tables,
            wanted,
            *layers,
        ]

    def _first(self, count: int) -> torch.Tensor:
        """0 to `count` - 1."""
        if count > len(self._every):
            self._every = torch.arange(count)
        return self._every[:count]
