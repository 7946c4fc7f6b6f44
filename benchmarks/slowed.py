"""The commands of the two services, each of whose forwards takes a fixed time longer.

`python -m benchmarks.slowed [ARGUMENTS] target|draft --step-delay-ms N` stands in for a large model
on an accelerator: such a forward takes its time whatever its rows, and leaves the processor to
others meanwhile. Plain and speculative steps are slowed alike.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from typing import Any
from unittest import mock

import torch
from outrider_draft import __main__ as draft
from outrider_runtime.model.ragged_runner import RaggedRunner
from outrider_target import __main__ as target

FLAG = "--step-delay-ms"

_COMMANDS: dict[str, tuple[Callable[[], None], str]] = {
    "target": (target.main, "outrider_target.engine.loaded_runner.RaggedRunner"),
    "draft": (draft.main, "outrider_draft.model_drafter.RaggedRunner"),
}


def main() -> None:
    """Serve as the command does."""
    program, *arguments, service, flag, milliseconds = sys.argv
    if service not in _COMMANDS or flag != FLAG:
        raise SystemExit(f"usage: [ARGUMENTS] target|draft {FLAG} N")
    sys.argv = [program, *arguments]
    delay = float(milliseconds) / 1000
    command, runner = _COMMANDS[service]

    class SlowedRunner(RaggedRunner):
        """Sleeps after each forward, as if it waited for a device."""

        def forward(self, *args: Any, **options: Any) -> torch.Tensor:
            logits = super().forward(*args, **options)
            time.sleep(delay)
            return logits

        @property
        def runs_greedily(self) -> bool:
            """Not several forwards in one go: each is to sleep."""
            return False

    with mock.patch(runner, SlowedRunner):
        command()


if __name__ == "__main__":
    main()
