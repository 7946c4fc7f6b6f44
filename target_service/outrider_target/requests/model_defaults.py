"""A model's own generation defaults, as far as they can be served.

A model's file may name beams or a cache implementation, have a temperature of 0 or an end token
that the embedding has no row for. That must not make every request fail, nor change what its sender
did not say; so such values are left out when the service starts. Knows nothing of requests.
"""

from __future__ import annotations

from outrider.v1.generation_config_pb2 import GenerationConfig
from outrider_contract.generation_config import FIELD_NAMES, clear, copy_field, is_set
from outrider_runtime.errors import InvalidRequest

from outrider_target.requests.field_rules import check_values
from outrider_target.requests.request import TensorKind

_HARMLESS_OUTSIDE = (
    "eos_token_id",
    "forced_eos_token_id",
    "suppress_tokens",
    "begin_suppress_tokens",
)
"""Lists whose ids mean nothing where the model cannot emit them: the others still count."""


def servable_defaults(
    config: GenerationConfig, *, vocab_size: int
) -> tuple[GenerationConfig, dict[str, str]]:
    """What of a model's defaults is served.

    Args:
        config: The model's own.
        vocab_size: Token ids it can emit.

    Returns:
        The defaults, and for each name left out, wholly or in part, why.
    """
    served, dropped = GenerationConfig(), {}
    served.CopyFrom(config)
    for name in _HARMLESS_OUTSIDE:
        ids = getattr(served, name).ids
        if outside := [token_id for token_id in ids if token_id >= vocab_size]:
            dropped[name] = f"token ids {outside} are outside the vocabulary of {vocab_size}"
            ids[:] = [token_id for token_id in ids if token_id < vocab_size]
            if not ids:
                clear(served, name)
    for kind in TensorKind:
        if getattr(served, kind):
            clear(served, kind)
            dropped[kind] = "tensors are sent to those who ask for them"
    for name in FIELD_NAMES:
        if not is_set(served, name):
            continue
        alone = GenerationConfig()
        copy_field(served, alone, name)
        try:
            check_values(alone, vocab_size)
        except InvalidRequest as error:
            clear(served, name)
            dropped[name] = error.why
    return served, dropped
