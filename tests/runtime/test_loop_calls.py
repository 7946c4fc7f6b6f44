"""Calls into a loop from other threads: all of them, in order, and the loop gets no say before."""

from __future__ import annotations

import asyncio
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator

import pytest
from outrider_runtime.loop_calls import LoopCalls


@pytest.fixture
def nobody_is_interrupted() -> Iterator[None]:
    """Whoever has the interpreter keeps it until giving it away.

    On a single core: whoever is woken may take the processor from who wakes, as on a busy machine.
    """
    interval, cores = sys.getswitchinterval(), os.sched_getaffinity(0)
    sys.setswitchinterval(60.0)
    os.sched_setaffinity(0, {min(cores)})
    yield
    os.sched_setaffinity(0, cores)
    sys.setswitchinterval(interval)


async def in_thread(function: Callable[[], None]) -> None:
    thread = threading.Thread(target=function)
    thread.start()
    await asyncio.to_thread(thread.join)


async def test_everything_is_called_in_order() -> None:
    seen: list[int] = []
    calls = LoopCalls(asyncio.get_running_loop())
    done = asyncio.Event()

    def from_thread() -> None:
        for number in range(500):
            calls.call_soon(seen.append, number)
            if number % 100 == 0:
                time.sleep(0.001)
        calls.call_soon(done.set)

    await in_thread(from_thread)
    await asyncio.wait_for(done.wait(), 10)
    assert seen == list(range(500))
    calls.close()


async def test_the_loop_waits_until_the_thread_gives_the_interpreter_away(
    nobody_is_interrupted: None,
) -> None:
    calls = LoopCalls(asyncio.get_running_loop())
    called = threading.Event()
    too_soon, in_time = [], []

    def from_thread() -> None:
        for _ in range(50):
            called.clear()
            calls.call_soon(called.set)
            until = time.perf_counter() + 0.002
            while time.perf_counter() < until:  # at work, and nothing here gives it away
                pass
            too_soon.append(called.is_set())
            in_time.append(called.wait(10))

    await in_thread(from_thread)
    assert not any(too_soon)
    assert all(in_time)
    calls.close()


async def test_a_fault_in_one_call_is_the_loops_and_the_others_go_on() -> None:
    loop = asyncio.get_running_loop()
    faults: list[object] = []
    loop.set_exception_handler(lambda _, context: faults.append(context["exception"]))
    calls, done = LoopCalls(loop), asyncio.Event()

    def fails() -> None:
        raise KeyError("no")

    calls.call_soon(fails)
    calls.call_soon(done.set)
    await asyncio.wait_for(done.wait(), 10)
    assert [type(fault) for fault in faults] == [KeyError]
    calls.close()


async def test_after_the_end_nothing_happens_and_nothing_is_left_open() -> None:
    open_before = len(os.listdir("/proc/self/fd"))
    seen: list[int] = []
    calls = LoopCalls(asyncio.get_running_loop())
    calls.call_soon(seen.append, 1)
    calls.close()
    calls.call_soon(seen.append, 2)
    calls.close()
    await asyncio.sleep(0.01)
    assert seen == []
    assert len(os.listdir("/proc/self/fd")) == open_before
