"""Which plug-ins a request names, and with which parameters. Whether they exist is not known here.

A value is refused with the name of its field.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

from outrider.v1 import generation_pb2, plugins_pb2
from outrider_runtime.errors import InvalidRequest

from outrider_target.plugins import PluginCall, PluginKind

MAX_PLUGINS = 16
"""Of a kind, in one request: each runs for every token."""
MAX_PARAMETER_BYTES = 65_536


def plugin_calls(message: generation_pb2.GenerateRequest) -> tuple[PluginCall, ...]:
    """The plug-ins that a request names.

    Raises:
        InvalidRequest: There are too many, one has no name, or parameters are no JSON object.
    """
    return (
        *_calls(PluginKind.LOGITS_PROCESSOR, message.logits_processors),
        *_calls(PluginKind.STOPPING_CRITERION, message.stopping_criteria),
    )


def _calls(kind: PluginKind, calls: Iterable[plugins_pb2.PluginCall]) -> list[PluginCall]:
    calls = list(calls)
    if len(calls) > MAX_PLUGINS:
        raise InvalidRequest(kind, f"at most {MAX_PLUGINS} are possible, got {len(calls)}")
    return [_call(kind, f"{kind}[{index}]", call) for index, call in enumerate(calls)]


def _call(kind: PluginKind, field: str, call: plugins_pb2.PluginCall) -> PluginCall:
    if not call.name:
        raise InvalidRequest(f"{field}.name", "must not be empty")
    return PluginCall(kind, call.name, _parameters(f"{field}.parameters", call.parameters), field)


def _parameters(field: str, text: str) -> dict[str, Any]:
    if not text:
        return {}
    if (size := len(text.encode())) > MAX_PARAMETER_BYTES:
        raise InvalidRequest(field, f"has {size} bytes; at most {MAX_PARAMETER_BYTES} are possible")
    try:
        value = json.loads(text, parse_constant=_no_number)
    except RecursionError:
        raise InvalidRequest(field, "is nested too deeply") from None
    except ValueError as error:
        raise InvalidRequest(field, f"is not JSON: {error}") from None
    if not isinstance(value, dict):
        raise InvalidRequest(field, "must be a JSON object")
    return value


def _no_number(name: str) -> float:
    raise ValueError(f"{name} is not a number")
