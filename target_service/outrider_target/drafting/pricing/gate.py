"""Whether asking a remote drafter pays, by what rounds really take with and without it. Pure.

An answer costs more than the wait for it: frames, the drafter's share of a machine that both may
be on, the rows that verify it, rounds that are split because some drafts came later than others.
So nothing is added up. Short runs of rounds in which everybody may ask, and in which nobody does,
are timed next to each other; the median of the ratios of such neighbours is what asking costs. The
gain is known from every round: what was accepted beyond what the drafts at hand would have brought.

What is not done is tried again now and then, at intervals that grow but end at some bound, so that
a drafter which becomes good is found.
"""

from __future__ import annotations

import itertools
import statistics
from collections import deque

from outrider_target.drafting.pricing.gain import Gain
from outrider_target.drafting.pricing.runs import RUN, SETTLING, PairedRatio, Regime, Run
from outrider_target.drafting.pricing.step_costs import size_class

LONG_RUN = 32
"""Rounds of a trial that looks promising after the first of them."""

FIRST_INTERVAL = 128
LAST_INTERVAL = 1024
"""Rounds between trials."""

_LEAST_PRICE = 0.02
"""Share of a round that an answer costs at least, whatever was timed."""

_HYSTERESIS = 0.1
"""What is done goes on until it is worse by such a share."""


class Gate:
    """Decides who may ask. One for the whole target."""

    def __init__(self, *, plain_share: float = 0.0) -> None:
        """Begin with runs of both kinds.

        Args:
            plain_share: Share of rounds that run plainly, to measure what drafts gain. 0: none.
        """
        self.asked_over_quiet = PairedRatio()
        """Rounds in which everybody may ask, over rounds in which nobody does."""
        self.drafted_over_plain = PairedRatio()
        """Rounds as they are, over plain ones."""
        self.at_hand = Gain()
        """Accepted tokens a round that need no answer."""
        self._pools: dict[int, Gain] = {}
        self._now = 0  # rounds
        self._plan: deque[Regime] = deque()
        self._schedule(Regime.ASKED, Regime.QUIET, Regime.ASKED, Regime.QUIET)
        self._run = Run(Regime.ASKED, 0)
        self._before: Run | None = None
        self._last: dict[Regime, Run] = {}
        self._allowed = self._kept = 0  # answers to "may I ask?" since the last round
        self._ratio: float | None = None  # what asking costs in batches as they are now
        self._resting_at: int | None = None  # size class of the batches that rest
        self._steady: Regime | None = None
        self._interval = FIRST_INTERVAL
        self._next_trial = FIRST_INTERVAL
        self._trial: list[tuple[Gain, float]] | None = []  # gains while a trial is under way
        self._plain_interval = round(RUN / plain_share) if plain_share else 0
        self._next_plain = self._plain_interval

    @property
    def regime(self) -> Regime:
        """What holds for the next round."""
        return self._plan[0] if self._plan else Regime.FREE

    @property
    def ended(self) -> Regime:
        """What the last round was like."""
        return self._run.kind

    @property
    def resting(self) -> bool:
        """Whether it is settled for now that nobody asks: rounds then need no bookkeeping."""
        return self._resting_at is not None

    @property
    def horizon(self) -> int:
        """Rounds to come, at least 1, in which nobody asks, whatever they bring."""
        if self._plan:
            kind = self.regime
            if kind is Regime.ASKED:
                return 1
            return sum(1 for _ in itertools.takewhile(lambda one: one is kind, self._plan))
        nobody_would = self._run.kind in (Regime.QUIET, Regime.PLAIN) and self._none_pays()
        return max(1, self._next_event - self._now) if nobody_would else 1

    def gain_of(self, temperature: int) -> Gain:
        """A new sequence's gain; those of a temperature class share what they learn."""
        if temperature not in self._pools:
            self._resting_at = None  # of these nothing is known
        return Gain(self._pools.setdefault(temperature, Gain()))

    def allows(self, gain: Gain, *, asking: bool) -> bool:
        """Whether a sequence may ask for its next round.

        Args:
            gain: What answers have brought it.
            asking: Whether it was allowed to for the last.
        """
        allowed = self._decide(gain, asking=asking)
        if allowed:
            self._allowed += 1
        else:
            self._kept += 1
            gain.fade()  # others may have found something meanwhile
        return allowed

    def brought(self, gain: Gain, tokens: float) -> None:
        """A sequence that was allowed to ask got so many tokens beyond those at hand."""
        gain.observe(tokens)
        if self._trial is not None:
            self._trial.append((gain, tokens))

    def rest(self, num_sequences: int) -> bool:
        """Count a round of so many from which nothing is to be learned; whether it was one.

        The last rounds before something is to be timed are what that is compared with.
        """
        if self._resting_at != size_class(num_sequences) or self._now >= self._next_event - 2 * RUN:
            return False
        self._now += 1
        self._allowed = self._kept = 0
        return True

    def observe(self, cost: float | None, num_sequences: int) -> None:
        """Learn from a round, and settle what holds for the next.

        Args:
            cost: Seconds for each sequence that took part, on a scale that does not depend on how
                many there are; None when it did something else beside decoding.
            num_sequences: Those that run.
        """
        self._now += 1
        kind = self._kind()
        if kind is not self._run.kind:
            self._before = self._last[self._run.kind] = self._run
            self._run = Run(kind, self._now)
        if cost is not None and self._run.add(cost, num_sequences, self._now):
            self._compare()
        if self._plan:
            self._follow_plan()
        else:
            self._make_plan()
        self._ratio = self.asked_over_quiet.value(num_sequences)
        self._resting_at = size_class(num_sequences) if self._settled(kind) else None
        self._allowed = self._kept = 0

    def interrupted(self) -> None:
        """Rounds came between that are not of this gate: no run has neighbours across them."""
        if self._run.started == self._now and not self._last:
            return  # as the last round was
        self._run = Run(self._run.kind, self._now)
        self._before = None
        self._resting_at = None
        self._last.clear()

    @property
    def _next_event(self) -> int:
        """The round at which something is to be timed, or later."""
        return min(self._next_trial, self._next_plain) if self._plain_interval else self._next_trial

    def _settled(self, kind: Regime) -> bool:
        """Whether nobody asks, the run has been compared, and no sequence has reason to."""
        quiet = kind is Regime.QUIET and self._run.complete
        return quiet and not self._plan and bool(self._pools) and self._none_pays()

    def _none_pays(self) -> bool:
        """Whether answers are known to bring less than they cost, to whoever may ask."""
        price = self._price(asking=False)
        return all(
            price is not None and pool.known and pool.mean <= price for pool in self._pools.values()
        )

    def _decide(self, gain: Gain, *, asking: bool) -> bool:
        if self.regime is not Regime.FREE:
            return self.regime is Regime.ASKED
        price = self._price(asking=asking)
        return price is None or not gain.known or gain.mean > price

    def _price(self, *, asking: bool) -> float | None:
        """Tokens that a round's answer must bring: those its time would bring otherwise."""
        if self._ratio is None:
            return None  # nothing speaks against it yet
        price = max(_LEAST_PRICE, self._ratio - 1) * (1 + self.at_hand.mean)
        return price * (1 - _HYSTERESIS if asking else 1 + _HYSTERESIS)

    def _kind(self) -> Regime:
        """What the round that has just ended was like."""
        if self.regime is Regime.PLAIN:
            return Regime.PLAIN
        if not self._allowed:
            return Regime.QUIET
        return Regime.FREE if self._kept else Regime.ASKED

    def _compare(self) -> None:
        """Time the run's beginning against the end of what was before."""
        run, before = self._run, self._before
        if run.kind is Regime.ASKED and Regime.QUIET in self._last:
            ratio = run.over(self._last[Regime.QUIET])
            if ratio is not None:
                self.asked_over_quiet.add(run.size, ratio)
        elif run.kind is Regime.QUIET and Regime.ASKED in self._last:
            ratio = run.over(self._last[Regime.ASKED])
            if ratio is not None:
                self.asked_over_quiet.add(run.size, 1 / ratio)
        if before is None or Regime.PLAIN not in (run.kind, before.kind):
            return
        if (ratio := run.over(before)) is not None:
            plain_now = run.kind is Regime.PLAIN
            self.drafted_over_plain.add(run.size, 1 / ratio if plain_now else ratio)

    def _follow_plan(self) -> None:
        ended = self._plan.popleft()
        if self.regime is ended:
            return
        if ended is Regime.ASKED:
            self._end_trial()
        if self.regime is Regime.ASKED and self._trial is None:
            self._trial = []

    def _make_plan(self) -> None:
        """Time what is not done, when that is due."""
        kind = self._run.kind
        if kind is not Regime.PLAIN:
            if self._steady not in (None, kind):
                # Sooner, but not at once: near the price it may go to and fro.
                self._interval = max(FIRST_INTERVAL, self._interval // 2)
                self._next_trial = min(self._next_trial, self._now + self._interval)
            self._steady = kind
        if self._now >= self._next_trial:
            if kind is not Regime.QUIET:
                self._schedule(Regime.QUIET)
            if kind is not Regime.ASKED:
                self._schedule(Regime.ASKED)
            self._interval = min(2 * self._interval, LAST_INTERVAL)
            self._next_trial = self._now + self._interval
        elif self._plain_interval and self._now >= self._next_plain:
            self._schedule(Regime.PLAIN)
            self._next_plain = self._now + self._plain_interval
        if self.regime is Regime.ASKED:
            self._trial = []

    def _end_trial(self) -> None:
        """Go on with a trial that looks promising; believe one that went on."""
        trial, self._trial = self._trial or [], None
        price = self._price(asking=True)
        if not trial or price is None:
            return
        if self._run.ended - self._run.started >= LONG_RUN - RUN:
            for pool in self._pools.values():
                of_pool = [tokens for gain, tokens in trial if gain.prior is pool]
                if of_pool:
                    pool.replace(statistics.fmean(of_pool), len(of_pool))
        elif (
            statistics.fmean(tokens for _, tokens in trial[len(trial) * SETTLING // RUN :]) > price
        ):
            self._trial = trial
            self._plan.extendleft([Regime.ASKED] * (LONG_RUN - RUN))

    def _schedule(self, *regimes: Regime) -> None:
        self._plan.extend(regime for regime in regimes for _ in range(RUN))
