"""The plug-ins that this server offers, and those that a request names, made for it.

What a plug-in is, and how a package offers one, is in `outrider_runtime.plugins`. Installed is not
offered: the operator names each. Knows nothing of the wire.
"""

from __future__ import annotations

import asyncio
import importlib.metadata
import inspect
from collections.abc import Callable, Mapping, Sequence
from enum import StrEnum
from typing import Any, NamedTuple

import structlog
from outrider_runtime.errors import InvalidRequest, PluginFailed, StartupError, UnsupportedOption
from outrider_runtime.model.row_group import NamedProcessor
from outrider_runtime.plugins import (
    LOGITS_PROCESSORS,
    STOPPING_CRITERIA,
    PluginContext,
)

from outrider_target.requests.request import NO_PLUGINS, NamedCriterion, RequestPlugins

log = structlog.get_logger()


class PluginKind(StrEnum):
    """What a plug-in does; also the request's field that names some of the kind."""

    LOGITS_PROCESSOR = "logits_processors"
    STOPPING_CRITERION = "stopping_criteria"


_GROUPS = {
    PluginKind.LOGITS_PROCESSOR: LOGITS_PROCESSORS,
    PluginKind.STOPPING_CRITERION: STOPPING_CRITERIA,
}


class Plugin(NamedTuple):
    """A plug-in that is offered."""

    kind: PluginKind
    name: str
    summary: str
    make: Callable[..., Any]


class PluginCall(NamedTuple):
    """A plug-in that a request names.

    Attributes:
        kind: What it is to do.
        name: Its name.
        parameters: Its keyword arguments.
        field: The request's field that names it, for errors.
    """

    kind: PluginKind
    name: str
    parameters: Mapping[str, Any]
    field: str


class PluginRegistry:
    """The plug-ins on offer."""

    def __init__(self, plugins: Sequence[Plugin] = ()) -> None:
        self.plugins = tuple(plugins)
        self._by_key = {(plugin.kind, plugin.name): plugin for plugin in plugins}

    async def make(self, calls: Sequence[PluginCall], context: PluginContext) -> RequestPlugins:
        """Make what a request names. Makers may take their time, so they run in a thread.

        Raises:
            UnsupportedOption: A name is not on offer.
            InvalidRequest: A maker refuses its parameters.
            PluginFailed: A maker raised anything else.
        """
        if not calls:
            return NO_PLUGINS
        return await asyncio.to_thread(self._make, calls, context)

    def _make(self, calls: Sequence[PluginCall], context: PluginContext) -> RequestPlugins:
        processors: list[NamedProcessor] = []
        criteria: list[NamedCriterion] = []
        for call in calls:
            made = self._made(call, context)
            if call.kind is PluginKind.LOGITS_PROCESSOR:
                processors.append(NamedProcessor(call.name, made))
            else:
                criteria.append(NamedCriterion(call.name, made))
        return RequestPlugins(tuple(processors), tuple(criteria))

    def _made(self, call: PluginCall, context: PluginContext) -> Any:
        plugin = self._by_key.get((call.kind, call.name))
        if plugin is None:
            offered = [name for kind, name in self._by_key if kind is call.kind]
            raise UnsupportedOption(
                f"{call.field}.name",
                f"{call.name!r} is not offered here; "
                + (f"these are: {', '.join(offered)}" if offered else "none is"),
            )
        try:
            return plugin.make(context, **call.parameters)
        except (TypeError, ValueError) as refusal:
            raise InvalidRequest(f"{call.field}.parameters", str(refusal)) from None
        except Exception as fault:  # a plug-in may raise anything
            log.exception("plugin_failed", plugin=call.name)
            raise PluginFailed(call.name) from fault


def load_plugins(names: Sequence[str]) -> PluginRegistry:
    """Import the plug-ins of these names; a name may stand for one of each kind.

    Raises:
        StartupError: A name is not installed, installed twice, or cannot be imported.
    """
    plugins: list[Plugin] = []
    for name in dict.fromkeys(names):
        found = [plugin for kind in PluginKind if (plugin := _load(kind, name)) is not None]
        if not found:
            groups = " or ".join(_GROUPS.values())
            raise StartupError(f"--plugin {name}: no installed package offers it ({groups})")
        plugins += found
    return PluginRegistry(plugins)


def _load(kind: PluginKind, name: str) -> Plugin | None:
    # The same entry point is listed twice where a folder is on the path twice.
    found = {
        entry.value: entry
        for entry in importlib.metadata.entry_points(group=_GROUPS[kind], name=name)
    }
    if not found:
        return None
    if len(found) > 1:
        raise StartupError(f"--plugin {name}: several packages offer it: {', '.join(found)}")
    ((value, entry),) = found.items()
    try:
        make = entry.load()
    except Exception as error:  # whatever a package does when it is imported
        raise StartupError(f"--plugin {name}: cannot load {value}: {error!r}") from error
    if not callable(make):
        raise StartupError(f"--plugin {name}: {value} cannot be called")
    documentation = inspect.getdoc(make) or ""
    return Plugin(kind, name, documentation.partition("\n")[0], make)
