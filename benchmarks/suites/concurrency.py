"""1 to 64 streams: everybody who can take them, and transformers one after another."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from benchmarks import prompts
from benchmarks.arena import arena
from benchmarks.contenders import Workload
from benchmarks.pairs.catalogue import pair
from benchmarks.peers.catalogue import ONE_AT_A_TIME
from benchmarks.suites.options import Options

_STREAMS = (1, 2, 4, 8, 16, 32, 64)
_NEW_TOKENS = {"shipped": 48, "100m": 32, "500m": 16}
# Of those that take requests one after another, the one that the bar is set by.
_SEQUENTIAL = "transformers assisted"


def run(options: Options) -> Iterator[dict[str, Any]]:
    """A cell for each pair and number of streams; as many prompts as streams, at least four."""
    streams = options.streams or _STREAMS
    for name in options.pairs or ("shipped",):
        new_tokens = options.new_tokens or _NEW_TOKENS[name]
        # What is best for many streams is chosen with several.
        several = min(4, max(streams))
        trial = Workload(prompts.code(several), several, False, new_tokens)
        with arena(pair(name), trial, streams=max(streams), wanted=_wanted(options)) as everybody:
            for temperature in options.temperatures or (0.0,):
                for count in streams:
                    work = Workload(
                        prompts.code(max(4, count)),
                        count,
                        temperature > 0,
                        new_tokens,
                        temperature or 1.0,
                    )
                    cell = everybody.measure(work, options.repetitions)
                    yield {"pair": name, "text": "code", **cell}


def _wanted(options: Options) -> Any:
    def wanted(contender: str) -> bool:
        alone = contender in ONE_AT_A_TIME and contender != _SEQUENTIAL
        return not alone and options.wanted(contender)

    return wanted
