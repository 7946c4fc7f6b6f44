"""Which layers a request contrasts: `dola_layers` made out for the served model.

A value is refused with the name of its field.
"""

from __future__ import annotations

from collections.abc import Sequence

from outrider.v1.generation_config_pb2 import GenerationConfig
from outrider_runtime.errors import InvalidRequest, UnsupportedOption
from outrider_runtime.model.runner import LayerShapes

FIELD = "generation_config.dola_layers"

_DEEP = 40
"""More layers than this, and only 20 of them are looked at."""


def premature_layers(config: GenerationConfig, layers: LayerShapes | None) -> Sequence[int]:
    """The layers to contrast the last one with; empty without DoLa.

    Args:
        config: The merged configuration.
        layers: The served model's; None where they cannot be read.

    Raises:
        InvalidRequest: There are no such layers.
        UnsupportedOption: The model's layers cannot be read.
    """
    form = config.WhichOneof("dola_layers")
    if form is None:
        return ()
    if layers is None:
        raise UnsupportedOption(
            FIELD, "what passes between this model's layers is not one vector per token"
        )
    if form == "dola_layers_mode":
        return _part(config.dola_layers_mode, layers)
    chosen = tuple(dict.fromkeys(config.dola_layers_indices.indices))
    if not chosen or max(chosen) >= layers.num_layers:
        raise InvalidRequest(
            FIELD,
            "must name layers before the last: 0 (the embeddings) to "
            f"{layers.num_layers - 1}, got {list(chosen)[:8]}",
        )
    return chosen


def _part(mode: str, layers: LayerShapes) -> Sequence[int]:
    """Every second layer of the lower or the upper half, as transformers picks them."""
    count = layers.num_layers
    if mode == "high":
        return range(count // 2 if count <= _DEEP else count - 20, count, 2)
    if mode != "low":
        raise InvalidRequest(FIELD, f"must be low, high, or a list of layers, got {mode!r}")
    # With tied embeddings the head of layer 0 would only give back the token that was read.
    first = min(count - 1, 2) if layers.tied else 0
    end = count // 2 if count <= _DEEP else 20
    found = range(first, end, 2) if first != count // 2 else range(first, first + 1)
    if not found:
        raise InvalidRequest(
            FIELD, f"low names no layer of a model of {count} layers with tied embeddings"
        )
    return found
