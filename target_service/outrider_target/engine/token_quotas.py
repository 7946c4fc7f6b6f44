"""How many tokens a caller may have in a minute. Lives in the asyncio loop; knows nothing of gRPC.

A token bucket for each caller: it holds a minute's tokens and fills steadily. A prompt is taken
from it before the request is let in, an answer as it is written. Answers are never cut: a bucket
may fall below empty, and what is owed flows back first.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable

from outrider_runtime.errors import TokenQuotaExceeded

_SECONDS = 60.0
_ROUNDING = 0.001
"""Milliseconds by which sums of times may be off."""
_FEW = 1024
"""Accounts that are not worth clearing up."""


class TokenQuotas:
    """The buckets of all callers."""

    def __init__(
        self, per_minute: int | None, *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        """All buckets are full.

        Args:
            per_minute: What a bucket holds, and what flows into it in a minute; None: there is no
                end to it.
            clock: Seconds, from any start.
        """
        self._per_minute = per_minute
        self._clock = clock
        # When each bucket will be full again, which tells how much is in it now (the generic cell
        # rate algorithm, ITU-T I.371). One that is full has no entry.
        self._full_at: dict[str, float] = {}
        self._too_many = _FEW

    def check(self, account: str, num_tokens: int = 1) -> None:
        """See whether a bucket holds so many, or is full.

        Raises:
            TokenQuotaExceeded: It will later.
        """
        if self._per_minute is None:
            return
        now = self._clock()
        wanted = min(num_tokens, self._per_minute)
        seconds_to_full = self._full_at.get(account, now) - now
        wait = seconds_to_full - (self._per_minute - wanted) * _SECONDS / self._per_minute
        milliseconds = math.ceil(1000 * wait - _ROUNDING)  # whole ones, never too few
        if milliseconds > 0:
            raise TokenQuotaExceeded(self._per_minute, milliseconds / 1000)

    def take(self, account: str, num_tokens: int) -> None:
        """Take tokens out of a bucket that holds them, or is full.

        Raises:
            TokenQuotaExceeded: As `check`; nothing is taken.
        """
        self.check(account, num_tokens)
        self.charge(account, num_tokens)

    def charge(self, account: str, num_tokens: int) -> None:
        """Take tokens out of a bucket, however much it holds."""
        if self._per_minute is None:
            return
        now = self._clock()
        full_at = max(now, self._full_at.get(account, now))
        self._full_at[account] = full_at + num_tokens * _SECONDS / self._per_minute
        if len(self._full_at) > self._too_many:  # there may be more callers than memory
            self._full_at = {name: at for name, at in self._full_at.items() if at > now}
            self._too_many = max(_FEW, 2 * len(self._full_at))
