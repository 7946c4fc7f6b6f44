"""A service each of whose forwards takes a given time: `... --slowed target|draft MS MS_A_ROW`.

Stands in for a device of known speed; the processor is left to others meanwhile. The flags of the
service come first.
"""

from __future__ import annotations

import importlib
import sys
import time
from collections.abc import Sequence
from typing import Any
from unittest import mock

import torch
from outrider_runtime.model.batch import SequenceRows
from outrider_runtime.model.ragged_runner import RaggedRunner

from tools.sizing.deployment import Cost

FLAG = "--slowed"
_PLACES = {
    "target": ("outrider_target", "outrider_target.engine.loaded_runner.RaggedRunner"),
    "draft": ("outrider_draft", "outrider_draft.model_drafter.RaggedRunner"),
}


def main() -> None:
    """Serve."""
    *flags, flag, role, milliseconds, a_row = sys.argv[1:]
    if flag != FLAG:
        raise SystemExit(f"{FLAG} with its three values must come last, got {flag}")
    module, place = _PLACES[role]
    cost = Cost(float(milliseconds) / 1e3, float(a_row) / 1e3)

    class SlowedRunner(RaggedRunner):
        """Returns when the time is over."""

        def forward(self, batch: Sequence[SequenceRows], **options: Any) -> torch.Tensor:
            due = time.monotonic() + cost.of(sum(len(item.token_ids) for item in batch))
            logits = super().forward(batch, **options)
            time.sleep(max(0.0, due - time.monotonic()))
            return logits

    sys.argv = [module, *flags]
    with mock.patch(place, SlowedRunner):
        importlib.import_module(f"{module}.__main__").main()


if __name__ == "__main__":
    main()
