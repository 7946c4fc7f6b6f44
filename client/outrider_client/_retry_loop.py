"""Tries a call until it succeeds or is not worth another try, for threads and for event loops.

When and how long is decided in `_retry`. Knows nothing of what is called.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import TypeVar

import grpc

from outrider_client._request import new_request_id
from outrider_client._retry import Attempts
from outrider_client._statuses import from_rpc_error

_T = TypeVar("_T")


def retrying(
    attempt: Callable[[float | None, str], _T],
    attempts: Attempts,
    *,
    request_id: str | None,
    sleep: Callable[[float], None],
) -> _T:
    """Returns the result of the first try that has one.

    Args:
        attempt: One try, from the seconds left (or None) and a request id. Raises grpc.RpcError.
        attempts: When to stop.
        request_id: The caller's own id for every try. Otherwise each has a fresh one, so that it
            cannot collide with a try that the server has not noticed to be dead.
        sleep: Waits for a number of seconds.

    Raises:
        OutriderError: The last try failed.
    """
    while True:  # bounded by `attempts`
        name = request_id or new_request_id()
        try:
            return attempt(attempts.remaining(), name)
        except grpc.RpcError as error:
            failure = from_rpc_error(error, request_id=name)
            delay = attempts.delay(failure)
            if delay is None:
                raise failure from error
        sleep(delay)


async def retrying_async(
    attempt: Callable[[float | None, str], Awaitable[_T]],
    attempts: Attempts,
    *,
    request_id: str | None,
    sleep: Callable[[float], Awaitable[None]],
) -> _T:
    """`retrying` for an event loop."""
    while True:  # bounded by `attempts`
        name = request_id or new_request_id()
        try:
            return await attempt(attempts.remaining(), name)
        except grpc.RpcError as error:
            failure = from_rpc_error(error, request_id=name)
            delay = attempts.delay(failure)
            if delay is None:
                raise failure from error
        await sleep(delay)


def task_is_cancelled() -> bool:
    """Whether an asyncio.CancelledError in the current task is about the task itself.

    A call that was cancelled from this side raises the same exception out of its awaits; only the
    task knows the difference.
    """
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0
