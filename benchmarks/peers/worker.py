"""`python -m benchmarks.peers.worker`: a peer in its own process, told by lines of JSON.

The first line out says that it is ready; then a line in is a workload and the line out its answer.
Whatever the peer itself prints goes to stderr.
"""

from __future__ import annotations

import importlib
import json
import os
import sys
import time
from pathlib import Path
from typing import Any, TextIO

from benchmarks.peers.catalogue import ENGINES
from benchmarks.peers.engine import Answer, Engine, Models, Work


def main() -> None:
    """Serve until stdin ends."""
    name, target, draft = sys.argv[1:]
    out = _own_stdout()
    module, _, kind = ENGINES[name].entry.partition(":")
    engine: Engine = getattr(importlib.import_module(module), kind)(
        Models(Path(target), Path(draft))
    )
    print(json.dumps({"ready": True}), file=out, flush=True)
    for line in sys.stdin:
        print(json.dumps(_run(engine, json.loads(line))), file=out, flush=True)


def _run(engine: Engine, message: dict[str, Any]) -> dict[str, Any]:
    began = time.perf_counter()
    try:
        answer: Answer = engine.run(Work(**message["work"]), message["setting"])
    except Exception as error:  # what a peer raises is its own affair, and told as such
        return {"error": f"{type(error).__name__}: {error}"}
    return {"seconds": time.perf_counter() - began, **answer._asdict()}


def _own_stdout() -> TextIO:
    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    return out


if __name__ == "__main__":
    main()
