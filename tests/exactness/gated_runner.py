"""A ragged runner that a test can halt between rounds, to have something happen exactly there."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import torch
from exactness.loop_thread import PATIENCE
from outrider_runtime.model.ragged_runner import RaggedRunner
from outrider_runtime.model.runner import nothing


class Gate:
    """Lets a number of forwards pass, then holds the engine until it is opened."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._left: int | None = None  # forwards that may pass; None: all
        self._held = False

    def close_after(self, num_forwards: int) -> None:
        """Hold the engine before the forward after this many; held now, it goes on till then."""
        self._set(num_forwards)

    def open(self) -> None:
        """Let everything pass again."""
        self._set(None)

    def wait_until_held(self) -> None:
        """Wait until the engine stands at the gate."""
        with self._changed:
            assert self._changed.wait_for(lambda: self._held, PATIENCE), "the engine did not come"

    def pass_through(self) -> None:
        """Called by the engine before each forward."""
        with self._changed:
            if self._left == 0:
                self._held = True
                self._changed.notify_all()
                assert self._changed.wait_for(lambda: self._left != 0, PATIENCE), "nobody opened"
            if self._left is not None:
                self._left -= 1

    def _set(self, left: int | None) -> None:
        with self._changed:
            self._left = left
            self._held = False
            self._changed.notify_all()


class GatedRunner(RaggedRunner):
    """A runner with a gate; open unless a test closes it."""

    def __init__(self, *args: Any, gate: Gate, **options: Any) -> None:
        self._gate = gate
        super().__init__(*args, **options)

    def forward(
        self, *args: Any, before: Callable[[], None] = nothing, **options: Any
    ) -> torch.Tensor:
        before()  # drafters are told of the last round while the target stands at the gate
        self._gate.pass_through()
        return super().forward(*args, **options)
