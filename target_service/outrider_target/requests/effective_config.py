"""The configuration in force: request over the model's generation_config.json over global defaults.

This is transformers' own order (5.x): a field the request leaves unset is taken from the model's
file, then from the global defaults; a field named in `clear_fields` is "explicitly None" and takes
neither. Knows nothing of which fields are honoured.
"""

from __future__ import annotations

from collections.abc import Mapping

from outrider.v1.generation_config_pb2 import GenerationConfig
from outrider_contract.generation_config import (
    FIELD_NAMES,
    GLOBAL_DEFAULTS,
    copy_field,
    from_json_dict,
    is_set,
)
from outrider_runtime.errors import InvalidRequest

_PER_PROMPT = frozenset({"max_length"})
"""Global defaults that depend on the prompt: `validation` resolves them."""


def merge(
    request: GenerationConfig,
    model: GenerationConfig,
    server_defaults: Mapping[str, object],
) -> GenerationConfig:
    """Merge the three sources.

    Args:
        request: What the caller set.
        model: The model's generation_config.json.
        server_defaults: Values that take the place of transformers' global defaults, by name.

    Raises:
        InvalidRequest: `clear_fields` names an unknown field, or one that is also set.
    """
    cleared = set(request.clear_fields)
    for name in sorted(cleared):
        if name not in FIELD_NAMES:
            raise InvalidRequest(
                "generation_config.clear_fields", f"{name!r} is not a field of GenerationConfig"
            )
        if is_set(request, name):
            raise InvalidRequest(
                "generation_config.clear_fields", f"{name!r} is both set and cleared"
            )
    defaults = from_json_dict(
        {k: v for k, v in {**GLOBAL_DEFAULTS, **server_defaults}.items() if k not in _PER_PROMPT}
    )
    effective = GenerationConfig()
    for name in FIELD_NAMES:
        for source in (request, model, defaults):
            if is_set(source, name):
                if source is request or name not in cleared:
                    copy_field(source, effective, name)
                break
    return effective
