"""Long prompts: what comes first, and what a token costs behind them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from benchmarks import prompts
from benchmarks.arena import arena
from benchmarks.contenders import Workload
from benchmarks.pairs.catalogue import pair
from benchmarks.suites.options import Options

# The pairs were trained on 1024 positions.
_CONTEXTS = (128, 256, 512, 896)
_NEW_TOKENS = {"shipped": 48, "100m": 24, "500m": 12}


def run(options: Options) -> Iterator[dict[str, Any]]:
    """A cell for each pair and length, greedy, one stream."""
    for name in options.pairs or ("shipped",):
        new_tokens = options.new_tokens or _NEW_TOKENS[name]
        trial = Workload(prompts.long(512, 1), 1, False, new_tokens)
        with arena(pair(name), trial, streams=1, wanted=options.wanted) as everybody:
            for context in _CONTEXTS:
                work = Workload(prompts.long(context, options.prompts or 2), 1, False, new_tokens)
                cell = everybody.measure(work, options.repetitions)
                yield {"pair": name, "text": f"code behind {context} tokens", **cell}
