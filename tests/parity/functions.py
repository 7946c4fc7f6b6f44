"""A request's additions as the functions that `generate` takes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from importlib import import_module
from typing import Any

import torch
from outrider_client import Plugin
from outrider_runtime.plugins import PluginContext
from parity.additions import Additions
from parity.forms import Followers
from parity.seeded import NothingToChoose

MAKERS = {"alternate": "Alternate", "insist": "insist", "digest": "digest"}


def functions(
    additions: Additions, followers: Followers | None, *, length: int, context: PluginContext
) -> dict[str, Any]:
    """Arguments of `generate`.

    Args:
        additions: What the request asks for.
        followers: In its form.
        length: Of the prompt.
        context: For plug-ins.
    """
    arguments: dict[str, Any] = {}
    processors = [_processor(_made(each, context), length) for each in additions.logits_processors]
    criteria = [_criterion(_made(each, context), length) for each in additions.stopping_criteria]
    if additions.negative_prompt is not None:
        arguments["negative_prompt_ids"] = torch.tensor([list(additions.negative_prompt)])
    if followers is not None:

        def allowed(_: int, token_ids: torch.Tensor) -> list[int]:
            found = followers.allowed(token_ids[length:].tolist())
            if not found:
                raise NothingToChoose
            return found

        def ended(token_ids: Sequence[int], _: int) -> bool:
            return not followers.allowed(token_ids[length:])

        def kept(token_ids: Sequence[int], _: int, scores: torch.Tensor) -> torch.Tensor:
            banned = torch.ones_like(scores, dtype=torch.bool)
            banned[followers.allowed(token_ids[length:])] = False
            return scores.masked_fill(banned, -torch.inf)

        arguments["prefix_allowed_tokens_fn"] = allowed
        criteria.append(_criterion(ended, length))
        if processors:  # of the operator's plug-ins none gets round a form
            processors.append(_processor(kept, length))
    return arguments | {"logits_processor": processors, "stopping_criteria": criteria}


def _made(plugin: Plugin, context: PluginContext) -> Any:
    make = getattr(import_module("awkward_plugins"), MAKERS[plugin.name])
    return make(context, **plugin.parameters)


def _processor(run: Callable[..., torch.Tensor], length: int) -> Any:
    return lambda ids, scores: torch.stack(
        [run(row.tolist(), length, each.clone()) for row, each in zip(ids, scores, strict=True)]
    )


def _criterion(run: Callable[..., bool], length: int) -> Any:
    return lambda ids, _, **__: torch.tensor([run(row.tolist(), length) for row in ids])
