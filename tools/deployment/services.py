"""The two services as manifests see them: their commands' flags, and the metrics they export."""

from __future__ import annotations

import functools
import importlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import typer


class Service(NamedTuple):
    """A service that containers run."""

    command: str
    module: str
    grpc_name: str
    title: str
    """Of its section in docs/observability.md."""


TARGET = Service(
    "outrider-target", "outrider_target", "outrider.v1.GenerationService", "Target service"
)
DRAFT = Service("outrider-draft", "outrider_draft", "outrider.v1.DraftService", "Draft service")
_METRICS = Path(__file__).resolve().parents[2] / "docs" / "observability.md"

BY_IMAGE: Mapping[str, Service] = {
    "outrider-target": TARGET,
    "outrider-draft": DRAFT,
    "outrider-draft-lookup": DRAFT,
}
"""Images of the Dockerfile, by what their entry point runs."""


def settings(
    service: Service, arguments: Iterable[str], environment: Mapping[str, str]
) -> Mapping[str, Any]:
    """What the command makes of its arguments and its environment.

    Raises:
        ValueError: It refuses them: an unknown flag, a value that makes no sense, a variable of
            ours that no flag reads.
    """
    command = _command(service)
    known = {option.envvar: option for option in command.params}
    if unknown := sorted(
        name for name in environment if name.startswith("OUTRIDER_") and name not in known
    ):
        raise ValueError(f"{service.command} reads no {unknown[0]}")
    # As flags: what click reads from the environment is this process's.
    told = [
        f"{known[name].opts[0]}={value}" for name, value in environment.items() if name in known
    ]
    try:
        with command.make_context(service.command, [*told, *arguments]) as context:
            return dict(context.params)
    except Exception as error:
        # typer brings a click of its own: its errors are not always click's.
        format_message = getattr(error, "format_message", None)
        if format_message is None:
            raise
        raise ValueError(f"{service.command}: {format_message()}") from None


@functools.cache
def _command(service: Service) -> Any:
    return typer.main.get_command(importlib.import_module(f"{service.module}.__main__").app)


@functools.cache
def gauges(service: Service) -> frozenset[str]:
    """Names of the gauges without labels that a service exports.

    From docs/observability.md, which a test holds to what running services export.
    """
    _, _, rest = _METRICS.read_text().partition(f"\n### {service.title}\n")
    section, _, _ = rest.partition("\n#")
    rows = ([cell.strip() for cell in line.split("|")[1:4]] for line in section.splitlines())
    return frozenset(row[0].strip("`") for row in rows if row[1:] == ["gauge", ""])
