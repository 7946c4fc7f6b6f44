"""One stream: everybody on code, greedy and sampled."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

from benchmarks import prompts
from benchmarks.arena import arena
from benchmarks.contenders import Workload
from benchmarks.pairs.catalogue import pair
from benchmarks.suites.options import Options


class Size(NamedTuple):
    """How much a suite generates: about as long on every pair."""

    prompts: int
    new_tokens: int


SIZES = {"shipped": Size(8, 64), "100m": Size(3, 40), "500m": Size(2, 24)}
_TEMPERATURES = (0.0, 0.7)
# Streams are what it is for.
_NOT_HERE = "transformers continuous batching"


def run(options: Options) -> Iterator[dict[str, Any]]:
    """A cell for each pair and temperature."""
    for name in options.pairs or ("shipped",):
        size = SIZES[name]
        chosen = prompts.code(options.prompts or size.prompts)
        new_tokens = options.new_tokens or size.new_tokens
        trial = Workload(chosen[:1], 1, False, new_tokens)

        def wanted(contender: str) -> bool:
            return contender != _NOT_HERE and options.wanted(contender)

        with arena(pair(name), trial, streams=1, wanted=wanted) as everybody:
            for temperature in options.temperatures or _TEMPERATURES:
                work = Workload(chosen, 1, temperature > 0, new_tokens, temperature or 1.0)

                cell = everybody.measure(work, options.repetitions)
                yield {"pair": name, "text": "code", **cell}
