"""Plug-ins of the server: how a request names one, and what the server says of those it offers."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum, unique
from typing import Any

from outrider.v1 import plugins_pb2

from outrider_client._errors import InvalidRequestError


@dataclass(frozen=True, slots=True)
class Plugin:
    """A plug-in that a request names.

    Raises:
        InvalidRequestError: The parameters cannot be written as a JSON object.
    """

    name: str
    """Its name; `ServerInfo.plugins` lists them."""

    parameters: Mapping[str, Any] = field(default_factory=dict)
    """Its parameters, by name."""

    def __post_init__(self) -> None:
        self.to_message()

    def to_message(self) -> plugins_pb2.PluginCall:
        """The message of the contract."""
        try:
            text = json.dumps(dict(self.parameters), allow_nan=False) if self.parameters else ""
            return plugins_pb2.PluginCall(name=self.name, parameters=text)
        except (TypeError, ValueError, RecursionError) as error:
            raise InvalidRequestError(
                f"plug-in {self.name!r:.60}: cannot be sent: {error}", field="parameters"
            ) from None


def plugin_calls(field: str, plugins: Sequence[Plugin | str]) -> list[plugins_pb2.PluginCall]:
    """The messages for plug-ins, each given whole or, without parameters, by its name.

    Raises:
        TypeError: One is neither.
        InvalidRequestError: A name cannot be sent.
    """
    if isinstance(plugins, str) or not isinstance(plugins, Sequence):
        raise TypeError(f"{field} must be a list of plug-ins")
    named = [Plugin(plugin) if isinstance(plugin, str) else plugin for plugin in plugins]
    if not all(isinstance(plugin, Plugin) for plugin in named):
        raise TypeError(f"{field} must hold Plugin objects or names")
    return [plugin.to_message() for plugin in named]


@unique
class PluginKind(StrEnum):
    """What a plug-in does."""

    UNKNOWN = "unknown"
    """Something of a newer server."""

    LOGITS_PROCESSOR = "logits-processor"
    """Changes the scores of the next token."""

    STOPPING_CRITERION = "stopping-criterion"
    """Ends a sequence."""


@dataclass(frozen=True, slots=True)
class PluginInfo:
    """A plug-in that the server offers."""

    name: str
    """Its name."""

    kind: PluginKind
    """What it does."""

    summary: str
    """The first line of its documentation."""

    @classmethod
    def from_message(cls, message: plugins_pb2.PluginInfo) -> PluginInfo:
        """The plug-in in a message."""
        return cls(message.name, _KINDS.get(message.kind, PluginKind.UNKNOWN), message.summary)


_KINDS = {
    plugins_pb2.PLUGIN_KIND_LOGITS_PROCESSOR: PluginKind.LOGITS_PROCESSOR,
    plugins_pb2.PLUGIN_KIND_STOPPING_CRITERION: PluginKind.STOPPING_CRITERION,
}
