"""Simulates a deployment event by event, batching as the services do.

A drafter steps all sessions that want tokens together, newcomers with its next step. A target
verifies all sequences that are ready together: those whose draft is there, and those that do not
wait for one. With adaptive pacing a sequence waits while its drafter's usual answer takes no longer
than it saves, which is the rule of the target's `drafting/remote/patience.py`; else it decodes
plainly, and tries again now and then. With synchronous pacing it always waits.
"""

from __future__ import annotations

import heapq
import itertools
import random
from collections.abc import Callable

from tools.sizing.capacity import Capacity
from tools.sizing.deployment import Deployment

_ROUNDS = 300
"""Of each sequence; the first third, in which they fall into step, does not count."""
# As in patience.py.
_SMOOTHING = 0.2
_ROUND_SMOOTHING = 0.1
_PROBE_INTERVAL = 64


class _Place:
    """Something that works for some of the time."""

    busy = 0.0


class _Drafter(_Place):
    def __init__(self) -> None:
        self.waiting: list[int] = []
        self.wanted: dict[int, int] = {}
        """Tokens still to be drafted, by sequence; those of a step that runs included."""
        self.stepping = False


class _Target(_Place):
    def __init__(self, drafters: int) -> None:
        self.ready: list[int] = []
        self.verifying = False
        self.round_seconds = 0.0
        self.latency = [0.0] * drafters
        """Smoothed seconds until an answer, as the target sees it."""
        self.unwaited = [0] * drafters


class Simulation:
    """One run. Sequence `i` is of target `i // sequences` and drafted for by `i % drafters`."""

    def __init__(self, of: Deployment, *, adaptive: bool = True, seed: int = 0) -> None:
        self._of = of
        self._adaptive = adaptive
        self._chance = random.Random(seed)
        self._order = itertools.count()
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._now = 0.0
        self._drafters = [_Drafter() for _ in range(of.drafters)]
        self._targets = [_Target(of.drafters) for _ in range(of.targets)]
        self._asked = [0.0] * of.all_sequences
        self._has_draft = [False] * of.all_sequences
        self._rounds = 0
        self._tokens = 0.0

    def run(self) -> Capacity:
        """Until each sequence had its rounds, on average."""
        of = self._of
        for sequence in range(of.all_sequences):
            # Requests begin at any time.
            self._after(self._chance.random() * of.verify.of(1), self._ask, sequence)
        self._until(of.all_sequences * _ROUNDS // 3)
        began, tokens = self._now, self._tokens
        places: list[_Place] = [*self._drafters, *self._targets]
        for place in places:
            place.busy = 0.0
        self._until(of.all_sequences * _ROUNDS)
        seconds = self._now - began
        return Capacity(
            (self._tokens - tokens) / seconds,
            sum(drafter.busy for drafter in self._drafters) / seconds / of.drafters,
            sum(target.busy for target in self._targets) / seconds / of.targets,
        )

    def _until(self, rounds: int) -> None:
        while self._rounds < rounds:
            self._now, _, happen = heapq.heappop(self._events)
            happen()

    def _after(self, seconds: float, what: Callable[[int], None], number: int) -> None:
        event = (self._now + seconds, next(self._order), lambda: what(number))
        heapq.heappush(self._events, event)

    def _ask(self, sequence: int) -> None:
        self._asked[sequence] = self._now
        self._after(self._of.round_trip / 2, self._arrives, sequence)

    def _arrives(self, sequence: int) -> None:
        """A sequence's committed tokens are at its drafter."""
        number = sequence % self._of.drafters
        self._drafters[number].waiting.append(sequence)
        if not self._drafters[number].stepping:
            self._step(number)

    def _step(self, number: int) -> None:
        drafter = self._drafters[number]
        while drafter.waiting:
            drafter.wanted[drafter.waiting.pop(0)] = self._of.window
        drafter.stepping = bool(drafter.wanted)
        if drafter.stepping:
            seconds = self._of.step.of(min(len(drafter.wanted), self._of.max_lines))
            drafter.busy += seconds
            self._after(seconds, self._stepped, number)

    def _stepped(self, number: int) -> None:
        drafter = self._drafters[number]
        for sequence in list(drafter.wanted)[: self._of.max_lines]:
            left = drafter.wanted.pop(sequence) - 1
            if left:  # behind those that had no turn
                drafter.wanted[sequence] = left
            else:
                self._after(self._of.round_trip / 2, self._is_answered, sequence)
        self._step(number)

    def _is_answered(self, sequence: int) -> None:
        """A sequence's draft is at its target."""
        target, drafter = self._pair(sequence)
        took = self._now - self._asked[sequence]
        usual = target.latency[drafter] or took
        target.latency[drafter] = usual + _SMOOTHING * (took - usual)
        self._is_ready(sequence, has_draft=True)

    def _is_ready(self, sequence: int, *, has_draft: bool) -> None:
        self._has_draft[sequence] = has_draft
        number = sequence // self._of.sequences
        self._targets[number].ready.append(sequence)
        if not self._targets[number].verifying:
            # With all others that are ready at this moment.
            self._targets[number].verifying = True
            self._after(0.0, self._verify, number)

    def _verify(self, number: int) -> None:
        target = self._targets[number]
        together, target.ready = target.ready, []
        target.verifying = bool(together)
        if together:
            drafts = sum(self._has_draft[sequence] for sequence in together)
            seconds = self._of.verify.of(len(together) + drafts * self._of.window)
            target.busy += seconds
            usual = target.round_seconds or seconds
            target.round_seconds = usual + _ROUND_SMOOTHING * (seconds - usual)
            for sequence in together:
                self._after(seconds, self._verified, sequence)
            self._after(seconds, self._verify, number)

    def _verified(self, sequence: int) -> None:
        self._rounds += 1
        self._tokens += self._of.tokens_per_round if self._has_draft[sequence] else 1.0
        if self._is_worth_waiting_for(sequence):
            self._ask(sequence)
        else:
            self._is_ready(sequence, has_draft=False)

    def _is_worth_waiting_for(self, sequence: int) -> bool:
        target, drafter = self._pair(sequence)
        worth = (self._of.tokens_per_round - 1) * target.round_seconds
        if not self._adaptive or target.latency[drafter] <= worth:
            return True
        target.unwaited[drafter] = (target.unwaited[drafter] + 1) % _PROBE_INTERVAL
        return target.unwaited[drafter] == 0

    def _pair(self, sequence: int) -> tuple[_Target, int]:
        number = sequence // self._of.sequences
        return self._targets[number], sequence % self._of.drafters
