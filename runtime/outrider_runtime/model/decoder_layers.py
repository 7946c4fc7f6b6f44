"""The layers of a decoder: where they are, what passes between them, and running only the first.

Works through forward hooks that exist only while somebody watches, so that a model nobody asks is
called as it is. Knows nothing of batches or caches.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from outrider_runtime.model.model_facts import text_config


class NoSuchLayers(Exception):
    """The model's layers are not a plain stack through which one hidden state per token passes."""


class DecoderLayers:
    """The stack of layers of a model.

    Args:
        model: any model of transformers whose attention modules carry a `layer_idx`.

    Raises:
        NoSuchLayers: there is no such stack.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        self._model = model
        self._trunk, self._name, self._stack = _find_stack(model)

    def __len__(self) -> int:
        """Number of layers."""
        return len(self._stack)

    @contextmanager
    def watched(self, layers: Collection[int]) -> Iterator[dict[int, torch.Tensor]]:
        """Keeps what forwards within the block compute.

        Args:
            layers: 0 to `len(self)`, as transformers counts hidden states.

        Yields:
            By layer the hidden states [rows, hidden size] of the latest forward.

        Raises:
            NoSuchLayers: by the forward, if what passes is not one hidden state per token.
        """
        seen: dict[int, torch.Tensor] = {}
        last = len(self._stack)

        def keep(layer: int, value: object) -> None:
            state = value[0] if isinstance(value, tuple) else value
            if not isinstance(state, torch.Tensor) or state.ndim != 3 or state.shape[0] != 1:
                raise NoSuchLayers("what passes between its layers is not one vector per token")
            seen[layer] = state[0]

        def on_entry(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            keep(0, args[0] if args else kwargs["hidden_states"])

        with ExitStack() as hooks:
            for layer in layers:
                if layer == last:
                    hook = self._trunk.register_forward_hook(
                        lambda _m, _a, output: keep(last, output[0])
                    )
                elif layer == 0:
                    hook = self._stack[0].register_forward_pre_hook(on_entry, with_kwargs=True)
                else:
                    hook = self._stack[layer - 1].register_forward_hook(
                        lambda _m, _a, output, layer=layer: keep(layer, output)
                    )
                hooks.callback(hook.remove)
            yield seen

    @contextmanager
    def only_first(self, count: int) -> Iterator[None]:
        """Makes forwards within the block end after `count` layers: then final norm and head."""
        setattr(self._trunk, self._name, nn.ModuleList(list(self._stack)[:count]))
        try:
            yield
        finally:
            setattr(self._trunk, self._name, self._stack)

    def project(self, hidden: torch.Tensor) -> torch.Tensor:
        """Scores of the output head alone: [..., hidden size] -> [..., vocab]."""
        scores: torch.Tensor = self._model.get_output_embeddings()(hidden)
        return scores


def _find_stack(model: PreTrainedModel) -> tuple[nn.Module, str, nn.ModuleList]:
    """The module list whose i-th member holds the attention of layer i, and whose it is."""
    # Of the language model, not of an eye.
    count = getattr(text_config(model.config), "num_hidden_layers", None)  # not all say it
    for trunk in model.modules():
        for name, child in trunk.named_children():
            if (
                isinstance(child, nn.ModuleList)
                and len(child) == (count or len(child)) > 0
                and all(_layer_indices(member) == {i} for i, member in enumerate(child))
            ):
                return trunk, name, child
    raise NoSuchLayers("its layers are not one list")


def _layer_indices(layer: nn.Module) -> set[object]:
    found = (module.__dict__.get("layer_idx") for module in layer.modules())
    return {index for index in found if index is not None}
