"""When to try a call again, and how long to wait before that.

Pure arithmetic over a clock: knows nothing of calls, threads and event loops, and does not sleep.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable

import grpc

from outrider_client._errors import (
    DeadlineExceededError,
    InvalidRequestError,
    OutriderError,
    OverloadedError,
)

MAX_TIMEOUT = 1e6
"""Longest timeout in seconds. Far longer ones overflow inside gRPC and expire at once."""

INITIAL_DELAY = 0.5
"""Seconds before the first retry, doubled for each further one, less up to half by jitter."""

MAX_DELAY = 8.0
"""Longest such delay in seconds."""

MAX_RETRY_AFTER = 60.0
"""Longest delay in seconds that a server may ask for; beyond it the caller decides."""


def check_timeout(timeout: float | None) -> float | None:
    """Returns `timeout` in seconds if it is None or in (0, 1e6].

    gRPC itself takes 0 for "no deadline" and overflows on huge values.

    Raises:
        InvalidRequestError: It is anything else.
    """
    if timeout is None:
        return None
    valid = isinstance(timeout, int | float) and not isinstance(timeout, bool)
    if not valid or math.isnan(timeout) or not 0 < timeout <= MAX_TIMEOUT:
        raise InvalidRequestError(
            f"timeout: must be in (0, {MAX_TIMEOUT:g}] seconds, or None for no deadline, "
            f"got {timeout!r}",
            field="timeout",
        )
    return float(timeout)


class Attempts:
    """The tries of one call: what time is left, and whether another one is worth it.

    The clock starts with the first of them.
    """

    __slots__ = ("_clock", "_deadline", "_failed", "_max_retries", "_timeout")

    def __init__(
        self, max_retries: int, *, timeout: float | None, clock: Callable[[], float]
    ) -> None:
        self._max_retries = max_retries
        self._clock = clock
        self._timeout = timeout
        self._deadline: float | None = None
        self._failed = 0

    def remaining(self) -> float | None:
        """Seconds left for the next try; None without a deadline.

        Raises:
            DeadlineExceededError: None are left.
        """
        if self._timeout is None:
            return None
        if self._deadline is None:
            self._deadline = self._clock() + self._timeout
        left = self._deadline - self._clock()
        if left <= 0:
            raise DeadlineExceededError(
                "the timeout passed before the server took the request",
                code=grpc.StatusCode.DEADLINE_EXCEEDED,
            )
        return left

    def delay(self, error: OutriderError) -> float | None:
        """Counts a failed try; returns the seconds to wait before the next, or None to give up.

        Exponential backoff with jitter, and never earlier than the server asked for.
        """
        self._failed += 1
        # A cancellation that nobody here asked for comes from a server that stops in the middle
        # of accepting the call: as good as unavailable.
        again = error.retryable or error.code is grpc.StatusCode.CANCELLED
        if not again or self._failed > self._max_retries:
            return None
        backoff = min(MAX_DELAY, INITIAL_DELAY * 2.0 ** (self._failed - 1))
        seconds = backoff * random.uniform(0.5, 1.0)
        if isinstance(error, OverloadedError) and error.retry_after is not None:
            if error.retry_after > MAX_RETRY_AFTER:
                return None
            seconds = max(seconds, error.retry_after * random.uniform(1.0, 1.1))
        if self._deadline is not None and self._clock() + seconds >= self._deadline:
            return None
        return seconds


def check_max_retries(max_retries: int) -> int:
    """Returns `max_retries` if it is an integer of at least 0.

    Raises:
        ValueError: It is anything else.
    """
    if isinstance(max_retries, bool) or not isinstance(max_retries, int) or max_retries < 0:
        raise ValueError(f"max_retries: must be an integer of at least 0, got {max_retries!r}")
    return max_retries
