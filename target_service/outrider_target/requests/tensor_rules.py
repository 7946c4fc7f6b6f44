"""Which tensors a request asks for, and whether they are few enough to send.

A value is refused with the name of its field.
"""

from __future__ import annotations

from dataclasses import dataclass

from outrider.v1.generation_config_pb2 import GenerationConfig
from outrider_runtime.errors import InvalidRequest, UnsupportedOption
from outrider_runtime.model.runner import LayerShapes

from outrider_target.requests.request import TensorKind, TensorWishes


@dataclass(frozen=True, slots=True)
class TensorSizes:
    """What decides how large a served model's tensors are."""

    vocab_size: int
    layers: LayerShapes | None
    """None where a model's layers cannot be read."""
    element_size: int
    """Bytes of a number in hidden states and attention weights."""
    max_bytes: int
    """Most that a request may ask for."""


_SCORE_SIZE = 4  # float32, whatever the model


def tensor_wishes(
    config: GenerationConfig,
    *,
    num_prompt_tokens: int,
    max_length: int,
    num_sequences: int,
    sizes: TensorSizes,
) -> TensorWishes:
    """The tensors that a merged configuration asks for.

    Args:
        config: The merged configuration.
        num_prompt_tokens: Length of the prompt.
        max_length: Total length at which generation stops: what is counted on.
        num_sequences: Sequences of the request.
        sizes: The served model's.

    Raises:
        InvalidRequest: Together they may become too large.
        UnsupportedOption: The model's layers cannot be read.
    """
    kinds = [kind for kind in TensorKind if getattr(config, kind)]
    num_layers = 0 if sizes.layers is None else sizes.layers.num_layers
    total = 0
    for kind in kinds:
        field = f"generation_config.{kind}"
        if kind in (TensorKind.HIDDEN_STATES, TensorKind.ATTENTIONS):
            _check_readable(kind, field, sizes.layers)
        total += num_sequences * _bytes(kind, num_prompt_tokens, max_length, sizes)
        if total > sizes.max_bytes:
            raise InvalidRequest(
                field,
                f"with it the request asks for up to {total} bytes of tensors ({num_sequences} "
                f"sequences of {max_length} tokens, {num_prompt_tokens} of them prompt); at most "
                f"{sizes.max_bytes} are possible (--max-tensor-bytes); ask for fewer new tokens",
            )
    return TensorWishes(frozenset(kinds), num_layers)


def _check_readable(kind: TensorKind, field: str, layers: LayerShapes | None) -> None:
    if layers is None:
        raise UnsupportedOption(
            field, "what passes between this model's layers is not one vector per token"
        )
    if kind is TensorKind.ATTENTIONS and len(set(layers.attention_heads)) != 1:
        raise UnsupportedOption(field, "this model's layers have different numbers of heads")


def _bytes(kind: TensorKind, num_prompt_tokens: int, max_length: int, sizes: TensorSizes) -> int:
    """Of one sequence of the greatest possible length."""
    if kind in (TensorKind.SCORES, TensorKind.LOGITS):
        return (max_length - num_prompt_tokens) * sizes.vocab_size * _SCORE_SIZE
    assert sizes.layers is not None
    if kind is TensorKind.HIDDEN_STATES:
        per_position = (sizes.layers.num_layers + 1) * sizes.layers.hidden_size
        return (max_length - 1) * per_position * sizes.element_size
    # Position p attends to p + 1 positions.
    pairs = max_length * (max_length - 1) // 2
    return pairs * sum(sizes.layers.attention_heads) * sizes.element_size
