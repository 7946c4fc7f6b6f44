"""How many streams a caller may have open. Lives in the asyncio loop; knows nothing of gRPC."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

from outrider_runtime.errors import TooManyStreams


class OpenStreams:
    """Counts the open streams of each caller.

    Args:
        most: Streams of one caller at a time.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._open: Counter[str] = Counter()

    @contextmanager
    def one_more(self, caller: str) -> Iterator[None]:
        """A stream that is open until the block ends.

        Raises:
            TooManyStreams: The caller has as many as it may.
        """
        if self._open[caller] >= self._most:
            raise TooManyStreams(self._most)
        self._open[caller] += 1
        try:
            yield
        finally:
            self._open[caller] -= 1
            if not self._open[caller]:
                del self._open[caller]  # there may be more callers than memory
