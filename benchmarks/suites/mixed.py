"""Code, prose and repetition; greedy, at T=0.7 and at T=1: where drafting pays, and where less."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from benchmarks import prompts
from benchmarks.arena import arena
from benchmarks.contenders import Workload
from benchmarks.pairs.catalogue import pair
from benchmarks.suites.options import Options

_TEMPERATURES = (0.0, 0.7, 1.0)
_PROMPTS = 4
_NEW_TOKENS = {"shipped": 48, "100m": 32, "500m": 16}


def run(options: Options) -> Iterator[dict[str, Any]]:
    """A cell for each pair, kind of text, temperature and number of streams."""
    kinds = {
        "code": prompts.code(_PROMPTS),
        "prose": prompts.prose(),
        "repetition": prompts.repetition(),
    }
    for name in options.pairs or ("shipped",):
        new_tokens = options.new_tokens or _NEW_TOKENS[name]
        streams = options.streams or (1,)
        trial = Workload([kind[0] for kind in kinds.values()], 1, False, new_tokens)
        with arena(pair(name), trial, streams=max(streams), wanted=options.wanted) as everybody:
            for text, chosen in kinds.items():
                for temperature in options.temperatures or _TEMPERATURES:
                    for count in streams:
                        work = Workload(
                            chosen[: options.prompts],
                            count,
                            temperature > 0,
                            new_tokens,
                            temperature or 1.0,
                        )

                        cell = everybody.measure(work, options.repetitions)
                        yield {"pair": name, "text": text, **cell}
