"""Whose turn it is among the sequences that wait. Knows nothing of blocks, models or gRPC."""

from __future__ import annotations

import heapq
import itertools
from collections import Counter, defaultdict, deque
from collections.abc import Iterable, Iterator

from outrider_target.engine.sequence import Sequence


class Turns:
    """The order of admission: a caller with a long queue holds up nobody but itself.

    Those that ran and lost their place come first. Then always one of the caller who has least in
    the batch; of callers who have equally much, whose turn is longest ago, and then who came first.
    A caller's own are served in the order of their arrival. All who have no name are one caller.
    What is decoded again for comparison comes last, and is nobody's.
    """

    def __init__(self) -> None:
        self._numbers = itertools.count(1)
        self._latest: dict[str, int] = {}
        """Number of the latest turn of each caller who has something here."""

    def order(self, waiting: Iterable[Sequence], running: Iterable[Sequence]) -> Iterator[Sequence]:
        """All that wait. A caller has had its turn once the one after it is asked for.

        Args:
            waiting: In order of arrival, those that lost their place in front.
            running: What is in the batch.
        """
        share = Counter[str]()
        for sequence in running:
            if sequence.request.is_replay:
                continue
            share[sequence.state.caller] += sequence.strategy.width
        queues: defaultdict[str, deque[tuple[int, Sequence]]] = defaultdict(deque)
        replays: list[Sequence] = []
        for place, sequence in enumerate(waiting):
            if sequence.request.is_replay:
                replays.append(sequence)
            elif sequence.num_preemptions:
                share[sequence.state.caller] += sequence.strategy.width
                yield sequence
            else:
                queues[sequence.state.caller].append((place, sequence))
        here = queues.keys() | share.keys()
        self._latest = {c: turn for c, turn in self._latest.items() if c in here}
        turns = [(share[c], self._latest.get(c, 0), q[0][0], c) for c, q in queues.items()]
        heapq.heapify(turns)
        while turns:
            size, _, _, caller = heapq.heappop(turns)
            _, sequence = queues[caller].popleft()
            yield sequence
            self._latest[caller] = turn = next(self._numbers)
            if queue := queues[caller]:
                size += sequence.strategy.width
                heapq.heappush(turns, (size, turn, queue[0][0], caller))
        yield from replays
