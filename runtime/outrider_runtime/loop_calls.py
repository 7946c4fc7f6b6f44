"""Calls into an event loop from a thread that has no time to lose.

`call_soon_threadsafe` wakes the loop by a system call that gives the interpreter away. The loop,
awake, keeps it until everything is done that it was woken for: milliseconds where a round told
sixteen streams, and the thread waits for it. Here the loop is woken with the interpreter in hand,
and has it once the thread gives it away itself: while a model computes.
"""

from __future__ import annotations

import asyncio
import ctypes
import os
from collections import deque
from collections.abc import Callable
from typing import ParamSpec

_P = ParamSpec("_P")

_C = ctypes.PyDLL(None)  # unlike a CDLL it keeps the interpreter during calls
_C.eventfd_write.argtypes = ctypes.c_int, ctypes.c_uint64


class LoopCalls:
    """What other threads want done in a loop. Made and closed in the loop's thread."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._calls: deque[Callable[[], object]] = deque()
        self._bell = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        loop.add_reader(self._bell, self._do_all)

    def call_soon(
        self, callback: Callable[_P, object], /, *args: _P.args, **kwargs: _P.kwargs
    ) -> None:
        """Have something called in the loop, in the order of these calls. Any thread; never blocks.

        After `close` nothing happens any more.
        """
        self._calls.append(lambda: callback(*args, **kwargs))
        _C.eventfd_write(self._bell, 1)

    def close(self) -> None:
        """Forget what was not called yet."""
        if self._bell >= 0:
            bell, self._bell = self._bell, -1
            self._loop.remove_reader(bell)
            os.close(bell)
            self._calls.clear()

    def _do_all(self) -> None:
        os.eventfd_read(self._bell)
        for _ in range(len(self._calls)):
            self._loop.call_soon(self._calls.popleft())  # the loop's own way with what they raise
