"""The command `outrider-target`, each of whose forwards takes a fixed time longer.

Stands in for a large model on an accelerator: such a forward takes its time whatever it verifies,
and leaves the processor to others meanwhile. Plain and speculative steps are slowed alike.
"""

from __future__ import annotations

import sys
import time
from typing import Any
from unittest import mock

import torch
from outrider_runtime.model.runner import RaggedRunner
from outrider_target import __main__ as command

FLAG = "--step-delay-ms"


def main() -> None:
    """Serve as `outrider-target` does. `--step-delay-ms N` comes last."""
    *arguments, flag, milliseconds = sys.argv
    if flag != FLAG:
        raise SystemExit(f"the last flag must be {FLAG}, got {flag}")
    sys.argv = arguments
    delay = float(milliseconds) / 1000

    class SlowedRunner(RaggedRunner):
        """Sleeps after each forward, as if it waited for a device."""

        def forward(self, *args: Any, **options: Any) -> torch.Tensor:
            logits = super().forward(*args, **options)
            time.sleep(delay)
            return logits

    with mock.patch("outrider_target.service.RaggedRunner", SlowedRunner):
        command.main()


if __name__ == "__main__":
    main()
