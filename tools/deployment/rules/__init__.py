"""What manifests of ours have to keep to, beyond being valid."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from tools.deployment.render import Object
from tools.deployment.rules import network, pods, scaling, serving

RULES: tuple[Callable[[list[Object]], Iterator[str]], ...] = (
    pods.problems,
    serving.problems,
    network.problems,
    scaling.problems,
)
